"""Splits: random, or from the user's file."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssl3d.data import store
from ssl3d.data.preparation.splits import assign_splits, random_splits, split_notes
from ssl3d.errors import UserError
from tests.support import source_files as files
from tests.support.source_files import run_prepare as run

NAMES = st.lists(st.text("abcdefgh", min_size=1, max_size=4), unique=True, max_size=40)
SHARES = st.floats(0, 0.4)


def test_new_splits_do_not_prepare_the_data_again(tmp_path, capsys):
    source = files.write_msd(tmp_path / "source")
    first = run("msd", source, tmp_path / "out")
    second = run("msd", source, tmp_path / "out", "--seed=1")
    assert "7 already prepared" in capsys.readouterr().out
    assert [c.split for c in first.cases] != [c.split for c in second.cases]


def test_random_splits_are_by_subject_and_seed(tmp_path):
    source = files.write_bids(tmp_path / "source", subjects=10)
    dataset = run("bids", source, tmp_path / "out", "--seed=3")
    by_subject = {}
    for case in dataset.cases:
        by_subject.setdefault(case.subject, set()).add((case.split, case.order))
    assert all(len(splits) == 1 for splits in by_subject.values())
    sizes = {name: len({c.subject for c in dataset.split(name)}) for name in store.SPLITS}
    assert sizes == {"train": 6, "val": 2, "test": 2, "unlabelled": 0}
    assert dataset.splits_by == "subject"
    for name in ("train", "val", "test"):
        assert {c.order for c in dataset.split(name)} == set(range(sizes[name]))


def test_a_scan_without_label_stays_with_its_subject(tmp_path):
    source = files.write_bids(tmp_path / "source", subjects=6)
    for i in range(6):
        name = f"sub-{i}/ses-02/anat/sub-{i}_ses-02_space-T1w_dseg.nii.gz"
        (source / "derivatives/lesions" / name).unlink()
    dataset = run("bids", source, tmp_path / "out")
    assert not dataset.split("unlabelled")
    assert sum(case.labelled for case in dataset.cases) == 6
    for case in dataset.cases:
        twin = next(c for c in dataset.cases if c.subject == case.subject and c is not case)
        assert case.split == twin.split


def test_unlabelled_collections_have_a_validation_split_too(tmp_path):
    dataset = run("ukb", files.write_ukb(tmp_path / "source"), tmp_path / "out")
    assert dataset.split("train")
    assert dataset.split("val")
    assert not dataset.split("test", "unlabelled")


def test_splits_by_case_are_reported(tmp_path, capsys):
    dataset = run("msd", files.write_msd(tmp_path / "source"), tmp_path / "out")
    assert dataset.splits_by == "case"
    assert "splits by case, as the source has no subject ids)" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "out/report.csv").open()))
    assert {row["split by"] for row in rows} == {"case"}


def test_splits_from_a_file(tmp_path):
    source = files.write_msd(tmp_path / "source")
    names = [f"case_{i:02d}" for i in range(7)]
    wanted = {"train": names[3:0:-1], "val": names[4:5], "test": [names[0], names[5]]}
    wanted["unlabelled"] = names[6:]
    (tmp_path / "splits.json").write_text(json.dumps(wanted))
    lines = [f"{name},{split}" for split, members in wanted.items() for name in members]
    (tmp_path / "splits.csv").write_text("\n".join(["subject,split", *lines]))
    for file in ("splits.json", "splits.csv"):
        dataset = run("msd", source, tmp_path / "out", f"--splits={tmp_path / file}")
        found = {
            split: [c.id for c in sorted(dataset.split(split), key=lambda c: c.order)]
            for split in store.SPLITS
        }
        assert found == {split: list(members) for split, members in wanted.items()}


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("s.json", "[1, 2]", "not JSON like"),
        ("s.json", '{"train": "all"}', "not JSON like"),
        ("s.json", '{"training": ["case_00"]}', "unknown split 'training'"),
        ("s.json", '{"train": ["case_00"], "val": ["case_00"]}', "in train and in val"),
        ("s.json", '{"train": ["case_99"]}', "names 'case_99'"),
        ("s.json", '{"train": ["case_00"]}', "case case_01 is in no split"),
        ("s.csv", "case,part\na,b\n", "needs the columns"),
        ("gone.json", None, "no such split file"),
    ],
)
def test_an_invalid_split_file_is_refused(tmp_path, name, content, what):
    source = files.write_msd(tmp_path / "source", count=3)
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=what) as error:
        run("msd", source, tmp_path / "out", f"--splits={tmp_path / name}")
    assert name in str(error.value)


def test_a_split_file_may_name_invalid_cases(tmp_path, capsys):
    source = files.write_msd(tmp_path / "source", count=4, unlabelled=0)
    (source / "imagesTr/case_01.nii.gz").write_bytes(b"damaged")
    (source / "imagesTr/case_02.nii.gz").unlink()
    file = tmp_path / "s.json"
    file.write_text('{"train": ["case_00", "case_01", "case_02"], "val": ["case_03"]}')
    dataset = run("msd", source, tmp_path / "out", f"--splits={file}", "--on-error=skip")
    assert {case.id: case.split for case in dataset.cases} == {"case_00": "train", "case_03": "val"}
    assert "names 'case_02', but no case" in capsys.readouterr().err


def test_an_invalid_split_file_is_found_before_the_preparation(tmp_path):
    source = files.write_msd(tmp_path / "source", count=3)
    (tmp_path / "s.json").write_text('{"train": ["case_00"]}')
    with pytest.raises(UserError, match="is in no split"):
        run("msd", source, tmp_path / "out", f"--splits={tmp_path / 's.json'}", "--dry-run")
    assert not (tmp_path / "out").exists()


def test_a_subject_in_two_splits_of_a_split_file(tmp_path):
    source = files.write_bids(tmp_path / "source")
    names = [f"sub-{i}_ses-0{j}" for i in range(3) for j in (1, 2)]
    (tmp_path / "s.json").write_text(json.dumps({"train": names[:5], "val": names[5:]}))
    with pytest.raises(UserError, match="subject sub-2 would be in train and in val"):
        run("bids", source, tmp_path / "out", f"--splits={tmp_path / 's.json'}")


def test_the_same_image_under_two_ids(tmp_path, capsys):
    source = files.write_msd(tmp_path / "source", count=8)
    dataset = run("msd", source, tmp_path / "first")
    train = [c.id for c in dataset.split("train")]
    other = dataset.split("test")[0].id
    image = source / "imagesTr"
    shutil.copy(image / f"{train[0]}.nii.gz", image / f"{train[1]}.nii.gz")
    capsys.readouterr()
    run("msd", source, tmp_path / "within")
    line = f"note: {train[1]}: the same image, voxel by voxel, as {train[0]}; both are in train"
    assert line in capsys.readouterr().err

    shutil.copy(image / f"{train[2]}.nii.gz", image / f"{other}.nii.gz")
    with pytest.raises(UserError, match="one case cannot be prepared"):
        run("msd", source, tmp_path / "across")
    assert "the same image, voxel by voxel" in capsys.readouterr().err
    assert not (tmp_path / "across" / store.MANIFEST).exists()
    kept = run("msd", source, tmp_path / "across", "--on-error=skip")
    assert len(kept.cases) == len(dataset.cases) - 1


# Random splits.


@given(NAMES, SHARES, SHARES, st.integers(0, 2**32 - 1))
def test_splits_have_the_asked_sizes_and_ranks_without_gaps(names, val, test, seed):
    assigned = assign_splits(names, {"val": val, "test": test}, seed)
    assert set(assigned) == set(names)
    for split, share in (("val", val), ("test", test)):
        count = sum(found == split for found, _ in assigned.values())
        least = 1 if share > 0 and len(names) > 2 else 0
        assert count == max(round(share * len(names)), least)
    for split in ("train", "val", "test"):
        ranks = sorted(rank for found, rank in assigned.values() if found == split)
        assert ranks == list(range(len(ranks)))


@given(NAMES, SHARES, SHARES, st.integers(0, 99), st.randoms())
def test_splits_do_not_depend_on_the_order_of_the_subjects(names, val, test, seed, random):
    fractions = {"val": val, "test": test}
    shuffled = names + names[:3]
    random.shuffle(shuffled)
    assert assign_splits(names, fractions, seed) == assign_splits(shuffled, fractions, seed)


@given(NAMES.filter(lambda names: len(names) > 4), st.integers(0, 99))
def test_small_label_fractions_are_inside_large_ones(names, seed):
    """The subset of a fraction is the lowest ranks, so it grows and the other splits stay."""
    assigned = assign_splits(names, {"val": 0.2, "test": 0.2}, seed)
    train = {name: rank for name, (split, rank) in assigned.items() if split == "train"}
    subsets = [
        {name for name, rank in train.items() if rank < round(fraction * len(train))}
        for fraction in (0.05, 0.1, 0.25, 0.5, 1.0)
    ]
    for smaller, larger in itertools.pairwise(subsets):
        assert smaller <= larger
    assert subsets[-1] == set(train)


def test_the_seed_decides_and_the_test_split_stays_when_validation_grows():
    names = [f"s{i}" for i in range(40)]

    def split(name, seed=0, **fractions):
        assigned = assign_splits(names, fractions, seed)
        return {subject for subject, (found, _) in assigned.items() if found == name}

    assert split("test", test=0.2, val=0.1) == split("test", test=0.2, val=0.3)
    assert split("test", test=0.2) != split("test", seed=1, test=0.2)
    # Frozen: another version of the program or of NumPy must deal the same.
    assert sorted(split("test", test=0.1)) == ["s12", "s27", "s29", "s31"]


def test_a_few_subjects_still_give_every_split_one():
    assigned = assign_splits(["a", "b", "c"], {"val": 0.1, "test": 0.1}, 0)
    assert sorted(split for split, _ in assigned.values()) == ["test", "train", "val"]
    assert assign_splits([], {"val": 0.1}, 0) == {}


# A handful of labels.


def cases_of(labelled, unlabelled):
    case = store.Case("", "", "unlabelled", (8, 8, 8), 1, (1, 1, 1), ((0,),))
    names = [f"s{i:04d}" for i in range(labelled + unlabelled)]
    return [
        dataclasses.replace(case, id=name, subject=name, labelled=i < labelled)
        for i, name in enumerate(names)
    ]


@pytest.mark.parametrize("unlabelled", [2, 8, 3000])
@pytest.mark.parametrize("labelled", [1, 2, 5, 12])
def test_a_handful_of_labels_leaves_a_validation_split(labelled, unlabelled):
    cases = random_splits(cases_of(labelled, unlabelled), {"val": 0.2, "test": 0.2}, 0)
    found = {name: [case for case in cases if case.split == name] for name in store.SPLITS}
    assert found["val"]
    assert found["train"]
    assert found["unlabelled"]
    # Neither the test nor the training of labels changes.
    assert all(case.labelled for case in (*found["test"], *found["train"]))
    assert len(found["val"]) >= min(10, round(0.2 * len(cases)))
    for split in store.SPLITS:
        assert sorted(case.order for case in found[split]) == list(range(len(found[split])))
    (note,) = split_notes(cases) if labelled < 3 else [None]
    if note:
        assert "fine-tuning needs" in note.reason


@pytest.mark.parametrize(("labelled", "unlabelled"), [(1, 1), (2, 1), (1, 2)])
def test_one_unlabelled_subject_is_enough_to_validate(labelled, unlabelled):
    cases = random_splits(cases_of(labelled, unlabelled), {"val": 0.2, "test": 0.2}, 0)
    assert [case.split for case in cases if case.split in ("train", "test")] == ["train"] * labelled
    assert [case.labelled for case in cases if case.split == "val"] == [False]


@pytest.mark.parametrize(("count", "help_"), [(1, "a second subject"), (2, "--val=0.5 --test=0")])
def test_an_empty_validation_split_is_reported_at_once(count, help_):
    cases = random_splits(cases_of(0, count), {"val": 0.2, "test": 0.2}, 0)
    (note,) = split_notes(cases)
    assert help_ in note.reason
    halves = random_splits(cases_of(0, 2), {"val": 0.5, "test": 0.0}, 0)
    assert split_notes(halves) == []
