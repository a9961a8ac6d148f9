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
from ssl3d.data import pipeline, store
from ssl3d.errors import RunError, UserError
from ssl3d.models import export
from ssl3d.training import checkpoint, loop, run_log, sharding
from ssl3d.training import step as steps

TIMINGS = ("volumes_per_second", "data_wait", "seconds")


def batches(config, dataset, task, validation=False, **overrides):
    options = {
        "rank": config.rank,
        "slice_axis": config.data.slice_axis,
        "margin": config.data.margin,
        "batch_size": config.batch_size,
        "seed": config.seed,
    }
    if validation:
        options["repeats"] = config.validation.repeats
        function, cases = pipeline.validation_batches, dataset.split("val")
    else:
        options["threads"] = 1
        function, cases = pipeline.train_batches, dataset.split("train")
    return function(dataset, cases, task.record, **options | overrides)


def initial(config, dataset):
    """The task, its first state and its first training batch."""
    task, mesh = tasks.build(config), sharding.make_mesh(1)
    batch = next(batches(config, dataset, task))
    record = jax.tree.map(lambda leaf: leaf[0], batch["record"])
    return task, steps.init_state(config, task, steps.make_optimizers(config), record, mesh), batch


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
    assert not (workdir / "encoder").exists()
    return workdir


