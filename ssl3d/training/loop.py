"""The one loop: any task, proxy or downstream, on any mesh."""

from __future__ import annotations

import collections
import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from clu import parameter_overview
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from ssl3d import tasks, xla
from ssl3d.data import pipeline, store
from ssl3d.errors import RunError, UserError
from ssl3d.models import export
from ssl3d.training import checkpoint, config_checks, run_log, sharding, trained_model, transfer
from ssl3d.training.cases import choose_cases, fingerprint, labels_of, open_dataset
from ssl3d.training.step import (
    State,
    init_state,
    make_evaluation,
    make_optimizers,
    make_step,
    variables_of,
)

# How many steps the host may be ahead of the device: one to hide the dispatch, and one more.
_STEPS_AHEAD = 2


def validate(
    evaluation: Callable[..., Any],
    task: tasks.Task,
    variables: dict[str, Any],
    batches: Iterator[pipeline.ValidationBatch],
    mesh: Mesh,
) -> dict[str, float]:
    """Scores over the validation set, and a 95 % interval of accuracy or Dice over its subjects."""
    rows: list[Any] = []
    for batch in batches:
        labels = {
            "subject": batch["subject"],
            "repeat": batch["repeat"],
            "valid": batch["valid"],
        }
        outcome = evaluation(variables, sharding.to_devices(batch, mesh))
        rows.append((jax.device_get(outcome), _gather(labels)))
    (loss, metrics, collected), labels = jax.tree.map(lambda *parts: np.concatenate(parts), *rows)
    keep = labels["valid"]
    loss, metrics, collected, labels = jax.tree.map(
        lambda leaf: leaf[keep], (loss, metrics, collected, labels)
    )
    if task.score is not None:
        metrics |= task.score(collected, labels["subject"], labels["repeat"])
    values = {"loss": float(loss.mean())}
    for name, (total, count) in metrics.items():
        values[name] = run_log.mean(total, count)
    for name in ("accuracy", "dice"):
        if name in metrics:
            interval = run_log.bootstrap(*metrics[name], labels["subject"])
            values[f"{name}_low"], values[f"{name}_high"] = interval
    return values


