"""Classification downstream: evaluated, predicted and probed image by image (see `contract`)."""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import Array
from matplotlib.figure import Figure
from tqdm import tqdm

from ssl3d import class_metrics, metrics
from ssl3d.atomic import atomic_write
from ssl3d.data import store
from ssl3d.data.preparation import case as preparation
from ssl3d.downstream import classification_scores as scores
from ssl3d.downstream import linear_probe, predictor, voxel_features
from ssl3d.downstream.contract import Evaluation, Outputs, Parts, PreparedImage, ProbeRow, Selection
from ssl3d.downstream.predict_files import label_values
from ssl3d.downstream.predictor import Predictor
from ssl3d.downstream.voxel_features import Encode
from ssl3d.errors import UserError
from ssl3d.figures import case_pictures
from ssl3d.models import heads
from ssl3d.models.encoders import Features
from ssl3d.models.readouts import NormalEquations
from ssl3d.tasks import classification

TABLE = "predictions.csv"
WITHOUT_NETWORK = "majority class"
headline = scores.headline


def choose_truth(dataset: store.Dataset, cases: Sequence[store.Case], source: Path | None) -> str:
    """Empty: the grades of the manifest. Raises `UserError` for a source."""
    if source:
        raise UserError("--source: is where label maps are; a classification has none")
    return ""


def evaluate(
    trained: Predictor,
    dataset: store.Dataset,
    cases: Sequence[store.Case],
    truth: str,
    source: Path | None,
) -> Evaluation:
    """A row per case with the predicted grade and the probability of each class."""
    found = scores.score_cases(trained, dataset, cases)
    rows = list(tqdm(found, "evaluating", len(cases), unit="case", disable=None))
    summary = scores.summarise(rows, dataset.classes)
    return Evaluation(
        [scores.as_columns(row, dataset.classes) for row in rows],
        summary,
        functools.partial(figures, dataset, cases, rows, summary),
    )


def figures(
    dataset: store.Dataset,
    cases: Sequence[store.Case],
    rows: Sequence[scores.CaseRow],
    summary: scores.Summary,
) -> dict[str, Figure]:
    """The confusion matrix, and the worst mistakes if there are any."""
    found = {"confusion.png": case_pictures.confusion(summary["confusion"], dataset.classes)}
    worst = case_pictures.worst_mistakes(rows)
    if worst:
        wrong = {row["id"] for row in worst}
        images = {case.id: store.load_image(dataset, case) for case in cases if case.id in wrong}
        found["mistakes.png"] = case_pictures.mistakes(worst, images, dataset.classes)
    return found


def write_predictions(
    trained: Predictor,
    images: Iterable[PreparedImage],
    settings: preparation.PreparationSettings,
    wanted: Outputs,
) -> tuple[int, str]:
    """Writes one table, with the probability of each class in any case."""
    classes = trained.model.dataset.classes
    grades = label_values(settings)
    entries: list[store.Case] = []

    def arrays() -> Iterator[np.ndarray]:
        for image in images:
            entries.append(image.case)
            yield image.image

    with (
        atomic_write(wanted.folder / TABLE) as path,
        path.open("w", encoding="utf-8", newline="") as file,
    ):
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["id", "file", "grade", "class", *(f"probability {c}" for c in classes)])
        for number, probability in enumerate(predictor.classify(trained, arrays())):
            case, answer = entries[number], int(predictor.grade_of(trained, probability))
            row = [case.id, ";".join(case.extra["source"]), grades[answer], classes[answer]]
            table.writerow(row + [f"{p:.6f}" for p in probability])
    return len(entries), f"row in {TABLE}" if len(entries) == 1 else f"rows in {TABLE}"


def probe(
    name: str,
    encode: Encode | None,
    config: ml_collections.ConfigDict,
    dataset: store.Dataset,
    cases: Parts[Sequence[store.Case]],
) -> ProbeRow:
    """The readout of pooled features; without an encoder, the most frequent grade."""
    classes = len(dataset.classes)
    grades = Parts(*(np.array([case.grade for case in part]) for part in cases))
    counts = np.bincount(grades.train, minlength=classes)
    selection = Selection(None, None, None)
    selected_by = classification.select_by(config)
    select = class_metrics.SELECTIONS[selected_by]
    if encode is None:
        outputs = np.tile(counts / counts.sum(), (len(cases.test), 1))
    else:
        features = Parts(*(pooled(encode, config, dataset, part) for part in cases))
        equations = NormalEquations(features.train.shape[1], classes)
        weights = classification.class_weights(tuple(counts.tolist()), config.task.class_weights)
        equations.add(features.train, np.eye(classes)[grades.train], weights[grades.train])
        readouts = equations.solve()
        once = np.ones(len(grades.validation))
        answers = [readout(features.validation) for readout in readouts]
        found = [float(select(grades.validation, x.argmax(-1), x, once)) for x in answers]
        best = int(np.argmax(np.nan_to_num(found, nan=-1.0)))
        outputs = readouts[best](features.test)
        selection = Selection(features.train.shape[1], readouts[best].penalty, found[best])
    predicted = outputs.argmax(-1)
    subjects = [case.subject for case in cases.test]
    scored = scores.scores_of(grades.test, predicted, outputs, subjects)
    first = (selected_by, *(name for name in scores.TITLES if name != selected_by))
    return ProbeRow(
        name,
        selection,
        {scores.TITLES[name]: scored[name] for name in first},
        lambda weights: select(grades.test, predicted, outputs, weights),
        {"confusion": metrics.confusion_matrix(predicted, grades.test, classes).tolist()},
    )


def pooled(
    encode: Encode,
    config: ml_collections.ConfigDict,
    dataset: store.Dataset,
    cases: Sequence[store.Case],
) -> np.ndarray:
    """Mean and maximum of the bottleneck over the central crop of each image: [N, 2 E] float32."""

    def forward(images: np.ndarray) -> Array:
        features = Features(encode(images))
        return jnp.concatenate([heads.pooled(features, how) for how in ("mean", "max")], axis=-1)

    images = (
        store.load_image(dataset, case) for case in voxel_features.progress(cases, "encoding")
    )
    # `classify` applies a network image by image; here its outputs are features.
    return np.stack(
        list(predictor.classify(linear_probe.as_predictor(config, dataset, forward), images))
    )
