"""The definition of a study: data, methods, amounts of labels, sizes. Each study file holds one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from ssl3d.data import store
from ssl3d.errors import UserError

if TYPE_CHECKING:  # analysis imports studies, not the reverse
    from experiments.analysis.published import Published

# Dotted config key -> value, as in `--config.KEY=VALUE`.
Settings = Mapping[str, Any]

SCRATCH = "scratch"
# Baseline of 2D networks on the slices of volumes.
SCRATCH_2D = "scratch2d"
# Controls: is scratch at its plateau? Not among the compared methods.
DOUBLES = {name: f"{name}-double" for name in (SCRATCH, SCRATCH_2D)}


class Method(NamedTuple):
    """A row of the tables."""

    task: str  # pretraining config; "" for none
    rank: int  # of the network; 0: that of the data
    mode: str  # the only transfer mode; "" for the modes of the study
    colour: str  # one per task for both ranks; Okabe and Ito's, which the colour-blind tell apart
    about: str


_FILE = pd.read_csv(Path(__file__).with_name("methods.csv"), keep_default_na=False)
METHODS = {name: Method(*about) for name, *about in _FILE.itertuples(index=False)}
BASELINES = (SCRATCH, "scratch-long", "untrained-frozen")
THREE_D, TWO_D = (
    tuple(name for name, method in METHODS.items() if method.task == name and method.rank == rank)
    for rank in (3, 2)
)


class Column(NamedTuple):
    """A score of the tables."""

    name: str  # as in the results, e.g. "WT"
    of: str | int  # "mean" over the foreground classes, a class index, a region, or "kappa"


@dataclasses.dataclass(frozen=True)
class Study:
    """A study of one downstream problem."""

    name: str  # of the command, experiments/NAME.py
    title: str  # of the report
    preset: str  # of configs/datasets.py
    downstream: str  # "segment" or "classify": with the rank, the downstream config
    rank: int  # of the downstream data
    methods: tuple[str, ...]  # names of METHODS, in the order of the tables
    labels: tuple[str, ...]  # amounts of labelled training subjects: "5%", a number, or "all"
    repetitions: int  # each with its own label subsets and initial weights
    columns: tuple[Column, ...]  # methods are compared by the first
    # (prepared data, folder) -> downstream data, written on first use; None: the prepared data.
    derive: Callable[[store.Dataset, Path], store.Dataset] | None = None
    # The numbers of repetitions seed labels and weights: a confirmatory study needs fresh ones.
    first_repetition: int = 1
    modes: tuple[str, ...] = ("finetune",)  # of the pretrained methods; also "frozen"
    encoder: Settings = dataclasses.field(default_factory=dict)  # of every method
    pretraining: Settings = dataclasses.field(default_factory=dict)
    pretraining_of: Mapping[str, Settings] = dataclasses.field(default_factory=dict)  # by method
    finetuning: Settings = dataclasses.field(default_factory=dict)  # of every downstream run
    # From an amount of labels up to the next one: with more labels, scratch needs more steps.
    finetuning_of: Mapping[str, Settings] = dataclasses.field(default_factory=dict)
    # Of 2D networks on volumes; takes precedence.
    finetuning_slices: Settings = dataclasses.field(default_factory=dict)
    data: Settings = dataclasses.field(default_factory=dict)  # of every run
    pretraining_preset: str = ""  # of separate pretraining data, if another
    validations: int = 20  # per downstream run, for its curve; the last model is tested
    published: Published | None = None  # the paper's scores by amount of labels,
    beside: str = ""  # our score of the same definition,
    published_scores: Published | None = None  # the paper's by column with all labels,
    published_convergence: Published | None = None  # and by epoch
    brief: tuple[str, ...] = (SCRATCH, "untrained-frozen", "rpl3d")  # least that a budget leaves
    notes: tuple[str, ...] = ()  # on data and sizes, for the report

    def finetuning_with(self, amount: str, subjects: int) -> Settings:
        """The entry of `finetuning_of` for an amount of labels."""
        own = label_fraction(amount, subjects)
        listed = {_share(key, subjects): settings for key, settings in self.finetuning_of.items()}
        return listed.get(max((share for share in listed if share <= own), default=0.0), {})


def scratch_of(method: str, rank: int) -> str:
    """The scratch baseline with the network of a method, on data of this rank."""
    return SCRATCH_2D if 0 < METHODS[method].rank < rank else SCRATCH


def label_fraction(amount: str, subjects: int) -> float:
    """`config.data.label_fraction` of "5%", "8" or "all" of the subjects, or `UserError`."""
    share = _share(amount, subjects)
    if not 0 < share <= 1:
        raise UserError(
            f"--fractions: {amount} of {subjects} labelled training subjects; choose less, or all"
        )
    return share


def _share(amount: str, subjects: int) -> float:
    try:
        if amount == "all":
            return 1.0
        return float(amount[:-1]) / 100 if amount.endswith("%") else int(amount) / subjects
    except ValueError:
        raise UserError(
            f"--fractions: {amount!r}; write 5%, or a number of labelled subjects, or all"
        ) from None
