"""The noise audit of a proxy task: what can be predicted where nothing is to be learned.

The task runs on noise in the shape of the collection (`ssl3d.phantoms.noise`). By default the
network is linear in plane profiles (`ssl3d.models.profiles`), which finds seams, borders and
unequal resolution in a minute; the config's own network may find more and takes longer. Accuracy
above chance is a shortcut: pretraining would learn it too, instead of anatomy.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import tempfile
from pathlib import Path
from typing import NamedTuple

import ml_collections

from ssl3d import tasks
from ssl3d.errors import RunError, UserError
from ssl3d.phantoms import noise
from ssl3d.training import loop, run_log
from ssl3d.training.cases import choose_cases, open_dataset

# Voxels of all noise images together. They are many, for a linear model with a few hundred weights
# per class and for a narrow interval; a third of them validate.
_VOXELS = 2**28
_REPEATS = 4  # samples of each validation image
_LINEAR = {
    "encoder.kind": "ssl3d.models.profiles",
    "encoder.activation_first": False,
    "encoder.final_pool": "none",
    "encoder.norm": "group",
    "encoder.dtype": "float32",
    "head.hidden": (),
    "head.batch_norm": False,
    "head.dropout": 0.0,
    "optimizer.learning_rate": 0.01,
    "optimizer.weight_decay": 1e-3,
    "optimizer.warmup_steps": 10,
}


# Optimiser steps of the linear model, which ends in about a minute, and of the config's network.
_LINEAR_STEPS, _NETWORK_STEPS = 400, 500


class Audit(NamedTuple):
    """What a model reached on noise.

    Attributes:
      model: that was trained, in words.
      headline: name of the metric that has a chance level.
      accuracy: on validation noise, with its 95 % interval over volumes, `low` to `high`.
      chance: accuracy of guessing.
      steps: that the model was trained.
    """

    model: str
    headline: str
    accuracy: float
    low: float
    high: float
    chance: float
    steps: int

    @property
    def passed(self) -> bool:
        """Whether the interval reaches down to chance."""
        return self.low <= self.chance

    @property
    def verdict(self) -> str:
        """The result in one line."""
        found = "no shortcut found" if self.passed else "a shortcut: nothing can be learned here"
        return (
            f"{self.model}, {self.steps} steps on noise: {self.headline} {self.accuracy:.3f} "
            f"[{self.low:.3f}, {self.high:.3f}], chance {self.chance:.3f}: {found}"
        )


def audit(
    config: ml_collections.ConfigDict, network: bool = False, steps: int = 0, images: int = 768
) -> Audit:
    """Trains a model of the config's proxy task on noise like the config's data.

    Args:
      network: the config's own network in place of the linear model.
      steps: optimiser steps (0: 400 of the linear model, 500 of the network).
      images: at most so many of noise; fewer where they are large.

    Raises:
      UserError: a downstream task, one that can be learned on noise or has no metric `chance`, or
        data that do not suit.
      RunError: a signal stopped it.
    """
    if tasks.needs(config) != "image":
        raise UserError(f"--audit: {config.task.name} learns from labels; give a proxy task")
    if tasks.build(config).learns_from_noise:
        raise UserError(
            f"--audit: {config.task.name} can be learned on noise too, where its scores are no "
            "shortcut; audit another proxy task"
        )
    steps = steps or (_NETWORK_STEPS if network else _LINEAR_STEPS)
    dataset = open_dataset(config)
    train_cases, validation_cases = choose_cases(config, dataset)
    with tempfile.TemporaryDirectory() as folder:
        # Two training images, then one to validate on, so that the cycle keeps their shares.
        turns = zip(train_cases[0::2], train_cases[1::2], itertools.cycle(validation_cases))
        cases = tuple(itertools.chain.from_iterable(turns))
        largest = max(math.prod(case.shape) * case.channels for case in cases)
        count = min(images, max(_VOXELS // largest, 48))
        noise.write(Path(folder) / "noise", dataset, cases, count, config.seed)
        trial = config.copy_and_resolve_references()
        # A task with a decoder has no head.
        linear = {key: value for key, value in _LINEAR.items() if key.split(".")[0] in trial}
        trial.update_from_flattened_dict(
            ({} if network else linear)
            | {
                "data.path": str(Path(folder) / "noise"),
                "data.phantom.kind": "",
                "validation.repeats": _REPEATS,
                "optimizer.ema": 0.0,
                "steps": steps,
                "log_every": steps,
                "validate_every": steps,
                "checkpoint_every": steps,
                "probe_every": 0,
                "log.wandb": "",
                "log.mlflow": "",
            }
        )
        with contextlib.redirect_stdout(io.StringIO()):
            ended = loop.train(trial, Path(folder) / "run")
        if not ended:
            raise RunError("--audit: stopped before its end; start it again")
        scores = run_log.read_metrics(Path(folder) / "run")[-1]
    name = tasks.build(trial).headline
    if "chance" not in scores:
        raise UserError(f"--audit: {config.task.name} has no metric chance to compare {name} with")
    model = f"the {config.encoder.kind}" if network else "a linear model"
    interval = scores[f"{name}_low"], scores[f"{name}_high"]
    return Audit(model, name, scores[name], *interval, scores["chance"], steps)
