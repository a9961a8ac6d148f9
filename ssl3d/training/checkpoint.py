"""Checkpoints of parameters, optimiser, step and data position, with Orbax."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging as stdlib_logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils

from ssl3d import documents
from ssl3d.atomic import write_json
from ssl3d.errors import RunError, UserError

# Two, so that a damaged one has a predecessor.
_KEPT = 2

# Of one step, on the host: name -> number, or (sum, count).
Metrics = dict[str, Any]

# The key of `config.json` for the version of the code that samples the training data.
DRAWS = "draws"
# The key for whether gradients come from the native library, see `models.weight_gradient`.
NATIVE = "native_weight_gradient"

# Keys without influence on any weight, but for rounding: where data lie, what is scored, how often,
# and what is kept in memory.
NEUTRAL = (
    "log_every",
    "log.pictures_every",
    "log.wandb",
    "log.mlflow",
    "checkpoint_every",
    "probe_every",
    "probe.cases",
    "probe.data",
    "encoder.remat",
    "data.path",
    "data.threads",
    "plan.channels",
    "plan.classes",
    "predict.batch",
    "validation.cases",
    "xla.channels_last",
)
# Keys that a later run in the same workdir may change: they do not influence the weights.
_FREE = (*NEUTRAL, "validate_every", "predict.overlap", "predict.mirror")

# What runs did before there was a choice.
_BEFORE = {"task.select_by": "kappa"}

# Keys of `config.json` beside the config's: the run's identity, and its lengths before it was
# extended.
_IDENTITY, _LENGTHS = "identity", "steps_before"


class Known(NamedTuple):
    """What `config.json` tells of a run.

    Attributes:
      identity: a digest of all that determined the run's weights when it began, but for its length.
      extended: its length before this start made it longer; 0: as long as before.
      rounding: what to say of a difference that changes the numbers by rounding alone; "": none.
    """

    identity: str
    extended: int
    rounding: str


def check_config(
    config: ml_collections.ConfigDict, workdir: Path, data: Mapping[str, Any] | None = None
) -> Known:
    """Writes `config.json`, after comparing it with that of an earlier run in `workdir`.

    A run may be extended: `config.steps` may grow.

    Args:
      data: what else affects the result, the cases and how they are sampled; kept in the same
        file.

    Raises:
      UserError: the earlier run had another value for a key that affects the result.
    """
    file = workdir / "config.json"
    now = json.loads(config.to_json()) | dict(data or {})
    before = documents.read_object(file, "use another --workdir") if file.exists() else {}
    if before:
        _compare(before, now, workdir)
    lengths, identity = before.get(_LENGTHS, []), before.get(_IDENTITY)
    extended = before["steps"] if before and before.get("steps") != now.get("steps") else 0
    with documents.fields(file, "use another --workdir"):
        lengths = [int(steps) for steps in lengths] + [extended] * bool(extended)
    now |= {_IDENTITY: str(identity or _identify(now))} | ({_LENGTHS: lengths} if lengths else {})
    if jax.process_index() == 0:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            write_json(file, now)
        except OSError as error:
            raise UserError(
                f"{workdir}: cannot be written ({error}); give another --workdir"
            ) from None
    return Known(now[_IDENTITY], extended, _rounding(before.get(NATIVE), now.get(NATIVE)))


def _rounding(begun: bool | None, goes_on: bool | None) -> str:
    if begun is None or bool(begun) == bool(goes_on):
        return ""
    first, then = (("without", "with")[bool(state)] for state in (begun, goes_on))
    return (
        f"the run was begun {first} the native weight gradient and goes on {then} it: from here on "
        "its numbers differ by rounding"
    )


def _compare(before: Mapping[str, Any], now: Mapping[str, Any], workdir: Path) -> None:
    """Raises `UserError` for the first key whose value makes `now` another run than `before`."""
    old_values, new_values = (flatten_dict(dict(found), sep=".") for found in (before, now))
    for key in sorted(old_values.keys() | new_values.keys()):
        old, new = old_values.get(key, _BEFORE.get(key)), new_values.get(key)
        if key == DRAWS and old != new:
            raise UserError(
                f"{workdir} holds a run of another version of the code, which samples training "
                "data differently: finish it with that version, or start in another folder"
            )
        if old == new or key in (*_FREE, NATIVE, _IDENTITY, _LENGTHS):
            continue
        if key not in old_values and new in ("", 0, []):
            continue  # an earlier version did not have it
        if key == "steps" and isinstance(old, int) and new > old:
            continue
        if key == "steps":
            raise UserError(
                f"{workdir} holds a run of {old} steps, which can become longer, not shorter: give "
                f"--config.steps={old} or more, --stop_at={new} to end early, or another --workdir"
            )
        raise UserError(
            f"{workdir} holds a run with {key}={old!r}, this one has {new!r}: give another "
            "--workdir, or the same value to go on"
        )


def _identify(document: Mapping[str, Any]) -> str:
    """A digest of the values that influence the weights, without the length of the run."""
    values = flatten_dict(dict(document), sep=".")
    left_out = (*_FREE, NATIVE, "steps")
    rows = sorted((key, value) for key, value in values.items() if key not in left_out)
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def open_manager(workdir: Path) -> ocp.CheckpointManager:
    """The manager of `workdir/checkpoints`: saves in the background, keeps the last two."""
    _raise_alone()
    return ocp.CheckpointManager(
        (workdir / "checkpoints").resolve(),
        options=ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.LatestN(_KEPT)
        ),
    )


def _raise_alone() -> None:
    """Lets failures of Orbax be raised alone: it reports them too, and so do its other threads.

    After the first file of a checkpoint that cannot be written or read come those of all others:
    to a closed event loop, by way of Python's hooks, or as asyncio's log of unawaited tasks.
    """
    logging.set_verbosity(logging.FATAL)
    stdlib_logging.getLogger("asyncio").setLevel(stdlib_logging.CRITICAL)
    if not isinstance(sys.excepthook, _QuietHook):
        sys.excepthook = _QuietHook(sys.excepthook)
        sys.unraisablehook = _QuietHook(sys.unraisablehook)


class _QuietHook:
    """A hook of `sys` but for what is sent to an event loop that is closed already."""

    def __init__(self, hook: Callable[..., Any]) -> None:
        self._hook = hook

    def __call__(self, *arguments: Any) -> None:
        # Type, error and trace; or one object that has them.
        error = arguments[1] if len(arguments) > 1 else arguments[0].exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            self._hook(*arguments)


def save(
    manager: ocp.CheckpointManager,
    step: int,
    state: Any,
    window: Sequence[Metrics] = (),
    identity: str = "",
) -> None:
    """Saves the state after `step` steps, unless it is saved already.

    Args:
      window: the metrics of the steps since the last log point.
      identity: of the run, see `Known`.

    Raises:
      RunError: it, or the one before it, cannot be written.
    """
    if step in manager.all_steps():
        return
    rows = [jax.tree.map(float, row) for row in window]
    digests = _digests(state, rows)
    data: dict[str, Any] = {"next_index": step, "window": rows, "sha256": digests}
    if identity:
        data["run"] = identity
        digests["run"] = _digest(identity)
    items = ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data))
    with _writing(manager):
        manager.wait_until_finished()
        for kept in manager.all_steps():
            if not (Path(manager.directory) / str(kept)).exists():
                raise RunError(f"{manager.directory}: checkpoint {kept} was removed")
        manager.save(step, args=items)


@contextlib.contextmanager
def closing(manager: ocp.CheckpointManager) -> Iterator[None]:
    """Waits at the end until all is written. Raises `RunError` if it cannot be."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):  # the first error is the one to report
            manager.close()
        raise
    with _writing(manager):
        manager.wait_until_finished()
        manager.close()


