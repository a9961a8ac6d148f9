"""Preparation of one case: from its source files to the prepared arrays."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import socket
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from ssl3d import limits
from ssl3d.data import geometry, intensity, readers, store
from ssl3d.data.geometry import Grid
from ssl3d.data.layouts.listing import SourceCase
from ssl3d.data.preparation import doubts, recipes
from ssl3d.data.preparation.foreground import bounding_box, find_foreground
from ssl3d.data.preparation.recipes import Recipe
from ssl3d.data.readers import checks
from ssl3d.errors import UserError

# Voxels between the corners of two grids that count as one. Headers written by different programs
# differ in the fourth digit.
GRID_TOLERANCE = 0.1
# Voxels along the second shortest axis of a prepared image; a smaller one leaves nothing to crop.
# Along the shortest, volumes acquired slice by slice have few.
MIN_SIZE = 8
# Of label values that belong to no class; a class index and `IGNORED` are others.
UNKNOWN = 254


class LabelError(UserError):
    """A fault of the label map alone: the image can be prepared, e.g. for pretraining."""


@dataclasses.dataclass(frozen=True)
class PreparationSettings:
    """The settings that all cases of a collection share.

    Attributes:
      source: the source folder; paths in the manifest are relative to it.
      output: folder of the prepared data set.
      recipe: see `Recipe`.
      modalities: names of the channels.
      values: label value in the files -> class index; empty without labels.
      classes: number of classes.
    """

    source: Path
    output: Path
    recipe: Recipe
    modalities: tuple[str, ...]
    values: dict[int, int]
    classes: int

    def document(self) -> SettingsDocument:
        """The settings that determine the prepared arrays, as JSON objects; splits do not."""
        recipe = dataclasses.asdict(self.recipe)
        del recipe["fractions"]
        values = sorted(self.values.items())
        document = {"recipe": recipe, "modalities": self.modalities, "values": values}
        return json.loads(json.dumps(document))


class SettingsDocument(TypedDict):
    """`PreparationSettings` in a manifest; `values` holds pairs (label value, class index)."""

    recipe: dict[str, Any]
    modalities: list[str]
    values: list[list[int]]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared case: `image` float32 [*S, C], `label` uint8 [*S] or None."""

    case: store.Case
    image: np.ndarray
    label: np.ndarray | None


def prepare_case(case: SourceCase, settings: PreparationSettings) -> store.Case:
    """Reads, checks, prepares and writes one case.

    A label with a fault is left out; `extra["label_problem"]` of the case says why.

    Returns:
      The case for the manifest, its split not yet assigned ("unlabelled", order 0).

    Raises:
      UserError: any fault of the images, in one line.
      OSError: the output cannot be written, or another host does not share it.
    """
    if not settings.output.is_dir():
        reason = f"not on {socket.gethostname()}, which must share it"
        raise FileNotFoundError(errno.ENOENT, reason, str(settings.output))
    fault = None
    try:
        prepared = prepare_arrays(case, settings)
    except LabelError as error:
        fault = str(error)
    if fault is not None:
        prepared = prepare_arrays(dataclasses.replace(case, label=None), settings)
        prepared.case.extra["label_problem"] = fault
    files = store.write_arrays(settings.output, case.id, prepared.image, prepared.label)
    return dataclasses.replace(prepared.case, files=files)


