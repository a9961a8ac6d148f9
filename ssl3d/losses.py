"""Losses and accuracies as pure functions over arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def cross_entropy(logits: Array, labels: Array, candidates: Array | None = None) -> Array:
    """Softmax cross-entropy in float32.

    Args:
      logits: [..., K].
      labels: int [...].
      candidates: bool [..., K], the classes that take part (default: all), the label among them.

    Returns:
      [...]
    """
    logits = logits.astype(jnp.float32)
    if candidates is not None:
        logits = jnp.where(candidates, logits, -jnp.inf)
    chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def ranked_first(logits: Array, labels: Array, candidates: Array | None = None) -> Array:
    """Whether the label's logit exceeds every other candidate's; ties are lost.

    A network that gives all classes the same logit is therefore never right, not always.
    Shapes as in `cross_entropy`; -> float32 [...], 1 or 0.
    """
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)
    others = jnp.arange(logits.shape[-1]) != labels[..., None]
    if candidates is not None:
        others &= candidates
    return jnp.all(jnp.where(others, logits < chosen, True), axis=-1).astype(jnp.float32)


def per_example(values: Array) -> tuple[Array, Array]:
    """Sum and count over all axes but the first: [B, ...] -> ([B], [B])."""
    flat = values.reshape(values.shape[0], -1)
    return flat.sum(axis=1), jnp.full(flat.shape[0], flat.shape[1], jnp.float32)


def classified(logits: Array, labels: Array) -> tuple[Array, dict[str, tuple[Array, Array]]]:
    """Mean cross-entropy per example, with accuracy and chance.

    Args:
      logits: [B, Q, K].
      labels: int [B, Q].

    Returns:
      loss [B] and the metrics `accuracy` and `chance`.
    """
    total, count = per_example(cross_entropy(logits, labels))
    metrics = {
        "accuracy": per_example(ranked_first(logits, labels)),
        "chance": (count / logits.shape[-1], count),
    }
    return total / count, metrics


def vicreg(
    views: Array, valid: Array, invariance: float, variance: float, covariance: float
) -> Array:
    """VICReg (Bardes et al. 2022), scaled as in its released code.

    Args:
      views: embeddings [B, 2, E].
      valid: bool [B], false for padding, which the statistics of the batch leave out.
      invariance, variance, covariance: weights of the mean squared difference of the two views, of
        the shortfall of each channel's standard deviation from 1, and of the squared covariances.

    Returns:
      [B]; the last two terms are the same for all.
    """
    views = views.astype(jnp.float32)
    weight = valid.astype(jnp.float32)[:, None, None]
    count = weight.sum()
    centred = weight * (views - (weight * views).sum(axis=0) / count)
    covariances = jnp.einsum("bve,bvf->vef", centred, centred) / jnp.maximum(count - 1, 1)
    variances = jnp.diagonal(covariances, axis1=1, axis2=2)  # [2, E]
    short = jax.nn.relu(1 - jnp.sqrt(variances + 1e-4)).mean()
    mixed = (jnp.square(covariances).sum() - jnp.square(variances).sum()) / views.shape[-1]
    apart = jnp.square(views[:, 0] - views[:, 1]).mean(axis=-1)
    return invariance * apart + variance * short + covariance * mixed
