"""What the tasks share that see one crop of a volume, and not patches of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ssl3d.data.pipeline import Example, crop
from ssl3d.tasks import Box, Panel


def cut(size: tuple[int, ...]) -> Callable[..., dict[str, np.ndarray]]:
    """A task's `record`: a crop, `volume` [*size, C], and its first voxel, `start`."""

    def record(rng: np.random.Generator, example: Example, train: bool) -> dict[str, np.ndarray]:
        volume, start = crop(rng, example.image, size, train)
        return {"volume": volume, "start": start}

    return record


def panel(record: dict, size: tuple[int, ...]) -> Panel:
    """The whole image with the place of the crop."""
    return Panel("whole image", None, (Box("crop", tuple(record["start"]), size),))
