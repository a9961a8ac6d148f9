"""The state of a run and the pure functions over it: one training step, one evaluation.

All randomness of a step comes from the seed folded with the step and the index of the example in
the global batch: a resume restores no generator, and the number of devices changes nothing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NotRequired, TypedDict

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import Mesh

from ssl3d import tasks, xla
from ssl3d.training import sharding, transfer

Tree = dict[str, Any]  # parameters or running statistics by module
Part = Literal["encoder", "rest"]
Variables = dict[str, Tree]  # for `network.apply`: "params" and, with batch norm, "batch_stats"


class Optimizers(TypedDict):
    """The encoder and the rest of the network have an optimiser each."""

    encoder: optax.GradientTransformation
    rest: optax.GradientTransformation


class State(TypedDict):
    """All that a step changes, as one pytree; what checkpoints hold.

    Attributes:
      params: parameters; the encoder's under "encoder".
      batch_stats: running statistics of batch norms, empty without.
      optimizer: states of the `Optimizers`, by name.
      step: int32 scalar, steps taken.
      ema: bias-corrected exponential moving average of `params`, see `average`, if
        config.optimizer.ema is above 0.
    """

    params: Tree
    batch_stats: Tree
    optimizer: dict[Part, optax.OptState]
    step: jax.Array
    ema: NotRequired[Tree]


def schedule(config: ml_collections.ConfigDict, start: int = 0) -> optax.Schedule:
    """The learning rate: linear warm-up, then cosine decay to zero at `config.steps`.

    The first step has 1 / `warmup_steps` of the peak, not zero: no step is lost. The rate depends
    on the step and `config.steps` alone: a run that is extended goes on on the longer cosine, with
    a higher rate than it had, as in a warm restart (Loshchilov & Hutter 2017), and not warmed up.

    Args:
      start: the step at which an optimiser starts: it warms up from there, then joins the cosine.
    """
    peak, warmup = config.optimizer.learning_rate, config.optimizer.warmup_steps
    cosine = optax.cosine_decay_schedule(peak, max(config.steps - warmup, 1))

    def rate(count: Any) -> Any:
        rising = jnp.minimum(1.0, (count + 1) / max(warmup, 1))
        return rising * cosine(jnp.maximum(count + start - warmup, 0))

    return rate


def learning_rates(config: ml_collections.ConfigDict, step: int) -> dict[str, float]:
    """The rates of a step, counted from 1, by name; the encoder's own where it thaws in the run."""
    rates = {"learning_rate": float(schedule(config)(step - 1))}
    thaw = transfer.frozen_steps(config)
    if thaw:
        own = float(schedule(config, thaw)(step - 1 - thaw)) if step > thaw else 0.0
        rates["learning_rate_encoder"] = own
    return rates


def make_optimizers(config: ml_collections.ConfigDict) -> Optimizers:
    """AdamW for the encoder and for the rest, without weight decay of biases and norms (vectors).

    The optimiser of a frozen encoder starts when it thaws, with its own warm-up and fresh moments.
    """

    def adamw(rate: optax.Schedule) -> optax.GradientTransformation:
        return optax.adamw(
            rate,
            weight_decay=config.optimizer.weight_decay,
            mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
        )

    thaw = transfer.frozen_steps(config)
    return {"encoder": adamw(schedule(config, thaw)), "rest": adamw(schedule(config))}


def _parts(tree: Tree) -> dict[Part, Tree]:
    rest = {name: leaf for name, leaf in tree.items() if name != "encoder"}
    return {"encoder": tree["encoder"], "rest": rest}


def _whole(parts: dict[Part, Tree]) -> Tree:
    return parts["rest"] | {"encoder": parts["encoder"]}


def init_state(
    config: ml_collections.ConfigDict,
    task: tasks.Task,
    optimizers: Optimizers,
    record: Any,
    mesh: Mesh,
) -> State:
    """The initial state, replicated over the mesh; `record` is as for `make_initial`."""
    init = make_initial(config, task, optimizers, record)
    whole = sharding.replicated(mesh)
    return xla.jit_once(init, out_shardings=whole)(jax.random.key(config.seed))


