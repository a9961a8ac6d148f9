"""Finding the volume that an embedding belongs to: what the tasks on whole identities share."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Integer

from ssl3d import losses
from ssl3d.tasks import Collected, Metrics, Scores, Targets

# Enough to order the triplets of unchanged z-scored volumes without any network.
_QUANTILES = 33


def negatives(targets: Targets) -> Bool[Array, "B B"]:
    """Whether row j of the batch is a negative of row i; own subject and padding are none."""
    return (targets["subject"][:, None] != targets["subject"]) & targets["valid"][None, :]


def other_view(
    similarity: Float[Array, "V V"], targets: Targets
) -> tuple[Float[Array, " B"], Metrics]:
    """Cross-entropy, accuracy and chance of finding the other view of the same volume.

    The candidates of a view are the other view and the views of other subjects, see `negatives`.

    Args:
      similarity: of all V = 2 B views, the two of a volume in succession.
    """
    other = jnp.arange(len(similarity)) ^ 1
    rivals = negatives(targets).repeat(2, axis=0).repeat(2, axis=1)
    candidates = rivals | (other[:, None] == jnp.arange(len(other)))

    def by_volume(values: Float[Array, " V"]) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        return losses.per_example(values.reshape(-1, 2))

    total, count = by_volume(losses.cross_entropy(similarity, other, candidates))
    hits = by_volume(losses.ranked_first(similarity, other, candidates))
    return total / count, {"accuracy": hits, "chance": by_volume(1 / (1.0 + rivals.sum(axis=1)))}


def collect(
    inputs: Float[Array, "B 2 *S C"], embeddings: Float[Array, "B V E"], targets: Targets
) -> dict[str, Float[Array, "B 2 _"]]:
    """What `score` needs: embeddings [B, 2, E] and intensity quantiles [B, 2, 33 C]."""
    axes = tuple(range(2, inputs.ndim - 1))
    quantiles = jnp.quantile(inputs, jnp.linspace(0, 1, _QUANTILES), axis=axes)
    histogram = jnp.moveaxis(quantiles, 0, -1).reshape(*inputs.shape[:2], -1)
    return {"embeddings": embeddings[:, :2], "histogram": histogram}


def score(
    collected: Collected,
    subjects: Integer[np.ndarray, " M"],
    repeats: Integer[np.ndarray, " M"],
    pool: int,
) -> Scores:
    """Whether the own original is the closest of `pool` originals of different subjects, ties lost.

    The pool of a case holds its own original and those of the next subjects in the order of the
    validation set, so the result does not depend on the batch size.

    Args:
      collected: arrays [M, 2, ...] from `collect`, originals or first views first.
      subjects, repeats: of each example.
      pool: originals to choose from.

    Returns:
      (hits [M], ones [M]): `accuracy` of the embeddings, `accuracy_histogram` of 33 quantiles of
      the intensities, which need no network, and `chance`.
    """
    results: Scores = {}
    ones = np.ones(len(subjects))
    sizes = np.ones(len(subjects))
    for name, key in (("accuracy", "embeddings"), ("accuracy_histogram", "histogram")):
        originals, transformed = collected[key][:, 0], collected[key][:, 1]
        hits = np.zeros(len(subjects))
        for i in range(len(subjects)):
            rivals = _rivals(i, subjects, repeats, pool - 1)
            own = np.square(transformed[i] - originals[i]).sum()
            others = np.square(transformed[i] - originals[rivals]).sum(axis=-1)
            hits[i] = bool((own < others).all()) and len(rivals) > 0
            sizes[i] = 1 + len(rivals)
        results[name] = (hits, ones)
    return results | {"chance": (1 / sizes, ones)}


def _rivals(
    i: int, subjects: Integer[np.ndarray, " M"], repeats: Integer[np.ndarray, " M"], count: int
) -> list[int]:
    """The next `count` cases after i, cyclically, of the same repeat and of other subjects."""
    taken = {int(subjects[i])}
    rivals: list[int] = []
    for step in range(1, len(subjects)):
        j = (i + step) % len(subjects)
        if repeats[j] == repeats[i] and int(subjects[j]) not in taken and len(rivals) < count:
            taken.add(int(subjects[j]))
            rivals.append(j)
    return rivals
