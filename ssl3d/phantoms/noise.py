"""Noise in the shape of a collection: the data set on which no proxy task can be learned.

Every image has the shape, spacing and split of a case of the collection, and the blur of
the collection along each axis. Nothing in it says where a voxel lies, so a proxy accuracy above
chance comes from the task and not from anatomy.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from ssl3d.data import sharpness, store

# Cases whose blur is measured; of one collection they differ little.
_MEASURED = 16


def blurred_noise(
    rng: np.random.Generator,
    shape: Sequence[int],
    channels: int,
    blur: Sequence[float] | np.ndarray,
) -> np.ndarray:
    """Gaussian noise [*shape, C] of unit variance with a blur per axis, in voxels.

    No border: it is cut from a larger volume.
    """
    margins = [int(np.ceil(4 * width)) for width in blur]
    whole = [side + 2 * margin for side, margin in zip(shape, margins, strict=True)]
    inner = tuple(slice(margin, margin + side) for side, margin in zip(shape, margins, strict=True))
    planes = []
    for _ in range(channels):
        noise = rng.standard_normal(whole, np.float32)
        planes.append(ndimage.gaussian_filter(noise, blur, mode="wrap")[inner])
    image = np.stack(planes, axis=-1)
    return image / image.std()


def write(
    folder: Path, like: store.Dataset, cases: Sequence[store.Case], count: int, seed: int
) -> store.Dataset:
    """Writes a noise data set of `count` images and returns it.

    Args:
      like: the data set.
      cases: of it, whose shapes, spacings and splits the images have in turn; each image is of a
        subject of its own.
    """
    step = max(len(cases) // _MEASURED, 1)
    measured = list(cases)[::step][:_MEASURED]
    blur = sharpness.blur_per_axis(store.load_image(like, case) for case in measured)
    written = []
    for index, case in enumerate(itertools.islice(itertools.cycle(cases), count)):
        name = f"noise_{index:04d}"
        image = blurred_noise(np.random.default_rng((seed, index)), case.shape, case.channels, blur)
        files = store.write_arrays(folder, name, image, None)
        written.append(
            dataclasses.replace(
                case,
                id=name,
                subject=name,
                labelled=False,
                grade=None,
                foreground=None,
                files=files,
                extra={},
            )
        )
    dataset = dataclasses.replace(
        like, path=folder, name=f"noise like {like.name}", cases=tuple(written), extra={}
    )
    store.write_manifest(dataset)
    return dataset
