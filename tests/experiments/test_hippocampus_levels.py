"""The pictures of the study of levels: which slice gets which grade, and whose it is."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.hippocampus_levels import EVERY, LEVELS, levels, write_slices
from ssl3d import prepare
from ssl3d.data import store
from ssl3d.errors import UserError

TASK04 = Path(os.environ.get("SSL3D_TEST_DATA", "nowhere")) / "Task04_Hippocampus"
# Voxels of each part in the coronal slices of a label map, from behind to the front.
POSTERIOR, ANTERIOR = [0, 0, 3, 4, 5, 2, 0, 0, 0], [0, 0, 0, 0, 1, 6, 4, 0, 0]
GRADES = [3, 3, 2, 2, 2, 1, 1, 0, 0]


def label_map(anterior, posterior):
    """Volumes [10, slices, 3] whose coronal slices hold so many voxels of each part."""
    label = np.zeros((10, len(anterior), 3), np.uint8)
    for place, (front, back) in enumerate(zip(anterior, posterior, strict=True)):
        label[:front, place, 0] = 1
        label[:back, place, 1] = 2
    return label


def hippocampi(folder, seed=0):
    """Prepared volumes of three split cases and one unlabelled case, of unlike lengths."""
    rng = np.random.default_rng(seed)
    cases = []
    for number, split in enumerate(["train", "train", "val", "test", "unlabelled"]):
        anterior, posterior = [0] * number + ANTERIOR, [0] * number + POSTERIOR
        label = label_map(anterior, posterior)
        image = rng.normal(size=(*label.shape, 1))
        image[..., 0] += label
        labelled = split != "unlabelled"
        name = f"case_{number}"
        store.write_arrays(folder, name, image, label if labelled else None)
        cases.append(
            store.Case(
                id=name,
                subject=f"subject_{number}",
                split=split,
                shape=label.shape,
                channels=1,
                spacing=(1.0, 2.0, 3.0),
                affine=tuple(map(tuple, np.diag([1.0, 2.0, 3.0, 1.0]).tolist())),
                labelled=labelled,
                order=number,
            )
        )
    volumes = store.Dataset(
        path=folder,
        name="hippocampi",
        rank=3,
        modalities=("MRI",),
        classes=("background", "Anterior", "Posterior"),
        splits_by="case",
        cases=tuple(cases),
    )
    store.write_manifest(volumes)
    return volumes


def test_levels_from_the_front_to_the_back():
    assert levels(label_map(ANTERIOR, POSTERIOR)).tolist() == GRADES
    assert levels(label_map(ANTERIOR[::-1], POSTERIOR[::-1])).tolist() == GRADES[::-1]


@given(
    st.integers(0, 4),
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.integers(0, 4),
    st.booleans(),
)
def test_each_level_is_where_its_label_is(behind, tail, head, front, turned):
    posterior = [0] * behind + tail + [0] * (len(head) + front)
    anterior = [0] * (behind + len(tail)) + head + [0] * front
    expected = [3] * behind + [2] * len(tail) + [1] * len(head) + [0] * front
    step = -1 if turned else 1
    found = levels(label_map(anterior[::step], posterior[::step]))
    assert found.tolist() == expected[::step]


@pytest.mark.parametrize("missing", [1, 2])
def test_a_part_that_is_missing_is_refused(missing):
    label = label_map(ANTERIOR, POSTERIOR)
    label[label == missing] = 0
    with pytest.raises(ValueError, match="no anterior or no posterior part"):
        levels(label)


def test_pictures_are_slices_of_the_same_subject_and_split(tmp_path):
    volumes = hippocampi(tmp_path / "volumes")
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
            assert case.grade == ([3] * int(volume.id[-1]) + GRADES)[place]
        else:
            assert case.grade is None
        seen[case.subject] += 1
    for subject, count in seen.items():
        assert count == -(-of_subject[subject].shape[1] // EVERY)
    assert len({case.extra["content"] for case in pictures.cases}) == len(pictures.cases)


def test_pictures_are_made_once_and_of_these_volumes(tmp_path):
    volumes = hippocampi(tmp_path / "volumes")
    made = write_slices(volumes, tmp_path / "pictures")
    file = store.image_path(made.path, made.cases[0].id)
    before = file.stat().st_mtime_ns
    assert write_slices(volumes, tmp_path / "pictures") == made
    assert file.stat().st_mtime_ns == before
    others = dataclasses.replace(volumes, cases=volumes.cases[1:])
    with pytest.raises(UserError, match=r"pictures: holds slices of other volumes"):
        write_slices(others, tmp_path / "pictures")


def test_other_data_are_refused(volumes, pictures, tmp_path):
    for dataset in (volumes, pictures):
        with pytest.raises(UserError, match="prepare Task04 of the Decathlon"):
            write_slices(dataset, tmp_path / "slices")
    volumes = hippocampi(tmp_path / "volumes")
    label = label_map(ANTERIOR, [0] * len(POSTERIOR))
    np.save(store.label_path(volumes.path, "case_0"), label)
    with pytest.raises(UserError, match=r"case_0: no anterior or no posterior part; leave it out"):
        write_slices(volumes, tmp_path / "slices")
    assert not (tmp_path / "slices" / store.MANIFEST).exists()


@pytest.mark.skipif(not TASK04.is_dir(), reason="SSL3D_TEST_DATA has no Task04_Hippocampus")
def test_real_hippocampi_go_from_behind_to_the_front(tmp_path):
    prepare.main(["--layout=msd", f"--source={TASK04}", f"--output={tmp_path / 'volumes'}"])
    volumes = store.read(tmp_path / "volumes")
    graded = 0
    for case in volumes.cases:
        if case.labelled:
            grades = levels(store.load_label(volumes, case))
            # Towards the front in RAS+, a grade of the next level each time.
            assert (np.diff(grades) <= 0).all(), case.id
            assert {1, 2} <= set(grades.tolist())
            graded += 1
    assert graded == 160
