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
from ssl3d.atomic import atomic_write
from ssl3d.errors import RunError, UserError

# Two, so that a damaged one has a predecessor.
_KEPT = 2

# Of one step, on the host: name -> number, or (sum, count).
Metrics = dict[str, Any]

# The key of `config.json` for the version of the code that samples the training data.
DRAWS = "draws"

# Keys without influence on any weight: where data lie, what is scored, and how often.
NEUTRAL = (
    "log_every",
    "checkpoint_every",
    "probe_every",
    "probe.cases",
    "probe.data",
    "data.path",
    "data.threads",
    "predict.batch",
    "validation.cases",
)
# Keys that a later run in the same workdir may change: they do not influence the weights.
_FREE = (*NEUTRAL, "validate_every", "predict.overlap", "predict.mirror")


def check_config(
    config: ml_collections.ConfigDict, workdir: Path, data: Mapping[str, Any] | None = None
) -> None:
    """Writes `config.json`, after comparing it with that of an earlier run in `workdir`.

    Args:
      data: what else affects the result, the cases and how they are sampled; kept in the same
        file.

    Raises:
      UserError: the earlier run had another value for a key that affects the result.
    """
    file = workdir / "config.json"
    now = json.loads(config.to_json()) | dict(data or {})
    if file.exists():
        before = flatten_dict(documents.read_object(file, "use another --workdir"), sep=".")
        after = flatten_dict(now, sep=".")
        for key in sorted(before.keys() | after.keys()):
            old, new = before.get(key), after.get(key)
            if key == DRAWS and old != new:
                raise UserError(
                    f"{workdir} holds a run of another version of the code, which samples training "
                    "data differently: finish it with that version, or start in another folder"
                )
            if key not in before and new == "":
                continue  # an earlier version did not have it
            if old != new and key not in _FREE:
                longer = f", --config.init.encoder={workdir} to go on from its weights"
                raise UserError(
                    f"{workdir} holds a run with {key}={old!r}, this one has {new!r}: "
                    f"give another --workdir{longer if key == 'steps' else ''}, or the same value "
                    "to go on"
                )
    if jax.process_index() == 0:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            with atomic_write(file) as partial:
                partial.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n")
        except OSError as error:
            raise UserError(
                f"{workdir}: cannot be written ({error}); give another --workdir"
            ) from None


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
    manager: ocp.CheckpointManager, step: int, state: Any, window: Sequence[Metrics] = ()
) -> None:
    """Saves the state after `step` steps, unless it is saved already.

    Args:
      window: the metrics of the steps since the last log point.

    Raises:
      RunError: it, or the one before it, cannot be written.
    """
    if step in manager.all_steps():
        return
    rows = [jax.tree.map(float, row) for row in window]
    data = {"next_index": step, "window": rows, "sha256": _digests(state, rows)}
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


def restore(manager: ocp.CheckpointManager, like: Any) -> Restored | None:
    """The newest sound checkpoint; None without checkpoints.

    One that cannot be read, or whose content is not what was saved, is named and moved to
    `damaged_checkpoints/`, and the one before it is used.

    Args:
      like: a state of the same structure, with the shapes, types and shardings to restore.

    Raises:
      RunError: there are checkpoints, but none is sound.
    """
    steps = sorted(manager.all_steps(), reverse=True)
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    damaged: dict[int, str] = {}
    for step in steps:
        try:
            restored = manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
                ),
            )
            state, data = restored["state"], restored["data"]
            _verify(step, state, data)
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


def _digests(state: Any, window: Any) -> dict[str, str]:
    """SHA-256 by array, and that of the metrics."""
    found = {"window": hashlib.sha256(json.dumps(window).encode()).hexdigest()}
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
    wrong = dict(_digests(state, data["window"]).items() ^ data["sha256"].items())
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
