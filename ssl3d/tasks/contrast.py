"""Contrast: which crops are of the same volume?

Two augmented crops (views) of a volume agree, and those of other subjects differ. `info_nce`: Chen
et al. 2020 (NT-Xent), symmetric, with the views of all other subjects of the global batch as
negatives. `vicreg`: Bardes et al. 2022, without negatives. `overlap`: Wu et al. 2024 (VoCo): the
similarity of a random crop to each of a grid of base crops is the share of its voxels in them.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from ssl3d import augment, losses
from ssl3d.data import pipeline
from ssl3d.errors import UserError
from ssl3d.models import encoders, heads
from ssl3d.tasks import Box, Metrics, Panel, Targets, Task, retrieval

Loss = tuple[Float[Array, " B"], Metrics]


class Network(nn.Module):
    """Crops -> embeddings, of length 1 if `unit`."""

    encoder: nn.Module
    head: nn.Module
    pool: str
    unit: bool

    def __call__(
        self, crops: Float[Array, "B K *S C"], train: bool = False
    ) -> Float[Array, "B K E"]:
        x = self.head(heads.encode_patches(self.encoder, crops, self.pool, train), train)
        return x * jax.lax.rsqrt(jnp.sum(x * x, -1, keepdims=True) + 1e-12) if self.unit else x


def views(
    key: PRNGKeyArray, record: dict[str, Array], train: bool, task: Any, rim: int
) -> tuple[Float[Array, "K *S C"], dict[str, Float[Array, " N"]]]:
    """Crops, with a rim for the zoom -> augmented; the share of the first in each of the others."""

    def transform(key: PRNGKeyArray, crop: Array) -> Array:
        zoom, curve, noise = jax.random.split(key, 3)
        if rim:
            crop = augment.zoom(zoom, crop, task.zoom, task.zoom_amount)
            crop = crop[(slice(rim, -rim),) * (crop.ndim - 1)]
        crop = augment.monotone(curve, augment.coarsen(crop, task.coarsen), task.intensity)
        return augment.gaussian_noise(noise, crop, task.noise)

    crops, starts = record["crops"].astype(jnp.float32), record["starts"]
    apart = jnp.abs(starts[1:] - starts[0]) / jnp.asarray(task.view)
    overlap = jnp.prod(jnp.maximum(1 - apart, 0), axis=-1)
    return jax.vmap(transform)(jax.random.split(key, len(crops)), crops), {"overlap": overlap}


def embedding_loss(x: Float[Array, "B 2 E"], targets: Targets, task: Any) -> Loss:
    """NT-Xent (of unit embeddings) or VICReg."""
    flat = x.reshape(-1, x.shape[-1])
    if task.objective == "info_nce":
        return retrieval.other_view(flat @ flat.T / task.temperature, targets)
    distance = jnp.square(flat[:, None] - flat).sum(axis=-1)
    _, metrics = retrieval.other_view(-distance, targets)
    return losses.vicreg(x, targets["valid"], *task.weights), metrics


def overlap_loss(x: Float[Array, "B K E"], targets: Targets) -> Loss:
    """VoCo, of unit embeddings [B, 1 + N, E], the random crop first.

    The random crop learns to match the base crops, and those to differ from each other.
    `accuracy`: the base crop that shares most voxels with the random one ranks first.
    """
    bases, count = x[:, 1:], x.shape[1] - 1
    similarity = jnp.einsum("be,bne->bn", x[:, 0], jax.lax.stop_gradient(bases))
    error = jnp.abs(jax.nn.relu(similarity) - targets["overlap"])
    among = jax.nn.relu(jnp.einsum("bne,bme->bnm", bases, bases)) * (1 - jnp.eye(count))
    # Finite where a similarity of 1 should be 0.
    loss = -jnp.log(1.001 - error).mean(axis=1) + among.sum((1, 2)) / (count * (count - 1))
    hits = losses.ranked_first(similarity, targets["overlap"].argmax(axis=1))
    ones = jnp.ones_like(hits)
    return loss, {"accuracy": (hits, ones), "chance": (ones / count, ones)}


def encoded_sizes(config: ml_collections.ConfigDict) -> tuple[tuple[int, ...], ...]:
    """The view, coarser."""
    return (tuple(side // config.task.coarsen for side in config.task.view),)


def build(config: ml_collections.ConfigDict) -> Task:
    """Raises `UserError` if the settings contradict each other."""
    task, size, view = config.task, np.array(config.data.crop), np.array(config.task.view)
    choices = ("info_nce", "vicreg", "overlap")
    if task.objective not in choices:
        raise UserError(f"config.task.objective={task.objective!r}: choose {' or '.join(choices)}")
    grid = task.objective == "overlap"
    if not grid and config.batch_size < 2:
        raise UserError("config.batch_size=1 leaves contrast nothing to compare; use 2 or more")
    # Voxels around a view, from which the zoom shrinks it; overlaps do not survive a zoom.
    shrink = 0.0 if grid or not task.zoom else task.zoom_amount
    rim = math.ceil(view.max() / 2 * shrink / (1 - shrink))
    room = size - view - 2 * rim if len(view) == len(size) else np.array([-1])
    if min(*room, *(view - 1)) < 0 or (view % task.coarsen).any():
        raise UserError(
            f"config.task.view={task.view}: must be multiples of {task.coarsen} that fit in "
            f"config.data.crop={tuple(size)} with {rim} voxels around them for the zoom"
        )
    bases = np.array(list(itertools.product(*map(range, size // view)))) * view
    if grid and len(bases) < 2:
        raise UserError(f"config.task.view={task.view}: leaves no two base crops side by side")
    reach = np.floor((1 - task.min_overlap) * view).astype(int) if task.min_overlap else room

    def record(rng: np.random.Generator, example: pipeline.Example, train: bool) -> dict:
        region, origin = pipeline.crop(rng, example.image, config.data.crop, train)
        first = rng.integers(0, (bases.max(axis=0) if grid else room) + 1)
        low, high = np.maximum(first - reach, 0), np.minimum(first + reach, room)
        starts = [first, *(bases if grid else [rng.integers(low, high + 1)])]
        crops = pipeline.Pieces(region, np.array(starts), tuple(view + 2 * rim))
        return {"crops": crops, "starts": (origin + starts + rim).astype(np.int32)}

    def panels(record: dict, inputs: np.ndarray, targets: dict, outputs: Any = None) -> list[Panel]:
        names = ["crop", *(f"base crop: {share:.0%}" for share in targets["overlap"])]
        names = names if grid else ["view 1", "view 2"]
        starts = [tuple(start) for start in record["starts"]]
        boxes = map(Box, names, starts, [tuple(view)] * len(names))
        return [Panel("whole image", None, tuple(boxes)), *map(Panel, names, inputs)]

    return Task(
        record=record,
        views=lambda key, record, train: views(key, record, train, task, rim),
        network=Network(
            encoder=encoders.build(config.encoder, *encoded_sizes(config)),
            head=heads.build(config.head, out=task.code),
            pool=config.head.pool,
            unit=task.objective != "vicreg",
        ),
        loss=overlap_loss if grid else functools.partial(embedding_loss, task=task),
        panels=panels,
        headline="accuracy",
        shown=() if grid else ("accuracy_histogram",),
        collect=None if grid else retrieval.collect,
        score=None if grid else functools.partial(retrieval.score, pool=task.pool),
        needs_whole_batch=not grid,
        learns_from_noise=True,
    )
