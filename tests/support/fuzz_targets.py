"""Every reader and loader, each with a valid file to damage."""

from __future__ import annotations

import contextlib
import gzip
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian

from ssl3d.data import layouts, readers, store
from ssl3d.data.layouts.listing import Options
from ssl3d.data.preparation import progress, splits
from ssl3d.data.preparation.case import PreparationSettings
from ssl3d.data.preparation.recipes import RECIPES
from ssl3d.data.readers import dicom
from ssl3d.downstream import predictor
from ssl3d.errors import UserError
from ssl3d.experiments.analysis import results_table
from ssl3d.experiments.engine import estimate, grid, worker
from ssl3d.models import export, safetensors_files
from ssl3d.training import checkpoint, run_log, trained_model
from tests.support import source_files
from tests.support.datasets import write_dataset
from tests.support.fuzz import Target
from tests.support.random_models import save_random_model
from tests.support.random_weights import random_variables
from tests.support.scans import AFFINE, VALUES
from tests.support.tiny_configs import tiny_config


def targets(folder: Path) -> list[Target]:
    """All of them, with their files below `folder`."""
    return [*_volumes(folder), *_dicom(folder), *_pictures(folder), *_lists(folder), *_runs(folder)]


def _image(path: Path) -> None:
    with contextlib.suppress(UserError):  # the image is read all the same
        readers.read_header((path,), 3)
    readers.read_image((path,), 3)


def _volumes(folder: Path) -> Iterator[Target]:
    nifti = source_files.write_nifti(folder / "valid.nii", VALUES, AFFINE).read_bytes()
    yield Target("NIfTI", folder / "a.nii", _image, nifti)
    yield Target("NIfTI, inside gzip", folder / "b.nii.gz", _image, nifti, _gzip)
    yield Target("gzip", folder / "c.nii.gz", _image, _gzip(nifti))
    label = source_files.write_nifti(folder / "label.nii", np.abs(VALUES) % 3).read_bytes()
    yield Target("label", folder / "d.nii", lambda path: readers.read_label(path, 3), label)
    nib.save(nib.MGHImage(VALUES, AFFINE), folder / "m.mgh")
    mgh = (folder / "m.mgh").read_bytes()
    yield Target("MGH", folder / "m.mgh", _image, mgh)
    yield Target("MGH, inside gzip", folder / "m.mgz", _image, mgh, _gzip)
    nib.save(nib.Nifti1Pair(VALUES, AFFINE), folder / "pair.hdr")
    yield Target("pair", folder / "pair.hdr", _image, (folder / "pair.hdr").read_bytes())
    picture = sitk.GetImageFromArray(VALUES.transpose(2, 1, 0))
    for name, kind in (("i.nhdr", "NRRD, detached"), ("j.mhd", "MetaImage, detached")):
        sitk.WriteImage(picture, str(folder / name))
        yield Target(kind, folder / name, _image, (folder / name).read_bytes())
    for name, packed in (("e.nrrd", False), ("f.nrrd", True), ("g.mha", False), ("h.mha", True)):
        sitk.WriteImage(picture, str(folder / name), packed)
        kind = {"nrrd": "NRRD", "mha": "MetaImage"}[name[2:]] + (", compressed" if packed else "")
        yield Target(kind, folder / name, _image, (folder / name).read_bytes())


def _gzip(data: bytes) -> bytes:
    return gzip.compress(data, 1)


def _dicom(folder: Path) -> Iterator[Target]:
    def series(path: Path) -> None:
        dicom.read_info(path)
        readers.read_image(tuple(sorted(path.parent.iterdir())), 3)

    array = VALUES[:, :, :5]
    for name, compress in (("DICOM", None), ("DICOM, JPEG", "JPEGLosslessProcess14_1")):
        place = source_files.write_series(folder / name, array, AFFINE, compress=compress)
        path = place / "slice002.dcm"
        yield Target(name, path, series, path.read_bytes())
    path = source_files.write_series(folder / "bare", array, AFFINE) / "slice002.dcm"
    yield Target("DICOM, no preamble", path, series, path.read_bytes()[132:])
    path = source_files.write_multiframe(folder / "frames" / "m.dcm", array, AFFINE)
    yield Target("DICOM, multi-frame", path, series, path.read_bytes())
    place = source_files.write_series(folder / "deflated", array, AFFINE)
    for path in place.iterdir():
        header = pydicom.dcmread(path)
        header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        header.save_as(path, enforce_file_format=True)
    data = path.read_bytes()
    start = _end_of_meta(data)
    inner = zlib.decompress(data[start:], -zlib.MAX_WBITS)
    yield Target("DICOM, deflated", path, series, data)

    def deflate(content: bytes) -> bytes:
        squeeze = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
        return data[:start] + squeeze.compress(content) + squeeze.flush()

    yield Target("DICOM, inside deflate", path, series, inner, deflate)


def _end_of_meta(data: bytes) -> int:
    """Behind group 2, whose first element is its length."""
    return 144 + struct.unpack_from("<I", data, 140)[0]


def _pictures(folder: Path) -> Iterator[Target]:
    def image(path: Path) -> None:
        readers.read_header((path,), 2)
        readers.read_image((path,), 2)

    picture = Image.fromarray(source_files.fundus(0))
    for name in ("p.png", "p.jpg", "p.tif", "p.bmp"):
        picture.save(folder / name)
        data = (folder / name).read_bytes()
        yield Target(name[2:].upper(), folder / name, image, data)
    png = (folder / "p.png").read_bytes()
    yield Target("PNG, valid checksums", folder / "q.png", image, png, _with_checksums)
    Image.fromarray(source_files.fundus(0)[..., 0] % 3).save(folder / "label.png")
    data = (folder / "label.png").read_bytes()
    yield Target("PNG label", folder / "l.png", lambda path: readers.read_label(path, 2), data)


