"""The layout of a folder, told from its files."""

import json

import pytest

from ssl3d.data.layouts.recognise import recognise
from ssl3d.errors import UserError
from tests.support import source_files as files


@pytest.mark.parametrize("layout", sorted(files.WRITERS))
def test_every_layout_is_recognised(layout, tmp_path):
    assert recognise(files.WRITERS[layout](tmp_path / "source")).name == layout


def test_prepare_says_what_it_recognised_and_does_as_if_told(tmp_path, capsys):
    source = files.write_nnunet(tmp_path / "source")
    told = files.prepared(source, tmp_path / "told", "nnunet")
    capsys.readouterr()
    files.prepared(source, tmp_path / "found", None)
    said = capsys.readouterr().out
    assert said.startswith('--layout=nnunet: dataset.json with "channel_names"\n')
    found = json.loads((tmp_path / "found/dataset.json").read_text())
    assert found == json.loads((told.path / "dataset.json").read_text())


def test_several_layouts_are_named_in_one_line(tmp_path):
    source = files.write_bids(tmp_path / "source")
    files.write_dicom(source / "scans")
    with pytest.raises(UserError, match=r"--layout=bids \(.*--layout=dicom \(.*") as caught:
        recognise(source)
    assert "\n" not in str(caught.value)
    (source / "scans").rename(source / "sourcedata")  # which BIDS keeps there
    assert recognise(source).name == "bids"


def test_label_maps_beside_series_are_no_images_of_their_own(tmp_path):
    source = files.write_dicom(tmp_path / "source")
    files.write_nifti(source / "maps/p1.nii.gz", files.segmentation())
    with pytest.raises(UserError, match=r"--layout=dicom .*--layout=folder"):
        recognise(source)
    assert recognise(source, labels=source / "maps").name == "dicom"


def test_pictures_with_two_tables_are_graded_pictures(tmp_path):
    source = files.write_images(tmp_path / "source")
    table = next(source.glob("*.csv"))
    (source / "sample_submission.csv").write_text(table.read_text())
    assert recognise(source).name == "images"  # which asks for one of them
    for path in source.glob("*.csv"):
        path.rename(tmp_path / path.name)
    assert recognise(source).name == "folder"
    assert recognise(source, csv=tmp_path / table.name).name == "images"


def test_what_is_no_source_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        recognise(tmp_path / "none")
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(UserError, match="holds no image that can be read"):
        recognise(tmp_path)
    source = files.write_folder(tmp_path / "source")
    files.prepared(source, tmp_path / "data", "folder", "--recipe=mr")
    with pytest.raises(UserError, match=r"is a prepared data set; train on it with --config\.data"):
        recognise(tmp_path / "data")
