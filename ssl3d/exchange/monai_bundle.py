"""The export for MONAI: a bundle whose networks are built by name.

    configs/metadata.json     what MONAI's bundle specification asks for
    configs/network.json      network_def: the encoder with a new decoder for `classes` outputs, and
                              encoder; or a segmentation's whole network, with its inferer
    scripts/                  what `torch_folder` writes

MONAI takes any torch module, so that the networks are those of the export for PyTorch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ssl3d.atomic import write_json
from ssl3d.exchange import torch_folder
from ssl3d.exchange.source import Source


def write(source: Source, folder: Path) -> None:
    """Writes the export."""
    for name in ("configs", "scripts"):
        (folder / name).mkdir()
    torch_folder.write(source, folder / "scripts")
    torch_folder.write_bytes(folder / "scripts" / "__init__.py", b"")
    write_json(folder / "configs" / "metadata.json", _metadata(source))
    write_json(folder / "configs" / "network.json", _networks(source))


def _networks(source: Source) -> dict[str, Any]:
    load = {"_target_": f"scripts.{source.part}.load"}
    if source.part == "encoder":
        return {"classes": 2, "network_def": load | {"classes": "@classes"}, "encoder": load}
    inferer = {
        "_target_": "SlidingWindowInferer",
        "roi_size": source.about["crop"],
        "sw_batch_size": 4,
        "overlap": 0.5,
        "mode": "gaussian",
    }
    return {"network_def": load, "inferer": inferer}


def _metadata(source: Source) -> dict[str, Any]:
    about = source.about
    image = {
        "type": "image",
        "format": "magnitude",
        "modality": ", ".join(about.get("modalities", ())),
        "num_channels": about["channels"],
        "spatial_shape": about.get("crop", ["*"] * about["rank"]),
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
        "channel_def": dict(enumerate(about.get("modalities", ()))),
    }
    classes = about.get("classes", ["background", "foreground"])
    prediction = image | {
        "format": "segmentation",
        "modality": "n/a",
        "num_channels": about.get("outputs", len(classes)),
        "channel_def": dict(enumerate(classes)),
    }
    return {
        "version": about["version"],
        "changelog": {about["version"]: "exported by ssl3d"},
        "monai_version": "1.4.0",
        "pytorch_version": "2.4.0",
        "numpy_version": "1.26.4",
        "required_packages_version": {"safetensors": "0.4.0"},
        "task": f"{source.part} of {about.get('task', 'a pretraining')}",
        "description": f"pretrained with ssl3d on {about.get('dataset', 'unknown data')}",
        "authors": "",
        "copyright": "",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": prediction}},
    }
