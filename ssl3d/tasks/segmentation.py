"""Segmentation: which class does each voxel belong to?

Taleb et al. 2020, sections 4.1 and 4.2: the pretrained encoder with a U-Net decoder, trained on
label maps. The loss is Dice plus cross-entropy over a fixed list of classes, or over overlapping
regions with one sigmoid each (BraTS: whole tumour, tumour core, enhancing tumour). Image and label
are augmented together, on the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, Integer, PRNGKeyArray

from ssl3d import augment
from ssl3d.data.pipeline import OUTSIDE, Example, crop_around, cut
from ssl3d.errors import UserError
from ssl3d.models import decoders, encoders
from ssl3d.tasks import Collected, Labels, Metrics, Panel, Scores, Targets, Task, whole

NEEDS = "label_map"
DOWNSTREAM = "ssl3d.downstream.segmentation"

# Added to numerator and denominator of the soft Dice, against noise from classes of few voxels; and
# by the released code.
_SMOOTH, _REFERENCE_SMOOTH = 1.0, 1e-5


class Network(nn.Module):
    """Crops -> logits at their resolution and at coarser ones, finest first.

    With `frozen` the encoder's batch norms use their running statistics and do not update them.
    """

    encoder: nn.Module
    decoder: nn.Module
    frozen: bool = False

    def __call__(
        self, crops: Float[Array, "B *S C"], train: bool = False
    ) -> tuple[Float[Array, "B ... K"], ...]:
        features = self.encoder(crops, train and not self.frozen)
        return self.decoder(features, train)


def place(
    rng: np.random.Generator,
    label: Integer[np.ndarray, "*S"],
    size: Sequence[int],
    foreground: float,
    classes: int,
) -> Int[np.ndarray, " rank"]:
    """The first voxel of a training crop, around a labelled voxel or anywhere.

    With probability `foreground`, a class is sampled from those in the label and then one of
    its voxels, so that small structures appear as often as large ones.
    """
    sides = np.asarray(size)
    if rng.random() < foreground:
        # One mask per class takes an eighth of the memory of counting all values.
        present = [k for k in range(1, classes) if (label == k).any()]
        if present:
            mask = label == present[rng.integers(len(present))]
            counts = mask.sum(axis=tuple(range(1, mask.ndim)))
            number = rng.integers(counts.sum())
            plane = np.searchsorted(counts.cumsum(), number, side="right")
            number -= counts[:plane].sum()
            within = np.unravel_index(np.flatnonzero(mask[plane])[number], mask.shape[1:])
            # The voxel may lie anywhere in the crop, not only in its middle.
            voxel = np.asarray((plane, *within)) - rng.integers(0, sides) + sides // 2
            return crop_around(voxel, label.shape, size)
    anywhere = rng.integers(0, np.maximum(np.asarray(label.shape) - sides, 0) + 1)
    return crop_around(anywhere + sides // 2, label.shape, size)


def middle_of_labels(label: Integer[np.ndarray, "*S"]) -> Int[np.ndarray, " rank"]:
    """The middle voxel of the foreground's bounding box; of the image if there is none."""
    label = np.where(label == OUTSIDE, 0, label)
    middle = []
    for axis in range(label.ndim):
        others = tuple(other for other in range(label.ndim) if other != axis)
        hit = np.flatnonzero(label.any(axis=others))
        middle.append((hit[0] + hit[-1]) // 2 if len(hit) else label.shape[axis] // 2)
    return np.asarray(middle)


def views(
    key: PRNGKeyArray, record: dict[str, Array], train: bool, settings: Mapping[str, Any]
) -> tuple[Float[Array, "*S C"], dict[str, Int[Array, "*S"]]]:
    """The network's input and `label`, augmented together."""
    volume, label = record["volume"].astype(jnp.float32), record["label"].astype(jnp.int32)
    if train:
        volume, label = augment.image_and_label(key, volume, label, settings, OUTSIDE)
    return volume, {"label": label}


def members(regions: Sequence[Sequence[int]], classes: int) -> Bool[np.ndarray, "R K"]:
    """Whether class k is in region r. Without regions, each class is a region."""
    if not regions:
        return np.eye(classes, dtype=bool)
    return np.asarray([[k in region for k in range(classes)] for region in regions])


def loss(
    logits: tuple[Float[Array, "B ... R"], ...], targets: Targets, belongs: Bool[np.ndarray, "R K"]
) -> tuple[Float[Array, " B"], Metrics]:
    """Soft Dice of the foreground present plus cross-entropy, at every decoder resolution.

    Args:
      logits: finest first, each with half the weight of the one before (deep supervision).
      targets: label int [B, *S], `OUTSIDE` for voxels outside the image.
      belongs: from `members`: classes, which exclude each other, or regions.

    Returns:
      The loss and the metric `dice` of the thresholded prediction over the foreground classes
      (regions) that are present or predicted.
    """
    total: Any = 0.0
    weights = 0.0
    label = targets["label"]
    for level, part in enumerate(logits):
        if level:
            # One voxel represents its block: labels are never interpolated.
            steps = (
                2 if side > kept else 1
                for side, kept in zip(label.shape[1:], part.shape[1:-1], strict=True)
            )
            label = label[:, *(slice(None, None, step) for step in steps)]
        truth = _truth(label, belongs)
        total += 0.5**level * _loss_at(part, truth, label != OUTSIDE, exclusive=_exclusive(belongs))
        weights += 0.5**level
    return total / weights, {"dice": _hard_dice(logits[0], targets["label"], belongs)}


def _exclusive(belongs: Bool[np.ndarray, "R K"]) -> bool:
    return belongs.shape[0] == belongs.shape[1] and bool((belongs == np.eye(len(belongs))).all())


def _truth(label: Int[Array, " B *S"], belongs: Bool[np.ndarray, "R K"]) -> Float[Array, "B *S R"]:
    """Membership of each region, 1 or 0; `OUTSIDE` is in none."""
    one_hot = jax.nn.one_hot(label, belongs.shape[1], dtype=jnp.float32)
    return one_hot if _exclusive(belongs) else one_hot @ belongs.T.astype(np.float32)


def _loss_at(
    logits: Float[Array, "B *S R"],
    truth: Float[Array, "B *S R"],
    inside: Bool[Array, " B *S"],
    exclusive: bool,
) -> Float[Array, " B"]:
    space = tuple(range(1, logits.ndim - 1))
    logits = logits.astype(jnp.float32)
    weight = inside[..., None].astype(jnp.float32)
    voxels = jnp.maximum(inside.sum(space), 1)
    if exclusive:
        logs = jax.nn.log_softmax(logits)
        probabilities, entropy = jnp.exp(logs), -(truth * logs * weight).sum((*space, -1)) / voxels
        first = 1  # without the background, whose Dice is near 1 whatever the network does
    else:
        probabilities, first = jax.nn.sigmoid(logits), 0
        terms = truth * jax.nn.log_sigmoid(logits) + (1 - truth) * jax.nn.log_sigmoid(-logits)
        entropy = -(terms * weight).sum(space).mean(-1) / voxels
    truth, probabilities = (x[..., first:] * weight for x in (truth, probabilities))
    shared = (truth * probabilities).sum(space)
    dice = (2 * shared + _SMOOTH) / (truth.sum(space) + probabilities.sum(space) + _SMOOTH)
    # A class absent from an example is left to the cross-entropy: where crops without it are
    # common, its Dice term would make predicting nothing cheaper than predicting a little.
    present = truth.any(space)
    missed = jnp.where(present, 1 - dice, 0).sum(-1) / jnp.maximum(present.sum(-1), 1)
    return missed + entropy


def _hard_dice(
    logits: Float[Array, "B *S R"], label: Int[Array, " B *S"], belongs: Bool[np.ndarray, "R K"]
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Dice summed over the classes (regions) in label or prediction, and their number.

    A class in the prediction alone has a Dice of 0; one in neither is not counted.
    """
    space = tuple(range(1, logits.ndim - 1))
    truth = _truth(label, belongs) > 0
    if _exclusive(belongs):
        answer = jax.nn.one_hot(logits.argmax(-1), logits.shape[-1], dtype=bool)[..., 1:]
        truth = truth[..., 1:]
    else:
        answer = logits > 0
    answer &= (label != OUTSIDE)[..., None]
    sizes = truth.sum(space) + answer.sum(space)
    dice = 2 * (truth & answer).sum(space) / jnp.maximum(sizes, 1)
    return dice.sum(-1), (sizes > 0).sum(-1).astype(jnp.float32)


def reference_soft_dice(
    probabilities: Float[Array, "B *S K"], label: Int[Array, " B *S"]
) -> Float[Array, " B"]:
    """The score of the paper's Figure 5 as the released code has it: the background is a class.

    Soft Dice of each example, mean over all K classes; voxels outside the image do not count.
    """
    space = tuple(range(1, probabilities.ndim - 1))
    truth = jax.nn.one_hot(label, probabilities.shape[-1], dtype=jnp.float32)
    probabilities = probabilities * (label != OUTSIDE)[..., None]
    shared = (truth * probabilities).sum(space)
    sizes = truth.sum(space) + probabilities.sum(space)
    return ((2 * shared + _REFERENCE_SMOOTH) / (sizes + _REFERENCE_SMOOTH)).mean(-1)


def own_class(regions: Sequence[Sequence[int]], index: int) -> int:
    """The class of a region that the next region, nested in it, lacks. Raises `UserError`."""
    inner = set(regions[index + 1]) if index + 1 < len(regions) else set()
    own = set(regions[index]) - inner
    if len(own) != 1 or not inner < set(regions[index]):
        raise UserError(
            "config.task.regions: each must hold the next one and one class more, e.g. "
            "((1, 2, 3), (1, 3), (3,))"
        )
    return own.pop()


def build(config: ml_collections.ConfigDict, labels: Labels | None) -> Task:
    """Raises `UserError` if the settings contradict each other or the data set's classes."""
    task, size = config.task, tuple(config.data.crop)
    classes, _ = labels or Labels()
    if len(classes) < 2:
        raise UserError("the data set has no classes to segment; prepare it with its labels")
    if not all(isinstance(region, Sequence) and len(region) for region in task.regions):
        raise UserError(
            f"config.task.regions={task.regions}: sets of classes, e.g. '((1,2,3),(1,3),(3,))'"
        )
    regions = tuple(tuple(region) for region in task.regions)
    for index, region in enumerate(regions):
        own_class(regions, index)
        if max(region) >= len(classes) or min(region) < 1:
            raise UserError(
                f"config.task.regions: {region} names a class outside 1 to {len(classes) - 1} "
                f"({', '.join(classes[1:])})"
            )
    encoders.check_full_resolution(config.encoder, "segment")
    if not 0 <= task.deep < config.encoder.depth - 1:
        raise UserError(
            f"config.task.deep={task.deep}: must be below {config.encoder.depth - 1}, the number "
            "of resolutions of the decoder; the full one is always supervised"
        )
    belongs = members(regions, len(classes))
    encoder = encoders.build(config.encoder, size)
    augmentation = config.augment.to_dict()

    def record(rng: np.random.Generator, example: Example, train: bool) -> dict[str, np.ndarray]:
        label = example.label
        assert label is not None  # see `NEEDS`
        if train:
            start = place(rng, label, size, task.foreground, len(classes))
        else:
            start = crop_around(middle_of_labels(label), label.shape, size)
        return {
            "volume": cut(example.image, start, size),
            "label": cut(label, start, size, outside=OUTSIDE),
            "start": start.astype(np.int32),
        }

    def panels(
        record: dict, inputs: np.ndarray, targets: dict, outputs: tuple | None = None
    ) -> list[Panel]:
        label = np.where(targets["label"] == OUTSIDE, 0, targets["label"])
        return [
            whole.panel(record, size),
            Panel("input", inputs),
            Panel("label", inputs, label=label),
        ]

    def predict(logits: tuple[Float[Array, "B ... R"], ...]) -> Float[Array, "B ... R"]:
        finest = logits[0].astype(jnp.float32)
        return jax.nn.sigmoid(finest) if regions else jax.nn.softmax(finest)

    def collect(inputs: Array, logits: Any, targets: Targets) -> dict[str, Float[Array, " B"]]:
        return {"soft_dice": reference_soft_dice(predict(logits), targets["label"])}

    def score(collected: Collected, subjects: np.ndarray, repeats: np.ndarray) -> Scores:
        values = collected["soft_dice"]
        return {"reference_soft_dice": (values, np.ones(len(values)))}

    return Task(
        record=record,
        views=lambda key, record, train: views(key, record, train, augmentation),
        network=Network(encoder=encoder, decoder=decoders.build(encoder, len(belongs), task.deep)),
        loss=lambda logits, targets: loss(logits, targets, belongs),
        panels=panels,
        headline="dice",
        spatial=("volume", "label"),
        # Regions overlap and have no background, so that the released code's score is not theirs.
        collect=None if regions else collect,
        score=None if regions else score,
        best_by="dice",
        predict=predict,
    )