def make_initial(
    config: ml_collections.ConfigDict, task: tasks.Task, optimizers: Optimizers, record: Any
) -> Callable[[jax.Array], State]:
    """The pure function from a key to the initial state.

    Args:
      record: of one example, for its shapes.
    """
    key = jax.random.key(0)
    batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), record)
    shapes, _ = jax.eval_shape(lambda keys, part: _views(task, keys, part, True), key[None], batch)

    def init(key: jax.Array) -> State:
        inputs = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        variables: Any = task.network.init(key, inputs, train=False)
        params = variables["params"]
        state: State = {
            "params": params,
            "batch_stats": variables.get("batch_stats", {}),
            "optimizer": {name: optimizers[name].init(x) for name, x in _parts(params).items()},
            "step": jnp.zeros((), jnp.int32),
        }
        if config.optimizer.ema > 0:
            # A copy: the step donates the state, and a buffer can be donated only once.
            state["ema"] = jax.tree.map(jnp.copy, params)
        return state

    return init


def _views(task: tasks.Task, keys: jax.Array, records: Any, train: bool) -> Any:
    return jax.vmap(lambda key, record: task.views(key, record, train))(keys, records)


def variables_of(state: State) -> Variables:
    """The variables to evaluate and export, with averaged parameters if there are any."""
    return _variables(state.get("ema", state["params"]), state["batch_stats"])


def encoder_variables(state: State) -> Variables:
    """The part of `variables_of` that belongs to the encoder."""
    trees = variables_of(state).items()
    return {name: tree["encoder"] for name, tree in trees if "encoder" in tree}


def _variables(params: Tree, batch_stats: Tree) -> Variables:
    return {"params": params} | ({"batch_stats": batch_stats} if batch_stats else {})


