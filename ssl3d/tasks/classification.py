"""Classification: which class (grade) does the whole image belong to?

Taleb et al. 2020, section 4.3: diabetic retinopathy, grades 0 to 4, from fundus photographs. The
head is a softmax over the classes, or ordinal: for each grade above the lowest, a sigmoid of
whether it is reached (as in the released code).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import Array
from jaxtyping import Float, Float32, Int, Integer, PRNGKeyArray, Real

from ssl3d import augment, class_metrics, losses
from ssl3d.data.pipeline import Example, crop
from ssl3d.errors import UserError
from ssl3d.models import encoders, heads
from ssl3d.tasks import Box, Collected, Labels, Metrics, Panel, Scores, Targets, Task

NEEDS = "grade"
DOWNSTREAM = "ssl3d.downstream.classification"


class Network(nn.Module):
    """Crops -> logits of K classes, or K - 1 of an ordinal head.

    With `frozen` the encoder's batch norms use their running statistics and do not update them.
    """

    encoder: nn.Module
    head: nn.Module
    pool: str
    frozen: bool = False

    def __call__(
        self, crops: Float[Array, "B *S C"], train: bool = False
    ) -> Float[Array, "B outputs"]:
        features = self.encoder(crops, train and not self.frozen)
        return self.head(heads.pooled(features, self.pool), train)


def views(
    key: PRNGKeyArray, record: dict[str, Array], train: bool, settings: Mapping[str, Any]
) -> tuple[Float[Array, "*S C"], dict[str, Int[Array, ""]]]:
    """The network's input and `grade`."""
    image = record["volume"].astype(jnp.float32)
    if train:
        nothing = jnp.zeros(image.shape[:-1], jnp.int32)
        image, _ = augment.image_and_label(key, image, nothing, settings, outside=0)
    return image, {"grade": record["grade"]}


def probabilities(
    logits: Float[Array, "B outputs"], ordinal: bool
) -> Float32[Array, "B outputs+{ordinal}"]:
    """Probabilities of K classes from their logits, of which an ordinal head has K - 1.

    A cumulative minimum keeps the ordinal sigmoids from increasing with the grade.
    """
    logits = logits.astype(jnp.float32)
    if not ordinal:
        return jax.nn.softmax(logits)
    reached = jax.lax.cummin(jax.nn.sigmoid(logits), axis=logits.ndim - 1)
    ones, zeros = jnp.ones_like(reached[..., :1]), jnp.zeros_like(reached[..., :1])
    return jnp.concatenate([ones, reached], -1) - jnp.concatenate([reached, zeros], -1)


def grade_of(probability: Float[np.ndarray, "*B K"], ordinal: bool) -> Int[np.ndarray, "*B"]:
    """Predicted grade: the most probable, or the median for an ordinal head."""
    if not ordinal:
        return np.asarray(probability.argmax(-1))
    reached = 1 - np.cumsum(probability, axis=-1)[..., :-1]
    return np.asarray((reached > 0.5).sum(-1))


def bits_right(
    probability: Float[np.ndarray, "B K"], grade: Int[np.ndarray, " B"]
) -> Float[np.ndarray, " B"]:
    """The score of the paper's Figure 6: the share of right bits among K.

    Grade g is g + 1 ones followed by zeros, so that the first bit is right for every image.
    """
    reached = 1 - np.cumsum(probability, axis=-1)[..., :-1] > 0.5
    truth = grade[:, None] > np.arange(probability.shape[-1] - 1)
    return (1 + (reached == truth).sum(-1)) / probability.shape[-1]


