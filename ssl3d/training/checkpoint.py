"""Checkpoints of parameters, optimiser, step and data position, with Orbax."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import orbax.checkpoint as ocp
from absl import logging
from flax.traverse_util import flatten_dict

from ssl3d import documents
from ssl3d.atomic import atomic_write
from ssl3d.errors import RunError, UserError

# Two, so that a damaged one has a predecessor.
_KEPT = 2

# The key of `config.json` for the version of the code that samples the training data.
DRAWS = "draws"

# Keys without influence on any result: where data lie, and how often something is written.
NEUTRAL = (
    "log_every",
    "checkpoint_every",
    "probe_every",
    "probe.cases",
    "probe.data",
    "data.path",
    "data.threads",
    "predict.batch",
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
    logging.set_verbosity(logging.ERROR)  # Orbax reports every file it writes
    return ocp.CheckpointManager(
        (workdir / "checkpoints").resolve(),
        options=ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.LatestN(_KEPT)
        ),
    )


def save(manager: ocp.CheckpointManager, step: int, state: Any) -> None:
    """Saves the state after `step` steps, unless it is saved already."""
    if step in manager.all_steps():
        return
    manager.save(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            data=ocp.args.JsonSave({"next_index": step}),
        ),
    )


def restore(manager: ocp.CheckpointManager, like: Any) -> tuple[Any, int] | None:
    """The newest readable state and the number of its next batch; None without checkpoints.

    A checkpoint that cannot be read is reported, and the one before it is used.

    Args:
      like: a state of the same structure, with the shapes, types and shardings to restore.

    Raises:
      RunError: there are checkpoints, but none can be read.
    """
    steps = sorted(manager.all_steps(), reverse=True)
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    damaged = []
    for step in steps:
        try:
            restored = manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
                ),
            )
        except Exception as error:  # whatever a damaged file makes Orbax or zarr raise
            reason = (str(error).splitlines() or [""])[0][:200]
            print(f"checkpoint {step} does not read ({type(error).__name__}: {reason})", flush=True)
            damaged.append(step)
            continue
        # Damaged checkpoints would block new ones of the same steps. They are deleted only now:
        # that another one can be read shows that neither the disk nor the memory is at fault.
        for other in damaged:
            manager.delete(other)
        return restored["state"], int(restored["data"]["next_index"])
    if steps:
        raise RunError(f"{manager.directory}: no checkpoint reads; remove the folder to start anew")
    return None