def _gather(labels: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    if jax.process_count() == 1:
        return labels
    return multihost_utils.process_allgather(labels, tiled=True)


class _Stop:
    """Whether a signal has asked the run to save and end: Ctrl-C, SIGTERM."""

    def __init__(self) -> None:
        self.name = ""

    def __enter__(self) -> _Stop:
        # Over several hosts jax itself listens, for all to stop after the same step.
        watched = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
        self._before = {number: signal.signal(number, self._note) for number in watched}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if self.name:  # a second one does not wait for the save
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name

    def asked(self, step: int) -> bool:
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.name = "SIGTERM"
        return bool(self.name)


class _Window:
    """The metrics since the last log point: on the device first, then as numbers."""

    def __init__(self, case_ids: tuple[str, ...]) -> None:
        self._case_ids = case_ids
        self._pending: collections.deque = collections.deque()
        self._fetched: list[dict[str, Any]] = []

    def add(self, step: int, cases: np.ndarray, metrics: dict[str, Any]) -> None:
        """Keeps a step's metrics, and waits until the device is at most two steps behind."""
        self._pending.append((step, cases, metrics))
        if len(self._pending) > _STEPS_AHEAD:
            jax.block_until_ready(self._pending[-1 - _STEPS_AHEAD][2])

    def fetch(self) -> None:
        """Waits for the device. Raises `RunError` at a loss or gradient that is not finite."""
        while self._pending:
            step, cases, metrics = self._pending.popleft()
            metrics = jax.device_get(metrics)
            if not np.isfinite(metrics["loss"]) or not np.isfinite(metrics["gradient_norm"]):
                names = ", ".join(self._case_ids[i] for i in cases)
                raise RunError(
                    f"step {step}: loss {metrics['loss']}, gradient norm "
                    f"{metrics['gradient_norm']}; cases {names}; lower "
                    "config.optimizer.learning_rate or check these cases (the last checkpoint is "
                    "from before)"
                )
            self._fetched.append(metrics)

    def means(self) -> dict[str, float]:
        """The means over the window's steps, and starts the next window."""
        self.fetch()
        stacked = jax.tree.map(lambda *leaves: np.asarray(leaves, np.float64), *self._fetched)
        self._fetched = []
        means = {name: float(stacked.pop(name).mean()) for name in ("loss", "gradient_norm")}
        return means | {
            name: run_log.mean(total, count) for name, (total, count) in stacked.items()
        }


def train(config: ml_collections.ConfigDict, workdir: Path, stop_at: int = 0) -> bool:
    """Trains, or goes on training, what `config` describes.

    Args:
      workdir: checkpoints, metrics, and the exported encoder at the end.
      stop_at: save and end after this many steps (0: train to the end). Schedules do not change.

    Returns:
      Whether it got there; false where a signal ended it.

    Raises:
      UserError: config, data or workdir do not fit.
      RunError: a non-finite loss.
    """
    started = time.monotonic()
    config = config.copy_and_resolve_references()
    config_checks.check(config)
    dataset = open_dataset(config)
    pretrained = transfer.adopt_architecture(config, len(dataset.modalities))
    train_cases, validation_cases = choose_cases(config, dataset)
    task = tasks.build(config, labels_of(dataset, train_cases))
    mesh = sharding.make_mesh(config.mesh.space)
    xla.keep_memory()
    process = (jax.process_index(), jax.process_count())
    shared = {
        "record": task.record,
        "rank": config.rank,
        "slice_axis": config.data.slice_axis,
        "margin": config.data.margin,
        "batch_size": config.batch_size,
        "seed": config.seed,
        "label_map": tasks.needs(config) == "label_map",
        "process": process,
    }

    def validation_batches() -> Iterator[pipeline.ValidationBatch]:
        return pipeline.validation_batches(
            dataset, validation_cases, repeats=config.validation.repeats, **shared
        )

    first = next(validation_batches())
    record = jax.tree.map(lambda leaf: leaf[0], first["record"])
    _check(config, task, record, mesh)
    drawn_from = fingerprint(train_cases, validation_cases) | {
        checkpoint.DRAWS: pipeline.DRAW_VERSION
    }
    checkpoint.check_config(config, workdir, drawn_from)
    optimizers = make_optimizers(config)
    state = init_state(config, task, optimizers, record, mesh)
    manager = checkpoint.open_manager(workdir)
    restored = checkpoint.restore(manager, state)
    said = transfer.explain(config)
    if restored is None and pretrained is not None:
        state, said = _load_encoder(state, pretrained, config.init.encoder)
    del pretrained  # the state has a copy of its own
    state, begin = restored or (state, 0)
    end = min(stop_at or config.steps, config.steps)
    log = run_log.Report(workdir, config.steps, begin)
    log.say(_introduction(config, dataset, train_cases, validation_cases, state, begin, mesh))
    if said:
        log.say(said)

    thaw = transfer.frozen_steps(config)
    # Both where the encoder thaws in mid-run; a proxy task's network knows no frozen one.
    step_functions = {
        frozen: make_step(config, task, optimizers, mesh, frozen)
        for frozen in {begin < thaw, end <= thaw}
    }
    evaluation = make_evaluation(config, task, mesh)
    best = trained_model.Best(workdir, goes_on=begin > 0) if task.best_by else None
    scores: dict[int, dict[str, float]] = {}

    def validate_and_log(step: int) -> None:
        begun = time.monotonic()
        values = validate(evaluation, task, variables_of(state), validation_batches(), mesh)
        # Beside the scores, not among them: these are kept with the model and do not vary.
        log.log(step, "val", values | {"seconds": time.monotonic() - begun})
        scores[step] = values
        if best is not None and step > 0:
            best.offer(values[task.best_by], variables_of(state), describe_model(step))

    def describe_model(step: int) -> dict[str, Any]:
        return trained_model.describe(config, dataset, train_cases, step, scores.get(step, {}))

    if begin == 0:
        # What an untrained network reaches, the first yardstick of any pretraining.
        validate_and_log(0)
    batches = pipeline.train_batches(
        dataset, train_cases, threads=config.data.threads, first_batch=begin, **shared
    )
    window = _Window(tuple(case.id for case in dataset.cases))
    clock = run_log.Clock()
    step = begin
    stopping = False
    with _Stop() as stop, contextlib.closing(log), contextlib.closing(manager):
        while step < end and not stopping:
            with clock.time("wait"):
                batch = next(batches)
            state, metrics = step_functions[step < thaw](state, sharding.to_devices(batch, mesh))
            step += 1
            clock.step()
            window.add(step, batch["case"], metrics)
            if step in (begin + 1, thaw + 1):
                # The first step compiles; its time says nothing about the others, unless it has
                # a log line of its own.
                jax.block_until_ready(metrics)
                if step % config.log_every:
                    clock.restart()
            log.advance(step)
            stopping = stop.asked(step)
            last = stopping or step == end
            if step % config.log_every == 0 or last:
                log.log(step, "train", window.means() | clock.window(config.batch_size))
            with clock.time("pause"):
                if step % config.validate_every == 0 or step == config.steps:
                    window.fetch()  # no model is kept of weights that are not finite
                    validate_and_log(step)
                if step % config.checkpoint_every == 0 or last:
                    window.fetch()  # nothing is saved after a loss that is not finite
                    checkpoint.save(manager, step, state)
                    if best is not None and last:
                        trained_model.save(
                            workdir, "last", variables_of(state), describe_model(step)
                        )
        manager.wait_until_finished()
        if step == config.steps:
            _export(config, dataset, state, workdir)
        log.say(_summary(config, workdir, step, stop.name, time.monotonic() - started))
    return step >= end


def _load_encoder(state: State, pretrained: dict[str, Any], folder: str) -> tuple[State, str]:
    """The state with the pretrained encoder in it, and what was loaded."""
    own = {name: state[name] for name in ("params", "batch_stats") if state[name]}
    merged, said = transfer.load_into(own, pretrained, folder)
    if "ema" in state:
        merged["ema"] = jax.tree.map(jnp.copy, merged["params"])
    return state | merged, said


def _check(
    config: ml_collections.ConfigDict, task: tasks.Task, record: dict[str, np.ndarray], mesh: Mesh
) -> None:
    """What only the task, the data and the devices together can tell of a config."""
    sharding.check_batch(config.batch_size, "batch_size", mesh)
    micro = config.optimizer.accumulate
    if micro > 1 and task.needs_whole_batch:
        raise UserError(
            f"config.optimizer.accumulate={micro}: {config.task.name} takes its negatives from the "
            "whole batch, micro-batches would change the problem; use more devices"
        )
    if config.mesh.space > 1 and "volume" not in record:
        raise UserError(
            f"config.mesh.space={config.mesh.space} splits whole volumes; {config.task.name} "
            "feeds patches, which config.mesh.space=1 spreads over the devices already"
        )
    if "volume" in record and record["volume"].shape[0] % config.mesh.space:
        raise UserError(
            f"config.mesh.space={config.mesh.space}: does not divide the crop's first side of "
            f"{record['volume'].shape[0]} voxels; change config.data.crop"
        )


def _introduction(
    config: ml_collections.ConfigDict,
    dataset: store.Dataset,
    train_cases: tuple[store.Case, ...],
    validation_cases: tuple[store.Case, ...],
    state: State,
    begin: int,
    mesh: Mesh,
) -> str:
    encoder = parameter_overview.count_parameters(state["params"]["encoder"])
    whole = parameter_overview.count_parameters(state["params"])
    return (
        f"{config.name}: {len(train_cases)} training and {len(validation_cases)} validation cases "
        f"of {dataset.name}; encoder {encoder:,} parameters, heads {whole - encoder:,}; "
        f"{mesh.size} {jax.devices()[0].platform} device(s); "
        + (f"going on at step {begin} of {config.steps}" if begin else f"{config.steps} steps")
    )


def _export(
    config: ml_collections.ConfigDict,
    dataset: store.Dataset,
    state: State,
    workdir: Path,
) -> None:
    if jax.process_index() != 0:
        return
    variables = variables_of(state)
    encoder = {
        name: jax.device_get(tree["encoder"])
        for name, tree in variables.items()
        if "encoder" in tree
    }
    export.save_encoder(
        workdir / "encoder",
        encoder,
        {
            "encoder": config.encoder.to_dict(),
            "rank": config.rank,
            "channels": len(dataset.modalities),
            "modalities": list(dataset.modalities),
            "task": config.task.name,
            "dataset": dataset.name,
            "steps": config.steps,
        },
    )


def _summary(
    config: ml_collections.ConfigDict, workdir: Path, step: int, signal_name: str, seconds: float
) -> str:
    if step < config.steps:
        why = f"stopped by {signal_name}" if signal_name else "stopped"
        return f"{why} at step {step} of {config.steps}; run the same command again to go on"
    lines = [line for line in run_log.read_metrics(workdir) if line["split"] == "val"]
    text = f"{config.name}: {step} steps"
    if lines:
        text += f", validation {run_log.describe(lines[-1])}"
        for name in ("accuracy", "dice"):
            if lines[0]["step"] == 0 and name in lines[0]:
                text += f", untrained {lines[0][name]:.3f}"
    result = "encoder" if tasks.needs(config) == "image" else "model"
    return f"{text}; {seconds:.0f} s; {result} in {workdir / result}"
