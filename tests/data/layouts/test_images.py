"""Graded pictures."""

from __future__ import annotations

import pytest
from PIL import Image

from ssl3d.errors import UserError
from tests.support import source_files as files
from tests.support.listings import listed


def test_grades_and_unlabelled_pictures(tmp_path):
    folder = files.write_images(tmp_path)
    (folder / "test.csv").write_text("id_code\nx\n")
    Image.fromarray(files.fundus(77)).save(folder / "plain.png")
    listing = listed("images", folder)
    assert [case.grade for case in listing.cases] == [0, 1, 2, 3, 4, 0, None]
    assert listing.classes[4] == "proliferative DR"
    assert listing.splits_by == "case"
    assert [note.name for note in listing.notes] == [str(folder / "plain.png")]


def test_fellow_eyes_are_one_subject(tmp_path):
    for name in ("10_left", "10_right", "13_left"):
        Image.fromarray(files.fundus(len(name))).save(tmp_path / f"{name}.jpeg")
    (tmp_path / "trainLabels.csv").write_text("image,level\n10_left,0\n10_right,1\n13_left,2\n")
    listing = listed("images", tmp_path)
    assert [case.subject for case in listing.cases] == ["10", "10", "13"]
    assert listing.splits_by == "subject"


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ("gone,0", "line 2: no picture called gone"),
        ("../eye0,0", "'../eye0' is not a plain file name"),
        ("eye0,7", "grade 7 of eye0 is out of range (0 to 4)"),
        ("eye0,mild", "grade 'mild' of eye0 is not a whole number"),
        ("eye0,", "grade '' of eye0 is not a whole number"),
        ("eye0,1\neye0,2", "duplicate id of 2 cases"),
    ],
)
def test_an_invalid_row_is_a_problem(tmp_path, rows, what):
    folder = files.write_images(tmp_path)
    (folder / "train.csv").write_text(f"id_code,diagnosis\n{rows}\neye1,1\n")
    (problem,) = listed("images", folder).problems
    assert what in f"{problem.name}: {problem.reason}"


def test_an_invalid_table_is_refused(tmp_path):
    folder = files.write_images(tmp_path)
    table = folder / "train.csv"
    table.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"no CSV.*--csv=FILE"):
        listed("images", folder)
    with pytest.raises(UserError, match="it has a, b"):
        listed("images", folder, csv=table)
    with pytest.raises(UserError, match="no such file"):
        listed("images", folder, csv=folder / "none.csv")
    table.write_text("id_code,diagnosis\n")
    with pytest.raises(UserError, match="no rows"):
        listed("images", folder)
    table.write_bytes(b"id_code,diagnosis\n\xff\xfe,1\n")
    with pytest.raises(UserError, match=r"train\.csv: cannot be read"):
        listed("images", folder)
