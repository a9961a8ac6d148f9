"""The pictures of the study of levels: which slice gets which grade, and whose it is."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssl3d import prepare
from ssl3d.data import store
from ssl3d.errors import UserError
from ssl3d.experiments.engine.study import StudyData, check
from ssl3d.experiments.hippocampus_levels import EVERY, LEVELS, STUDY, levels, write_slices
from tests.support.long_axis import ANTERIOR, GRADES, POSTERIOR, label_map, write_hippocampi


def test_levels_from_behind_to_the_front():
    assert levels(label_map(ANTERIOR, POSTERIOR)).tolist() == GRADES


@given(
    st.integers(0, 4),
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.integers(0, 4),
)
def test_each_level_is_where_its_label_is(behind, tail, head, front):
    posterior = [0] * behind + tail + [0] * (len(head) + front)
    anterior = [0] * (behind + len(tail)) + head + [0] * front
    expected = [3] * behind + [2] * len(tail) + [1] * len(head) + [0] * front
    assert levels(label_map(anterior, posterior)).tolist() == expected


@pytest.mark.parametrize("missing", [1, 2])
def test_a_part_that_is_missing_is_refused(missing):
    label = label_map(ANTERIOR, POSTERIOR)
    label[label == missing] = 0
    with pytest.raises(ValueError, match="no anterior or no posterior part"):
        levels(label)


def test_a_gap_is_refused():
    label = label_map(ANTERIOR, POSTERIOR)
    label[:, 3] = 0
    with pytest.raises(ValueError, match="within the hippocampus has no label"):
        levels(label)


def test_pictures_are_slices_of_the_same_subject_and_split(tmp_path):
    volumes = write_hippocampi(tmp_path / "volumes", content="of ")
    pictures = write_slices(volumes, tmp_path / "pictures")
    assert store.read(tmp_path / "pictures") == pictures
    assert (pictures.rank, pictures.classes) == (2, LEVELS)
    of_subject = {case.subject: case for case in volumes.cases}
    seen = dict.fromkeys(of_subject, 0)
    for case in pictures.cases:
        volume, place = of_subject[case.subject], int(case.id.rpartition("_")[2])
        assert (case.split, case.order) == (volume.split, volume.order)
        assert (case.spacing, np.diag(case.affine).tolist()) == ((1.0, 3.0), [1.0, 3.0, 1.0])
        expected = store.load_image(volumes, volume)[:, place]
        np.testing.assert_array_equal(store.load_image(pictures, case), expected)
        if volume.labelled:
            assert case.grade == ([3] * volume.order + GRADES)[place]
        else:
            assert case.grade is None
        seen[case.subject] += 1
    for subject, count in seen.items():
        assert count == -(-of_subject[subject].shape[1] // EVERY)
    assert len({case.extra["content"] for case in pictures.cases}) == len(pictures.cases)


def test_pictures_are_made_once_and_of_these_volumes(tmp_path):
    volumes = write_hippocampi(tmp_path / "volumes")
    made = write_slices(volumes, tmp_path / "pictures")
    file = store.image_path(made.path, made.cases[0].id)
    before = file.stat().st_mtime_ns
    assert write_slices(volumes, tmp_path / "pictures") == made
    assert file.stat().st_mtime_ns == before
    manifest = volumes.path / store.MANIFEST
    document = json.loads(manifest.read_text())
    document["cases"][0]["spacing"] = [2.0, 2.0, 2.0]  # prepared anew, otherwise
    manifest.write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"pictures: holds slices of other volumes"):
        write_slices(store.read(volumes.path), tmp_path / "pictures")


def test_other_data_are_refused(volumes, pictures, tmp_path):
    pancreas = write_hippocampi(tmp_path / "pancreas", classes=("background", "pancreas", "tumour"))
    for dataset in (volumes, pictures, pancreas):
        with pytest.raises(UserError, match="prepare Task04 of the Decathlon"):
            write_slices(dataset, tmp_path / "slices")
    spoilt = write_hippocampi(tmp_path / "spoilt")
    label = label_map(ANTERIOR, [0] * len(POSTERIOR))
    np.save(store.label_path(spoilt.path, "case_7"), label)
    with pytest.raises(UserError, match=r"case_7: no anterior or no posterior part; leave it out"):
        write_slices(spoilt, tmp_path / "slices")
    assert not (tmp_path / "slices" / store.MANIFEST).exists()


@pytest.mark.parametrize("cut", [False, True], ids=["the volume", "its slices"])
def test_pretraining_elsewhere_sees_no_test_hippocampus(tmp_path, cut):
    """In whatever split it is there, as a volume or cut too."""
    pictures = write_slices(write_hippocampi(tmp_path / "a", content="of "), tmp_path / "pictures")
    volumes = write_hippocampi(tmp_path / "b", content="of ")
    corpus = write_slices(volumes, tmp_path / "others") if cut else volumes
    check(StudyData(STUDY, pictures, corpus), STUDY.methods)
    moved = tuple(dataclasses.replace(case, split="train") for case in corpus.cases)
    leaking = StudyData(STUDY, pictures, dataclasses.replace(corpus, cases=moved))
    with pytest.raises(UserError, match=r"is the same image as case_10_\d+, a val case"):
        check(leaking, STUDY.methods)
    # Where nothing is known of the images, nothing is alike.
    unknown = write_slices(write_hippocampi(tmp_path / "c"), tmp_path / "unknown")
    check(StudyData(STUDY, unknown, leaking.corpus), STUDY.methods)


def test_real_hippocampi_go_from_behind_to_the_front(task04, tmp_path):
    prepare.main(["--layout=msd", f"--source={task04}", f"--output={tmp_path / 'volumes'}"])
    volumes = store.read(tmp_path / "volumes")
    graded = 0
    for case in volumes.cases:
        if case.labelled:
            grades = levels(store.load_label(volumes, case))
            assert (np.diff(grades) <= 0).all(), case.id
            assert {1, 2} <= set(grades.tolist())
            graded += 1
    assert graded == 160
