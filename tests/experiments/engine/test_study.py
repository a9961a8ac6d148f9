"""Settings of a study, amounts of labels, and what the data do not allow."""

import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssl3d.data import store
from ssl3d.errors import UserError
from ssl3d.experiments.engine import grid
from ssl3d.experiments.engine.grid import Cell
from ssl3d.experiments.engine.study import (
    StudyData,
    check,
    label_fraction,
    with_settings,
    with_variant,
)
from ssl3d.phantoms import dataset as phantom
from tests.support.small_study import STUDIES


@pytest.fixture
def plan(study, volumes):
    return StudyData(study, volumes, volumes)


def test_settings_replace_those_of_the_file(study):
    study = dataclasses.replace(study, finetuning_of={"8": {"steps": 9, "batch_size": 1}})
    given = ["finetuning.steps=3", "encoder.norm=batch", "pretraining_of.rpl3d.data.crop=[8,8,8]"]
    found = with_settings(study, given)
    assert found.finetuning["steps"] == 3
    assert found.finetuning_of == {"8": {"batch_size": 1}}
    assert found.encoder["norm"] == "batch"
    assert found.pretraining_of["rpl3d"] == {"data.crop": (8, 8, 8)}
    for wrong in ("steps=3", "finetuning.steps", "notes.x=1", "finetuning_of.8=1"):
        with pytest.raises(UserError, match=re.escape(f"--set={wrong}: write SECTION")):
            with_settings(study, [wrong])


def test_settings_that_no_run_would_have_are_refused(study):
    with pytest.raises(UserError, match=r"no method 'rpl4d'; the nearest is rpl3d"):
        with_settings(study, ["pretraining_of.rpl4d.steps=3"])
    study = dataclasses.replace(study, arms={"short": {"steps": 3}, "long": {"steps": 6}})
    for text in ("finetuning.steps=3", "finetuning_of.8.steps=3", "finetuning_slices.steps=3"):
        with pytest.raises(UserError, match=r"the arms of .* differ in \(short, long\)"):
            with_settings(study, [text])
    assert with_settings(study, ["pretraining.steps=3"]).pretraining["steps"] == 3


@pytest.mark.parametrize(("variant", "kind"), [("paper", "resunet"), ("original", "unet")])
def test_variants_are_of_the_tasks_and_the_network(plan, variant, kind):
    """With the study's own width, where that is for a laptop."""
    plan = dataclasses.replace(plan, study=with_variant(plan.study, variant))
    scratch, pretrained = grid.jobs(
        plan, [Cell("scratch", "random", "2", 1), Cell("rotation3d", "finetune", "2", 1, 1)]
    )
    assert pretrained.needs.argument == f"hippocampus,{variant}"
    configs = [
        grid.load_config(job.config, job.argument, job.overrides)
        for job in (scratch, pretrained, pretrained.needs)
    ]
    assert [config.encoder.kind for config in configs] == [kind] * 3
    assert [config.encoder.width for config in configs] == [4] * 3
    paper = with_variant(STUDIES["brats"], "original")
    assert paper.encoder["width"] == 16


@given(st.integers(1, 400), st.data())
def test_amounts_of_labels(subjects, data):
    count = data.draw(st.integers(1, subjects))
    share = label_fraction(str(count), subjects)
    assert max(1, round(share * subjects)) == count  # as `sources.label_subset` rounds
    assert label_fraction("all", subjects) == 1
    assert label_fraction("5%", subjects) == 0.05
    for wrong in (str(subjects + 1), "0", "101%", "-1", "some", "0.5", ""):
        with pytest.raises(UserError, match="--fractions"):
            label_fraction(wrong, subjects)


def test_unknown_methods_and_those_of_other_data(plan):
    with pytest.raises(UserError, match="nearest is rpl3d"):
        check(plan, ("rpl3",))
    pictures = dataclasses.replace(plan, study=dataclasses.replace(plan.study, rank=2))
    with pytest.raises(UserError, match="rpl3d needs volumes"):
        check(pictures, ("rpl3d",))
    for name, other in (("scratch2d", "scratch"), ("scratch2d-double", "scratch-double")):
        with pytest.raises(UserError, match=f"{name} is for volumes; for pictures use {other}$"):
            check(pictures, (name,))


def test_images_that_are_in_both_data_sets(study, volumes, tmp_path):
    def with_content(path):
        cases = tuple(
            dataclasses.replace(case, extra={"content": case.id}) for case in volumes.cases
        )
        return dataclasses.replace(volumes, path=path, cases=cases)

    same = with_content(volumes.path)
    other = with_content(tmp_path)
    check(StudyData(study, same, other), ("rpl3d",))  # the same splits of the same images
    moved = tuple(dataclasses.replace(case, split="train") for case in other.cases)
    leaking = StudyData(study, same, dataclasses.replace(other, cases=moved))
    with pytest.raises(UserError, match="the same image as case_08, a val case"):
        check(leaking, ("rpl3d",))
    check(dataclasses.replace(leaking, transductive=True), ("rpl3d",))
    with pytest.raises(UserError, match=r"or leave supervised out of --methods"):
        check(dataclasses.replace(leaking, transductive=True), ("rpl3d", "supervised"))


def test_supervised_pretraining_needs_other_labels(plan, tmp_path):
    with pytest.raises(UserError, match="labels of another data set"):
        check(plan, ("supervised",))
    other = dataclasses.replace(plan.dataset, path=tmp_path)
    plan = dataclasses.replace(plan, corpus=other)
    check(plan, ("supervised",))
    job = grid.pretraining_job(plan, "supervised")
    assert job.config == "segment3d"
    assert job.overrides["data.train_splits"] == ("train",)
    told = grid.pretraining_job(dataclasses.replace(plan, transductive=True), "supervised")
    assert told.name == job.name
    assert told.row["transductive"] is False


def test_subjects_that_are_in_two_phantoms_are_found(study, tmp_path):
    """A phantom of the same seed has the same subjects, in other splits."""
    counts = {"a": {"train": 2, "val": 1, "test": 1}, "b": {"train": 4, "val": 0, "test": 0}}
    for name, own in counts.items():
        phantom.write("brain", tmp_path / name, (16, 16, 16), own, seed=0)
    dataset, corpus = (store.read(tmp_path / name) for name in counts)
    with pytest.raises(UserError, match=r"is the same image as .*, a (val|test) case of .*/a;"):
        check(StudyData(study, dataset, corpus), ["rpl3d"])
    phantom.write("brain", tmp_path / "c", (16, 16, 16), counts["b"], seed=1)
    check(StudyData(study, dataset, store.read(tmp_path / "c")), ["rpl3d"])


def test_settings_for_all_runs_are_those_of_slices_too(study):
    study = dataclasses.replace(
        study, finetuning_slices={"batch_size": 4, "data.crop": (16, 16), "augment.noise": 0.1}
    )
    found = with_settings(study, ["finetuning.batch_size=8", "finetuning.data.crop=(24,24,24)"])
    # A crop of volumes is none of slices.
    assert found.finetuning_slices == {"data.crop": (16, 16), "augment.noise": 0.1}
