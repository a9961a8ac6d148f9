"""Losses and accuracies as pure functions over arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Float32, Int

# Sums and counts of each example by the name of the metric.
Metrics = dict[str, tuple[Float[Array, " B"], Float[Array, " B"]]]


def cross_entropy(
    logits: Float[Array, "*B K"],
    labels: Int[Array, "*B"],
    candidates: Bool[Array, "*#B K"] | None = None,
) -> Float32[Array, "*B"]:
    """Softmax cross-entropy in float32.

    `candidates` are the classes that take part (default: all), the label among them.
    """
    logits = logits.astype(jnp.float32)
    if candidates is not None:
        logits = jnp.where(candidates, logits, -jnp.inf)
    chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def ranked_first(
    logits: Float[Array, "*B K"],
    labels: Int[Array, "*B"],
    candidates: Bool[Array, "*#B K"] | None = None,
) -> Float32[Array, "*B"]:
    """Whether the label's logit exceeds every other candidate's, 1 or 0; ties are lost.

    A network that gives all classes the same logit is therefore never right, not always.
    """
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)
    others = jnp.arange(logits.shape[-1]) != labels[..., None]
    if candidates is not None:
        others &= candidates
    return jnp.all(jnp.where(others, logits < chosen, True), axis=-1).astype(jnp.float32)


def per_example(values: Float[Array, "B ..."]) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Sum and count over all axes but the first."""
    flat = values.reshape(values.shape[0], -1)
    return flat.sum(axis=1), jnp.full(flat.shape[0], flat.shape[1], jnp.float32)


def classified(
    logits: Float[Array, "B Q K"], labels: Int[Array, "B Q"]
) -> tuple[Float32[Array, " B"], Metrics]:
    """Mean cross-entropy per example, with the metrics `accuracy` and `chance`."""
    total, count = per_example(cross_entropy(logits, labels))
    metrics: Metrics = {
        "accuracy": per_example(ranked_first(logits, labels)),
        "chance": (count / logits.shape[-1], count),
    }
    return total / count, metrics


def vicreg(
    views: Float[Array, "B 2 E"],
    valid: Bool[Array, " B"],
    invariance: float,
    variance: float,
    covariance: float,
) -> Float32[Array, " B"]:
    """VICReg (Bardes et al. 2022), scaled as in its released code.

    Args:
      views: two embeddings of each example.
      valid: false for padding, which the statistics of the batch leave out.
      invariance, variance, covariance: weights of the mean squared difference of the two views, of
        the shortfall of each channel's standard deviation from 1, and of the squared covariances.

    Returns:
      The loss; its last two terms are the same for all examples.
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