def make_gradients(
    config: ml_collections.ConfigDict,
    task: tasks.Task,
    frozen: bool = False,
    mesh: Mesh | None = None,
) -> Callable:
    """The function (state, batch) -> gradients, batch_stats, metrics of one step.

    Metrics are `loss` and, by name, (sum, count) over the global batch. With `frozen`, the encoder
    has no gradients and its running statistics do not change. `mesh` is needed where devices share
    an example.
    """
    network = task.network.clone(frozen=True) if frozen else task.network

    def forward(trained: Any, state: State, batch: Any, keys: jax.Array) -> Any:
        params = state["params"] | trained
        inputs, targets = _views(task, keys, batch["record"], train=True)
        dropout = jax.random.fold_in(keys[0], 1)
        with sharding.shared_patches(mesh, task.spatial):
            outputs, changed = network.apply(
                _variables(params, state["batch_stats"]),
                inputs,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": dropout},
            )
        valid = jnp.ones(len(batch["subject"]), bool)
        loss, metrics = task.loss(outputs, targets | {"subject": batch["subject"], "valid": valid})
        sums = {name: (total.sum(), count.sum()) for name, (total, count) in metrics.items()}
        return loss.mean(), (changed.get("batch_stats", {}), sums)

    def gradients(state: State, batch: Any) -> tuple[Any, Any, dict[str, Any]]:
        step_key = jax.random.fold_in(jax.random.key(config.seed), state["step"])
        size = len(batch["subject"])
        keys = jax.vmap(functools.partial(jax.random.fold_in, step_key))(jnp.arange(size))
        micro = config.optimizer.accumulate
        trained = _parts(state["params"])["rest"] if frozen else state["params"]
        differentiate = jax.value_and_grad(forward, has_aux=True)
        if micro == 1:
            (loss, (stats, sums)), grads = differentiate(trained, state, batch, keys)
            return grads, stats, {"loss": loss} | sums

        def one(carry: Any, part: Any) -> Any:
            stats, total = carry
            (loss, (stats, sums)), grads = differentiate(
                trained, state | {"batch_stats": stats}, *part
            )
            return (stats, jax.tree.map(jnp.add, total, (grads, loss, sums))), None

        parts = jax.tree.map(
            lambda leaf: leaf.reshape(micro, size // micro, *leaf.shape[1:]), (batch, keys)
        )
        shapes = jax.eval_shape(
            differentiate, trained, state, *jax.tree.map(lambda leaf: leaf[0], parts)
        )
        (loss, (_, sums)), grads = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        (stats, (grads, loss, sums)), _ = jax.lax.scan(
            one, (state["batch_stats"], (grads, loss, sums)), parts
        )
        return jax.tree.map(lambda g: g / micro, grads), stats, {"loss": loss / micro} | sums

    return gradients


def average(mean: Tree, params: Tree, decay: float, step: jax.Array) -> Tree:
    """The bias-corrected exponential moving average after `step` steps, from that before.

    The weight of a step k is decay^(step - k), normalised to a sum of 1 over the steps taken, so
    that the initial parameters have none.
    """
    weight = (1 - decay) / -jnp.expm1(step * math.log(decay))
    return optax.incremental_update(params, mean, jnp.minimum(weight, 1.0))


def make_step(
    config: ml_collections.ConfigDict,
    task: tasks.Task,
    optimizers: Optimizers,
    mesh: Mesh,
    frozen: bool = False,
) -> Callable[[State, Any], tuple[State, dict[str, Any]]]:
    """The jitted training step; it donates the state.

    With `frozen`, the encoder, its statistics and its optimiser stay bit for bit as they are.
    """
    gradients = make_gradients(config, task, frozen, mesh)
    clip = optax.clip_by_global_norm(config.optimizer.clip_norm)

    def step(state: State, batch: Any) -> tuple[State, dict[str, Any]]:
        grads, stats, metrics = gradients(state, batch)
        clipped, _ = clip.update(grads, clip.init(grads))
        moving: dict[Part, Tree] = {"rest": clipped} if frozen else _parts(clipped)
        parts, moments = _parts(state["params"]), dict(state["optimizer"])
        for name, part in moving.items():
            updates, moments[name] = optimizers[name].update(part, moments[name], parts[name])
            parts[name] = optax.apply_updates(parts[name], updates)
        params = _whole(parts)
        new: State = {
            "params": params,
            "batch_stats": stats,
            "optimizer": moments,
            "step": state["step"] + 1,
        }
        if "ema" in state:
            mean = average(state["ema"], params, config.optimizer.ema, new["step"])
            # Averaging equal numbers would still round: the frozen encoder is copied.
            kept = {"encoder": state["ema"]["encoder"]} if frozen else {}
            new["ema"] = mean | kept
        return new, metrics | {"gradient_norm": optax.global_norm(grads)}

    whole = sharding.replicated(mesh)
    options: dict[str, Any] = {"donate_argnums": 0, "out_shardings": (whole, whole)}
    return xla.jit(step, config.xla.channels_last, **options)


def make_evaluation(
    config: ml_collections.ConfigDict, task: tasks.Task, mesh: Mesh
) -> Callable[[Variables, Any], Any]:
    """The jitted (variables, batch) -> per example: loss, {metric: (sum, count)}, collected arrays.

    The randomness of an example depends on (seed, case, repeat) alone.
    """
    # Beyond the number of any step, which training folds into the same seed.
    root = jax.random.fold_in(jax.random.key(config.seed), 2**31)

    def evaluate(variables: Variables, batch: Any) -> Any:
        keys = jax.vmap(
            lambda case, repeat: jax.random.fold_in(jax.random.fold_in(root, case), repeat)
        )(batch["case_key"], batch["repeat"])
        inputs, targets = _views(task, keys, batch["record"], train=False)
        with sharding.shared_patches(mesh, task.spatial):
            outputs = task.network.apply(variables, inputs, train=False)
        loss, metrics = task.loss(
            outputs, targets | {"subject": batch["subject"], "valid": batch["valid"]}
        )
        collected = task.collect(inputs, outputs, targets) if task.collect else {}
        return loss, metrics, collected

    return xla.jit(evaluate, config.xla.channels_last, out_shardings=sharding.replicated(mesh))
