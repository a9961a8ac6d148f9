"""The prepared data set: a folder with a manifest and one `.npy` per image and label.

    dataset.json          name, modalities, classes, and everything about the cases but the voxels
    cases-*.safetensors   what is about the cases, in columns, if they are thousands
    images/<id>.npy       float16 [*S, C], intensities already normalised
    labels/<id>.npy       uint8 [*S], indices into `classes` (the manifest holds the grade of a
                          graded image)

NumPy alone reads it, memory-mapped, so that a crop reads only its part of the file.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors

from ssl3d import documents, limits
from ssl3d.atomic import atomic_write
from ssl3d.data import cases as tables
from ssl3d.data import integrity
from ssl3d.data.cases import SPLITS, Case, case_from, check_id
from ssl3d.data.integrity import Digest
from ssl3d.errors import UserError

FORMAT = "ssl3d-prepared"
VERSION = 1
MANIFEST = "dataset.json"
# From so many cases on, the manifest names a table of them, and has another version.
TABLE, TABLE_VERSION = 5000, 2
_TABLE_FILE = re.compile(r"cases-[0-9a-f]{12}\.safetensors")

# Bytes of an array's file up to the length of its header, which takes the last two.
_START = 10


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The manifest of a prepared data set, and its folder.

    Attributes:
      path: the folder.
      name: as in reports.
      rank: 2 for pictures, 3 for volumes.
      modalities: names of the C channels.
      classes: names of the label values (or grades), index 0 is the background (grade 0).
      splits_by: "subject", or "case" for a source without subject ids.
      cases: sorted by id.
      extra: JSON object of the preparation (layout, settings, seed, splits) or of the phantom.
    """

    path: Path
    name: str
    rank: int
    modalities: tuple[str, ...]
    classes: tuple[str, ...]
    splits_by: str
    cases: tuple[Case, ...]
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)

    def split(self, *names: str) -> tuple[Case, ...]:
        """The cases of the named splits, sorted by id."""
        return tuple(case for case in self.cases if case.split in names)

    def subjects(self) -> dict[str, int]:
        """Subject -> number, the same in every split and on every host."""
        return {name: i for i, name in enumerate(sorted({case.subject for case in self.cases}))}


def image_path(folder: Path, case_id: str) -> Path:
    """The image file of a case."""
    return folder / "images" / f"{case_id}.npy"


def label_path(folder: Path, case_id: str) -> Path:
    """The label file of a case."""
    return folder / "labels" / f"{case_id}.npy"


def write_arrays(
    folder: Path, case_id: str, image: np.ndarray, label: np.ndarray | None = None
) -> dict[str, Digest]:
    """Writes one case: `image` [*S, C] as float16, `label` [*S] as uint8.

    The label is written first, and each file atomically, so that a case with an image is complete.

    Returns:
      `Case.files`.

    Raises:
      UserError: an invalid id, or intensities beyond float16.
    """
    files = {}
    check_id(case_id)
    if not np.isfinite(image).all() or np.abs(image).max(initial=0) > np.finfo(np.float16).max:
        raise UserError(
            f"{case_id}: the normalised image exceeds the range of float16; check its intensities "
            "and the recipe's normalisation"
        )
    if label is not None:
        if label.shape != image.shape[:-1]:
            raise UserError(f"{case_id}: label {label.shape} does not fit image {image.shape}")
        files["label"] = _save(label_path(folder, case_id), label.astype(np.uint8))
    files["image"] = _save(image_path(folder, case_id), image.astype(np.float16))
    return files


def _save(path: Path, array: np.ndarray) -> Digest:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        np.save(partial, np.ascontiguousarray(array), allow_pickle=False)
        return integrity.digest(partial)


def write_manifest(dataset: Dataset) -> None:
    """Writes `dataset.json`, which makes the folder a data set.

    Raises:
      ValueError: values that JSON has no words for.
    """
    cases = sorted(dataset.cases, key=lambda case: case.id)
    large = len(cases) >= TABLE
    dataset.path.mkdir(parents=True, exist_ok=True)
    document = {
        "format": FORMAT,
        "version": TABLE_VERSION if large else VERSION,
        **{
            field.name: getattr(dataset, field.name)
            for field in dataclasses.fields(dataset)
            if field.name not in ("path", "cases")
        },
        "cases": _write_table(dataset, cases) if large else list(map(dataclasses.asdict, cases)),
    }
    text = json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n"
    with atomic_write(dataset.path / MANIFEST) as partial:
        partial.write_text(text)
    for path in dataset.path.glob("cases*.safetensors"):
        if not large or path.name != document["cases"]["file"]:
            path.unlink()


