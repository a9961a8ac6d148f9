import json
import logging
import shutil
import sys

import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from ssl3d.errors import RunError, UserError
from ssl3d.training import checkpoint


def state(step, value=None):
    filled = jnp.full((4, 3), float(step if value is None else value))
    return {"params": {"kernel": filled}, "step": jnp.int32(step)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the checkpoints after steps 1 to 3."""
    workdir = tmp_path_factory.mktemp("saved")
    manager = checkpoint.open_manager(workdir)
    for step in (1, 2, 3):
        checkpoint.save(manager, step, state(step))
    manager.wait_until_finished()
    manager.close()
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def manager(workdir):
    manager = checkpoint.open_manager(workdir)
    yield manager
    manager.close()


def damage(workdir, step):
    for file in (workdir / "checkpoints" / str(step)).rglob("*"):
        if file.is_file():
            file.write_bytes(b"\0" * (file.stat().st_size // 2))


def test_the_latest_two_are_kept_and_the_last_comes_back(manager):
    assert sorted(manager.all_steps()) == [2, 3]
    restored, step, window = checkpoint.restore(manager, state(0))
    assert step == 3
    assert restored["step"] == 3
    assert window == []
    np.testing.assert_array_equal(restored["params"]["kernel"], np.full((4, 3), 3.0))


def test_nothing_to_restore_is_no_error(tmp_path):
    manager = checkpoint.open_manager(tmp_path)
    assert checkpoint.restore(manager, state(0)) is None
    manager.close()


def test_a_step_that_is_saved_already_is_left_alone(manager):
    checkpoint.save(manager, 3, state(7))
    manager.wait_until_finished()
    assert checkpoint.restore(manager, state(0)).state["step"] == 3


def test_the_metrics_since_the_last_log_point_come_back(workdir):
    manager = checkpoint.open_manager(workdir)
    window = [{"loss": np.float32(0.1), "accuracy": (np.float32(3.3), np.float32(8))}] * 2
    checkpoint.save(manager, 4, state(4), window)
    manager.wait_until_finished()
    assert checkpoint.restore(manager, state(0)).window == window
    manager.close()


def test_a_damaged_one_is_named_and_kept_and_can_be_written_again(workdir, capsys):
    for count in ("3", "3-1"):
        damage(workdir, 3)
        manager = checkpoint.open_manager(workdir)
        restored, step, _ = checkpoint.restore(manager, state(0))
        assert step == restored["step"] == 2
        said = capsys.readouterr().out
        assert "checkpoint 3 is damaged" in said
        assert (workdir / "damaged_checkpoints" / count / "state").is_dir()
        checkpoint.save(manager, 3, state(3, 33))
        manager.wait_until_finished()
        assert checkpoint.restore(manager, state(0)).state["params"]["kernel"][0, 0] == 33
        manager.close()


def test_no_flipped_bit_is_restored(saved, tmp_path, capsys):
    """Every file of a checkpoint, with bits flipped in several places: the one before, or equal."""
    rng = np.random.default_rng(0)
    checkpoints = saved / "checkpoints"
    files = [path.relative_to(saved) for path in (checkpoints / "3").rglob("*") if path.is_file()]
    flips = [
        (file, int(at), 1 << int(rng.integers(8)))
        for file in files
        for at in rng.integers(max((saved / file).stat().st_size, 1), size=4)
        if (saved / file).stat().st_size
    ]
    assert len(flips) > 20
    fell_back = 0
    for number, (file, at, bit) in enumerate(flips):
        workdir = tmp_path / str(number)
        shutil.copytree(saved, workdir)
        content = bytearray((workdir / file).read_bytes())
        content[at] ^= bit
        (workdir / file).write_bytes(content)
        manager = checkpoint.open_manager(workdir)
        restored, step, _ = checkpoint.restore(manager, state(0))
        manager.close()
        assert step == restored["step"], (file, at)
        assert step in (2, 3)
        np.testing.assert_array_equal(restored["params"]["kernel"], np.full((4, 3), float(step)))
        fell_back += step == 2
    assert fell_back > 10


def test_an_identity_is_kept_and_compared(workdir):
    manager = checkpoint.open_manager(workdir)
    checkpoint.save(manager, 4, state(4), identity="one")
    manager.wait_until_finished()
    for own in ("one", ""):  # the others are of a version that kept none
        assert checkpoint.restore(manager, state(0), own).step == 4
    with pytest.raises(UserError, match=r"checkpoints/4: a checkpoint of another run"):
        checkpoint.restore(manager, {"params": jnp.zeros(7), "step": jnp.int32(0)}, "two")
    assert (workdir / "checkpoints/4").exists()
    manager.close()


def test_a_damaged_identity_is_no_other_run(workdir, capsys):
    manager = checkpoint.open_manager(workdir)
    checkpoint.save(manager, 4, state(4), identity="one")
    manager.wait_until_finished()
    file = next((workdir / "checkpoints" / "4" / "data").rglob("metadata"))
    file.write_text(file.read_text().replace('"one"', '"onf"'))
    assert checkpoint.restore(manager, state(0), "one").step == 3
    assert "checkpoint 4 is damaged" in capsys.readouterr().out
    manager.close()


def test_a_folder_of_another_step_is_damaged(workdir, capsys):
    (workdir / "checkpoints" / "3").rename(workdir / "checkpoints" / "7")
    manager = checkpoint.open_manager(workdir)
    assert checkpoint.restore(manager, state(0)).step == 2
    assert "checkpoint 7 is damaged (ValueError: its step is" in capsys.readouterr().out
    manager.close()


def test_a_checkpoint_without_digests_still_reads(workdir):
    file = next((workdir / "checkpoints" / "3" / "data").rglob("metadata"))
    file.write_text(json.dumps({"next_index": 3}))
    manager = checkpoint.open_manager(workdir)
    assert checkpoint.restore(manager, state(0)).step == 3
    manager.close()


def test_when_none_is_sound_the_run_stops_and_nothing_is_removed(workdir):
    for step in (2, 3):
        damage(workdir, step)
    manager = checkpoint.open_manager(workdir)
    with pytest.raises(RunError, match=r"no checkpoint is sound: checkpoint 3 .* checkpoint 2 "):
        checkpoint.restore(manager, state(0))
    manager.close()
    assert (workdir / "checkpoints" / "2").is_dir()
    assert (workdir / "checkpoints" / "3").is_dir()


def test_an_error_that_passes_costs_no_checkpoint(manager, monkeypatch):
    def fail(*arguments, **options):
        raise MemoryError("not now")

    with monkeypatch.context() as patched:
        patched.setattr(manager, "restore", fail)
        with pytest.raises(RunError):
            checkpoint.restore(manager, state(0))
    assert checkpoint.restore(manager, state(0)).step == 3


def config(**changes):
    values = ml_collections.ConfigDict(
        {
            "seed": 0,
            "steps": 1000,
            "log_every": 20,
            "validate_every": 200,
            "checkpoint_every": 200,
            "data": {"path": "here", "threads": 2, "crop": (8, 8)},
            "optimizer": {"learning_rate": 1e-3},
        }
    )
    values.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return values


def test_a_new_folder_gets_the_config(tmp_path):
    checkpoint.check_config(config(), tmp_path / "a" / "run")
    document = json.loads((tmp_path / "a" / "run" / "config.json").read_text())
    assert document["data"]["crop"] == [8, 8]
    again = checkpoint.check_config(config(), tmp_path / "a" / "run")  # the same again is fine
    assert again == checkpoint.Known(document["identity"], extended=0, rounding="")
    assert [file.name for file in (tmp_path / "a" / "run").iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"optimizer__learning_rate": 0.1}, r"optimizer\.learning_rate=0\.001"),
        ({"seed": 1}, r"seed=0, this one has 1"),
        ({"data__crop": (8, 9)}, r"data\.crop"),
    ],
)
def test_a_change_that_decides_the_result_is_refused_by_key(tmp_path, changes, key):
    checkpoint.check_config(config(), tmp_path)
    with pytest.raises(UserError, match=key):
        checkpoint.check_config(config(**changes), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 0


def test_a_key_that_came_or_went_is_refused_too(tmp_path):
    checkpoint.check_config(config(), tmp_path)
    more = config()
    more.optimizer.momentum = 0.9
    with pytest.raises(UserError, match=r"optimizer\.momentum"):
        checkpoint.check_config(more, tmp_path)


@pytest.mark.parametrize("neutral", ["", 0, ()])
def test_a_key_that_came_and_changes_nothing_is_none(tmp_path, neutral):
    checkpoint.check_config(config(), tmp_path)
    more = config()
    more.optimizer.momentum = neutral
    checkpoint.check_config(more, tmp_path)


def test_runs_from_before_there_was_a_choice_go_on_as_they_did(tmp_path):
    """Kappa alone selected the best model of a classification."""
    checkpoint.check_config(config(), tmp_path)
    more = config()
    more.task = {"select_by": "kappa"}
    checkpoint.check_config(more, tmp_path)
    shutil.rmtree(tmp_path)
    checkpoint.check_config(config(), tmp_path)
    more.task.select_by = "auroc"
    with pytest.raises(UserError, match=r"task\.select_by='kappa', this one has 'auroc'"):
        checkpoint.check_config(more, tmp_path)


@pytest.mark.parametrize("before", [{}, {"draws": 1}])
def test_a_run_goes_on_with_the_draws_that_it_began_with(tmp_path, before):
    checkpoint.check_config(config(), tmp_path, before)
    with pytest.raises(UserError, match="another version of the code, which samples training"):
        checkpoint.check_config(config(), tmp_path, {"draws": 2})


def test_a_run_says_that_it_goes_on_with_another_gradient(tmp_path):
    def check(**data):
        return checkpoint.check_config(config(), tmp_path, data).rounding

    assert check() == ""
    assert check(native_weight_gradient=True) == ""  # an earlier version did not note it
    assert check(native_weight_gradient=True) == ""
    remark = check(native_weight_gradient=False)
    assert "begun with the native weight gradient and goes on without it" in remark
    assert check(native_weight_gradient=False) == ""


@pytest.mark.parametrize(
    "changes",
    [
        {"log_every": 5},
        {"validate_every": 5},
        {"checkpoint_every": 5},
        {"data__path": "moved"},
        {"data__threads": 8},
    ],
)
def test_what_decides_nothing_may_change(tmp_path, changes):
    known = checkpoint.check_config(config(), tmp_path)
    assert checkpoint.check_config(config(**changes), tmp_path) == known
    found = json.loads((tmp_path / "config.json").read_text())
    assert found.pop("identity") == known.identity
    assert found == json.loads(config(**changes).to_json())


def test_a_run_may_become_longer_and_keeps_its_identity(tmp_path):
    first = checkpoint.check_config(config(steps=10), tmp_path)
    for steps, before in ((20, 10), (20, 0), (30, 20)):
        known = checkpoint.check_config(config(steps=steps), tmp_path)
        assert (known.identity, known.extended) == (first.identity, before)
    assert json.loads((tmp_path / "config.json").read_text())["steps_before"] == [10, 20]
    with pytest.raises(UserError, match=r"holds a run of 30 steps, which .* --stop_at=20 to end"):
        checkpoint.check_config(config(steps=20), tmp_path)


def test_an_identity_is_that_of_config_and_data(tmp_path):
    def identity(name, data, **changes):
        return checkpoint.check_config(config(**changes), tmp_path / name, data).identity

    data = {"cases.train": "abc"}
    one = identity("one", data)
    assert identity("two", data, data__threads=7) == one
    assert identity("three", {"cases.train": "abd"}) != one
    assert identity("four", data, seed=1) != one


@pytest.mark.parametrize("text", ['{"seed": ', "", "[]"], ids=["cut short", "empty", "no object"])
def test_a_config_that_does_not_read_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        checkpoint.check_config(config(), tmp_path)


def test_failures_of_other_threads_are_not_reported_again(tmp_path, monkeypatch):
    """On a full disk there were 59 tracebacks: Orbax' event loop is closed after the first one."""
    seen = []
    monkeypatch.setattr(sys, "excepthook", lambda *given: seen.append(given[1]))
    for _ in range(2):
        checkpoint.open_manager(tmp_path).close()
    for error in (RuntimeError("Event loop is closed"), RuntimeError("another"), KeyError("x")):
        sys.excepthook(type(error), error, None)
    assert [str(error) for error in seen] == ["another", "'x'"]
    assert not logging.getLogger("asyncio").isEnabledFor(logging.ERROR)
