"""Contrastive predictive coding: which patches follow along the first axis?

Van den Oord et al. 2018; Taleb et al. 2020, section 3.1 and equation 1: patches on a grid are
encoded, a recurrent network summarises an inverted pyramid of context patches, and this summary
predicts the codes of later patches in the same column. The loss is InfoNCE: the true patch
against all other patches of the global batch. Every patch is encoded once per step; contexts and
targets are gathered from the codes.

A prediction must not see its target: the first predicted row shares no voxel with the context, and
batch norm, which mixes patches, is refused. Nor may the border tell it: patches of a smooth image
that touch continue each other, even in noise, so `skip` rows lie between context and targets.
"""

from __future__ import annotations

import itertools
from typing import TypedDict

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, PRNGKeyArray, Shaped

from ssl3d import augment, losses
from ssl3d.errors import UserError
from ssl3d.models import encoders, heads
from ssl3d.tasks import Box, Metrics, Panel, Targets, Task, retrieval
from ssl3d.tasks.grid import Cut, Grid, grid_of, patches_of
from ssl3d.tasks.grid import encoded_sizes as encoded_sizes


def _mirror(i: int, n: int) -> int:
    """Index i reflected into 0..n-1 without repeating the border."""
    i = abs(i) % (2 * n - 2) if n > 1 else 0
    return min(i, 2 * n - 2 - i)


def contexts(grid: Grid, row: int, border: str) -> Int[np.ndarray, "A T"]:
    """The T context patches of each of A anchors in `row`, the anchor last.

    An inverted pyramid in raster order: row u <= row contributes the columns up to row - u away
    from the anchor's. Outside the grid the pyramid is reflected ("mirror") or holds N, the number
    of an all-zero patch ("zero", the released code in 2D).
    """
    n, rank = grid.per_side, grid.rank
    table = []
    for column in itertools.product(range(n), repeat=rank - 1):
        terms = []
        for u in range(row + 1):
            reach = row - u
            for offset in itertools.product(range(-reach, reach + 1), repeat=rank - 1):
                place = [c + o for c, o in zip(column, offset, strict=True)]
                if border == "zero" and not all(0 <= c < n for c in place):
                    terms.append(grid.count)
                else:
                    place = [u, *(_mirror(c, n) for c in place)]
                    terms.append(int(np.ravel_multi_index(place, (n,) * rank)))
        table.append(terms)
    return np.asarray(table)


def predicted(grid: Grid, row: int, skip: int) -> Int[np.ndarray, "A L"]:
    """The L patches that each of A anchors in `row` predicts.

    The later rows of its column, `skip` rows after the first that shares no voxel with the context.
    """
    n, columns = grid.per_side, grid.per_side ** (grid.rank - 1)
    rows = np.arange(row + grid.rows_apart + skip, n)
    return rows[None, :] * columns + np.arange(columns)[:, None]


class Codes(TypedDict):
    """The code of every patch, and the codes that A anchors predict of L patches each."""

    codes: Float[Array, "B N E"]
    predictions: Float[Array, "B A L E"]


class Network(nn.Module):
    """Patches -> codes and predictions."""

    encoder: nn.Module
    code: nn.Module
    recurrence: nn.Module
    predictors: tuple[nn.Module, ...]
    pool: str
    terms: Int[np.ndarray, "A T"]

    def __call__(self, patches: Float[Array, "B N *P C"], train: bool = False) -> Codes:
        count = patches.shape[1]
        if self.terms.max() == count:
            patches = jnp.concatenate([patches, jnp.zeros_like(patches[:, :1])], axis=1)
        codes = self.code(heads.encode_patches(self.encoder, patches, self.pool, train))
        sequences = codes[:, self.terms]  # [B, A, T, E]
        flat = sequences.reshape(-1, *sequences.shape[2:])
        summary = self.recurrence(flat)[:, -1].reshape(*sequences.shape[:2], -1)
        predictions = jnp.stack([predict(summary) for predict in self.predictors], axis=2)
        return {"codes": codes[:, :count], "predictions": predictions}


def views(
    key: PRNGKeyArray,
    patches: Shaped[Array, "N *P C"],
    train: bool,
    strength: float,
    flip_rows: bool,
) -> tuple[Float[Array, "N *P C"], dict[str, Float[Array, " N"]]]:
    """The patches, each with its own random gain and shift, and `pair`."""
    patches = patches.astype(jnp.float32)
    intensity, flip, pair = jax.random.split(key, 3)
    if train and strength > 0:
        keys = jax.random.split(intensity, patches.shape[0])
        patches = jax.vmap(lambda k, x: augment.scale_and_shift(k, x, strength))(keys, patches)
    if flip_rows:
        flipped = jax.random.bernoulli(flip, 0.5, (patches.shape[0],) + (1,) * (patches.ndim - 1))
        patches = jnp.where(flipped, jnp.flip(patches, axis=1), patches)
    return patches, {"pair": jax.random.uniform(pair, (patches.shape[0],))}


def _normalised(x: Float[Array, "*N E"]) -> Float[Array, "*N E"]:
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)


def info_nce(
    outputs: Codes, targets: Targets, goals: Int[np.ndarray, "A L"], temperature: float
) -> tuple[Float[Array, " B"], Metrics]:
    """InfoNCE (Taleb et al. 2020, equation 1) over the global batch, on cosine similarities.

    Args:
      outputs: codes and predictions.
      targets: subject int [B], valid bool [B].
      goals: the patch that each prediction aims at.
      temperature: divides the similarities.

    Returns:
      The loss and the metric `accuracy`: the true patch ranks first among the N patches of its own
      volume, ties lost.
    """
    codes = _normalised(outputs["codes"].astype(jnp.float32))
    predictions = _normalised(outputs["predictions"].astype(jnp.float32))
    batch, count, _ = codes.shape
    logits = jnp.einsum("bale,cne->balcn", predictions, codes) / temperature
    candidates = jnp.repeat(_volumes_with_negatives(targets), count, axis=1)[:, None, None, :]
    labels = jnp.arange(batch)[:, None, None] * count + goals
    flat = logits.reshape(*logits.shape[:3], batch * count)
    total, terms = losses.per_example(losses.cross_entropy(flat, labels, candidates))
    metrics = _accuracy(jnp.einsum("bale,bne->baln", predictions, codes), goals)
    return total / terms, metrics