def _write_table(dataset: Dataset, cases: Sequence[Case]) -> dict[str, Any]:
    """Writes the table of the cases, of a name that no other has: -> what the manifest says."""
    path = dataset.path / "cases.safetensors"
    with atomic_write(path) as partial:
        tables.write(partial, cases, dataset.rank)
        found = integrity.digest(partial)
    name = f"cases-{found.sha256[:12]}.safetensors"
    path.replace(dataset.path / name)
    return {"file": name, "count": len(cases), "size": found.size, "sha256": found.sha256}


def _read_table(folder: Path, about: Any, rank: int) -> tuple[Case, ...]:
    """The cases of the table that the manifest names. Raises `UserError`."""
    name, count = str(about["file"]), int(about["count"])
    file, expected = folder / name, Digest(int(about["size"]), str(about["sha256"]))
    if not _TABLE_FILE.fullmatch(name):
        raise UserError(f"{name!r} is no name of a table of cases; prepare the data again")
    try:
        found = integrity.check_regular(folder, file).st_size
        if found != expected.size:
            raise ValueError(f"{found} bytes, {expected.size} by the manifest")
        limits.check_memory(file, expected.size, "the table of cases")
        if integrity.digest(file) != expected:
            raise ValueError("its SHA-256 is not the manifest's")
        return tables.read(file, rank, count)
    except FileNotFoundError:
        raise UserError(f"{name} is missing; prepare the data again") from None
    except (*documents.MALFORMED, OSError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{name} cannot be read ({reason}); prepare the data again") from None


def read(path: str | Path) -> Dataset:
    """Reads the manifest of a prepared data set.

    Raises:
      UserError: no data set, another format or version, or an inconsistent manifest (duplicate or
        unsafe ids, unknown splits, a subject in two splits, wrong ranks).
    """
    folder = Path(path)
    file = folder / MANIFEST
    document = documents.read_object(
        file,
        "prepare the data again",
        missing=f"{folder}: no prepared data set here ({MANIFEST} is missing); "
        "make one with python -m ssl3d.prepare",
        large=documents.large_list(),
    )
    if document.get("format") != FORMAT:
        raise UserError(
            f"{file}: not the manifest of a prepared data set (format is not {FORMAT!r}); "
            "prepare the source with python -m ssl3d.prepare"
        )
    if document.get("version") not in (VERSION, TABLE_VERSION):
        raise UserError(
            f"{file}: format version {document.get('version')!r}, this program reads {VERSION} "
            f"and {TABLE_VERSION}; prepare the data again"
        )
    with documents.fields(file, "prepare the data again"):
        listed = document["cases"]
        if document["version"] == TABLE_VERSION:
            cases = _read_table(folder, listed, int(document["rank"]))
        else:
            cases = tuple(case_from(entry) for entry in listed)
        dataset = Dataset(
            path=folder,
            name=str(document["name"]),
            rank=int(document["rank"]),
            modalities=documents.names(document["modalities"]),
            classes=documents.names(document["classes"]),
            splits_by=str(document["splits_by"]),
            cases=cases,
            extra=dict(document.get("extra", {})),
        )
    _check(dataset, file)
    return dataset


def _check(dataset: Dataset, file: Path) -> None:
    def refuse(what: str) -> UserError:
        return UserError(f"{file}: {what}; prepare the data again")

    if dataset.rank not in (2, 3):
        raise refuse(f"rank {dataset.rank} is neither 2 nor 3")
    if not dataset.cases:
        raise refuse("no cases")
    if tables.sound(dataset.cases, len(dataset.classes), len(dataset.modalities)):
        return
    ids: set[str] = set()
    splits: dict[str, str] = {}
    for case in dataset.cases:
        if case.id in ids:
            raise refuse(f"case {case.id} is listed twice")
        ids.add(case.id)
        if case.files.keys() - {"image", "label"}:
            raise refuse(f"case {case.id}: files of unknown kinds {sorted(case.files)}")
        if case.split not in SPLITS:
            raise refuse(f"case {case.id}: unknown split {case.split!r}")
        if len(case.shape) != dataset.rank or len(case.spacing) != dataset.rank:
            raise refuse(f"case {case.id}: shape {case.shape} is not of rank {dataset.rank}")
        if min(case.shape) < 1 or not all(math.isfinite(x) and x > 0 for x in case.spacing):
            raise refuse(f"case {case.id}: shape {case.shape} or spacing {case.spacing} is empty")
        if case.channels != len(dataset.modalities):
            raise refuse(
                f"case {case.id}: {case.channels} channels, the data set has "
                f"{len(dataset.modalities)} modalities"
            )
        side = dataset.rank + 1
        if len(case.affine) != side or any(len(row) != side for row in case.affine):
            raise refuse(f"case {case.id}: the affine is not {side} x {side}")
        if not all(math.isfinite(x) for row in case.affine for x in row):
            raise refuse(f"case {case.id}: the affine is not finite")
        if case.foreground is not None and (
            len(case.foreground) != dataset.rank
            or any(
                not 0 <= a < b <= n for (a, b), n in zip(case.foreground, case.shape, strict=True)
            )
        ):
            raise refuse(f"case {case.id}: the foreground {case.foreground} is not in the image")
        if case.grade is not None and not 0 <= case.grade < len(dataset.classes):
            raise refuse(f"case {case.id}: grade {case.grade} is not a class")
        if splits.setdefault(case.subject, case.split) != case.split:
            raise refuse(f"subject {case.subject} is in two splits")


def verify(dataset: Dataset) -> Iterator[tuple[Case, str]]:
    """Each case with what is wrong with its files, or ""; reads them all anew.

    A case of a version that kept no digests is sound if its arrays are what the manifest says.
    """
    for case in dataset.cases:
        loads = (load_image, load_label) if case.labelled else (load_image,)
        try:
            for kind, expected in case.files.items():
                path = {"image": image_path, "label": label_path}[kind](dataset.path, case.id)
                integrity.verify(dataset.path, path, expected, trust=False)
            for load in loads:
                load(dataset, case)
            yield case, ""
        except UserError as error:
            yield case, str(error)
        except OSError as error:
            yield case, f"{error.filename or case.id}: {error.strerror}"


def load_image(dataset: Dataset, case: Case) -> np.ndarray:
    """The image [*S, C] as a read-only memory map, float16. Raises `UserError`."""
    file, shape = image_path(dataset.path, case.id), (*case.shape, case.channels)
    return _load(dataset.path, file, case.files.get("image"), np.float16, shape)


def load_label(dataset: Dataset, case: Case) -> np.ndarray:
    """The label [*S] as a read-only memory map, uint8. Raises `UserError`."""
    file = label_path(dataset.path, case.id)
    return _load(dataset.path, file, case.files.get("label"), np.uint8, case.shape)


def _load(
    folder: Path, path: Path, expected: Digest | None, dtype: type, shape: tuple[int, ...]
) -> np.ndarray:
    """A read-only memory map of a file that must hold exactly this array. Raises `UserError`."""

    def refuse(what: str) -> UserError:
        return UserError(f"{path}: {what}; prepare the data again")

    try:
        if expected:
            integrity.verify(folder, path, expected)
        else:
            integrity.check_regular(folder, path)
    except FileNotFoundError:
        raise refuse("missing, but in the manifest") from None
    except OSError as error:
        raise refuse(f"cannot be read ({error.strerror})") from None
    with limits.open_regular(path) as file:
        try:
            start = file.read(_START)
            length = int.from_bytes(start[_START - 2 :], "little")
            offset, found, order, stored = _header(start + file.read(length))
        except Exception as error:  # whatever a damaged header makes NumPy's parser raise
            reason = " ".join(str(error).split())[:200]
            raise refuse(f"cannot be read ({type(error).__name__}: {reason})") from None
        if (stored, found) != (np.dtype(dtype), shape):
            raise refuse(f"{stored} {found}, expected {np.dtype(dtype)} {shape} by the manifest")
        end = file.seek(0, os.SEEK_END)
        wanted = offset + math.prod(shape) * np.dtype(dtype).itemsize
        if end != wanted:
            raise refuse(f"cannot be read ({end} bytes, expected {wanted})")
        try:
            return np.memmap(file, dtype, "r", offset, shape, order)
        except (OSError, ValueError) as error:
            raise refuse(f"cannot be read ({error})") from None


@functools.lru_cache(maxsize=1024)
def _header(data: bytes) -> tuple[int, tuple[int, ...], Literal["F", "C"], np.dtype]:
    """Offset, shape, order and type of the array in a file of NumPy that starts with `data`.

    Cached, as images of a collection are alike and NumPy's parser takes longer than a crop.
    """
    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("not of version 1.0")
    found, in_fortran_order, stored = np.lib.format.read_array_header_1_0(file)
    return file.tell(), found, "F" if in_fortran_order else "C", stored
