import json
import types

import ml_collections
import numpy as np
import pytest

from ssl3d.errors import UserError
from ssl3d.training import run_log
from tests.support.event_files import summaries

TRAIN = {"loss": 2.0, "accuracy": 0.25, "chance": 0.125, "volumes_per_second": 3.25}


def settings(steps=10, **log):
    return ml_collections.ConfigDict(
        {"name": "a run", "steps": steps, "log": {"wandb": "", "mlflow": ""} | log}
    )


def write(workdir, steps, begin=0, split="train"):
    log = run_log.RunLog(workdir, settings(), begin, "accuracy")
    for step in steps:
        log.log(step, split, TRAIN | {"loss": 1.0 * step})
    log.close()


def test_a_line_for_each_log_point(tmp_path):
    write(tmp_path, [1, 2])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == run_log.read_metrics(tmp_path)
    assert lines[1] == {"step": 2, "split": "train"} | TRAIN


def test_a_restart_drops_what_is_made_again_and_nothing_else(tmp_path):
    write(tmp_path, [1, 2, 3, 4])
    write(tmp_path, [3, 4, 5], begin=2)
    assert [line["step"] for line in run_log.read_metrics(tmp_path)] == [1, 2, 3, 4, 5]


def test_a_start_from_nothing_leaves_no_line_of_a_run_that_saved_nothing(tmp_path):
    """A run that was killed before its first checkpoint validates at step 0 again."""
    write(tmp_path, [0], split="val")
    write(tmp_path, [0], split="val")
    assert len(run_log.read_metrics(tmp_path)) == 1


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path):
    write(tmp_path, [1, 2])
    file = tmp_path / "metrics.jsonl"
    file.write_text(file.read_text()[:-9])
    assert [line["step"] for line in run_log.read_metrics(tmp_path)] == [1]
    write(tmp_path, [2, 3], begin=1)
    assert [line["step"] for line in run_log.read_metrics(tmp_path)] == [1, 2, 3]


def test_a_folder_without_metrics_has_no_lines(tmp_path):
    assert run_log.read_metrics(tmp_path) == []


def events(workdir):
    return [(value.tag, step, value.simple_value) for step, value in summaries(workdir)]


def test_event_files_hold_the_same_numbers(tmp_path):
    write(tmp_path, [1, 2])
    found = events(tmp_path)
    assert ("train/loss", 2, 2.0) in found
    assert ("train/accuracy", 1, 0.25) in found


def test_without_a_terminal_plain_lines_are_printed(tmp_path, capsys):
    write(tmp_path, [7])
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.splitlines() == [
        "step      7 train loss 7.000 accuracy 0.250 (chance 0.125) 3.2 volumes/s"
    ]


def test_plain_lines_tell_the_time_left(tmp_path, capsys, monkeypatch):
    """Two seconds a step after the first one, whose time is that of the compiler."""
    now = iter([100.0, 104.0, 2000.0])
    clock = types.SimpleNamespace(monotonic=lambda: next(now))
    monkeypatch.setattr(run_log, "time", clock)
    log = run_log.RunLog(tmp_path, settings(steps=1803), 0, "accuracy")
    for step in (1, 2, 3):
        log.advance(step)
        if step != 2:
            log.log(step, "train", TRAIN)
    log.log(3, "val", TRAIN)
    log.log(1803, "train", TRAIN)
    log.close()
    first, third, validation, last = capsys.readouterr().out.splitlines()
    assert third.endswith("3.2 volumes/s, 1:00:00 left")
    assert not any("left" in line for line in (first, validation, last))


def test_a_picture_is_made_and_shown(tmp_path):
    log = run_log.RunLog(tmp_path, settings(), 0, "accuracy")
    log.picture(4, "inspect", lambda: np.zeros((5, 7, 3), np.uint8))
    log.close()
    (shown,) = [value for step, value in summaries(tmp_path) if step == 4]
    assert shown.tag == "inspect"
    assert (shown.image.height, shown.image.width) == (5, 7)


def test_numbers_are_described_with_their_interval_and_baselines():
    values = {
        "loss": 1.0,
        "accuracy": 0.5,
        "accuracy_low": 0.4,
        "accuracy_high": 0.6,
        "chance": 0.03125,
        "accuracy_histogram": 0.2,
    }
    assert run_log.describe(values, "accuracy", ["accuracy_histogram"]) == (
        "loss 1.000 accuracy 0.500 [0.400, 0.600] (chance 0.031) histogram 0.200"
    )
    assert run_log.describe(values, "accuracy").endswith("(chance 0.031)")
    graded = {"loss": 1.0, "accuracy": 0.5, "chance": 0.25, "kappa": None}
    assert run_log.describe(graded, "accuracy", ["kappa"]) == (
        "loss 1.000 accuracy 0.500 (chance 0.250) kappa nan"
    )
    assert run_log.describe({"loss": 1.0, "dice": 0.75}, "dice") == "loss 1.000 dice 0.750"
    assert run_log.describe({"loss": 1.0}, "accuracy") == "loss 1.000"


def test_a_probe_in_all_places(tmp_path, capsys):
    log = run_log.RunLog(tmp_path, settings(), 0, "accuracy")
    scores = {"dice": 0.52, "untrained": 0.31, "intensities": 0.05}
    log.log(5, "probe", scores | {"seconds": 0.25})
    log.close()
    assert capsys.readouterr().out.splitlines() == [
        "step      5 probe dice 0.520 (untrained 0.310, intensities 0.050)"
    ]
    line = {"step": 5, "split": "probe"} | scores | {"seconds": 0.25}
    assert run_log.read_metrics(tmp_path) == [line]
    assert {tag for tag, step, _ in events(tmp_path) if step == 5} == {
        "probe/dice", "probe/untrained", "probe/intensities", "probe/seconds"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"\xff\xfe", "line 2 cannot be read"),
        (b"7", "line 2 cannot be read"),
        (b'{"loss": 1.0}', "line 2 has no step or no split"),
        (b'{"step": null, "split": "train"}', "line 2 has no step or no split"),
        (b'{"step": 2, "split": "train", "loss": []}', "line 2: loss is no number"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, words):
    write(tmp_path, [1, 2])
    file = tmp_path / "metrics.jsonl"
    first, second = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(first + line + b"\n" + second)
    with pytest.raises(UserError, match=rf"metrics\.jsonl: {words}"):
        run_log.read_metrics(tmp_path)
