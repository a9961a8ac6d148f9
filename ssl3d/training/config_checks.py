"""What a config may hold: refused in one line, before any data is read or anything compiled."""

from __future__ import annotations

from collections.abc import Sequence

import ml_collections

from ssl3d.errors import UserError

# Least whole number of each key; keys that a task does not have are passed over.
_LEAST = {
    "seed": 0,
    "steps": 1,
    "batch_size": 1,
    "log_every": 1,
    "validate_every": 1,
    "checkpoint_every": 1,
    "data.margin": 0,
    "data.threads": 1,
    "optimizer.warmup_steps": 0,
    "optimizer.accumulate": 1,
    "validation.repeats": 1,
    "mesh.space": 1,
    "task.code": 1,
    "task.context": 1,
    "task.pool": 2,
    "task.permutation_seed": 0,
    "task.deep": 0,
    "data.label_seed": 0,
    "transfer.warmup_steps": 0,
    "predict.batch": 1,
}
# At least zero, and below one: probabilities, shares, and the decay of an average.
_SHARES = (
    "optimizer.ema",
    "head.dropout",
    "task.zoom_amount",
    "augment.zoom",
    "predict.overlap",
)
_PROBABILITIES = (
    "task.flip",
    "task.turn",
    "task.zoom",
    "task.intensity",
    "task.foreground",
    "augment.flip",
    "augment.spatial",
    "augment.intensity",
)
_POSITIVE = ("optimizer.learning_rate", "optimizer.clip_norm", "task.temperature", "task.margin")
_NOT_NEGATIVE = ("optimizer.weight_decay", "augment.rotate", "augment.noise")


def check(config: ml_collections.ConfigDict) -> None:
    """Raises `UserError` for the first value that no run could use, with its key."""
    for key, least in _LEAST.items():
        _refuse_unless(config, key, lambda x, least=least: x >= least, f"{least} or more")
    for key in _SHARES:
        _refuse_unless(config, key, lambda x: 0 <= x < 1, "at least 0 and below 1")
    for key in _PROBABILITIES:
        _refuse_unless(config, key, lambda x: 0 <= x <= 1, "between 0 and 1")
    for key in _POSITIVE:
        _refuse_unless(config, key, lambda x: x > 0, "above 0")
    for key in _NOT_NEGATIVE:
        _refuse_unless(config, key, lambda x: x >= 0, "0 or more")
    _refuse_unless(config, "head.pool", lambda x: x in ("mean", "max"), "mean or max")
    _refuse_unless(
        config,
        "data.crop",
        lambda x: _whole_numbers(x) and len(x) == config.rank,
        f"{config.rank} whole numbers of voxels (pictures need the task's 2D config)",
    )
    _refuse_unless(config, "head.hidden", _whole_numbers, "whole numbers from 1, e.g. (256,)")
    _refuse_unless(config, "data.label_fraction", lambda x: 0 < x <= 1, "above 0 and at most 1")
    _refuse_unless(
        config,
        "transfer.warmup_steps",
        lambda x: config.transfer.mode != "finetune" or x < config.steps,
        "fewer than config.steps, or the encoder never learns",
    )
    _refuse_unless(
        config,
        "augment.flip_axes",
        lambda x: len(set(x)) == len(x) > 0 and set(x) <= set(range(config.rank)),
        f"different axes of 0 to {config.rank - 1}",
    )
    if "transfer" in config:
        # A prediction is asked of the whole image.
        _refuse_unless(config, "data.margin", lambda x: x == 0, "0 for downstream tasks")
    micro = config.optimizer.accumulate
    if config.batch_size % micro:
        raise UserError(f"config.optimizer.accumulate={micro}: must divide config.batch_size")


def _refuse_unless(config: ml_collections.ConfigDict, key: str, test: object, what: str) -> None:
    section, _, name = key.rpartition(".")
    values = config.get(section, {}) if section else config
    if name in values and not test(values[name]):
        raise UserError(f"config.{key}={values[name]!r}: must be {what}")


def _whole_numbers(values: Sequence[object]) -> bool:
    return all(isinstance(value, int) and value >= 1 for value in values)
