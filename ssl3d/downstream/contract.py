"""What a downstream task defines so that its networks can be evaluated, applied and probed.

The module of a task names a second module, e.g. DOWNSTREAM = "my_package.my_predictions", which
defines everything in `Downstream`. The shipped ones are `ssl3d.downstream.segmentation` and
`ssl3d.downstream.classification`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar, cast

import ml_collections
import numpy as np
from matplotlib.figure import Figure

from ssl3d import tasks
from ssl3d.data import store
from ssl3d.data.layouts.listing import SourceCase
from ssl3d.data.preparation import case as preparation
from ssl3d.downstream.predictor import Predictor
from ssl3d.downstream.voxel_features import Encode
from ssl3d.errors import UserError
from ssl3d.intervals import Interval, PerDraw

Format = Literal["nifti", "dicom-seg"]
T_co = TypeVar("T_co", covariant=True)


class Evaluation(NamedTuple):
    """The scores of a set of cases.

    Attributes:
      rows: of `cases.csv`, at least one, all with the same keys.
      summary: the task's part of `summary.json`.
      figures: () -> pictures by file name; costly, and called only where they are wanted.
    """

    rows: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any]
    figures: Callable[[], dict[str, Figure]]


class PreparedImage(NamedTuple):
    """One case to predict.

    Attributes:
      source: the case's files.
      case: the entry that a manifest would have.
      image: [*S, C] float16, as the store keeps the images a network is trained on.
    """

    source: SourceCase
    case: store.Case
    image: np.ndarray


class Outputs(NamedTuple):
    """What a prediction writes.

    Attributes:
      folder: exists.
      format: of label maps, "nifti" (PNG for pictures) or "dicom-seg".
      probabilities: whether maps of them too.
      pictures: whether a preview of every case.
      skip: whether a case that cannot be written is left out; else it is an error.
    """

    folder: Path
    format: Format
    probabilities: bool
    pictures: bool
    skip: bool


class Parts(NamedTuple, Generic[T_co]):
    """The cases of a probe, or a property of them: to fit, to select the penalty, to score."""

    train: T_co
    validation: T_co
    test: T_co


class Selection(NamedTuple):
    """What the validation cases selected; None without a fit.

    Attributes:
      features: how many a voxel or an image has.
      penalty: of the ridge regression.
      validation: the score by which it was selected.
    """

    features: int | None
    penalty: float | None
    validation: float | None


class ProbeRow(NamedTuple):
    """What one encoder reaches.

    Attributes:
      name: of the encoder.
      selection: features, penalty, validation score.
      scores: by name; the first is the one that is compared.
      statistic: weights [R, B], how often each resample holds each test case -> the first score of
        each resample [R].
      details: JSON values: the threshold, the scores of each case, the confusion matrix.
    """

    name: str
    selection: Selection
    scores: dict[str, Interval]
    statistic: Callable[[np.ndarray], PerDraw]
    details: dict[str, Any]


class Downstream(Protocol):
    """The names a downstream module defines; all of them are functions but one."""

    WITHOUT_NETWORK: str
    """Name of the probe's row for `encode=None`, e.g. "raw intensities"."""

    def choose_truth(
        self, dataset: store.Dataset, cases: Sequence[store.Case], source: Path | None
    ) -> str:
        """What all the cases are scored against, as a phrase; empty where there is no choice.

        Args:
          source: the folder the data set was prepared from, if given.

        Raises:
          UserError: the source is of no use, or not the one the cases came from.
        """
        ...

    def evaluate(
        self,
        trained: Predictor,
        dataset: store.Dataset,
        cases: Sequence[store.Case],
        truth: str,
        source: Path | None,
    ) -> Evaluation:
        """Predicts and scores the cases, with a progress bar; `truth` is from `choose_truth`."""
        ...

    def headline(self, summary: Mapping[str, Any]) -> str:
        """The scores of `summary.json` in one line."""
        ...

    def write_predictions(
        self,
        trained: Predictor,
        images: Iterable[PreparedImage],
        settings: preparation.PreparationSettings,
        wanted: Outputs,
    ) -> tuple[int, str]:
        """Writes the predictions.

        Args:
          images: prepared one ahead of the one that is predicted; never all at once.
          settings: how they are prepared; gives the label values of the source.

        Returns:
          The number of predictions, and what they are called, e.g. "label maps".
        """
        ...

    def probe(
        self,
        name: str,
        encode: Encode | None,
        config: ml_collections.ConfigDict,
        dataset: store.Dataset,
        cases: Parts[Sequence[store.Case]],
    ) -> ProbeRow:
        """Fits a linear readout of frozen features, selects its penalty and scores it.

        Args:
          name: of the row.
          encode: images -> features; None: the row `WITHOUT_NETWORK`.
        """
        ...


def module_of(config: ml_collections.ConfigDict) -> Downstream:
    """The downstream module of the config's task. Raises `UserError` for a proxy task."""
    module = tasks.downstream(config)
    if module is None:
        raise UserError(
            f"config.task.name={config.task.name!r}: {config.task.name} has no labels to predict; "
            "choose a downstream task, e.g. --config=segment3d or --config=classify2d"
        )
    return cast(Downstream, module)
