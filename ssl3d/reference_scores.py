"""The scores of the paper's released code, for comparison with its numbers.

They include the background and pool all voxels. Their names begin with `reference_`, so that they
are never mixed with those of `ssl3d.metrics`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int, Real

from ssl3d import metrics


def reference_segmentation_scores(
    confusion: Int[np.ndarray, "K K"],
    classes: Sequence[str],
    regions: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, float]:
    """The released code's scores of a test set, from the sum of its confusion matrices.

    Args:
      confusion: of all voxels of all cases.
      classes: K names.
      regions: as in `metrics.segmentation_scores`, e.g. `metrics.BRATS_REGIONS`.

    Returns:
      reference_dice, reference_jaccard: mean over the classes **including the background**; a
        class in neither truth nor prediction is left out.
      reference_dice_NAME: of one class (there `dice_pancreas_1`); NaN if left out.
      reference_dice_REGION: mean of the region **and of everything else** (there `brats_wt`), so
        that a Dice of 0.6 appears as 0.8.
    """
    dice, jaccard = _pooled_overlaps(confusion)
    scores = {"reference_dice": np.nanmean(dice), "reference_jaccard": np.nanmean(jaccard)}
    scores |= {f"reference_dice_{name}": value for name, value in zip(classes, dice, strict=True)}
    for name, indices in (regions or {}).items():
        inside = np.isin(np.arange(len(classes)), indices)
        membership = np.stack([~inside, inside]).astype(confusion.dtype)
        halves, _ = _pooled_overlaps(membership @ confusion @ membership.T)
        scores[f"reference_dice_{name}"] = np.nanmean(halves)
    return {name: float(value) for name, value in scores.items()}


def _pooled_overlaps(
    confusion: Int[np.ndarray, "K K"],
) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    """Dice and Jaccard per class; NaN for a class in neither map."""
    common = np.diagonal(confusion)
    sizes = confusion.sum(0) + confusion.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return 2 * common / sizes, common / (sizes - common)


def reference_ordinal_scores(
    truth: Real[np.ndarray, "B K"], outputs: Float[np.ndarray, "B K"]
) -> dict[str, float]:
    """The released code's scores of grades encoded as K ordinal bits.

    Grade g is encoded as g + 1 ones followed by zeros, and decoded as the number of outputs above
    0.5, in any order, minus one: without an output above 0.5 the grade is -1.

    Truth of 0 and 1 and sigmoids ->
      reference_qw_kappa_kaggle: **without the cases of grade -1**; NaN if undefined.
      reference_cat_acc_kaggle: the grade -1 counts as wrong.
      reference_bin_accuracy: over all bits of all cases.
    """
    bits, answers = truth > 0.5, outputs > 0.5
    grades, answered = bits.sum(-1) - 1, answers.sum(-1) - 1
    kept = (grades >= 0) & (answered >= 0)
    grades_kept, answered_kept = grades[kept], answered[kept]
    kappa = metrics.quadratic_kappa(
        grades_kept, answered_kept, truth.shape[-1], np.ones(kept.sum())
    )
    return {
        "reference_qw_kappa_kaggle": float(kappa),
        "reference_cat_acc_kaggle": float(np.mean(grades == answered)),
        "reference_bin_accuracy": float(np.mean(bits == answers)),
    }
