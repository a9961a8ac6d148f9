"""Arrays of a network in PyTorch's names and layout; nothing here needs PyTorch.

    params/level_0/first/conv/kernel    [*k, C, D]    level_0.first.conv.weight    [D, C, *k]
    params/decoder/up_0/kernel          [*k, C, D]    decoder.up_0.weight          [C, D, *k]
    params/decoder/logits_0/kernel      [C, K]        decoder.logits_0.weight      [K, C, 1, 1, 1]
    params/level_0/first/norm/scale     [C]           level_0.first.norm.weight    [C]
    batch_stats/level_0/first/norm/var  [C]           ...norm.running_var          [C]

The modules of `resenc` are named as in nnU-Net, so that its weights have nnU-Net's names here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ssl3d.models.safetensors_files import Leaf

NAME = "torch"  # of the layout, in the JSON beside such weights

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# Modules whose kernels are those of transposed convolutions.
_TRANSPOSED = ("up_", "transpconvs.")


class Place(NamedTuple):
    """Where an array is found in PyTorch.

    Attributes:
      name: of the parameter or buffer.
      shape: of the array here, with kernels of one voxel written out.
      axes: the order of these axes there.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]


def place(name: str, shape: tuple[int, ...], rank: int) -> Place:
    """The place of the array of a flat name, e.g. params/stem/conv/kernel."""
    _, *modules, leaf = name.split("/")
    torch_name = ".".join([*modules, _LEAVES[leaf]])
    if leaf != "kernel":
        return Place(torch_name, shape, tuple(range(len(shape))))
    full = (*(1,) * (rank + 2 - len(shape)), *shape)
    inputs, outputs = rank, rank + 1
    first = (inputs, outputs) if modules[-1].startswith(_TRANSPOSED) else (outputs, inputs)
    return Place(torch_name, full, (*first, *range(rank)))


def to_torch(leaves: Mapping[str, np.ndarray], rank: int) -> dict[str, np.ndarray]:
    """Arrays by flat name -> by PyTorch's name, in its layout."""
    found = {}
    for name, leaf in leaves.items():
        there = place(name, leaf.shape, rank)
        array = np.asarray(leaf).reshape(there.shape).transpose(there.axes)
        found[there.name] = np.ascontiguousarray(array)
    return found


def wanted(leaves: Mapping[str, Any], rank: int) -> dict[str, Leaf]:
    """What a file must hold for arrays of these names, shapes and types."""
    places = {name: place(name, leaf.shape, rank) for name, leaf in leaves.items()}
    return {
        there.name: Leaf(tuple(there.shape[axis] for axis in there.axes), leaves[name].dtype)
        for name, there in places.items()
    }


def from_torch(
    found: Mapping[str, np.ndarray], leaves: Mapping[str, Any], rank: int
) -> dict[str, np.ndarray]:
    """The inverse of `to_torch`, for arrays of the names and shapes of `leaves`."""
    arrays = {}
    for name, leaf in leaves.items():
        there = place(name, leaf.shape, rank)
        array = found[there.name].transpose(np.argsort(there.axes)).reshape(leaf.shape)
        arrays[name] = np.ascontiguousarray(array)
    return arrays
