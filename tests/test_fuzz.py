"""Damaged and hostile files: one line that names the file, whatever the damage.

python -m tests.support.fuzz_20000 does the same at length and prints the cases and faults.
"""

from __future__ import annotations

import pytest

from tests.support import fuzz
from tests.support.fuzz_targets import targets

CASES = 70  # of each target


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return {target.name: target for target in targets(tmp_path_factory.mktemp("fuzz"))}


NAMES = (
    "NIfTI", "NIfTI, inside gzip", "gzip", "label", "MGH", "MGH, inside gzip", "pair",
    "NRRD, detached", "MetaImage, detached", "NRRD", "NRRD, compressed", "MetaImage",
    "MetaImage, compressed", "DICOM", "DICOM, JPEG", "DICOM, no preamble",
    "DICOM, multi-frame", "DICOM, deflated",
    "DICOM, inside deflate", "PNG", "JPG", "TIF", "BMP", "PNG, valid checksums", "PNG label",
    ".npy", ".npy label", "manifest", "msd: dataset.json", "nnunet: dataset.json",
    "bids: dseg.tsv", "images: train.csv", "splits.json", "splits.csv", "progress.jsonl",
    "encoder.json", "encoder.json, built", "safetensors", "model.json", "model.json, built",
    "config.json", "metrics.jsonl", "costs.json", "keys.json", "result.json", "results.csv",
)  # fmt: skip


def test_all_targets_are_fuzzed_enough(found):
    assert tuple(found) == NAMES
    assert sum(round(CASES * target.share) for target in found.values()) >= 2000


@pytest.mark.parametrize("name", NAMES)
def test_a_valid_file_reads(found, name):
    target = found[name]
    target.file.write_bytes(target.pack(target.content))
    target.load(target.file)  # raises nothing


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_reads_or_is_named(found, name):
    def report(content, reason):
        assert not reason, reason

    fuzz.attack(found[name], CASES, report)