@contextlib.contextmanager
def _writing(manager: ocp.CheckpointManager) -> Iterator[None]:
    try:
        yield
    except RunError:
        raise
    except Exception as error:  # Orbax passes on what its threads and its C++ library raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:150]
        if not Path(manager.directory).parent.exists():
            reason = "the folder was removed"
        raise RunError(
            f"{manager.directory}: a checkpoint cannot be written ({reason}); free or mend the disk"
        ) from None


class Restored(NamedTuple):
    """A checkpoint: the state, its step, and the metrics of the steps since the last log point."""

    state: Any
    step: int
    window: list[Metrics]


def restore(manager: ocp.CheckpointManager, like: Any, identity: str = "") -> Restored | None:
    """The newest sound checkpoint; None without checkpoints.

    One that cannot be read, or whose content is not what was saved, is named and moved to
    `damaged_checkpoints/`, and the one before it is used.

    Args:
      like: a state of the same structure, with the shapes, types and shardings to restore.
      identity: of the run, see `Known`.

    Raises:
      UserError: a checkpoint of another run.
      RunError: there are checkpoints, but none is sound.
    """
    steps = sorted(manager.all_steps(), reverse=True)
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    damaged: dict[int, str] = {}
    for step in steps:
        try:
            # First, as the state of another run may have other shapes.
            about = manager.restore(step, args=ocp.args.Composite(data=ocp.args.JsonRestore()))
            _check_identity(f"{manager.directory}/{step}", about["data"], identity)
            restored = manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
                ),
            )
            state, data = restored["state"], restored["data"]
            _verify(step, state, data)
        except UserError:
            raise
        except Exception as error:  # whatever a damaged file makes Orbax or zarr raise
            reason = (str(error).splitlines() or [""])[0][:200]
            damaged[step] = f"{type(error).__name__}: {reason}"
            continue
        # They would block new checkpoints of the same steps. They are moved only now: that another
        # one can be read shows that neither the disk nor the memory is at fault.
        _set_aside(manager, damaged)
        window = [
            {name: v if isinstance(v, float) else tuple(v) for name, v in row.items()}
            for row in data.get("window", [])
        ]
        return Restored(state, step, window)
    if steps:
        reasons = "; ".join(f"checkpoint {step} ({why})" for step, why in damaged.items())
        raise RunError(
            f"{manager.directory}: no checkpoint is sound: {reasons}; restore a copy, or give "
            "another --workdir to start anew"
        )
    return None


