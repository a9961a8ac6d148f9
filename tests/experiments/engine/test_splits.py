"""Further random splits of the subjects, on a data set of the tests."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from ssl3d.data import store
from ssl3d.errors import UserError
from ssl3d.experiments.engine import splits
from ssl3d.phantoms import dataset as phantom


def counts(dataset):
    subjects = {case.subject: case.split for case in dataset.cases}
    return Counter(subjects.values())


def test_splits_have_the_same_sizes_and_other_subjects(volumes, tmp_path):
    dealt = [splits.deal(volumes, number, tmp_path / str(number)) for number in (1, 2)]
    for dataset in dealt:
        assert counts(dataset) == counts(volumes)
        for case in dataset.cases:  # of a subject all cases move together
            twins = {other.split for other in dataset.cases if other.subject == case.subject}
            assert twins == {case.split}
    tested = [{case.id for case in dataset.split("test")} for dataset in (volumes, *dealt)]
    assert len(set(map(frozenset, tested))) > 1


def test_images_and_labels_are_those_of_the_data(volumes, tmp_path):
    dealt = splits.deal(volumes, 3, tmp_path / "3")
    for case, own in zip(dealt.cases, volumes.cases, strict=True):
        assert case.id == own.id
        np.testing.assert_array_equal(store.load_image(dealt, case), store.load_image(volumes, own))
        if case.labelled:
            label = store.load_label(volumes, own)
            np.testing.assert_array_equal(store.load_label(dealt, case), label)


def test_unlabelled_subjects_stay(volumes, tmp_path):
    """Nothing is tested on them."""
    bare = dataclasses.replace(volumes.cases[0], labelled=False, split="unlabelled", subject="x")
    some = dataclasses.replace(volumes, cases=(bare, *volumes.cases[1:]))
    dealt = splits.deal(some, 1, tmp_path / "1")
    assert [case.id for case in dealt.split("unlabelled")] == [bare.id]


def test_runs_find_the_phantom_of_their_config_in_a_split(volumes, tmp_path):
    counts = {"train": 8, "val": 4, "test": 2}
    recipe = {"phantom": "brain", "shape": [24, 24, 24], "counts": counts, "seed": 3}
    whole = dataclasses.replace(volumes, extra=recipe)
    dealt = splits.deal(whole, 1, tmp_path / "1")
    assert phantom.write("brain", dealt.path, (24, 24, 24), counts, seed=3) == dealt
    with pytest.raises(UserError, match="holds another data set"):
        phantom.write("brain", dealt.path, (24, 24, 24), counts, seed=4)


def test_a_folder_of_other_data_is_refused(volumes, tmp_path):
    first = splits.deal(volumes, 1, tmp_path / "1")
    assert splits.deal(volumes, 1, tmp_path / "1") == first
    case = dataclasses.replace(volumes.cases[0], spacing=(2.0, 2.0, 2.0))
    other = dataclasses.replace(volumes, cases=(case, *volumes.cases[1:]))
    with pytest.raises(UserError, match="holds a split of other data"):
        splits.deal(other, 1, tmp_path / "1")
