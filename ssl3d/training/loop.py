"""The training loop: any task, proxy or downstream, on any mesh."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from clu import parameter_overview
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from ssl3d import intervals, tasks, xla
from ssl3d.data import pipeline
from ssl3d.errors import DivergedError, UserError
from ssl3d.models import export, weight_gradient
from ssl3d.training import (
    checkpoint,
    online_probe,
    problem,
    run_folder,
    run_log,
    sharding,
    trackers,
    trained_model,
    transfer,
)
from ssl3d.training.cases import fingerprint
from ssl3d.training.problem import Problem
from ssl3d.training.signals import StopRequest
from ssl3d.training.step import (
    State,
    Variables,
    encoder_variables,
    init_state,
    learning_rates,
    make_evaluation,
    make_optimizers,
    make_step,
    variables_of,
)

# Validation batches that may wait for the device.
_BATCHES_AHEAD = 2


# (problem, the network's variables, step) -> what the network is shown and answers.
Draw = Callable[[Problem, Variables, int], trackers.Picture]


def train(
    config: ml_collections.ConfigDict, workdir: Path, stop_at: int = 0, draw: Draw | None = None
) -> bool:
    """Trains what `config` describes, or resumes the run in `workdir`.

    Args:
      workdir: holds checkpoints, metrics, and the exported encoder of the last checkpoint.
      stop_at: save and end after this many steps (0: train to the end); schedules do not change.
      draw: makes a picture every `config.log.pictures_every` steps, for the trackers.

    Returns:
      True at the end, false if a signal stopped the run before.

    Raises:
      UserError: config, data or workdir do not fit.
      DivergedError: a loss that is not finite.
    """
    with contextlib.ExitStack() as held:
        return _train(config, workdir, stop_at, draw, held)


def _train(
    config: ml_collections.ConfigDict,
    workdir: Path,
    stop_at: int,
    draw: Draw | None,
    held: contextlib.ExitStack,
) -> bool:
    started = time.monotonic()
    config = config.copy_and_resolve_references()
    trackers.check(config)
    mesh = problem.prepare(config)
    given, pretrained = problem.open_problem(config)
    task = given.task
    xla.keep_memory()
    record = problem.example_record(given)
    problem.check(config, task, record, mesh)
    held.enter_context(run_folder.claimed(workdir))
    remark = run_folder.check_complete(workdir)
    cases = fingerprint(
        config, given.dataset, given.train_cases, given.validation_cases, given.left_out
    )
    cases |= {checkpoint.DRAWS: pipeline.DRAW_VERSION}
    cases |= {checkpoint.NATIVE: weight_gradient.available()}
    known = checkpoint.check_config(config, workdir, cases)

    optimizers = make_optimizers(config)
    state = init_state(config, task, optimizers, record, mesh)
    untrained = encoder_variables(state)
    manager = checkpoint.open_manager(workdir)
    restored, transfer_message = _restore_or_transfer(
        manager, state, config, pretrained, known.identity
    )
    state, begin = restored.state, restored.step
    del pretrained  # the state holds a copy
    end = min(stop_at or config.steps, config.steps)
    log = run_log.RunLog(workdir, config, begin, task.headline, task.shown)
    log.say(_introduction(given, state, begin, mesh))
    extended = _extension(config, known.extended, begin)
    for note in (remark, known.rounding, *given.notes, extended, transfer_message):
        if note:
            log.say(note)

    thaw = transfer.frozen_steps(config)
    # Two functions where the encoder thaws in this run; a proxy task's network cannot be frozen.
    step_functions = {
        frozen: make_step(config, task, optimizers, mesh, frozen)
        for frozen in {begin < thaw, end <= thaw}
    }
    keeper = trained_model.Keeper(given, workdir, resumed=begin > 0) if task.best_by else None
    validate_and_log = _validation(given, mesh, log, keeper)
    if begin == 0:
        validate_and_log(0, state)  # the baseline of any pretraining: an untrained network
    probe_every = config.get("probe_every", 0) if begin < end else 0  # proxy tasks have it
    probe_and_log = _probing(given, log, untrained) if probe_every else None
    if probe_and_log and begin == 0:
        probe_and_log(0, state)
    del untrained  # the first step takes the memory of a new run's state
    pictures_every = config.log.pictures_every if draw else 0
    batches = problem.train_batches(given, first_batch=begin)
    window = run_log.Window([case.id for case in given.dataset.cases], restored.window)
    clock = run_log.Clock()
    step, stopping = begin, False
    held.enter_context(run_folder.failures(workdir))
    with StopRequest() as stop, contextlib.closing(log), checkpoint.closing(manager):
        while step < end and not stopping:
            with clock.time("wait"):
                batch = next(batches)
            placed = sharding.to_devices(batch, mesh, task.spatial)
            state, metrics = step_functions[step < thaw](state, placed)
            step += 1
            clock.step()
            window.add(step, batch["case"], metrics)
            if step in (begin + 1, thaw + 1):
                # The first step of a function compiles. Its time is no measure of the others and
                # is left out, unless it has a log line of its own.
                jax.block_until_ready(metrics)
                if step % config.log_every:
                    clock.restart()
            log.advance(step)
            stopping = stop.received(step)
            last = stopping or step == end
            if step % config.log_every == 0 or step == config.steps:
                figures = window.means() | clock.window(config.batch_size)
                log.log(step, "train", figures | learning_rates(config, step))
            with clock.time("pause"):
                if step % config.validate_every == 0 or step == config.steps:
                    window.fetch()  # refuses weights that are not finite, before any is kept
                    validate_and_log(step, state)
                if probe_and_log and (step % probe_every == 0 or step == config.steps):
                    window.fetch()
                    probe_and_log(step, state)
                if draw and pictures_every and step % pictures_every == 0:
                    seen = functools.partial(draw, given, variables_of(state), step)
                    log.picture(step, "inspect", seen)
                if step % config.checkpoint_every == 0 or last:
                    checkpoint.save(manager, step, state, window.fetch(), known.identity)
                    _export(given, state, workdir, step)
        if keeper is not None:
            keeper.save_last(step, variables_of(state))
        if begin >= end:
            _export(given, state, workdir, step)  # of a run that failed behind its last checkpoint
        log.say(_summary(given, workdir, step, stop.name, time.monotonic() - started))
    return step >= end


def _restore_or_transfer(
    manager: ocp.CheckpointManager,
    state: State,
    config: ml_collections.ConfigDict,
    pretrained: transfer.Pretrained | None,
    identity: str,
) -> tuple[checkpoint.Restored, str]:
    """What to go on from: the last checkpoint, or `state` with the pretrained encoder at step 0.

    Returns:
      It, and what to print about the encoder ("": nothing).
    """
    restored = checkpoint.restore(manager, state, identity)
    if restored is not None:
        return restored, transfer.explain(config)
    if pretrained is None:
        return checkpoint.Restored(state, 0, []), transfer.explain(config)
    own = {"params": state["params"], "batch_stats": state["batch_stats"]}
    merged, message = transfer.load_into(
        {name: tree for name, tree in own.items() if tree}, pretrained, config.init.encoder
    )
    state = state.copy()
    state["params"] = merged["params"]
    state["batch_stats"] = merged.get("batch_stats", {})
    if "ema" in state:
        state["ema"] = jax.tree.map(jnp.copy, merged["params"])
    return checkpoint.Restored(state, 0, []), message


def _validation(
    given: Problem, mesh: Mesh, log: run_log.RunLog, keeper: trained_model.Keeper | None
) -> Callable[[int, State], None]:
    """The function (step, state) that validates, logs the scores and keeps the best model."""
    evaluation = make_evaluation(given.config, given.task, mesh)

    def validate_and_log(step: int, state: State) -> None:
        begun = time.monotonic()
        batches = problem.validation_batches(given)
        ids = [case.id for case in given.dataset.cases]
        scores = validate(evaluation, given.task, variables_of(state), batches, mesh, ids)
        # The time is logged beside the scores but not kept among them: a model's are reproducible.
        log.log(step, "val", scores | {"seconds": time.monotonic() - begun})
        if keeper is not None:
            keeper.offer(step, scores, variables_of(state))

    return validate_and_log


def _probing(
    given: Problem, log: run_log.RunLog, untrained: Variables
) -> Callable[[int, State], None] | None:
    """The function (step, state) that probes the encoder and logs its score; None without labels.

    Args:
      untrained: the encoder's initial variables.
    """
    begun = time.monotonic()
    probe, note = online_probe.make_probe(given, untrained)
    if note:
        log.say(note)
    if probe is None:
        return None
    prepared = time.monotonic() - begun

    def probe_and_log(step: int, state: State) -> None:
        begun = time.monotonic()
        scored = step > 0 or transfer.loads(given.config)
        score = probe.score(encoder_variables(state)) if scored else probe.untrained
        seconds = time.monotonic() - begun if step else prepared
        scores = {probe.metric: score, "untrained": probe.untrained}
        scores |= {"intensities": probe.intensities, "seconds": seconds}
        log.log(step, "probe", scores)

    return probe_and_log


def validate(
    evaluation: Callable[..., Any],
    task: tasks.Task,
    variables: Variables,
    batches: Iterable[pipeline.ValidationBatch],
    mesh: Mesh,
    case_ids: Sequence[str],
) -> dict[str, float]:
    """Scores over the validation set, and a 95 % interval of the headline metric over subjects.

    Args:
      evaluation: from `make_evaluation`.
      case_ids: of the data set, in order, to name a case.

    Raises:
      UserError: the task has no metric of the name of its headline.
      DivergedError: a loss that is not finite.
    """
    rows: list[Any] = []
    for batch in batches:
        labels = {key: batch[key] for key in ("subject", "case", "repeat", "valid")}
        outcome = evaluation(variables, sharding.to_devices(batch, mesh, task.spatial))
        rows.append((outcome, _gather(labels)))
        if len(rows) > _BATCHES_AHEAD:
            jax.block_until_ready(rows[-1 - _BATCHES_AHEAD][0])
    # Fetched at the end: the device does not wait for the host between batches.
    (loss, metrics, collected), labels = jax.tree.map(
        lambda *parts: np.concatenate(parts), *jax.device_get(rows)
    )
    keep = labels["valid"]
    loss, metrics, collected, labels = jax.tree.map(
        lambda leaf: leaf[keep], (loss, metrics, collected, labels)
    )
    if not np.isfinite(loss).all():
        sick = dict.fromkeys(case_ids[case] for case in labels["case"][~np.isfinite(loss)])
        raise DivergedError(
            f"validation: the loss of {', '.join(sick)} is not finite; check these cases, or lower "
            "config.optimizer.learning_rate"
        )
    if task.score is not None:
        metrics |= task.score(collected, labels["subject"], labels["repeat"])
    values = {"loss": float(loss.mean())}
    for name, (total, count) in metrics.items():
        values[name] = intervals.ratio(total, count)
    if task.headline not in metrics:
        raise UserError(
            f"the headline of the task, {task.headline!r}, is none of its metrics "
            f"({', '.join(metrics)}); return it from `loss` or `score`"
        )
    sums, counts = metrics[task.headline]
    low, high = intervals.ratio_interval(sums, counts, labels["subject"])
    return values | {f"{task.headline}_low": low, f"{task.headline}_high": high}


def _gather(labels: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    if jax.process_count() == 1:
        return labels
    return multihost_utils.process_allgather(labels, tiled=True)


def _introduction(given: Problem, state: State, begin: int, mesh: Mesh) -> str:
    config = given.config
    encoder = parameter_overview.count_parameters(state["params"]["encoder"])
    whole = parameter_overview.count_parameters(state["params"])
    validation, scored = len(given.validation_cases), len(problem.scored_cases(given))
    return (
        f"{config.name}: {len(given.train_cases)} training and {validation} validation cases "
        + (f"({scored} of them scored) " if scored < validation else "")
        + f"of {given.dataset.name}; encoder {encoder:,} parameters, heads "
        f"{whole - encoder:,}; {mesh.size} {jax.devices()[0].platform} device(s); "
        + (f"going on at step {begin} of {config.steps}" if begin else f"{config.steps} steps")
    )


def _extension(config: ml_collections.ConfigDict, before: int, begin: int) -> str:
    """What to say of a run that is longer now than `before` (0: it is not)."""
    if not before:
        return ""
    rate = learning_rates(config, begin + 1)["learning_rate"]
    return (
        f"extended from {before} to {config.steps} steps: the learning rate follows the cosine of "
        f"the new length, at step {begin + 1} it is {rate:.3g}"
    )


def _export(given: Problem, state: State, workdir: Path, step: int) -> None:
    """Writes the encoder, and the decoder if there is one, as they are after `step` steps."""
    if jax.process_index() != 0:
        return
    config, dataset = given.config, given.dataset
    description = {
        "encoder": config.encoder.to_dict(),
        "rank": config.rank,
        "channels": len(dataset.modalities),
        "modalities": list(dataset.modalities),
        "task": config.task.name,
        "dataset": dataset.name,
        "step": step,
        "steps": config.steps,
    }
    variables = jax.device_get(variables_of(state))
    for part, save in (("encoder", export.save_encoder), ("decoder", export.save_decoder)):
        found = {name: tree[part] for name, tree in variables.items() if part in tree}
        if found:
            save(workdir / part, found, description)


def _summary(given: Problem, workdir: Path, step: int, signal_name: str, seconds: float) -> str:
    config, task = given.config, given.task
    if step < config.steps:
        why = f"stopped by {signal_name}" if signal_name else "stopped"
        return f"{why} at step {step} of {config.steps}; run the same command again to go on"
    lines = [line for line in run_log.read_metrics(workdir) if line["split"] == "val"]
    text = f"{config.name}: {step} steps"
    if lines:
        text += f", validation {run_log.describe(lines[-1], task.headline, task.shown)}"
        untrained = lines[0].get(task.headline)
        if lines[0]["step"] == 0 and untrained is not None:
            text += f", {'at step 0' if transfer.loads(config) else 'untrained'} {untrained:.3f}"
    result = "model" if task.best_by else "encoder"
    return f"{text}; {seconds:.0f} s; {result} in {workdir / result}"
