"""What a study is: data, methods, amounts of labels, sizes. Each file of a study holds one."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.analysis.published import Published
from ssl3d.data import store
from ssl3d.errors import UserError

# Dotted key of a config -> value, as `--config.KEY=VALUE` has it.
Settings = Mapping[str, Any]

TASKS = ("cpc", "exemplar", "jigsaw", "rotation", "rpl")
SCRATCH = "scratch"
# What 2D networks on the slices of volumes are compared with.
SCRATCH_2D = "scratch2d"
# Is scratch at its plateau? Checks of it, and no methods to be compared.
DOUBLES = {name: f"{name}-double" for name in (SCRATCH, SCRATCH_2D)}


class Method(NamedTuple):
    """A row of the tables.

    Attributes:
      task: the config that pretrains; "" for none.
      rank: of the network; 0: the data's own.
      mode: the one transfer mode there is, or "" for those of the study.
      about: what it is, in words.
    """

    task: str
    rank: int
    mode: str
    about: str


METHODS = {
    SCRATCH: Method("", 0, "random", "random weights, the same steps as all"),
    "scratch-long": Method(
        "", 0, "random", "random weights, as many steps as pretraining and fine-tuning together"
    ),
    DOUBLES[SCRATCH]: Method(
        "", 0, "random", "random weights, twice the steps: is scratch at its plateau?"
    ),
    SCRATCH_2D: Method("", 2, "random", "random weights, a 2D network on slices"),
    DOUBLES[SCRATCH_2D]: Method(
        "", 2, "random", "random weights, a 2D network on slices, twice the steps"
    ),
    "untrained-frozen": Method("", 0, "frozen", "a random encoder that never learns"),
    "supervised": Method("segment3d", 3, "", "the encoder of a segmentation of another data set"),
    **{
        f"{task}{rank}d": Method(f"{task}{rank}d", rank, "", f"pretrained with {task} in {rank}D")
        for rank in (3, 2)
        for task in TASKS
    },
}
THREE_D = tuple(f"{task}3d" for task in TASKS)
TWO_D = tuple(f"{task}2d" for task in TASKS)


class Column(NamedTuple):
    """A score of the tables.

    Attributes:
      name: as the results call it, e.g. "WT".
      of: "mean" over the foreground classes, the number of a class, the name of a region, or
        "kappa" of a classification.
    """

    name: str
    of: str | int


@dataclasses.dataclass(frozen=True)
class Study:
    """A study of one downstream problem.

    Attributes:
      name: of the command, experiments/NAME.py.
      title: of the report.
      preset: of configs/datasets.py, for the downstream data and, unless `pretraining_preset` has
        another, for the pretraining.
      downstream: kind of configs of the downstream problem, "segment" or "classify".
      rank: of the downstream data.
      derive: (prepared data, folder) -> the downstream data, written into the folder on first use.
        None: the prepared data are the downstream ones.
      methods: names of `METHODS`, in the tables' order.
      labels: amounts of labelled training subjects: "5%", a number of them, or "all".
      repetitions: each with its own label subsets and its own initial weights.
      first_repetition: number of the first one; the numbers seed labels and weights. A study that
        tests what other repetitions have suggested needs fresh ones.
      modes: of the pretrained methods, "finetune" and "frozen".
      columns: scores; the first is the one that methods are compared by.
      encoder: the network that every method has.
      pretraining: settings of every pretraining.
      pretraining_of: and of single methods, by name.
      finetuning: settings of every downstream run; `steps` counts optimiser steps.
      finetuning_of: and of those with an amount of labels or more, up to the next one that it
        lists: the more there are, the later is scratch at its plateau.
      finetuning_slices: and of those of 2D networks on volumes, whatever the others say.
      data: settings of the data, for every run.
      validations: of a downstream run, for its curve; the last model is tested.
      published: the paper's numbers by amount of labels.
      beside: name of the score of ours that is defined as those are.
      published_scores: the paper's numbers by score (column), with all labels.
      published_convergence: the paper's scores on the way, by epoch.
      brief: methods of the smallest study that a budget may cut this one down to.
      notes: what a reader of the report should know of the data and the sizes.
    """

    name: str
    title: str
    preset: str
    downstream: str
    rank: int
    methods: tuple[str, ...]
    labels: tuple[str, ...]
    repetitions: int
    columns: tuple[Column, ...]
    derive: Callable[[store.Dataset, Path], store.Dataset] | None = None
    first_repetition: int = 1
    modes: tuple[str, ...] = ("finetune",)
    encoder: Settings = dataclasses.field(default_factory=dict)
    pretraining: Settings = dataclasses.field(default_factory=dict)
    pretraining_of: Mapping[str, Settings] = dataclasses.field(default_factory=dict)
    finetuning: Settings = dataclasses.field(default_factory=dict)
    finetuning_of: Mapping[str, Settings] = dataclasses.field(default_factory=dict)
    finetuning_slices: Settings = dataclasses.field(default_factory=dict)
    data: Settings = dataclasses.field(default_factory=dict)
    pretraining_preset: str = ""
    validations: int = 20
    published: Published | None = None
    beside: str = ""
    published_scores: Published | None = None
    published_convergence: Published | None = None
    brief: tuple[str, ...] = (SCRATCH, "untrained-frozen", "rpl3d")
    notes: tuple[str, ...] = ()


def scratch_of(method: str, rank: int) -> str:
    """The scratch whose network a method shares, 2D or not, on data of this rank."""
    return SCRATCH_2D if 0 < METHODS[method].rank < rank else SCRATCH


def check_methods(names: tuple[str, ...], rank: int) -> None:
    """Raises `UserError` for a method that there is not, or not for data of this rank."""
    for name in names:
        if name not in METHODS:
            near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.0)[0]
            raise UserError(f"--methods: no method {name!r}; the nearest is {near}")
        if METHODS[name].rank > rank:
            raise UserError(f"--methods: {name} needs volumes, and these data are pictures")
        if rank == 2 and name in (SCRATCH_2D, DOUBLES[SCRATCH_2D]):
            other = name.replace(SCRATCH_2D, SCRATCH)
            raise UserError(f"--methods: {name} is of volumes; of pictures it is {other}")


def label_fraction(amount: str, subjects: int) -> float:
    """`config.data.label_fraction` of an amount: "5%", "8" or "all" of so many subjects.

    Raises:
      UserError: neither of these, nothing, or more than there are.
    """
    share = _share(amount, subjects)
    if not 0 < share <= 1:
        raise UserError(
            f"--fractions: {amount} of {subjects} labelled training subjects; choose less, or all"
        )
    return share


def finetuning_with(study: Study, amount: str, subjects: int) -> Settings:
    """Of `study.finetuning_of` what holds with an amount of labels of so many subjects."""
    own = label_fraction(amount, subjects)
    listed = {_share(key, subjects): value for key, value in study.finetuning_of.items()}
    reached = [share for share in listed if share <= own]
    return listed[max(reached)] if reached else {}


def _share(amount: str, subjects: int) -> float:
    try:
        if amount == "all":
            return 1.0
        return float(amount[:-1]) / 100 if amount.endswith("%") else int(amount) / subjects
    except ValueError:
        raise UserError(
            f"--fractions: {amount!r}; write 5%, or a number of labelled subjects, or all"
        ) from None
