"""Writes the folder of an export, whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ssl3d.errors import UserError
from ssl3d.exchange import hub, monai_bundle, nnunet, source, torch_folder
from ssl3d.exchange.source import Source

Write = Callable[[Source, Path], None]


def export(
    workdir: Path,
    output: Path,
    kind: str,
    model: str = "",
    licence: str = "unknown",
    upload: str = "",
) -> str:
    """Exports a run.

    Args:
      workdir: the run, or the folder of an encoder.
      output: the folder to write, which must be new or empty.
      kind: torch, nnunet, monai or hub.
      model: "best" or "last" for the network of a segmentation; "" for the encoder.
      licence: for the model card of "hub".
      upload: OWNER/NAME to upload "hub" to; "" uploads nothing.

    Returns:
      What was written, and what to do next.

    Raises:
      UserError: nothing to export, no such format for it, or `output` holds something.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output}: already exists; give a new folder, --output=DIR")
    writers: dict[str, Write] = {
        "torch": torch_folder.write,
        "nnunet": nnunet.write,
        "monai": monai_bundle.write,
        "hub": partial(hub.write, licence=licence, repository=upload),
    }
    found = source.read(workdir, model)
    target = output.resolve()  # "." has no name
    exists = target.exists()
    unfinished = (target if exists else target.parent) / f".{os.getpid()}.{target.name}"
    unfinished.mkdir(parents=True)
    try:
        writers[kind](found, unfinished)
        if exists:  # it stays in its place, where it may be a shell's folder or a mount
            for path in unfinished.iterdir():
                path.replace(target / path.name)
        else:
            unfinished.replace(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    if upload:
        return f"{output}: uploaded to {hub.upload(output, upload)}"
    return f"{output}: {found.part} of {workdir}; {_next(output, kind, found)}"


def _next(output: Path, kind: str, found: Source) -> str:
    """How to check and use the export, as a phrase."""
    if kind == "nnunet":
        return f"where torch is installed, run python {output / nnunet.SCRIPT} for the checkpoint"
    scripts = output / "scripts" if kind == "monai" else output
    return f"where torch is installed, check it: python {scripts / found.part}.py"