def _check_identity(place: str, data: Mapping[str, Any], identity: str) -> None:
    """Raises `UserError` for a checkpoint of another run; earlier versions kept no identity."""
    if not identity or "run" not in data:
        return
    if data["sha256"]["run"] != _digest(data["run"]):
        raise ValueError("damaged: run")
    if data["run"] != identity:
        raise UserError(
            f"{place}: a checkpoint of another run, whose config or data differ from those in "
            "config.json; restore this run's checkpoints, or give another --workdir"
        )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _digests(state: Any, window: Any) -> dict[str, str]:
    """SHA-256 by array, and that of the metrics."""
    found = {"window": _digest(json.dumps(window))}
    for path, leaf in jax.tree.leaves_with_path(state):
        array = np.asarray(jax.device_get(leaf))
        digest = hashlib.sha256(f"{array.dtype} {array.shape} ".encode() + array.tobytes())
        found[jax.tree_util.keystr(path, simple=True, separator="/")] = digest.hexdigest()
    return found


def _verify(step: int, state: Any, data: Mapping[str, Any]) -> None:
    """Raises `ValueError` if a checkpoint is not what was saved."""
    numbers = {"folder": step, "data": data["next_index"], "state": int(state["step"])}
    if len(set(numbers.values())) > 1:
        raise ValueError(f"its step is {numbers}")
    if data.keys() == {"next_index"}:
        return  # of a version that kept no digests
    kept = {name: digest for name, digest in data["sha256"].items() if name != "run"}
    wrong = dict(_digests(state, data["window"]).items() ^ kept.items())
    if wrong:
        raise ValueError(f"damaged: {', '.join(sorted(wrong))}")


def _set_aside(manager: ocp.CheckpointManager, damaged: Mapping[int, str]) -> None:
    """Moves damaged checkpoints out of the way of new ones, and says so."""
    folder = Path(manager.directory).parent / "damaged_checkpoints"
    for step, reason in damaged.items() if jax.process_index() == 0 else ():
        folder.mkdir(exist_ok=True)
        names = (f"{step}-{count}" if count else str(step) for count in itertools.count())
        kept = next(folder / name for name in names if not (folder / name).exists())
        (Path(manager.directory) / str(step)).rename(kept)
        print(f"checkpoint {step} is damaged ({reason}); kept as {kept}", flush=True)
    if damaged and jax.process_count() > 1:
        multihost_utils.sync_global_devices("damaged checkpoints moved")
    manager.reload()
