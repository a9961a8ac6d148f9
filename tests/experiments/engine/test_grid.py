import dataclasses
import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssl3d.data import store
from ssl3d.errors import UserError
from ssl3d.experiments import hippocampus_slices
from ssl3d.experiments.engine import grid
from ssl3d.experiments.engine.grid import Cell, Size, case_hash
from ssl3d.experiments.engine.study import METHODS, StudyData, check, label_fraction
from ssl3d.training.cases import choose_cases
from tests.support.small_study import STUDIES, tiny


@pytest.fixture
def plan(study, volumes):
    return StudyData(study, volumes, volumes)


def cells_of(study):
    about = study.methods, study.labels, study.repetitions, study.modes, study.first_repetition
    return grid.cells(Size(*about))


def changed(plan, **changes):
    return dataclasses.replace(plan, study=dataclasses.replace(plan.study, **changes))


def config_of(job):
    return grid.load_config(job.config, job.argument, job.overrides)


def test_the_grid_is_the_product(study):
    cells = cells_of(study)
    assert len(cells) == len(set(cells)) == 6 * 2 * 2
    both = grid.cells(Size(study.methods, study.labels, 1, ("finetune", "frozen")))
    # The scratch rows and the untrained encoder have one mode, whatever is asked for.
    assert len(both) == (3 + 3 * 2) * 2
    assert {cell.mode for cell in both if cell.method == "scratch"} == {"random"}


def test_one_pretraining_serves_all_cells_of_its_method(plan):
    jobs = grid.jobs(plan, cells_of(plan.study))
    needs = {job.needs.name for job in jobs if job.needs}
    assert len(needs) == 3
    assert len({job.name for job in jobs}) == len(jobs)
    for job in jobs:
        assert bool(job.needs) == bool(METHODS[job.row["method"]].task)


def test_all_methods_are_treated_alike(plan):
    """The same labels, validation and test cases, seeds, steps, batches and augmentation."""
    jobs = [job for job in grid.jobs(plan, cells_of(plan.study))]
    same = ("train_hash", "val_hash", "test_hash", "seed", "label_seed", "training_cases")
    for amount in plan.study.labels:
        for repetition in (1, 2):
            own = [
                job
                for job in jobs
                if (job.row["labels"], job.row["repetition"]) == (amount, repetition)
            ]
            assert len(own) == 6
            assert len({tuple(job.row[key] for key in same) for job in own}) == 1
            configs = [
                json.loads(config_of(job).to_json())
                for job in own
                if job.config.endswith("3d") and job.row["method"] != "scratch-long"
            ]
            for config in configs:
                config["init"], config["transfer"]["mode"] = "", ""
            assert all(config == configs[0] for config in configs)
    assert len({job.row["test_hash"] for job in jobs}) == 1
    assert len({job.row["val_hash"] for job in jobs}) == 1


def test_fresh_repetitions_have_other_labels_and_seeds(plan):
    """None of those of the repetitions from 1 on, and yet cells that a longer study would have."""

    def seen(first):
        narrow = tiny(methods=("scratch2d", "rotation2d"), labels=("4",), repetitions=3)
        study = dataclasses.replace(narrow, first_repetition=first)
        return [job.row for job in grid.jobs(plan, cells_of(study))]

    usual, fresh = seen(1), seen(4)
    assert [row["repetition"] for row in usual] == [1, 1, 2, 2, 3, 3]
    assert [row["repetition"] for row in fresh] == [4, 4, 5, 5, 6, 6]
    assert all(row["seed"] == row["label_seed"] == row["repetition"] for row in usual + fresh)
    assert len({row["train_hash"] for row in usual + fresh}) == 6
    (further,) = grid.jobs(plan, [Cell("scratch2d", "random", "4", 4)])
    assert further.name == f"cells/{fresh[0]['cell']}"


def test_the_slices_of_the_hippocampus_are_tested_on_fresh_repetitions():
    """Its settings were chosen in results/ by those up to 53."""
    cells = cells_of(hippocampus_slices.STUDY)
    assert {cell.repetition for cell in cells} == set(range(54, 94))
    assert len(cells) == 80


def test_scratch_long_has_the_steps_of_both(plan):
    rows = {job.row["method"]: job.row for job in grid.jobs(plan, cells_of(plan.study))}
    assert rows["scratch"]["steps"] == rows["rpl3d"]["steps"] == 6
    assert rows["scratch-long"]["steps"] == 6 + rows["rpl3d"]["pretraining_steps"] == 10
    (double,) = grid.jobs(plan, [Cell("scratch-double", "random", "2", 1)])
    assert double.row["steps"] == 12
    long = config_of(double)
    assert long.validate_every == 2  # as often as the others, not as many times


def test_more_labels_may_need_more_steps_of_all_methods(plan):
    longer = changed(plan, finetuning_of={"all": {"steps": 9}})
    rows = [job.row for job in grid.jobs(longer, cells_of(plan.study))]
    steps = {(row["labels"], row["method"]): row["steps"] for row in rows}
    assert [steps["2", name] for name in ("scratch", "rpl3d", "scratch-long")] == [6, 6, 10]
    assert [steps["all", name] for name in ("scratch", "rpl3d", "scratch-long")] == [9, 9, 13]