def _with_checksums(data: bytes) -> bytes:
    """A PNG with the checksums of its damaged chunks corrected, so that they are read."""
    found, at = data[:8], 8
    while at + 12 <= len(data):
        length = struct.unpack_from(">I", data, at)[0]
        chunk = data[at + 4 : at + 8 + length]
        found += data[at : at + 4] + chunk + struct.pack(">I", zlib.crc32(chunk))
        at += 12 + length
    return found + data[at:]


def _lists(folder: Path) -> Iterator[Target]:
    prepared = write_dataset(folder / "prepared", 3, 1, splits={"train": 3, "val": 1})
    case = prepared.cases[0]
    path = store.image_path(prepared.path, case.id)
    yield Target(".npy", path, lambda _: store.load_image(prepared, case), path.read_bytes())
    path = store.label_path(prepared.path, case.id)
    yield Target(".npy label", path, lambda _: store.load_label(prepared, case), path.read_bytes())
    path = prepared.path / store.MANIFEST
    yield Target("manifest", path, lambda path: store.read(path.parent), path.read_bytes())
    for layout in ("msd", "nnunet", "bids", "images"):
        place = source_files.WRITERS[layout](folder / layout)
        inner = {"bids": "derivatives/lesions/dseg.tsv", "images": "train.csv"}
        path = place / inner.get(layout, "dataset.json")
        yield Target(f"{layout}: {path.name}", path, _listing(layout, place), path.read_bytes())
    for name, text in (
        ("splits.json", json.dumps({"train": ["a", "b"], "val": ["c"], "test": []})),
        ("splits.csv", "id,split\na,train\nb,val\n"),
    ):
        yield Target(name, folder / name, splits.read_split_file, text.encode())
    settings = PreparationSettings(folder, folder / "out", RECIPES["mr"], ("MR",), {}, 0)
    (folder / "out").mkdir()
    progress.start(settings, [progress.Known(case, [[1, 2]]) for case in prepared.cases])
    path = folder / "out" / progress.PROGRESS
    yield Target(path.name, path, lambda _: progress.known_cases(settings), path.read_bytes())


def _listing(layout: str, place: Path) -> Callable[[Path], object]:
    return lambda _: layouts.list_cases(layout, place, Options())


def _runs(folder: Path) -> Iterator[Target]:
    settings = {"kind": "resunet", "width": 4, "depth": 2}
    run = folder / "run"
    about = {"encoder": settings, "rank": 3, "channels": 1}
    weights = random_variables(export.encoders.build(settings), np.zeros((1, 8, 8, 8, 1), "f4"))
    export.save_encoder(run / "encoder", weights, about)
    path = run / "encoder" / export.DESCRIPTION
    data = path.read_bytes()
    yield Target("encoder.json", path, lambda _: export.describe_encoder(run), data)
    yield Target("encoder.json, built", path, lambda _: export.load_encoder(run), data, share=0.2)
    path = run / "encoder" / export.WEIGHTS
    data = path.read_bytes()
    yield Target("safetensors", path, safetensors_files.read, data)
    dataset = write_dataset(folder / "graded", 2, 3, splits={"train": 3, "val": 1})
    save_random_model(run, dataset, "classify2d")
    path = run / "model" / "best" / trained_model.DESCRIPTION
    data = path.read_bytes()
    yield Target("model.json", path, lambda _: trained_model.load(run), data)
    yield Target("model.json, built", path, lambda _: predictor.load(run), data, share=0.2)
    config = tiny_config("classify2d", dataset.path)
    checkpoint.check_config(config, run)
    path = run / "config.json"
    data = path.read_bytes()
    yield Target(path.name, path, lambda _: checkpoint.check_config(config, run), data)
    lines = [{"step": step, "split": "train", "loss": 0.5, "kappa": None} for step in range(9)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    path = run / "metrics.jsonl"
    yield Target(path.name, path, lambda _: run_log.read_metrics(run), text.encode())
    yield from _studies(folder / "study")


def _studies(folder: Path) -> Iterator[Target]:
    cost = {"fixed": 1.0, "validation": 1.0, "step": 0.1, "memory": 1e9}
    job = folder / "cells" / "one"
    job.mkdir(parents=True)
    path = folder / estimate.FILE
    text = json.dumps({"segment3d": cost}).encode()
    yield Target(path.name, path, lambda _: estimate.read(folder), text)
    path = folder / grid.KEYS
    text = json.dumps({"segment3d": ["steps", "seed"]}).encode()
    yield Target(path.name, path, lambda _: grid.read_keys(folder), text)
    result = {
        "row": {"cell": "one"},
        "cases": [{"id": "a", "subject": "b", "dice": 0.5}],
        "curve": [[0, 0.5], [2, None]],
    }
    path = job / worker.RESULT
    yield Target(path.name, path, results_table._read_result, json.dumps(result).encode())
    table = "cell,method,pretraining\none,scratch,\n"
    path = folder / results_table.RESULTS
    yield Target(
        path.name, path, lambda path: results_table._read_table(folder, path.name), table.encode()
    )
