"""Grades of volumes from a table, for layouts whose files tell none."""

from __future__ import annotations

import pytest

from ssl3d.errors import UserError
from tests.support import source_files as files
from tests.support.listings import listed, the_problem


@pytest.fixture
def volumes(tmp_path):
    """A folder of four volumes with label maps, and a place for tables."""
    return files.write_folder(tmp_path / "source")


def table(folder, text, name="grades.csv"):
    path = folder.parent / name
    path.write_text(text)
    return path


def grades(listing):
    return {case.id: case.grade for case in listing.cases}


def test_rows_by_name_with_or_without_suffix(volumes):
    first, second, *rest = (case.id for case in listed("folder", volumes).cases)
    found = listed(
        "folder",
        volumes,
        csv=table(volumes, f"name,age,diagnosis\n{first},7,benign\n{second}.nii.gz,8,malignant\n"),
    )
    assert grades(found) == {first: 0, second: 1} | dict.fromkeys(rest)
    assert found.classes == {0: "benign", 1: "malignant"}
    assert not found.problems
    assert not any(case.label for case in found.cases)
    (note,) = (note for note in found.notes if "grade" in note.reason)
    assert "2 without a grade in grades.csv" in note.reason


def test_numbers_are_classes_in_order(volumes):
    ids = [case.id for case in listed("folder", volumes).cases]
    rows = "".join(f"{name},{grade}\n" for name, grade in zip(ids, "3113", strict=True))
    found = listed("folder", volumes, csv=table(volumes, f"id,grade\n{rows}"))
    assert found.classes == {1: "grade 1", 3: "grade 3"}
    assert list(grades(found).values()) == [1, 0, 0, 1]


def test_the_users_classes_by_value_or_name(volumes):
    first, second, *_ = (case.id for case in listed("folder", volumes).cases)
    found = listed(
        "folder",
        volumes,
        csv=table(volumes, f"id,class\n{first},MENINGIOMA\n{second},0\n"),
        classes={0: "glioma", 1: "meningioma"},
    )
    assert [grades(found)[name] for name in (first, second)] == [1, 0]


def test_a_row_of_a_subject_counts_for_all_sessions_but_those_of_their_own(tmp_path):
    folder = files.write_bids(tmp_path / "source")
    every = listed("bids", folder).cases
    subject = every[0].subject
    own = [case.id for case in every if case.subject == subject]
    rows = f"participant_id\tgroup\tdiagnosis\n{own[-1]}\tx\tb\n{subject}\tx\ta\n"
    found = listed("bids", folder, csv=table(folder, rows, "participants.tsv"))
    assert [grades(found)[name] for name in own] == [0] * (len(own) - 1) + [1]
    assert found.splits_by == "subject"


def test_series_by_their_patient_or_folder(tmp_path):
    folder = files.write_dicom(tmp_path / "source")
    found = listed("dicom", folder, csv=table(folder, "patient_id,label\nP1,0\nb-c-series2,1\n"))
    assert grades(found)["a-series1"] == 0
    assert grades(found)["b-c-series2"] == 1
    assert not found.problems


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("gone,1", "line 3: no case, subject or file called gone"),
        ("{second},x", "line 3: grade 'x' of {second} is none of 0, 1"),
        ("{first},1", "line 3: another grade of {first} than in a row before"),
    ],
)
def test_a_row_that_does_not_fit_is_a_problem(volumes, rows, words):
    first, second, *_ = (case.id for case in listed("folder", volumes).cases)
    text = f"id,grade\n{first},0\n{rows}\n".format(first=first, second=second)
    found = listed("folder", volumes, csv=table(volumes, text), classes={0: "a", 1: "b"})
    the_problem(found, words.format(first=first, second=second))
    assert grades(found)[first] == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,grade\nx,\n", "every grade is empty"),
        ("id,weight\nx,1\n", "one of grades .*; it has id, weight"),
        ("id,grade\n" + "".join(f"x{i},{i}\n" for i in range(99)), "99 different grades, 0 to 98"),
        ("id,grade\nx,999999999\n", "is the column a measurement"),
    ],
)
def test_a_table_without_classes_is_refused(volumes, text, message):
    with pytest.raises(UserError, match=message):
        listed("folder", volumes, csv=table(volumes, text))


def test_label_maps_and_grades_exclude_each_other(volumes):
    with pytest.raises(UserError, match="--labels and --csv: a data set has label maps or grades"):
        listed("folder", volumes, csv=table(volumes, "id,grade\nx,1\n"), labels=volumes)


def test_other_layouts_have_no_grades(tmp_path):
    folder = files.write_msd(tmp_path / "source")
    with pytest.raises(UserError, match="--csv is for --layout=images or bids or dicom or folder"):
        listed("msd", folder, csv=table(folder, "id,grade\nx,1\n"))