def prepare_arrays(
    case: SourceCase, settings: PreparationSettings, given: readers.Volume | None = None
) -> Prepared:
    """Reads, checks and prepares one case without writing it.

    Args:
      given: the image, instead of the case's files, which then need not exist.

    Raises:
      UserError: any fault of the case, in one line.
    """
    store.check_id(case.id)
    image, grid, source_grid = _read_images(case, settings, given)
    content = _content_hash(image)
    notes = [
        f"{paths[0].name}: {note}" if len(case.images) > 1 else note
        for paths in (() if given else case.images)
        for note in readers.read_notes(paths)
    ] + doubts.of_values(image)
    label = _read_label(case, grid, settings)
    if case.mask:
        image[_read_on_grid(case.mask, grid, case) == 0] = 0

    recipe = settings.recipe
    with _naming(case, notes):
        found = find_foreground(image, recipe.foreground)
    mask = found.mask
    counts = [None if label is None else _counts(label, settings.classes)]
    cropped = {"foreground": [found.bright, found.bright]}
    if recipe.crop:
        box = bounding_box(mask)
        inside = tuple(slice(start, stop) for start, stop in box)
        image, mask = image[inside], mask[inside]
        label = None if label is None else label[inside]
        grid = geometry.crop_grid(grid, box)
        cropped = {"foreground": [found.bright, found.kept]}
        notes += [found.remark] if found.remark else []
    counts.append(None if label is None else _counts(label, settings.classes))
    target = geometry.target_grid(grid, recipe.spacing, recipe.size)
    if sorted(target.shape)[-2] < MIN_SIZE:
        raise UserError(
            f"{case.images[0][0]}: only {_times(target.shape)} voxels after preparation; at least "
            f"{MIN_SIZE} are needed along two axes"
        )
    limits.check_memory(
        case.images[0][0],
        math.prod(target.shape) * (4 * image.shape[-1] + 2),
        f"the image at the wanted voxel size, {_times(target.shape)} voxels,",
    )
    image = geometry.resample(image, grid.affine, target, recipe.order)
    mask = geometry.resample(mask, grid.affine, target, "nearest")
    if label is not None:
        label = geometry.resample(label, grid.affine, target, "nearest")
    counts.append(None if label is None else _counts(label, settings.classes))
    notes += doubts.of_losses(cropped["foreground"], counts, settings.values)
    with _naming(case, notes):
        box = bounding_box(mask)
        scaling = recipes.scaling(image, mask, recipe)
        _check_window(image, recipe)
    entry = store.Case(
        id=case.id,
        subject=case.subject,
        split="unlabelled",
        shape=target.shape,
        channels=image.shape[-1],
        spacing=tuple(round(x, geometry.STEP_DECIMALS) for x in target.spacing),
        affine=_rows(target.affine),
        labelled=label is not None,
        grade=case.grade,
        foreground=box,
        extra={
            "source": source_files(case, settings.source),
            "checksum": "" if given else readers.checksum(case.files),
            "content": content,
            "source_shape": list(source_grid.shape),
            "source_affine": _rows(source_grid.affine),
            "intensity": dataclasses.asdict(scaling),
            "voxels": counts[-1],
            "crop": {**cropped, "labels": counts[:2] if recipe.crop else None},
            "notes": notes,
        },
    )
    return Prepared(entry, intensity.apply(image, scaling), label)


def read_case(
    case: SourceCase, settings: PreparationSettings
) -> tuple[np.ndarray, Grid, np.ndarray | None]:
    """A case as its files have it, in canonical orientation.

    Returns:
      The image [*S, C] float32, its grid, and the class indices uint8 [*S] or None.

    Raises:
      UserError: any fault of the case, in one line.
    """
    image, grid, _ = _read_images(case, settings, None)
    label = _read_label(case, grid, settings)
    if case.mask:
        image[_read_on_grid(case.mask, grid, case) == 0] = 0
    return image, grid, label


def settings_of_dataset(dataset: store.Dataset, source: Path) -> PreparationSettings:
    """The settings that prepare further images of `source` exactly as those of a data set.

    Raises:
      UserError: `ssl3d.prepare` did not write the data set (a built-in phantom).
    """
    try:
        document = dataset.extra["settings"]
        recipe = recipes.from_document(document["recipe"])
        values = {int(value): int(index) for value, index in document["values"]}
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{dataset.path}: the settings of the preparation are missing; prepare it with "
            "python -m ssl3d.prepare"
        ) from None
    return PreparationSettings(
        source, dataset.path, recipe, dataset.modalities, values, len(dataset.classes)
    )


def source_files(case: SourceCase, source: Path) -> list[str]:
    """The case's files (a DICOM series: its folder), relative to the source if inside it."""
    names = []
    for paths in (*case.images, *((path,) for path in (case.label, case.mask) if path)):
        path = paths[0] if len(paths) == 1 else paths[0].parent
        inside = path.is_relative_to(source)
        names.append(path.relative_to(source).as_posix() if inside else path.name)
    return names


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _rows(affine: np.ndarray) -> tuple[tuple[float, ...], ...]:
    # Adding 0 turns -0.0 into 0.0: the bytes of the manifest must not depend on the sign.
    return tuple(tuple(float(x) + 0.0 for x in row) for row in affine)


