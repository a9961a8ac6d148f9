"""Every bound of a shipped key, and the conditions between keys."""

import re

import pytest

from configs import default
from ssl3d.bounds import Config, at_least, bounded
from ssl3d.errors import UserError
from ssl3d.training import config_checks

SHARE = "at least 0 and below 1"
PROBABILITY = "between 0 and 1"


@pytest.mark.parametrize(
    ("name", "key", "value", "words"),
    [
        *(
            (name, key, least - 1, f"{least} or more")
            for name, key, least in [
                ("rpl3d", "seed", 0),
                ("rpl3d", "steps", 1),
                ("rpl3d", "batch_size", 1),
                ("rpl3d", "log_every", 1),
                ("rpl3d", "validate_every", 1),
                ("rpl3d", "checkpoint_every", 1),
                ("rpl3d", "data.margin", 0),
                ("rpl3d", "data.threads", 1),
                ("rpl3d", "optimizer.warmup_steps", 0),
                ("rpl3d", "optimizer.accumulate", 1),
                ("rpl3d", "validation.repeats", 1),
                ("rpl3d", "mesh.space", 1),
                ("cpc3d", "task.code", 1),
                ("jigsaw2d", "task.code", 1),
                ("exemplar2d", "task.code", 1),
                ("cpc3d", "task.context", 1),
                ("exemplar3d", "task.pool", 2),
                ("jigsaw3d", "task.permutation_seed", 0),
                ("mae3d", "task.block", 1),
                ("segment3d", "task.deep", 0),
                ("segment3d", "data.label_seed", 0),
                ("segment3d", "transfer.warmup_steps", 0),
                ("segment3d", "predict.batch", 1),
                ("classify2d", "predict.batch", 1),
            ]
        ),
        *(
            (name, key, value, SHARE)
            for value in (-0.1, 1.0)
            for name, key in [
                ("rpl3d", "optimizer.ema"),
                ("rpl3d", "head.dropout"),
                ("exemplar3d", "task.zoom_amount"),
                ("mae3d", "task.ratio"),
                ("segment3d", "augment.zoom"),
                ("segment3d", "predict.overlap"),
            ]
        ),
        *(
            (name, key, value, PROBABILITY)
            for value in (-0.1, 1.1)
            for name, key in [
                ("exemplar3d", "task.flip"),
                ("exemplar3d", "task.turn"),
                ("exemplar3d", "task.zoom"),
                ("exemplar3d", "task.intensity"),
                ("cpc3d", "task.intensity"),
                ("jigsaw3d", "task.intensity"),
                ("rotation3d", "task.intensity"),
                ("rpl3d", "task.intensity"),
                ("segment3d", "task.foreground"),
                ("segment3d", "augment.flip"),
                ("segment3d", "augment.spatial"),
                ("classify2d", "augment.intensity"),
            ]
        ),
        ("rpl3d", "optimizer.learning_rate", 0.0, "above 0"),
        ("rpl3d", "optimizer.clip_norm", 0.0, "above 0"),
        ("cpc3d", "task.temperature", 0.0, "above 0"),
        ("exemplar3d", "task.margin", 0.0, "above 0"),
        ("rpl3d", "optimizer.weight_decay", -0.1, "0 or more"),
        ("segment3d", "augment.rotate", -1.0, "0 or more"),
        ("segment3d", "augment.noise", -0.1, "0 or more"),
        ("rpl3d", "head.pool", "sum", "mean or max"),
        ("rpl3d", "head.hidden", (0,), "whole numbers from 1, e.g. (256,)"),
        ("segment3d", "data.label_fraction", 0.0, "above 0 and at most 1"),
        ("segment3d", "data.label_fraction", 1.5, "above 0 and at most 1"),
        ("rpl3d", "data.crop", (24, 24), "3 whole numbers of voxels (pictures need"),
        ("rpl3d", "data.crop", (24, 24, 0), "3 whole numbers of voxels"),
        ("segment3d", "augment.flip_axes", (0, 3), "different axes of 0 to 2"),
        ("segment2d", "augment.flip_axes", (0, 0), "different axes of 0 to 1"),
        ("segment3d", "data.margin", 2, "0 for downstream tasks"),
    ],
)
def test_values_out_of_bounds_are_refused_with_key_and_remedy(tiny, name, key, value, words):
    config = tiny(name, **{key.replace(".", "__"): value})
    message = re.escape(f"config.{key}={value!r}: must be {words}")
    with pytest.raises(UserError, match=f"^{message}"):
        config_checks.check(config)
    # Commands and studies check copies.
    with pytest.raises(UserError, match=f"^{message}"):
        config_checks.check(config.copy_and_resolve_references())


@pytest.mark.parametrize("name", ["cpc2d", "exemplar3d", "segment3d", "segment2d", "classify2d"])
def test_shipped_values_are_within_bounds(tiny, name):
    config_checks.check(tiny(name))


def test_conditions_between_keys(tiny):
    config = tiny("rpl3d", batch_size=4, optimizer__accumulate=3)
    with pytest.raises(UserError, match=r"^config\.optimizer\.accumulate=3: must divide"):
        config_checks.check(config)
    config = tiny("segment3d", steps=5, transfer__warmup_steps=5)
    config_checks.check(config)  # of no account unless the encoder thaws
    config.transfer.mode = "finetune"
    with pytest.raises(UserError, match=r"^config\.transfer\.warmup_steps=5: must be fewer than"):
        config_checks.check(config)


def test_a_task_outside_the_repository_declares_bounds_of_its_own():
    config, _ = default.get_config("lung.masking", 3, "phantom_brain", kind="whole")
    config.task.flip = bounded(4, at_least(2))  # another bound than that of exemplar's `flip`
    config.task.decoder = Config()
    config.task.decoder.depth = bounded(2, at_least(1))
    config_checks.check(config)
    config.task.flip = 1
    with pytest.raises(UserError, match=r"^config\.task\.flip=1: must be 2 or more"):
        config_checks.check(config)
    config.task.update({"flip": 2, "decoder": {"depth": 0}})
    with pytest.raises(UserError, match=r"^config\.task\.decoder\.depth=0: must be 1 or more"):
        config_checks.check(config)
