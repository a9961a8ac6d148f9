"""Segmentation downstream: evaluated, predicted and probed voxel by voxel (see `contract`)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import ml_collections
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from ssl3d.data import store
from ssl3d.downstream import linear_probe, segmentation_files, voxel_features
from ssl3d.downstream import segmentation_scores as scores
from ssl3d.downstream.contract import (
    Evaluation,
    Interval,
    Parts,
    ProbeRow,
    Selection,
)
from ssl3d.downstream.predictor import Predictor
from ssl3d.downstream.voxel_features import Encode
from ssl3d.figures import case_pictures
from ssl3d.models.readouts import Levels, scores_of

WITHOUT_NETWORK = "raw intensities"
choose_truth, headline = scores.choose_truth, scores.headline
write_predictions = segmentation_files.write


def evaluate(
    trained: Predictor,
    dataset: store.Dataset,
    cases: Sequence[store.Case],
    truth: str,
    source: Path | None,
) -> Evaluation:
    """A row per case and class or region."""
    bar = tqdm(cases, "evaluating", unit="case", disable=None)
    rows, confusion = scores.score_cases(trained, dataset, bar, truth, source)
    summary = scores.summarise(rows, confusion, trained, dataset)
    return Evaluation(
        rows, {"grid": truth, **summary}, functools.partial(figures, trained, dataset, cases, rows)
    )


def figures(
    trained: Predictor,
    dataset: store.Dataset,
    cases: Sequence[store.Case],
    rows: Sequence[scores.CaseRow],
) -> dict[str, Figure]:
    """The best, the median and the worst case, truth and prediction outlined."""
    found = {}
    means = scores.mean_foreground(rows, dataset.classes)
    for name, mean in scores.best_median_worst(means).items():
        case = next(case for case in cases if case.id == mean["id"])
        # Predicted a second time, as the label maps of all cases may not fit into memory.
        shown = scores.predict_case(trained, dataset, case, scores.PREPARED)
        own = [row for row in rows if row["id"] == case.id]
        each = ", ".join(f"{row['class']} {row['dice']:.3f}" for row in own)
        found[f"{name}.png"] = case_pictures.outlines(
            store.load_image(dataset, case),
            shown.truth,
            shown.prediction,
            shown.spacing,
            f"{name}: {case.id}, mean foreground Dice {mean['dice']:.3f}\n{each}",
            dataset.classes,
        )
    return found


def probe(
    name: str,
    encode: Encode | None,
    config: ml_collections.ConfigDict,
    dataset: store.Dataset,
    cases: Parts[Sequence[store.Case]],
) -> ProbeRow:
    """The readout of each voxel's features, scored on whole images in overlapping windows."""
    config = config.copy_and_resolve_references()
    config.task.regions = ()
    # The fit and the selection of the threshold see no mirrored images.
    config.predict.mirror = False
    features = encode or intensities
    readouts = voxel_features.fit_voxels(features, config, dataset, cases.train)
    readout, threshold, dice = voxel_features.choose_voxels(
        features, readouts, config, dataset, cases.validation
    )
    coefficients, intercept = readout.on_device()
    # A threshold on the margin over the background is an offset of the background's score.
    intercept = intercept.at[0].add(threshold)
    trained = linear_probe.as_predictor(
        config,
        dataset,
        lambda images: scores_of(features(images), coefficients, intercept),
    )
    shown = voxel_features.progress(cases.test, "scoring")
    rows, confusion = scores.score_cases(trained, dataset, shown, scores.PREPARED)
    summary = scores.summarise(rows, confusion, trained, dataset)
    means = scores.mean_foreground(rows, dataset.classes)
    values = np.array([mean["dice"] for mean in means])
    defined = ~np.isnan(values)

    def mean_dice(weights: np.ndarray) -> np.ndarray:
        own = weights[..., defined]
        # A resample may hold none of the cases with foreground.
        return own @ values[defined] / np.where(own.any(-1), own.sum(-1), np.nan)

    def interval(score: str) -> Interval:
        found = summary["mean_foreground"][score]
        return {"value": found["mean"], "low": found["low"], "high": found["high"]}

    return ProbeRow(
        name,
        Selection(len(readout.coefficients), readout.penalty, dice),
        {"mean foreground Dice": interval("dice"), "HD95 (mm)": interval("hd95")},
        mean_dice,
        {
            "threshold": threshold,
            "dice": {mean["id"]: mean["dice"] for mean in means},
            "summary": summary,
        },
    )


def intensities(images: np.ndarray) -> Levels:
    """The features of a voxel without a network: its intensities."""
    return (jnp.asarray(images),)