def _read_images(
    case: SourceCase, settings: PreparationSettings, given: readers.Volume | None
) -> tuple[np.ndarray, Grid, Grid]:
    """The image [*S, C] float32 in canonical orientation, its grid, and the source's grid."""
    rank = settings.recipe.rank
    wanted = len(settings.modalities)
    arrays: list[np.ndarray] = []
    grids: list[Grid] = []
    source_grids: list[Grid] = []
    for paths in case.images:
        volume = given or readers.read_image(paths, rank)
        if len(case.images) == wanted > 1 and volume.array.shape[-1] != 1:
            raise UserError(
                f"{paths[0]}: {volume.array.shape[-1]} channels, but each of the {wanted} files "
                "must have one; split it"
            )
        array, affine = geometry.to_canonical(volume.array, volume.affine)
        arrays.append(array)
        grids.append(Grid(array.shape[:rank], affine))
        source_grids.append(Grid(volume.array.shape[:rank], volume.affine))
        _check_same_grid(paths[0], grids[-1], case.images[0][0], grids[0])
    image = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=-1)
    if rank == 2 and image.shape[-1] == 1 and wanted == 3:
        image = np.repeat(image, 3, axis=-1)
    if image.shape[-1] != wanted:
        raise UserError(
            f"{case.images[0][0]}: {image.shape[-1]} channels, the data set has {wanted} "
            f"({', '.join(settings.modalities)})"
        )
    return image, grids[0], source_grids[0]


def _read_on_grid(path: Path, grid: Grid, case: SourceCase) -> np.ndarray:
    """A label map in canonical orientation, on the image's grid."""
    volume = readers.read_label(path, len(grid.shape))
    array, affine = geometry.to_canonical(volume.array, volume.affine)
    _check_same_grid(path, Grid(array.shape, affine), case.images[0][0], grid)
    return array


def _read_label(case: SourceCase, grid: Grid, settings: PreparationSettings) -> np.ndarray | None:
    """The case's class indices uint8 [*S], if it has a label. Raises `LabelError`."""
    if not case.label:
        return None
    try:
        return _remapped(_read_on_grid(case.label, grid, case), case.label, settings.values)
    except UserError as error:
        raise LabelError(str(error)) from None


def _check_same_grid(path: Path, grid: Grid, other_path: Path, other: Grid) -> None:
    if grid.shape != other.shape:
        raise UserError(
            f"{path}: shape {_times(grid.shape)} differs from {_times(other.shape)} of "
            f"{other_path.name}; resample both to one grid"
        )
    distance = geometry.corner_distance(grid.shape, grid.affine, other.affine)
    if distance > GRID_TOLERANCE * min(other.spacing):
        raise UserError(
            f"{path}: lies on another grid than {other_path.name} (voxels are up to "
            f"{distance:.3g} mm apart); resample both to one grid"
        )


def _content_hash(image: np.ndarray) -> str:
    """SHA-256 of the canonical voxels, whatever the name or compression of the file."""
    digest = hashlib.sha256(str(image.shape).encode())
    for plane in image:
        digest.update(np.ascontiguousarray(plane, "<f4"))
    return digest.hexdigest()


def _remapped(label: np.ndarray, path: Path, values: dict[int, int]) -> np.ndarray:
    """Label values -> class indices, uint8 [*S]."""
    table = np.full(checks.LARGEST_LABEL + 1, UNKNOWN, np.uint8)
    for value, index in values.items():
        table[value] = index
    remapped = np.empty(label.shape, np.uint8)
    for target, plane in zip(remapped, label, strict=True):  # indexing would copy a plane to int64
        np.take(table, plane, out=target)
    unknown = remapped == UNKNOWN
    if unknown.any():
        check_label_values(path, np.unique(label[unknown]).tolist(), values)
    return remapped


def check_label_values(path: Path, found: Iterable[int], values: dict[int, int]) -> None:
    """Raises `UserError` for label values that are not among the data set's `values`."""
    unknown = sorted(set(found) - set(values))
    if unknown:
        raise UserError(
            f"{path}: unknown label value {', '.join(map(str, unknown[:5]))}; the data set has "
            f"{', '.join(map(str, sorted(values)))}"
        )


@contextlib.contextmanager
def _naming(case: SourceCase, notes: Sequence[str]) -> Iterator[None]:
    """Adds the first file of the case to errors about the voxels, and the notes on it."""
    try:
        yield
    except UserError as error:
        why = "; ".join([str(error), *notes])
        raise UserError(f"{case.images[0][0]}: {why}") from None


def _check_window(image: np.ndarray, recipe: Recipe) -> None:
    low, high = recipe.window
    least, most = float(image.min()), float(image.max())
    if recipe.intensity == "window" and (most <= low or least >= high):
        raise UserError(
            f"all values ({least:g} to {most:g}) lie outside the window of {low:g} to {high:g} "
            "HU; is it a CT in HU?"
        )


def _counts(label: np.ndarray, classes: int) -> list[int]:
    """Voxels per class; those of `IGNORED` are of none."""
    counts = np.zeros(256, np.int64)
    for plane in label:
        counts += np.bincount(plane.ravel(), minlength=256)
    return [int(n) for n in counts[:classes]]
