"""The report and the contact sheet."""

from __future__ import annotations

import csv

import numpy as np
from PIL import Image

from tests.support import source_files as files
from tests.support.source_files import run_prepare as run


def test_a_file_name_that_is_not_utf8(tmp_path):
    source = files.write_folder(tmp_path / "source")
    (source / "images/site0/scan0.nii.gz").rename(source / "images/site0/\udcff.nii.gz")
    (source / "labels/site0/scan0_seg.nii.gz").rename(source / "labels/site0/\udcff.nii.gz")
    run("folder", source, tmp_path / "out")
    assert "\\udcff.nii.gz" in (tmp_path / "out/report.csv").read_text()


def test_report_and_contact_sheet(tmp_path):
    source = files.write_msd(tmp_path / "source")
    (source / "imagesTr/case_05.nii.gz").write_bytes(b"no")
    dataset = run("msd", source, tmp_path / "out", "--on-error=skip")
    rows = {row["id"]: row for row in csv.DictReader((tmp_path / "out/report.csv").open())}
    assert rows["case_05"]["status"] == "left out"
    assert "not a NIfTI file" in rows["case_05"]["reason"]
    assert rows["case_00"]["voxels of Anterior"] == "208"
    assert rows["case_00"]["shape"] == "20x22x18"
    assert rows["case_06"]["split"] == "unlabelled"
    sheet = np.asarray(Image.open(tmp_path / "out/contact_sheet.png"), np.int16)
    colourful = np.ptp(sheet, axis=-1) > 40
    assert colourful.mean() > 0.005  # the labels
    assert sheet.shape[0] < sheet.shape[1]
    assert len(dataset.cases) == 6
