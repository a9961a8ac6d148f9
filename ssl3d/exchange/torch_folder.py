"""The export for PyTorch, on which the others build.

    encoder.safetensors      weights in PyTorch's names and layout
    encoder.json             settings, rank, channels, origin, SHA-256 of the weights
    encoder.py               the network; load() checks the weights against the reference
    reference.safetensors    an input and the outputs that it must have

of a segmentation, network.* in place of encoder.*.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from ssl3d.atomic import atomic_write, write_json
from ssl3d.errors import UserError
from ssl3d.exchange import source as sources
from ssl3d.exchange.source import Source
from ssl3d.models import safetensors_files, torch_layout

REFERENCE = "reference.safetensors"


def write(source: Source, folder: Path) -> None:
    """Writes the export and reads it back.

    Raises:
      UserError: a network whose outputs are not finite.
      RuntimeError: what was read differs from what was written.
    """
    x = sources.reference_input(source)
    reference = {"input": x} | {
        f"output_{i}": output for i, output in enumerate(sources.outputs(source, x))
    }
    if not all(np.isfinite(array).all() for array in reference.values()):
        raise UserError(f"{source.workdir}: its outputs are not finite; the training diverged")
    write_weights(folder, source.part, source.leaves, source.about)
    channels_first = {
        name: np.ascontiguousarray(np.moveaxis(array, -1, 1)) for name, array in reference.items()
    }
    write_bytes(folder / REFERENCE, save(channels_first))
    copy_script("torch_network.py", folder / f"{source.part}.py")
    _check(source, folder / f"{source.part}.safetensors")


def write_weights(
    folder: Path, part: str, leaves: Mapping[str, np.ndarray], about: Mapping[str, Any]
) -> None:
    """Writes PART.safetensors in PyTorch's names and layout, and PART.json with its checksum.

    Args:
      leaves: the variables by flat name.
      about: for the JSON; "rank" at least.
    """
    weights = save(torch_layout.to_torch(leaves, about["rank"]))
    checksum = hashlib.sha256(weights).hexdigest()
    write_bytes(folder / f"{part}.safetensors", weights)
    described = dict(about) | {"layout": torch_layout.NAME, "sha256": checksum}
    write_json(folder / f"{part}.json", described)


def _check(source: Source, weights: Path) -> None:
    """Reads the weights as JAX would, and compares every array."""
    found, _ = safetensors_files.read(weights)
    rank = source.about["rank"]
    wanted = torch_layout.wanted(source.leaves, rank)
    arrays = torch_layout.from_torch(found, source.leaves, rank)
    equal = all(np.array_equal(arrays[name], leaf) for name, leaf in source.leaves.items())
    if found.keys() != wanted.keys() or len(wanted) != len(source.leaves) or not equal:
        raise RuntimeError(f"{weights}: was not written as it should be")


def copy_script(name: str, target: Path) -> None:
    """Copies a file of this room that runs without ssl3d."""
    with resources.as_file(resources.files(__package__) / name) as file:
        shutil.copyfile(file, target)


def write_bytes(file: Path, data: bytes) -> None:
    with atomic_write(file) as partial:
        partial.write_bytes(data)
