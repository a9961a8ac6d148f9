import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from ssl3d import main, tasks
from ssl3d.data import store
from ssl3d.errors import RunError, UserError
from ssl3d.models import export
from ssl3d.training import checkpoint, loop, run_log, sharding
from ssl3d.training import step as steps
from tests.support.datasets import forget_digests
from tests.support.examples import batches, initial

IDS = [f"case_{number:02d}" for number in range(16)]
TIMINGS = ("volumes_per_second", "data_wait", "seconds")


def untimed(workdir):
    return [
        {key: value for key, value in line.items() if key not in TIMINGS}
        for line in run_log.read_metrics(workdir)
    ]


def weights(workdir):
    return (workdir / "encoder" / "encoder.safetensors").read_bytes()


# One run of six steps, and the same run in pieces.


@pytest.fixture(scope="module")
def config(tiny, pictures):
    return tiny(
        "rpl2d", pictures.path, steps=6, checkpoint_every=1, validate_every=3, optimizer__ema=0.5
    )


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """The folder of a run that was never stopped."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    assert loop.train(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def stopped(config, tmp_path_factory):
    """The folder of the same run, ended after three steps."""
    workdir = tmp_path_factory.mktemp("runs") / "stopped"
    assert loop.train(config, workdir, stop_at=3)
    return workdir


def test_a_stopped_run_goes_on_as_if_it_had_never_stopped(config, whole, stopped, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(stopped, workdir)
    assert loop.train(config, workdir)
    assert "going on at step 3 of 6" in capsys.readouterr().out
    assert weights(workdir) == weights(whole)
    assert untimed(workdir) == untimed(whole)


def test_windows_of_the_metrics_survive_a_stop_within_them(config, tmp_path):
    """A stop within a window of four steps, with a checkpoint before the stop too."""
    every = config.copy_and_resolve_references()
    every.log_every, every.checkpoint_every = 4, 2
    assert loop.train(every, tmp_path / "whole")
    for stop in (3, 0):
        assert loop.train(every, tmp_path / "pieces", stop_at=stop)
    assert untimed(tmp_path / "pieces") == untimed(tmp_path / "whole")
    steps = [line["step"] for line in untimed(tmp_path / "whole") if line["split"] == "train"]
    assert steps == [4, 6]


def test_a_run_without_its_checkpoints_is_not_begun_again(config, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    before = weights(tmp_path / "run")
    with pytest.raises(UserError, match="reaches step 6, but checkpoints is missing"):
        loop.train(config, tmp_path / "run")
    assert weights(tmp_path / "run") == before


def test_other_intensities_are_other_data(config, stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "run")
    shutil.copytree(config.data.path, tmp_path / "data")
    dataset = store.read(tmp_path / "data")
    case = dataset.cases[0]
    image = np.array(store.load_image(dataset, case))
    files = store.write_arrays(dataset.path, case.id, 2 * image)
    changed = [dataclasses.replace(case, files=files), *dataset.cases[1:]]
    store.write_manifest(dataclasses.replace(dataset, cases=tuple(changed)))
    other = config.copy_and_resolve_references()
    other.data.path = str(tmp_path / "data")
    with pytest.raises(UserError, match=r"cases\.(train|val)="):
        loop.train(other, tmp_path / "run")


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    config, whole, stopped, tmp_path, capsys
):
    workdir = tmp_path / "run"
    shutil.copytree(stopped, workdir)
    for file in (workdir / "checkpoints" / "3" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert loop.train(config, workdir)
    said = capsys.readouterr().out
    assert "checkpoint 3 is damaged" in said
    assert "going on at step 2 of 6" in said
    assert weights(workdir) == weights(whole)
    assert untimed(workdir) == untimed(whole)


def test_a_finished_run_is_left_as_it_is(config, whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    before = (workdir / "metrics.jsonl").read_text()
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert loop.train(config, workdir)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert weights(workdir) == weights(whole)
    assert (workdir / "metrics.jsonl").read_text() == before


def test_metrics_have_every_step_once_and_what_the_issue_asks_for(whole):
    lines = run_log.read_metrics(whole)
    assert [line["step"] for line in lines if line["split"] == "train"] == [1, 2, 3, 4, 5, 6]
    # Before the first step too: what an untrained network reaches.
    assert [line["step"] for line in lines if line["split"] == "val"] == [0, 3, 6]
    assert lines[0]["split"] == "val"
    assert all((line["split"] == "val") == ("seconds" in line) for line in lines)
    assert all(0 < line.get("seconds", 1) < 600 for line in lines)
    for line in lines:
        assert {"step", "split", "loss", "accuracy", "chance"} <= line.keys()
        assert (line["split"] == "train") == ("learning_rate" in line)
        assert line["chance"] == pytest.approx(1 / 8, abs=1e-5)
        assert all(np.isfinite(value) for value in line.values() if not isinstance(value, str))
        if line["split"] == "train":
            assert 0 <= line["data_wait"] <= 1
            assert line["volumes_per_second"] > 0
        else:
            assert line["accuracy_low"] <= line["accuracy"] <= line["accuracy_high"]


def test_a_run_leaves_its_config_event_files_and_encoder(config, whole):
    assert json.loads((whole / "config.json").read_text())["task"]["name"] == "rpl"
    assert list(whole.glob("events.out.tfevents.*"))
    description = json.loads((whole / "encoder" / "encoder.json").read_text())
    assert description["rank"] == 2
    assert description["channels"] == 3
    assert description["encoder"] == json.loads(json.dumps(config.encoder.to_dict()))


def raw_state(workdir, step):
    manager = checkpoint.open_manager(workdir)
    restore = ocp.args.Composite(state=ocp.args.StandardRestore())
    state = manager.restore(step, args=restore)["state"]
    manager.close()
    return state


def test_averaged_weights_are_exported_and_the_raw_ones_kept(whole):
    before, after = raw_state(whole, 5), raw_state(whole, 6)
    weight = 0.5 / (1 - 0.5**6)
    expected = jax.tree.map(
        lambda a, b: (1 - weight) * a + weight * b, before["ema"], after["params"]
    )
    for wanted, found in zip(jax.tree.leaves(expected), jax.tree.leaves(after["ema"]), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)
    _, variables = export.load_encoder(whole)
    exported = jax.tree.leaves(variables["params"])
    averaged = jax.tree.leaves(after["ema"]["encoder"])
    raw = jax.tree.leaves(after["params"]["encoder"])
    for leaf, mean in zip(exported, averaged, strict=True):
        np.testing.assert_array_equal(leaf, mean)
    assert not all(np.array_equal(a, b) for a, b in zip(exported, raw, strict=True))


def test_the_encoder_is_that_of_the_last_checkpoint_while_a_run_is_unfinished(
    stopped, whole, tmp_path
):
    about = export.describe_encoder(stopped)
    assert (about["step"], about["steps"]) == (3, 6)
    assert export.describe_encoder(whole)["step"] == 6
    _, variables = export.load_encoder(stopped)
    averaged = raw_state(stopped, 3)["ema"]["encoder"]
    jax.tree.map(np.testing.assert_array_equal, variables["params"], averaged)


def test_the_encoder_is_exported_at_every_checkpoint(config, tmp_path, monkeypatch):
    exported, real = [], export.save_encoder
    monkeypatch.setattr(
        export, "save_encoder", lambda *given: (exported.append(given[2]["step"]), real(*given))
    )
    every = config.copy_and_resolve_references()
    every.checkpoint_every = 2
    assert loop.train(every, tmp_path / "run", stop_at=5)
    assert exported == [2, 4, 5]


def test_a_checkpoint_of_another_run_is_refused(config, stopped, tmp_path):
    other = config.copy_and_resolve_references()
    other.seed, other.steps = 1, 4
    assert loop.train(other, tmp_path / "other")
    shutil.copytree(stopped, tmp_path / "run")
    shutil.copytree(tmp_path / "other/checkpoints/4", tmp_path / "run/checkpoints/4")
    with pytest.raises(UserError, match=r"checkpoints/4: a checkpoint of another run"):
        loop.train(config, tmp_path / "run")
    assert (tmp_path / "run/checkpoints/4").exists()


def test_another_config_in_the_same_folder_is_refused_by_the_name_of_its_key(config, stopped):
    other = config.copy_and_resolve_references()
    other.optimizer.learning_rate = 0.5
    with pytest.raises(UserError, match=r"optimizer\.learning_rate=.*0\.5.*--workdir"):
        loop.train(other, stopped)


# What stops a run.


def test_a_loss_that_is_not_finite_stops_the_run_with_step_and_cases(tiny, pictures, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(pictures.path, folder)
    sick = store.image_path(folder, "case_03")
    image = np.load(sick)
    image[8:16, 8:16] = np.nan
    np.save(sick, image)
    forget_digests(folder)
    config = tiny("rpl2d", folder, steps=20, checkpoint_every=1)
    with pytest.raises(RunError, match=r"step (\d+): loss nan.* case_03") as caught:
        loop.train(config, tmp_path / "run")
    step = int(str(caught.value).split()[1].rstrip(":"))
    assert step <= 2  # each of the eight cases is in one of the first two batches of four
    saved = [int(path.name) for path in (tmp_path / "run" / "checkpoints").glob("[0-9]*")]
    assert all(number < step for number in saved)
    # That of the last checkpoint, if there is one.
    assert (tmp_path / "run" / "encoder").exists() == bool(saved)
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_a_validation_that_is_not_finite_names_its_cases(tiny, pictures, tmp_path):
    shutil.copytree(pictures.path, tmp_path / "data")
    dataset = store.read(tmp_path / "data")
    sick = dataset.split("val")[0].id
    image = np.load(store.image_path(dataset.path, sick))
    image[8:16, 8:16] = np.nan
    np.save(store.image_path(dataset.path, sick), image)
    forget_digests(dataset.path)
    config = tiny("rpl2d", dataset.path, steps=2)
    with pytest.raises(RunError, match=rf"validation: the loss of {sick} is not finite") as caught:
        loop.train(config, tmp_path / "run")
    assert "last checkpoint" not in str(caught.value)


def test_sigterm_saves_and_the_same_command_goes_on(
    tiny_options, pictures, in_repository, tmp_path, capsys
):
    workdir = tmp_path / "run"
    arguments = tiny_options(
        "rpl2d", pictures.path, steps=10**6, log_every=5, validate_every=10**6,
        checkpoint_every=10**6,
    )  # fmt: skip
    arguments.append(f"--workdir={workdir}")
    output = tmp_path / "output.txt"
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "ssl3d.main", *arguments], stdout=file, stderr=file
        )
    try:
        deadline = time.monotonic() + 200
        while not any(line["split"] == "train" for line in run_log.read_metrics(workdir)):
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 1, output.read_text()
    finally:
        process.kill()
    last = output.read_text().splitlines()[-1]
    assert last.startswith("stopped by SIGTERM at step ")
    step = int(last.removeprefix("stopped by SIGTERM at step ").split()[0])
    assert (workdir / "checkpoints" / str(step)).is_dir()

    assert main.main([*arguments, f"--stop_at={step + 7}"]) == 0
    assert f"going on at step {step} of 1000000" in capsys.readouterr().out
    steps = [line["step"] for line in run_log.read_metrics(workdir) if line["split"] == "train"]
    assert len(set(steps)) == len(steps)
    assert steps == sorted(steps)
    assert steps == list(range(5, step + 8, 5))


# Validation.


@pytest.mark.parametrize(
    "name",
    [
        "cpc2d",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("exemplar2d", "rpl2d", "mae2d", "contrast2d", "joint2d")
        ),
    ],
)
def test_validation_does_not_depend_on_the_batch_size(tiny, pictures, name):
    """Eight examples: two batches of four, or three of three with one row of padding."""
    config = tiny(name, pictures.path, validation__repeats=2)
    task, state, _ = initial(config, pictures)
    mesh, variables = sharding.make_mesh(1), steps.variables_of(state)
    evaluation = steps.make_evaluation(config, task, mesh)

    def validate(batch_size):
        examples = batches(config, pictures, task, validation=True, batch_size=batch_size)
        return loop.validate(evaluation, task, variables, examples, mesh, IDS)

    fours, threes = validate(4), validate(3)
    assert fours.keys() == threes.keys()
    for key in fours:
        if key != "loss" or not task.needs_whole_batch:  # whose negatives are the batch's
            assert fours[key] == pytest.approx(threes[key], rel=1e-5), key
    assert validate(4) == fours


def test_padding_of_the_last_batch_is_not_counted(tiny, pictures):
    config = tiny("rpl2d", pictures.path, validation__repeats=2)
    task = tasks.build(config)

    def evaluation(variables, batch):
        value = batch["case"].astype(float) + 100 * batch["repeat"]
        return value, {"accuracy": (value, np.ones_like(value))}, {}

    examples = batches(config, pictures, task, validation=True, batch_size=5)
    values = loop.validate(evaluation, task, {}, examples, sharding.make_mesh(1), IDS)
    assert values["loss"] == np.mean([8, 9, 10, 11, 108, 109, 110, 111])
    assert values["accuracy"] == pytest.approx(values["loss"])


def test_validation_asks_each_repeat_something_else(tiny, pictures):
    config = tiny("rpl2d", pictures.path, validation__repeats=2)
    task = tasks.build(config)
    asked = functools.partial(
        steps.make_evaluation,
        config,
        task._replace(
            network=task.network,
            loss=lambda outputs, targets: (targets["position"][:, 0].astype(jnp.float32), {}),
            collect=lambda inputs, outputs, targets: {},
        ),
    )
    _, state, _ = initial(config, pictures)
    evaluation = asked(sharding.make_mesh(1))
    rows = [
        np.asarray(evaluation(steps.variables_of(state), batch)[0])
        for batch in batches(config, pictures, task, validation=True)
    ]
    assert len({tuple(row) for row in rows}) == 2
    assert all(len(set(row)) > 1 for row in rows)


def test_a_headline_that_is_no_metric_is_named(tiny, pictures):
    task = tasks.build(tiny("rpl2d"))._replace(headline="acuracy")

    def evaluation(variables, batch):
        return np.zeros(4), {"accuracy": (np.zeros(4), np.ones(4))}, {}

    batch = {"subject": np.arange(4), "repeat": np.zeros(4, int), "valid": np.ones(4, bool)}
    batch["case"] = np.arange(4)
    with pytest.raises(UserError, match=r"'acuracy', is none of its metrics \(accuracy\)"):
        loop.validate(evaluation, task, {}, [batch], sharding.make_mesh(1), IDS)


def test_the_environment_of_a_test_run_is_a_single_device():
    assert jax.device_count() == 1, os.environ.get("XLA_FLAGS")