def _volumes_with_negatives(targets: Targets) -> Bool[Array, "B B"]:
    """The own volume of each row and those of other subjects, without padding."""
    other = retrieval.negatives(targets)
    return other | jnp.eye(len(other), dtype=bool)


def binary(
    outputs: Codes, targets: Targets, goals: Int[np.ndarray, "A L"]
) -> tuple[Float[Array, " B"], Metrics]:
    """The released code's loss: a binary classification of one true and one false column.

    The logit is the mean product of predicted and actual codes over dimensions and rows. Kept
    faults: a single negative, sampled from all columns, also those of the own volume, and always a
    whole column. Arguments and metrics as in `info_nce`.
    """
    codes, predictions = outputs["codes"], outputs["predictions"]
    batch, anchors = predictions.shape[:2]
    columns = codes[:, goals]  # [B, A, L, E]
    own = jnp.arange(batch * anchors)
    others = (own[:, None] + own[1:]) % (batch * anchors)  # [B A, B A - 1]
    allowed = _volumes_with_negatives(targets)[own[:, None] // anchors, others // anchors]
    pair = targets["pair"][:, :anchors].reshape(-1, 1)
    number = jnp.floor(pair * allowed.sum(1, keepdims=True))
    place = (allowed.cumsum(1) > number).argmax(1)
    wrong = columns.reshape(batch * anchors, *columns.shape[2:])[others[own, place]]
    true = (predictions * columns).mean((-2, -1))
    false = (predictions * wrong.reshape(columns.shape)).mean((-2, -1))
    loss = (jax.nn.softplus(-true) + jax.nn.softplus(false)).mean(axis=1) / 2
    metrics = _accuracy(jnp.einsum("bale,bne->baln", predictions, codes), goals)
    right = jnp.stack([true > 0, false < 0], axis=-1).astype(jnp.float32)
    return loss, metrics | {"pair_accuracy": losses.per_example(right)}


def _accuracy(logits: Float[Array, "B A L N"], goals: Int[np.ndarray, "A L"]) -> Metrics:
    """`accuracy` and `chance` of the logits over the patches of the same volume."""
    labels = jnp.broadcast_to(goals, logits.shape[:3])
    hits, terms = losses.per_example(losses.ranked_first(logits, labels))
    return {"accuracy": (hits, terms), "chance": (terms / logits.shape[-1], terms)}


def build(config: ml_collections.ConfigDict) -> Task:
    """Raises `UserError` if the settings contradict each other."""
    task = config.task
    grid = grid_of(config)
    row = task.anchor_row
    if row < 0:
        raise UserError(f"config.task.anchor_row={row}: must be a row of the grid, 0 or more")
    if task.border not in ("mirror", "zero"):
        raise UserError(f"config.task.border={task.border!r}: choose mirror or zero")
    goals = predicted(grid, row, task.skip)
    if goals.shape[1] == 0:
        raise UserError(
            f"config.task.anchor_row={row}: leaves none of the {task.per_side} rows to predict "
            f"({grid.rows_apart - 1} share voxels with it, config.task.skip={task.skip}); lower it"
        )
    if task.objective not in ("info_nce", "binary"):
        raise UserError(f"config.task.objective={task.objective!r}: choose info_nce or binary")
    if config.encoder.norm == "batch" and task.objective == "info_nce":
        raise UserError(
            "config.encoder.norm=batch lets a prediction see its target through the batch "
            "statistics; use group or instance for cpc"
        )

    def loss(outputs: Codes, targets: Targets) -> tuple[Float[Array, " B"], Metrics]:
        if task.objective == "binary":
            return binary(outputs, targets, goals)
        return info_nce(outputs, targets, goals, task.temperature)

    table = contexts(grid, row, task.border)

    def panels(
        record: dict, inputs: np.ndarray, targets: dict, outputs: dict | None = None
    ) -> list[Panel]:
        columns = (grid.per_side,) * (grid.rank - 1)
        anchor = int(np.ravel_multi_index([n // 2 for n in columns], columns))
        seen = dict.fromkeys(int(i) for i in table[anchor] if i < grid.count)
        shown = [("context", i) for i in seen] + [("predict", int(i)) for i in goals[anchor]]
        boxes = tuple(
            Box(f"{name} {i}", tuple(record["starts"][i]), grid.patch) for name, i in shown
        )
        return [Panel("whole image", None, boxes)] + [
            Panel(f"{name}: patch {i}", inputs[i]) for name, i in shown
        ]

    return Task(
        record=Cut(tuple(config.data.crop), grid),
        views=lambda key, record, train: views(
            key, patches_of(record, grid), train, task.intensity, task.flip_rows
        ),
        network=Network(
            encoder=encoders.build(config.encoder, grid.patch),
            code=nn.Dense(task.code),
            recurrence=nn.RNN(nn.GRUCell(task.context)),
            predictors=tuple(nn.Dense(task.code) for _ in range(goals.shape[1])),
            pool=config.head.pool,
            terms=table,
        ),
        loss=loss,
        panels=panels,
        headline="accuracy",
        needs_whole_batch=True,
    )