def loss(
    logits: Float[Array, "B outputs"],
    targets: Targets,
    weights: Float[np.ndarray, " outputs+{ordinal}"],
    ordinal: bool,
    chance: float,
) -> tuple[Float[Array, " B"], Metrics]:
    """Class-weighted cross-entropy.

    Args:
      logits: of K classes, or K - 1 of an ordinal head.
      targets: grade int [B].
      weights: of the classes.
      chance: the share of the most frequent class in training.

    Returns:
      The loss and the metrics `accuracy` and `chance`.
    """
    grade = targets["grade"]
    classes = len(weights)
    if ordinal:
        reached = (grade[:, None] > jnp.arange(classes - 1)).astype(jnp.float32)
        logits = logits.astype(jnp.float32)
        terms = reached * jax.nn.log_sigmoid(logits) + (1 - reached) * jax.nn.log_sigmoid(-logits)
        entropy = -terms.mean(-1)
        answer = (jax.lax.cummin(logits, axis=1) > 0).sum(-1)
        hits = (answer == grade).astype(jnp.float32)
    else:
        entropy = losses.cross_entropy(logits, grade)
        hits = losses.ranked_first(logits, grade)
    ones = jnp.ones_like(hits)
    counts = {"accuracy": (hits, ones), "chance": (chance * ones, ones)}
    return entropy * jnp.asarray(weights, jnp.float32)[grade], counts


def select_by(config: ml_collections.ConfigDict) -> str:
    """The metric that selects the best model; kappa for models from before there was a choice."""
    return config.task.get("select_by", "kappa")


def class_weights(counts: tuple[int, ...], how: str) -> Float[np.ndarray, " K"]:
    """Class weights with mean 1 over the training cases.

    "none": all equal; "balanced": inverse to the number of training cases.
    """
    cases = np.asarray(counts, np.float64)
    if how == "none":
        return np.ones(len(cases))
    present = cases > 0
    return np.where(present, cases.sum() / (present.sum() * np.maximum(cases, 1)), 0.0)


def build(config: ml_collections.ConfigDict, labels: Labels | None) -> Task:
    """Raises `UserError` if the settings contradict each other or the data set's classes."""
    task, size = config.task, tuple(config.data.crop)
    classes, cases = labels or Labels()
    if len(classes) < 2 or len(cases) != len(classes):
        raise UserError(
            "the data set has no grades to learn; prepare it with --csv=FILE, a table of grades"
        )
    if task.head not in ("softmax", "ordinal"):
        raise UserError(f"config.task.head={task.head!r}: choose softmax or ordinal")
    if task.class_weights not in ("none", "balanced"):
        raise UserError(f"config.task.class_weights={task.class_weights!r}: none or balanced")
    ordinal = task.head == "ordinal"
    weights = class_weights(cases, task.class_weights)
    chance = max(cases) / sum(cases)
    augmentation = config.augment.to_dict()

    def record(rng: np.random.Generator, example: Example, train: bool) -> dict[str, np.ndarray]:
        volume, start = crop(rng, example.image, size, train, beyond=True)
        return {"volume": volume, "start": start, "grade": np.asarray(example.case.grade, np.int32)}

    def panels(
        record: dict, inputs: np.ndarray, targets: dict, outputs: np.ndarray | None = None
    ) -> list[Panel]:
        box = Box("crop", tuple(record["start"]), size)
        return [Panel("whole image", None, (box,)), Panel(classes[int(targets["grade"])], inputs)]

    def collect(
        inputs: Float[Array, "B *S C"], logits: Float[Array, "B outputs"], targets: Targets
    ) -> dict[str, Real[Array, "B ..."]]:
        return {"probability": probabilities(logits, ordinal), "grade": targets["grade"]}

    def score(
        collected: Collected,
        subjects: Integer[np.ndarray, " M"],
        repeats: Integer[np.ndarray, " M"],
    ) -> Scores:
        one = np.ones(1)
        grades = collected["grade"]
        answers = grade_of(collected["probability"], ordinal)
        once = np.ones(len(grades))
        found: Scores = {
            name: (np.asarray([score_of(grades, answers, collected["probability"], once)]), one)
            for name, score_of in class_metrics.SELECTIONS.items()
        }
        bits = bits_right(collected["probability"], grades)
        return found | {"reference_bit_accuracy": (bits, once)}

    return Task(
        record=record,
        views=lambda key, record, train: views(key, record, train, augmentation),
        network=Network(
            encoder=encoders.build(config.encoder, size),
            head=heads.build(config.head, out=len(classes) - ordinal),
            pool=config.head.pool,
        ),
        loss=lambda logits, targets: loss(logits, targets, weights, ordinal, chance),
        panels=panels,
        headline="accuracy",
        shown=(select_by(config),),
        spatial=("volume",),
        collect=collect,
        score=score,
        best_by=select_by(config),
        predict=lambda logits: probabilities(logits, ordinal),
    )
