"""Every bound of a shipped key, and the conditions between keys."""

import re

import pytest

from ssl3d.bounds import Config, at_least, bounded
from ssl3d.configs import default
from ssl3d.errors import UserError
from ssl3d.training import config_checks, loop

SHARE = "at least 0 and below 1"
PROBABILITY = "between 0 and 1"
CROP = "3 whole numbers of voxels, e.g. --config.data.crop="


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
                ("rpl3d", "log.pictures_every", 0),
                ("rpl3d", "validate_every", 1),
                ("rpl3d", "checkpoint_every", 1),
                ("rpl3d", "data.margin", 0),
                ("rpl3d", "data.threads", 1),
                ("rpl3d", "optimizer.warmup_steps", 0),
                ("rpl3d", "optimizer.accumulate", 1),
                ("rpl3d", "validation.repeats", 1),
                ("rpl3d", "mesh.space", 1),
                ("cpc3d", "task.code", 1),
                ("jigsaw2d", "task.code", 0),
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
        ("classify3d", "task.select_by", "f1", "kappa or balanced_accuracy or auroc"),
        ("rpl3d", "head.hidden", (0,), "whole numbers from 1, e.g. (256,)"),
        ("segment3d", "data.label_fraction", 0.0, "above 0 and at most 1"),
        ("segment3d", "data.label_fraction", 1.5, "above 0 and at most 1"),
        ("rpl3d", "data.crop", (24, 24), f"{CROP}'(24, 24, 24)' (pictures need"),
        ("rpl3d", "data.crop", (24, 24, 0), "3 whole numbers of voxels"),
        ("rpl3d", "data.crop", (48,), f"{CROP}'(48, 48, 48)' (pictures need"),
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
        ("rpl2d", {"probe_every": -1}, "config.probe_every=-1"),
        ("rpl2d", {"probe__cases": 0}, "config.probe.cases=0"),
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
def test_a_run_with_invalid_values_is_refused_by_key(
    tiny, pictures, tmp_path, name, overrides, key
):
    with pytest.raises(UserError, match=key):
        loop.train(tiny(name, pictures.path, **overrides), tmp_path)