def test_amounts_between_have_the_settings_of_the_next_lower_one(study):
    study = dataclasses.replace(
        study, finetuning_of={"8": {"steps": 8}, "32": {"steps": 32}, "all": {"steps": 96}}
    )
    amounts = ("2", "2%", "8", "10%", "32", "50%", "95", "96", "100%", "all")
    steps = [study.finetuning_with(amount, 96).get("steps") for amount in amounts]
    assert steps == [None, None, 8, 8, 32, 32, 32, 96, 96, 96]


def test_settings_of_slices_come_last(plan):
    study = changed(plan, finetuning_of={"2": {"steps": 9}}, finetuning_slices={"steps": 7})
    (job,) = grid.jobs(study, [Cell("rpl2d", "finetune", "2", 1)])
    assert job.row["steps"] == 7


def test_label_subsets_are_nested_and_drawn_anew(plan):
    chosen = {}
    for job in grid.jobs(plan, grid.cells(Size(("scratch",), ("1", "3", "5", "all"), 4, ()))):
        cases, _ = choose_cases(config_of(job), plan.dataset)
        assert job.row["train_hash"] == case_hash(cases)
        assert len({case.subject for case in cases}) == int(
            job.row["labels"].replace("all", "7")  # eight cases of seven subjects
        )
        chosen[job.row["labels"], job.row["repetition"]] = {case.id for case in cases}
    for repetition in range(1, 5):
        ordered = [chosen[amount, repetition] for amount in ("1", "3", "5", "all")]
        assert all(a < b for a, b in itertools.pairwise(ordered))
    assert len({frozenset(chosen["3", repetition]) for repetition in range(1, 5)}) > 1


def test_pretraining_does_not_see_held_out_images_unless_told_to(plan):
    for transductive, count in ((False, 8), (True, 14)):
        job = grid.pretraining_job(dataclasses.replace(plan, transductive=transductive), "rpl3d")
        cases, _ = choose_cases(config_of(job), plan.dataset)
        assert len(cases) == job.row["cases"] == count
        assert ("test" in {case.split for case in cases}) == transductive
        assert job.row["transductive"] == transductive
    honest = grid.pretraining_job(plan, "rpl3d")
    assert honest.name != job.name


def name_of(plan, method="rpl3d"):
    (job,) = grid.jobs(plan, [Cell(method, METHODS[method].mode or "finetune", "2", 1)])
    return job.name


def test_the_hash_is_of_what_decides_the_result(plan, study, tmp_path):
    before = name_of(plan)
    assert name_of(plan) == before
    free = changed(plan, data={"data.threads": 3, "log_every": 7, "checkpoint_every": 9})
    assert name_of(free) == before
    moved = store.Dataset(**vars(plan.dataset) | {"path": tmp_path})
    assert name_of(dataclasses.replace(plan, dataset=moved, corpus=moved)) == before
    for changes in (
        {"finetuning": dict(study.finetuning) | {"optimizer.learning_rate": 1e-4}},
        {"pretraining": dict(study.pretraining) | {"steps": 5}},
        {"encoder": {"width": 8, "depth": 2}},
        {"validations": 2},
    ):
        assert name_of(changed(plan, **changes)) != before
    # The pretraining's settings are nothing to scratch.
    other = changed(plan, pretraining=dict(study.pretraining) | {"task.intensity": 0.1})
    assert name_of(other) != before
    assert name_of(other, "scratch") == name_of(plan, "scratch")
    cases = list(plan.dataset.cases)
    cases[-1] = dataclasses.replace(cases[-1], split="train")
    shifted = dataclasses.replace(plan.dataset, cases=tuple(cases))
    assert name_of(dataclasses.replace(plan, dataset=shifted, corpus=shifted)) != before


def test_a_smaller_scale_shortens_everything_alike(plan):
    half = dataclasses.replace(plan, scale=0.5)
    rows = {job.row["method"]: job.row for job in grid.jobs(half, cells_of(plan.study))}
    assert rows["scratch"]["steps"] == 3
    assert rows["rpl3d"]["pretraining_steps"] == 2
    assert rows["scratch-long"]["steps"] == 5


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
    pictures = changed(plan, rank=2)
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


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_every_study_has_a_config_for_each_of_its_cells(study, tmp_path):
    """On the data of a manifest alone, with the labels that the study needs."""
    random = np.random.default_rng(0)
    channels = {"brats": 4, "phantom": 4, "retina": 3}.get(study.name, 1)
    splits = ["train"] * 60 + ["val"] * 10 + ["test"] * 10
    cases = tuple(
        store.Case(
            id=f"c{i:03d}",
            subject=f"c{i:03d}",
            split=split,
            shape=(64,) * study.rank,
            channels=channels,
            spacing=(1.0,) * study.rank,
            affine=tuple(map(tuple, np.eye(study.rank + 1).tolist())),
            labelled=study.downstream == "segment",
            grade=int(random.integers(3)) if study.downstream == "classify" else None,
        )
        for i, split in enumerate(splits)
    )
    dataset = store.Dataset(
        tmp_path / "a", "made up", study.rank, ("m",) * channels, ("a", "b", "c"), "subject", cases
    )
    corpus = dataclasses.replace(dataset, path=tmp_path / "b")
    plan = StudyData(study, dataset, corpus)
    jobs = grid.jobs(plan, cells_of(study))
    encoders = {
        json.dumps(config.encoder.to_dict() | {"rank": config.rank}, sort_keys=True)
        for config in (config_of(run) for job in jobs for run in (job, job.needs) if run)
    }
    assert len(encoders) == len({METHODS[name].rank or study.rank for name in study.methods})
    for job in jobs:
        assert "python -m ssl3d.main --workdir=cells/" in job.command
