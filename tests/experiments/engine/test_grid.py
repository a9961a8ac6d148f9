import dataclasses
import itertools
import json

import numpy as np
import pytest

from ssl3d.configs import rpl3d, segment3d
from ssl3d.data import store
from ssl3d.data.integrity import Digest
from ssl3d.experiments import hippocampus_slices
from ssl3d.experiments.engine import grid, splits
from ssl3d.experiments.engine.grid import Cell, Size, case_hash
from ssl3d.experiments.engine.study import METHODS, Column, StudyData
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


def test_the_first_repetition_alone_keeps_pictures(plan):
    """Of every method and amount: the median case for the report."""
    jobs = grid.jobs(plan, cells_of(plan.study))
    assert [job.pictures for job in jobs] == [job.row["repetition"] == 1 for job in jobs]


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
    encoder = 1 if METHODS[method].task else 0
    (job,) = grid.jobs(plan, [Cell(method, METHODS[method].mode or "finetune", "2", 1, encoder)])
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


@pytest.mark.parametrize("corrected", ["label", "classes", "shape", "settings"])
def test_data_that_were_prepared_otherwise_are_other_cells(plan, corrected):
    """Corrected labels and classes, other shapes, and other settings of the preparation."""
    dataset, case = plan.dataset, plan.dataset.cases[0]
    if corrected == "classes":
        changed = dataclasses.replace(dataset, classes=("background", "other", "names"))
    elif corrected == "settings":
        changed = dataclasses.replace(dataset, extra={"settings": {"spacing": 2}})
    else:
        files = {**case.files, "label": Digest(1, "0" * 64)}
        own = {"label": {"files": files}, "shape": {"shape": (9, *case.shape[1:])}}[corrected]
        cases = (dataclasses.replace(case, **own), *dataset.cases[1:])
        changed = dataclasses.replace(dataset, cases=cases)
    other = dataclasses.replace(plan, dataset=changed, corpus=changed)
    before, after = (
        {job.name for job in grid.jobs(one, cells_of(plan.study))} for one in (plan, other)
    )
    assert not before & after
    if corrected == "label":  # which a proxy task does not see
        assert grid.pretraining_job(other, "rpl3d").name == grid.pretraining_job(plan, "rpl3d").name


def test_corrected_grades_are_other_cells(pictures):
    study = dataclasses.replace(tiny(), downstream="classify", rank=2, data={"data.crop": (8, 8)})
    case = pictures.cases[0]
    regraded = dataclasses.replace(case, grade=(case.grade + 1) % len(pictures.classes))
    other = dataclasses.replace(pictures, cases=(regraded, *pictures.cases[1:]))
    names = {name_of(StudyData(study, one, one), "scratch") for one in (pictures, other)}
    assert len(names) == 2


def test_a_new_key_for_something_else_leaves_cells_as_they_are(plan, monkeypatch, tmp_path):
    jobs = grid.jobs(plan, [Cell("rpl3d", "finetune", "2", 1, encoder=1)])
    grid.keep_keys(tmp_path, jobs)
    plan = dataclasses.replace(plan, keys=grid.read_keys(tmp_path))
    before = name_of(plan)
    assert before == jobs[0].name
    for module in (segment3d, rpl3d):
        own = module.get_config

        def with_another_key(arg, own=own):
            config = own(arg)
            config.new_key = 3
            return config

        monkeypatch.setattr(module, "get_config", with_another_key)
    assert name_of(plan) == before
    # It counts where it is used, and so does another default of a key that there was.
    assert name_of(changed(plan, data={"new_key": 4})) != before
    monkeypatch.undo()
    weaker = segment3d.get_config

    def with_another_default(arg):
        config = weaker(arg)
        config.augment.zoom = 0.05
        return config

    monkeypatch.setattr(segment3d, "get_config", with_another_default)
    assert name_of(plan) != before

    def with_another_phantom(arg):
        config = weaker(arg)
        config.data.phantom.train, config.data.phantom.shape = 100, (48, 48, 48)
        return config

    # Which these data are none of.
    monkeypatch.setattr(segment3d, "get_config", with_another_phantom)
    assert name_of(plan) == before
    assert name_of(changed(plan, data={"data.phantom.kind": "brain"})) != before
    monkeypatch.undo()
    # What is kept is of the first runs.
    grid.keep_keys(tmp_path, grid.jobs(plan, [Cell("scratch", "random", "2", 1)]))
    assert grid.read_keys(tmp_path) == plan.keys


