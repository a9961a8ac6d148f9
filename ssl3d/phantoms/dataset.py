"""The built-in data sets: synthetic brain MR, abdominal CT and fundus photographs.

No download, no patient data: subject i is a pure function of (seed, i). The data sets are written
in the format of `ssl3d.prepare`.
"""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import threadpoolctl
from tqdm import tqdm

from ssl3d.data import intensity, store
from ssl3d.data.preparation.foreground import bounding_box
from ssl3d.errors import UserError
from ssl3d.phantoms import abdomen, brain, fundus

# Voxels; in a smaller image the anatomy is smaller than a voxel.
_LEAST_SIDE = 16


@dataclasses.dataclass(frozen=True)
class Subject:
    """A generated and normalised subject."""

    image: np.ndarray  # [*S, C]
    label: np.ndarray | None  # [*S]
    grade: int | None
    spacing: tuple[float, ...]  # mm
    foreground: np.ndarray  # bool [*S]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of phantom: its entries in the manifest, and the generator of one subject."""

    rank: int
    modalities: tuple[str, ...]
    classes: tuple[str, ...]
    generate: Callable[[np.random.Generator, tuple[int, ...]], Subject]


def _brain(rng: np.random.Generator, shape: tuple[int, ...]) -> Subject:
    image, label, spacing = brain.subject(rng, shape)
    # Noise in air is below a tenth of the brightest tissue in every contrast.
    foreground = image.mean(axis=-1) > 0.1 * np.percentile(image.mean(axis=-1), 99)
    return Subject(intensity.normalise_mr(image, foreground), label, None, spacing, foreground)


def _abdomen(rng: np.random.Generator, shape: tuple[int, ...]) -> Subject:
    image, label, spacing = abdomen.subject(rng, shape)
    foreground = image[..., 0] > -300  # HU, between fat (-100) and lung or air (below -700)
    return Subject(intensity.normalise_ct(image), label, None, spacing, foreground)


def _fundus(rng: np.random.Generator, shape: tuple[int, ...]) -> Subject:
    image, grade = fundus.subject(rng, shape)
    foreground = image.max(axis=-1) > 0.06  # of 1; outside the field of view is noise
    picture = intensity.normalise_picture(255 * image, foreground)
    return Subject(picture, None, grade, (1.0, 1.0), foreground)


KINDS = {
    "brain": Kind(
        3,
        ("T1ce", "FLAIR", "T1", "T2"),
        ("background", "necrotic core", "oedema", "enhancing tumour"),
        _brain,
    ),
    "abdomen": Kind(3, ("CT",), ("background", "pancreas", "tumour"), _abdomen),
    "fundus": Kind(
        2,
        ("red", "green", "blue"),
        ("no retinopathy", "mild", "moderate", "severe", "proliferative"),
        _fundus,
    ),
}


def _write_case(
    index: int, kind: str, shape: tuple[int, ...], split: tuple[str, int], seed: int, folder: Path
) -> store.Case:
    subject = KINDS[kind].generate(np.random.default_rng((seed, index)), shape)
    case_id = f"{kind}_{index:04d}"
    files = store.write_arrays(folder, case_id, subject.image, subject.label)
    centre = [-(side - 1) / 2 * step for side, step in zip(shape, subject.spacing, strict=True)]
    affine = np.diag([*subject.spacing, 1.0])
    affine[:-1, -1] = centre
    return store.Case(
        id=case_id,
        subject=case_id,
        split=split[0],
        shape=tuple(shape),
        channels=subject.image.shape[-1],
        spacing=tuple(float(x) for x in subject.spacing),
        affine=tuple(tuple(float(x) for x in row) for row in affine),
        labelled=subject.label is not None,
        grade=subject.grade,
        order=split[1],
        foreground=bounding_box(subject.foreground),
        files=files,
    )


def default_folder(kind: str) -> Path:
    """Where a phantom is generated unless another folder is given."""
    return Path("data") / f"phantom_{kind}"


def write(
    kind: str,
    folder: Path,
    shape: tuple[int, ...],
    counts: dict[str, int],
    seed: int = 0,
    workers: int | None = None,
) -> store.Dataset:
    """Generates a data set in `folder`, and says so on stderr, or returns the one that exists.

    Args:
      kind: "brain", "abdomen" or "fundus".
      shape: *S in voxels; the field of view in mm is fixed.
      counts: subjects of each split, e.g. {"train": 96, "val": 32, "test": 32}.
      seed: subject i is a function of (seed, i).
      workers: processes (default: one per core).

    Raises:
      UserError: an unknown kind, a shape of another rank, or another data set in the folder.
    """
    if kind not in KINDS:
        raise UserError(f"config.data.phantom.kind={kind!r}: choose one of {', '.join(KINDS)}")
    properties = KINDS[kind]
    if len(shape) != properties.rank:
        raise UserError(
            f"config.data.phantom.shape={shape}: {kind} has {properties.rank} dimensions"
        )
    if min(shape) < _LEAST_SIDE:
        raise UserError(
            f"config.data.phantom.shape={shape}: each side must be at least {_LEAST_SIDE} voxels"
        )
    if min(counts.values()) < 0 or sum(counts.values()) == 0:
        raise UserError(
            f"config.data.phantom: {counts} cases; give numbers of at least 0, not all 0"
        )
    recipe = {"phantom": kind, "shape": list(shape), "counts": dict(counts), "seed": seed}
    if (folder / store.MANIFEST).exists():
        dataset = store.read(folder)
        # Its subjects may be dealt to other splits, which is noted beside the recipe.
        if any(dataset.extra.get(key) != value for key, value in recipe.items()):
            remedy = "choose another --config.data.path or delete the folder"
            if "phantom" not in dataset.extra:
                remedy = "for prepared data give a preset, e.g. --config=rpl3d:folder"
            raise UserError(
                f"{folder}: holds another data set than the requested one ({recipe}); {remedy}"
            )
        return dataset
    print(f"generating {sum(counts.values())} {kind} phantoms in {folder}", file=sys.stderr)
    splits = [(split, rank) for split, count in counts.items() for rank in range(count)]
    write_case = functools.partial(_write_case, kind=kind, shape=shape, seed=seed, folder=folder)
    # Spawned, not forked: a fork of a process that has used JAX can hang.
    context = multiprocessing.get_context("spawn")
    # One BLAS thread each: the products are small, and more threads compete for the cores.
    with ProcessPoolExecutor(
        workers or os.cpu_count(), context, threadpoolctl.threadpool_limits, (1,)
    ) as pool:
        tasks = [pool.submit(write_case, i, split=split) for i, split in enumerate(splits)]
        cases = tuple(task.result() for task in tqdm(tasks, unit="case", disable=None))
    dataset = store.Dataset(
        path=folder,
        name=f"phantom {kind}",
        rank=properties.rank,
        modalities=properties.modalities,
        classes=properties.classes,
        splits_by="subject",
        cases=cases,
        extra=recipe,
    )
    store.write_manifest(dataset)
    return dataset
