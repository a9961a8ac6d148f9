"""Exemplar: which volume is this a transformed version of?

Dosovitskiy et al. 2016, Hoffer & Ailon 2015; Taleb et al. 2020, section 3.5 and equation 3: a
transformed volume must be closer to its original than to any other volume, by a margin. One
shared head with L2-normalised embeddings, and every other volume of the global batch as a
negative: with a constant encoder the loss stays at the margin. A random monotone map changes the
intensities, so that the histogram does not identify a volume.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from ssl3d import augment, losses
from ssl3d.errors import UserError
from ssl3d.models import encoders, heads
from ssl3d.tasks import Metrics, Panel, Targets, Task, retrieval, whole

# Far below the squared distance of different embeddings, far above float32's rounding.
_GUARD = 1e-6


class Network(nn.Module):
    """(original, transformed) crops -> V = 2 embeddings of unit length.

    `heads` is one shared head, or the released code's three with sigmoids (V = 3): the first
    and third see the original, as a positive and as another volume's negative, the second the
    transformed volume.
    """

    encoder: nn.Module
    heads: tuple[nn.Module, ...]
    pool: str

    def __call__(
        self, crops: Float[Array, "B 2 *S C"], train: bool = False
    ) -> Float[Array, "B V E"]:
        features = heads.encode_patches(self.encoder, crops, self.pool, train)
        if len(self.heads) == 1:
            embeddings = self.heads[0](features, train)
            length = jnp.sqrt(jnp.sum(jnp.square(embeddings), -1, keepdims=True) + 1e-12)
            return embeddings / length
        original, transformed = features[:, 0], features[:, 1]
        parts = zip(self.heads, (original, transformed, original), strict=True)
        return jax.nn.sigmoid(jnp.stack([head(x, train) for head, x in parts], axis=1))


def transform(
    key: PRNGKeyArray, volume: Float[Array, "*S C"], task: ml_collections.ConfigDict
) -> Float[Array, "*S C"]:
    """Flips, quarter turns, zoom and a change of intensities."""
    flip, turn, which, zoom, intensity = jax.random.split(key, 5)
    volume = augment.flips(flip, volume, task.flip)
    if len(set(volume.shape[:-1])) == 1:
        choices = len(augment.signed_permutations(volume.ndim - 1, "all"))
        turned = jax.random.bernoulli(turn, task.turn)
        index = jnp.where(turned, jax.random.randint(which, (), 0, choices), 0)
        volume = augment.rotate(volume, index, "all")
    volume = augment.zoom(zoom, volume, task.zoom, task.zoom_amount)
    if task.intensity > 0:
        volume = augment.monotone(intensity, volume, task.intensity)
    if task.brightness_contrast > 0:
        key = jax.random.fold_in(intensity, 1)
        amounts = task.brightness_contrast, task.brightness, task.contrast
        volume = augment.brightness_and_contrast(key, volume, *amounts)
    return volume


def views(
    key: PRNGKeyArray, record: dict[str, Array], train: bool, task: ml_collections.ConfigDict
) -> tuple[Float[Array, "2 *S C"], dict[str, Array]]:
    """The crop, coarser, and its transformed version."""
    original = augment.coarsen(record["volume"].astype(jnp.float32), task.coarsen)
    return jnp.stack([original, transform(key, original, task)]), {}


def margin_loss(
    embeddings: Float[Array, "B V E"], targets: Targets, margin: float
) -> tuple[Float[Array, " B"], Metrics]:
    """Mean over the other subjects of max(0, d(transformed, own) - d(transformed, other) + margin).

    d is the L2 distance, as in the paper, guarded because its gradient at zero is NaN. The gradient
    of the squared distance would vanish where all embeddings are equal, and training would stall.

    Args:
      embeddings: originals first, of unit length.
      targets: subject int [B], valid bool [B].

    Returns:
      The loss, zero without another subject in the batch, and the metric `accuracy`: the own
      original is closer than every other, ties lost.
    """
    originals, transformed = embeddings[:, 0], embeddings[:, 1]
    others = retrieval.negatives(targets)
    squared = jnp.sum(jnp.square(transformed[:, None] - originals[None]), axis=-1)
    distance = jnp.sqrt(squared + _GUARD)
    own = jnp.diagonal(distance)[:, None]
    hinge = jnp.where(others, jax.nn.relu(own - distance + margin), 0.0)
    count = others.sum(axis=1)
    loss = hinge.sum(axis=1) / jnp.maximum(count, 1)
    labels = jnp.arange(len(distance))
    hits = losses.ranked_first(-distance, labels, others | jnp.eye(len(distance), dtype=bool))
    ones = jnp.ones_like(hits)
    return loss, {"accuracy": (hits, ones), "chance": (1 / (1.0 + count), ones)}


def original_loss(
    embeddings: Float[Array, "B 3 E"], targets: Targets, margin: float
) -> tuple[Float[Array, " B"], Metrics]:
    """The released code's triplet loss: mean squared differences, one volume as negative.

    It is the last one before, cyclically, of another subject; without any, the loss is zero. Kept
    fault: outputs lie in (0, 1), so no distance exceeds 1, the margin, and the biases of the three
    heads alone reach a loss of 0. Metrics as in `margin_loss`.
    """
    positive, anchor, negative = embeddings[:, 0], embeddings[:, 1], embeddings[:, 2]
    rows = jnp.arange(len(embeddings))
    before = (rows[:, None] - rows[1:]) % len(rows)  # [B, B - 1]
    allowed = jnp.take_along_axis(retrieval.negatives(targets), before, axis=1)
    chosen = before[rows, allowed.argmax(axis=1)]
    near = jnp.mean(jnp.square(anchor - positive), axis=-1)
    far = jnp.mean(jnp.square(anchor - negative[chosen]), axis=-1)
    _, metrics = margin_loss(embeddings, targets, margin)
    return jnp.where(allowed.any(axis=1), jax.nn.relu(near - far + margin), 0.0), metrics


def build(config: ml_collections.ConfigDict) -> Task:
    """Raises `UserError` if the settings contradict each other."""
    task, size = config.task, tuple(config.data.crop)
    if config.batch_size < 2:
        raise UserError("config.batch_size=1 leaves exemplar no negatives; use 2 or more")
    if task.objective not in ("margin", "original"):
        raise UserError(f"config.task.objective={task.objective!r}: choose margin or original")
    augment.check_coarsening(task.coarsen, size)
    shared = task.objective == "margin"
    head_count = 1 if shared else 3

    def panels(
        record: dict, inputs: np.ndarray, targets: dict, outputs: np.ndarray | None = None
    ) -> list[Panel]:
        return [
            whole.panel(record, size),
            Panel("original", inputs[0]),
            Panel("transformed", inputs[1]),
        ]

    return Task(
        record=whole.cut(size),
        views=lambda key, record, train: views(key, record, train, task),
        network=Network(
            encoder=encoders.build(config.encoder, tuple(side // task.coarsen for side in size)),
            heads=tuple(heads.build(config.head, out=task.code) for _ in range(head_count)),
            pool=config.head.pool,
        ),
        loss=lambda outputs, targets: (margin_loss if shared else original_loss)(
            outputs, targets, task.margin
        ),
        panels=panels,
        headline="accuracy",
        shown=("accuracy_histogram",),
        spatial=("volume",),
        collect=retrieval.collect,
        score=functools.partial(retrieval.score, pool=task.pool),
        needs_whole_batch=True,
        learns_from_noise=True,
    )
