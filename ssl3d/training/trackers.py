"""Where a run can be watched: TensorBoard, and on request Weights & Biases and MLflow.

    config.log.wandb     a project of Weights & Biases; set up by WANDB_MODE, WANDB_ENTITY, ...
    config.log.mlflow    an experiment of MLflow, at MLFLOW_TRACKING_URI

`Trackers` writes to all of them. A resumed run goes on in the same runs there: `trackers.json` in
its folder keeps their names.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import ml_collections
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import UInt8
from tensorboardX import SummaryWriter
from tensorboardX.summary import hparams

from ssl3d import documents
from ssl3d.atomic import write_json
from ssl3d.errors import UserError

RUNS = "trackers.json"
# Characters of a setting; MLflow refuses much longer ones.
_LONGEST = 500
_STEP = "step"  # the axis of all metrics at Weights & Biases

Picture = UInt8[np.ndarray, "H W 3"]


class Tracker(Protocol):
    """One place where a run can be watched.

    Attributes:
      run: the name of the run there, by which it can be resumed.
    """

    run: str

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def picture(self, step: int, name: str, picture: Picture) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in the run's folder, with the settings for TensorBoard's page of hparams.

    Args:
      step: where this run begins; later events of an earlier run are dropped.
      settings: value by dotted key of the config.
      score: the metric to compare runs by, e.g. "val/accuracy".
    """

    def __init__(
        self, workdir: Path, step: int, settings: Mapping[str, Any], score: str = ""
    ) -> None:
        self.run = str(workdir)
        self._events = SummaryWriter(self.run, purge_step=step + 1)
        # Into the same files: the writer's own method would begin another run beside this one.
        for summary in hparams(dict(settings), {score: 0.0} if score else {})[:2]:
            self._events.file_writer.add_summary(summary)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if math.isfinite(value):  # else the package warns: an undefined kappa is no fault
                self._events.add_scalar(name, value, step)

    def picture(self, step: int, name: str, picture: Picture) -> None:
        self._events.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        self._events.close()


class WandB:
    """A run of Weights & Biases, with its files in the run's folder; arguments as of `MLflow`."""

    def __init__(
        self,
        wandb: ModuleType,
        project: str,
        name: str,
        run: str,
        settings: Mapping[str, Any],
        workdir: Path,
    ) -> None:
        self._wandb = wandb
        self._run = wandb.init(
            project=project, name=name, id=run or None, resume="allow", dir=str(workdir)
        )
        self._run.config.update(dict(settings), allow_val_change=True)
        # Its own steps never go back, as those of a resumed run do to the last checkpoint: it would
        # drop what is logged until the run is where it was cut.
        self._run.define_metric(_STEP)
        self._run.define_metric("*", step_metric=_STEP)
        self.run = str(self._run.id)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({_STEP: step} | dict(values))

    def picture(self, step: int, name: str, picture: Picture) -> None:
        self._run.log({_STEP: step, name: self._wandb.Image(picture)})

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of MLflow.

    Args:
      mlflow: the package.
      project: where the run belongs, an experiment.
      name: of the run, for people.
      run: to go on with; "": a new one.
      settings: value by dotted key of the config.
      workdir: the run's folder; MLflow writes nothing there.
    """

    def __init__(
        self,
        mlflow: ModuleType,
        project: str,
        name: str,
        run: str,
        settings: Mapping[str, Any],
        workdir: Path,
    ) -> None:
        self._mlflow = mlflow
        mlflow.set_experiment(project)
        self.run = str(mlflow.start_run(run_id=run or None, run_name=name).info.run_id)
        if not run:  # a setting cannot change there
            mlflow.log_params({key: str(value)[:_LONGEST] for key, value in settings.items()})

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        numbers = {name: value for name, value in values.items() if math.isfinite(value)}
        self._mlflow.log_metrics(numbers, step=step)

    def picture(self, step: int, name: str, picture: Picture) -> None:
        self._mlflow.log_image(picture, artifact_file=f"{name}/{step:08d}.png")

    def close(self) -> None:
        self._mlflow.end_run()


# Key of `config.log`, which is also the name of the package -> the tracker.
_OPTIONAL: dict[str, Callable[..., Tracker]] = {"wandb": WandB, "mlflow": MLflow}


def check(config: ml_collections.ConfigDict) -> None:
    """Raises `UserError` for a requested tracker whose package is not installed."""
    for key in _OPTIONAL:
        if config.log[key]:
            _package(key, config.log[key])


def _package(key: str, value: str) -> ModuleType:
    try:
        return importlib.import_module(key)
    except ImportError as error:
        raise UserError(
            f"config.log.{key}={value!r}: {error}; install it with `pip install {key}`, or leave "
            "the key empty"
        ) from None


class Trackers:
    """All trackers of a run as one.

    TensorBoard's files are the run's own: what cannot be written there is an error. Another tracker
    that fails, e.g. for its network, is left out from then on, and training goes on.

    Args:
      step: where this run begins.
      score: the metric to compare runs by, e.g. "val/accuracy".
      say: prints a line.

    Raises:
      UserError: a package is missing, or a tracker does not start.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        workdir: Path,
        step: int,
        score: str,
        say: Callable[[str], None] = print,
    ) -> None:
        self._say = say
        flat = flatten_dict(config.to_dict(), sep=".")
        settings = {k: v if isinstance(v, int | float | str) else str(v) for k, v in flat.items()}
        self._own = TensorBoard(workdir, step, settings, score)
        self._optional: dict[str, Tracker] = {}
        runs = _known_runs(workdir / RUNS)
        for key, begin in _OPTIONAL.items():
            project = config.log[key]
            if not project:
                continue
            package = _package(key, project)
            try:
                begun = begin(package, project, config.name, runs.get(key, ""), settings, workdir)
            except Exception as error:  # of a network, a server, an account
                raise UserError(
                    f"config.log.{key}={project!r}: does not start ({_reason(error)}); mend this, "
                    "or leave the key empty"
                ) from None
            self._optional[key] = begun
            runs[key] = begun.run
        if self._optional:
            write_json(workdir / RUNS, runs)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._own.scalars(step, values)
        self._tell(lambda tracker: tracker.scalars(step, values))

    def picture(self, step: int, name: str, picture: Picture) -> None:
        self._own.picture(step, name, picture)
        self._tell(lambda tracker: tracker.picture(step, name, picture))

    def close(self) -> None:
        self._own.close()
        self._tell(lambda tracker: tracker.close())

    def _tell(self, what: Callable[[Tracker], None]) -> None:
        for key, tracker in list(self._optional.items()):
            try:
                what(tracker)
            except Exception as error:  # of a network, a server
                del self._optional[key]
                self._say(f"{key}: {_reason(error)}; training goes on without it")


def _known_runs(file: Path) -> dict[str, str]:
    if not file.exists():
        return {}
    found = documents.read_object(file, "remove it to begin new runs there")
    return {key: str(run) for key, run in found.items()}


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