def test_other_scores_are_other_cells(plan, tmp_path):
    """What was scored as another class says nothing of this one."""
    cells = [Cell("rpl3d", "finetune", "2", 1, encoder=1)]
    plan = changed(plan, columns=(Column("tumour", 2), Column("dice", "mean")))
    before = grid.jobs(plan, cells)
    grid.keep_keys(tmp_path, before)
    plan = dataclasses.replace(plan, keys=grid.read_keys(tmp_path))
    assert grid.jobs(plan, cells) == before
    fewer = changed(plan, columns=(Column("dice", "mean"),))
    assert grid.jobs(fewer, cells)[0].name == before[0].name
    for columns in ((Column("tumour", 1),), (*plan.study.columns, Column("organ", 1))):
        (job,) = grid.jobs(changed(plan, columns=columns), cells)
        assert job.name != before[0].name
        assert job.needs == before[0].needs
    # The first runs of an older output had no such note.
    file = tmp_path / grid.KEYS
    kept = json.loads(file.read_text())
    del kept["columns"]
    file.write_text(json.dumps(kept))
    old = dataclasses.replace(plan, keys=grid.read_keys(tmp_path))
    assert grid.jobs(old, cells)[0].name == before[0].name
    grid.keep_keys(tmp_path, before)
    assert grid.read_keys(tmp_path) == plan.keys


def test_encoders_and_splits_are_dealt_to_the_repetitions(plan, tmp_path):
    dealt = tuple(splits.deal(plan.dataset, n, tmp_path / str(n)) for n in (1, 2))
    plan = dataclasses.replace(plan, dealt=dealt)
    size = Size(("scratch", "rpl3d"), ("2",), 4, ("finetune",), encoders=4, splits=2)
    jobs = grid.jobs(plan, grid.cells(size))
    trained = {job.needs.name: job.needs for job in jobs if job.needs}
    assert sorted(job.overrides["seed"] for job in trained.values()) == [1, 2, 3, 4]
    assert [job.row["split"] for job in jobs] == [1, 1, 2, 2, 1, 1, 2, 2]
    assert [job.row["encoder"] for job in jobs] == [0, 1, 0, 2, 0, 3, 0, 4]
    assert len({job.row["test_hash"] for job in jobs}) == 2
    for job in jobs:
        folder = str((tmp_path / str(job.row["split"])).resolve())
        assert job.overrides["data.path"] == folder
        assert not job.needs or job.needs.overrides["data.path"] == folder
    # Scratch has no encoder: with others, its cells are the same.
    fewer = grid.jobs(plan, grid.cells(size._replace(encoders=1)))
    assert [job.name for job in fewer[::2]] == [job.name for job in jobs[::2]]


def test_splits_share_the_encoders_of_other_data(plan, tmp_path):
    dealt = tuple(splits.deal(plan.dataset, n, tmp_path / str(n)) for n in (1, 2))
    corpus = dataclasses.replace(plan.corpus, path=tmp_path)
    plan = dataclasses.replace(plan, dealt=dealt, corpus=corpus)
    size = Size(("rpl3d",), ("2",), 2, ("finetune",), encoders=1, splits=2)
    first, second = grid.jobs(plan, grid.cells(size))
    assert first.row["split"] != second.row["split"]
    assert first.needs == second.needs


def test_arms_are_other_settings_of_the_same_encoders(plan):
    arms = {"slow": {"optimizer.learning_rate": 1e-4}, "fast": {"optimizer.learning_rate": 1e-2}}
    plan = changed(plan, arms=arms)
    size = Size(("rpl3d",), ("2",), 1, ("finetune",), arms=tuple(arms))
    slow, fast = grid.jobs(plan, grid.cells(size))
    assert (slow.row["arm"], fast.row["arm"]) == ("slow", "fast")
    assert config_of(slow).optimizer.learning_rate == 1e-4
    assert slow.needs == fast.needs
    assert slow.name != fast.name


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_every_study_has_a_config_for_each_of_its_cells(study, tmp_path):
    """On the data of a manifest alone, with the labels that the study needs."""
    random = np.random.default_rng(0)
    channels = {"brats": 4, "phantom": 4, "retina": 3, "fundus_pilot": 3}.get(study.name, 1)
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
    size = Size(study.methods, study.labels, study.repetitions, study.modes)
    jobs = grid.jobs(plan, grid.cells(size._replace(arms=tuple(study.arms) or ("",))))
    encoders = {
        json.dumps(config.encoder.to_dict() | {"rank": config.rank}, sort_keys=True)
        for config in (config_of(run) for job in jobs for run in (job, job.needs) if run)
    }
    assert len(encoders) == len({METHODS[name].rank or study.rank for name in study.methods})
    for job in jobs:
        assert "python -m ssl3d.main --workdir=cells/" in job.command