def test_a_stopped_run_goes_on_as_if_it_had_never_stopped(config, whole, stopped, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(stopped, workdir)
    assert loop.train(config, workdir)
    assert "going on at step 3 of 6" in capsys.readouterr().out
    assert weights(workdir) == weights(whole)
    assert untimed(workdir) == untimed(whole)


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
    assert "checkpoint 3 does not read" in said
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
    assert description["encoder"] == config.encoder.to_dict()


def raw_state(workdir, step):
    manager = checkpoint.open_manager(workdir)
    restore = ocp.args.Composite(state=ocp.args.StandardRestore())
    state = manager.restore(step, args=restore)["state"]
    manager.close()
    return state


def test_averaged_weights_are_exported_and_the_raw_ones_kept(whole):
    before, after = raw_state(whole, 5), raw_state(whole, 6)
    expected = jax.tree.map(lambda a, b: 0.5 * a + 0.5 * b, before["ema"], after["params"])
    for wanted, found in zip(jax.tree.leaves(expected), jax.tree.leaves(after["ema"]), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)
    _, variables = export.load_encoder(whole)
    exported = jax.tree.leaves(variables["params"])
    averaged = jax.tree.leaves(after["ema"]["encoder"])
    raw = jax.tree.leaves(after["params"]["encoder"])
    for leaf, mean in zip(exported, averaged, strict=True):
        np.testing.assert_array_equal(leaf, mean)
    assert not all(np.array_equal(a, b) for a, b in zip(exported, raw, strict=True))


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
    config = tiny("rpl2d", folder, steps=20, checkpoint_every=1)
    with pytest.raises(RunError, match=r"step (\d+): loss nan.* case_03") as caught:
        loop.train(config, tmp_path / "run")
    step = int(str(caught.value).split()[1].rstrip(":"))
    assert step <= 2  # each of the eight cases is in one of the first two batches of four
    saved = [int(path.name) for path in (tmp_path / "run" / "checkpoints").glob("[0-9]*")]
    assert all(number < step for number in saved)
    assert not (tmp_path / "run" / "encoder").exists()
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()


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
    assert set(range(5, step + 8, 5)) | {step + 7} <= set(steps)


@pytest.mark.parametrize(
    ("name", "overrides", "key"),
    [
        ("cpc2d", {"optimizer__accumulate": 2}, "config.optimizer.accumulate=2.*negatives"),
        ("exemplar2d", {"optimizer__accumulate": 2}, "config.optimizer.accumulate=2.*negatives"),
        ("rpl2d", {"optimizer__accumulate": 3}, "config.optimizer.accumulate=3"),
        ("rpl2d", {"optimizer__accumulate": 0}, "config.optimizer.accumulate=0"),
        ("rpl2d", {"optimizer__learning_rate": -1.0}, "config.optimizer.learning_rate"),
        ("rpl2d", {"optimizer__warmup_steps": -1}, "config.optimizer.warmup_steps"),
        ("rpl2d", {"optimizer__ema": 1.5}, "config.optimizer.ema"),
        ("rpl2d", {"optimizer__clip_norm": 0.0}, "config.optimizer.clip_norm"),
        ("rpl2d", {"mesh__space": 2}, "config.mesh.space=2"),
        ("rpl2d", {"batch_size": 0}, "config.batch_size=0"),
        ("rpl2d", {"steps": 0}, "config.steps=0"),
        ("rpl2d", {"log_every": 0}, "config.log_every=0"),
        ("rpl2d", {"seed": -1}, "config.seed"),
        ("rpl2d", {"validation__repeats": 0}, "config.validation.repeats"),
        ("rpl2d", {"head__pool": "sum"}, "head.pool"),
        ("rpl2d", {"head__hidden": (0,)}, "head.hidden"),
        ("rpl2d", {"head__dropout": 1.5}, "head.dropout"),
        ("rpl2d", {"data__margin": -1}, "config.data.margin"),
        ("rpl2d", {"data__margin": 12}, "config.data.margin"),
        ("rpl2d", {"data__crop": (24.0, 24.0)}, "config.data.crop"),
        ("rpl2d", {"data__crop": ("a", "b")}, "config.data.crop"),
        ("rotation2d", {"data__crop": (0, 0)}, "config.data.crop"),
        ("cpc2d", {"task__temperature": 0.0}, "config.task.temperature"),
        ("cpc2d", {"task__code": 0}, "config.task.code"),
        ("classify2d", {"augment__flip_axes": (0, 2)}, "config.augment.flip_axes.*0 to 1"),
        ("classify2d", {"augment__flip_axes": ()}, "config.augment.flip_axes"),
    ],
)
def test_values_that_cannot_be_are_refused_by_key(tiny, pictures, tmp_path, name, overrides, key):
    with pytest.raises(UserError, match=key):
        loop.train(tiny(name, pictures.path, **overrides), tmp_path)


# The step.


def test_accumulated_gradients_are_those_of_the_whole_batch(tiny, pictures):
    config = tiny("rpl2d", pictures.path)
    task, state, batch = initial(config, pictures)
    accumulating = config.copy_and_resolve_references()
    accumulating.optimizer.accumulate = 2
    once, twice = (
        jax.jit(steps.make_gradients(each, task))(state, batch) for each in (config, accumulating)
    )
    for one, other in zip(jax.tree.leaves(once[0]), jax.tree.leaves(twice[0]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(one).max())
    np.testing.assert_allclose(once[2]["loss"], twice[2]["loss"], rtol=1e-5)
    np.testing.assert_array_equal(once[2]["accuracy"], twice[2]["accuracy"])


def test_every_example_and_every_step_gets_draws_of_its_own(tiny, pictures):
    config = tiny("rpl2d", pictures.path)
    task, state, batch = initial(config, pictures)

    def spy(outputs, targets):
        """Hands the targets out through the metrics, whose sums are taken over the batch."""
        loss, _ = task.loss(outputs, targets)
        own = jnp.arange(len(loss))
        shown = {
            f"{i} {q}": (jnp.where(own == i, targets["position"][:, q], 0), own)
            for i in range(4)
            for q in range(3)
        }
        return loss, shown

    gradients = jax.jit(steps.make_gradients(config, task._replace(loss=spy)))

    def drawn(step):
        metrics = gradients(state | {"step": jnp.int32(step)}, batch)[2]
        return [tuple(int(metrics[f"{i} {q}"][0]) for q in range(3)) for i in range(4)]

    first, second = drawn(0), drawn(1)
    assert drawn(0) == first
    assert first != second
    assert len(set(first)) > 1
    assert len(set(second)) > 1


def test_the_schedule_warms_up_and_ends_at_zero_wherever_the_run_is_stopped(tiny):
    config = tiny("rpl2d", steps=100)
    config.optimizer.warmup_steps, config.optimizer.learning_rate = 10, 0.5
    rates = np.array([steps.schedule(config)(step) for step in range(101)])
    np.testing.assert_allclose(rates[:11], np.linspace(0, 0.5, 11), rtol=1e-5)
    assert (np.diff(rates[10:]) <= 0).all()
    assert rates[55] == pytest.approx(0.25, rel=1e-3)
    assert rates[100] == pytest.approx(0, abs=1e-6)


def test_biases_and_norms_are_not_decayed(tiny):
    config = tiny("rpl2d")
    config.optimizer.weight_decay = 0.1
    optimizer = steps.make_optimizers(config)["rest"]
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    state = optimizer.init(params)
    for _ in range(2):  # the first step of the warm-up has a rate of zero
        updates, state = optimizer.update(jax.tree.map(jnp.zeros_like, params), state, params)
    assert (np.asarray(updates["kernel"]) < 0).all()
    assert (np.asarray(updates["bias"]) == 0).all()


# Validation.


@pytest.mark.parametrize("name", ["rpl2d", "cpc2d", "exemplar2d", "mae2d"])
def test_validation_does_not_depend_on_the_batch_size(tiny, pictures, name):
    """Eight examples: two batches of four, or three of three with one row of padding."""
    config = tiny(name, pictures.path, validation__repeats=2)
    task, state, _ = initial(config, pictures)
    mesh, variables = sharding.make_mesh(1), steps.variables_of(state)
    evaluation = steps.make_evaluation(config, task, mesh)

    def validate(batch_size):
        examples = batches(config, pictures, task, validation=True, batch_size=batch_size)
        return loop.validate(evaluation, task, variables, examples, mesh)

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
    values = loop.validate(evaluation, task, {}, examples, sharding.make_mesh(1))
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
    with pytest.raises(UserError, match=r"'acuracy', is none of its metrics \(accuracy\)"):
        loop.validate(evaluation, task, {}, [batch], sharding.make_mesh(1))


def test_the_environment_of_a_test_run_is_a_single_device():
    assert jax.device_count() == 1, os.environ.get("XLA_FLAGS")
