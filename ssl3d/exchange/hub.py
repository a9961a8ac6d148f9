"""The export for the Hugging Face hub: what JAX, PyTorch and nnU-Net need, and a model card."""

from __future__ import annotations

import importlib
from pathlib import Path

from ssl3d.errors import UserError
from ssl3d.exchange import model_card, nnunet, torch_folder
from ssl3d.exchange.source import Source
from ssl3d.models import encoders


def write(source: Source, folder: Path, licence: str, repository: str) -> None:
    """Writes the export; arguments as in `model_card.render`."""
    settings = source.about["encoder"]
    # What nnU-Net cannot use is left out, not refused.
    suits = source.part == "encoder" and encoders.kind_of(settings).nnunet_plan is not None
    suits = suits and settings["norm"] == "instance"
    (nnunet if suits else torch_folder).write(source, folder)
    # By this name the hub counts downloads.
    config = (folder / f"{source.part}.json").read_bytes()
    torch_folder.write_bytes(folder / "config.json", config)
    card = model_card.render(source, licence, repository, suits)
    torch_folder.write_bytes(folder / "README.md", card.encode())


def upload(folder: Path, repository: str) -> str:
    """Uploads a folder as a model; its address.

    Raises:
      UserError: huggingface_hub is not installed, or the hub refuses.
    """
    try:
        hub = importlib.import_module("huggingface_hub")
    except ModuleNotFoundError:
        raise UserError(
            "--upload: needs pip install huggingface_hub; the folder is ready"
        ) from None
    try:
        hub.create_repo(repository, repo_type="model", exist_ok=True)
        return str(hub.upload_folder(repo_id=repository, folder_path=folder, repo_type="model"))
    except Exception as error:  # of the library, its HTTP client, or the network
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--upload={repository}: {reason}; log in with `hf auth login`; the folder is ready"
        ) from None
