"""The definition of a study, of which each study file holds one, and a study with its data."""

import dataclasses
import difflib
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from flax.traverse_util import flatten_dict

from ssl3d.data import store
from ssl3d.errors import UserError

# Dotted config key -> value, as in `--config.KEY=VALUE`.
Settings = Mapping[str, Any]

# The second is the baseline of 2D networks on the slices of volumes.
SCRATCH, SCRATCH_2D = "scratch", "scratch2d"
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
# Names for several methods in the files of studies.
GROUPS = {
    "baselines": [SCRATCH, "scratch-long", "untrained-frozen"],
    "3d": [name for name, method in METHODS.items() if (method.task, method.rank) == (name, 3)],
    "2d": [name for name, method in METHODS.items() if (method.task, method.rank) == (name, 2)],
}


class Column(NamedTuple):
    """A score of the tables."""

    name: str  # as in the results, e.g. "WT"
    of: str | int  # "mean" over the foreground classes, a class index, a region, or "kappa"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """A study of one downstream problem."""

    name: str  # of the command, experiments/NAME.py
    title: str  # of the report
    preset: str  # of configs/datasets.py
    classes: tuple[str, ...] = ()  # of the prepared labels, without the background; (): any
    downstream: str = "segment"  # or "classify": with the rank, the downstream config
    rank: int = 3  # of the downstream data
    methods: tuple[str, ...]  # names of METHODS, in the order of the tables
    labels: tuple[str, ...]  # amounts of labelled training subjects: "5%", a number, or "all"
    repetitions: int = 3  # each with its own label subsets and initial weights
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
    published: str = ""  # table of the paper's scores by amount of labels, see analysis.published,
    beside: str = ""  # our score of the same definition,
    published_scores: str = ""  # the paper's by column with all labels,
    published_convergence: str = ""  # and by epoch
    brief: tuple[str, ...] = (SCRATCH, "untrained-frozen", "rpl3d")  # least that a budget leaves
    notes: tuple[str, ...] = ()  # on data and sizes, for the report

    def finetuning_with(self, amount: str, subjects: int) -> Settings:
        """The entry of `finetuning_of` for an amount of labels."""
        own = label_fraction(amount, subjects)
        listed = {_share(key, subjects): settings for key, settings in self.finetuning_of.items()}
        return listed.get(max((share for share in listed if share <= own), default=0.0), {})


def load(module: str, **more: Any) -> Study:
    """The study of the TOML file beside a module, whose keys are `Study`'s; `more` are others.

    Settings have dotted keys, e.g. `optimizer.learning_rate = 1e-4`. Methods may be `GROUPS`.
    """
    file = Path(module).with_suffix(".toml")
    keys = as_tuples(tomllib.loads(file.read_text())) | more
    keys["methods"] = tuple(name for key in keys["methods"] for name in GROUPS.get(key, [key]))
    keys["columns"] = tuple(Column(*column) for column in keys["columns"].items())
    for key in {"encoder", "pretraining", "finetuning", "finetuning_slices"} & keys.keys():
        keys[key] = flatten_dict(keys[key], sep=".")
    for key in {"pretraining_of", "finetuning_of"} & keys.keys():
        keys[key] = {name: flatten_dict(own, sep=".") for name, own in keys[key].items()}
    return Study(name=file.stem, **keys)


def as_tuples(value: Any) -> Any:
    """A document with tuples in place of lists, as in configs."""
    if isinstance(value, dict):
        return {key: as_tuples(own) for key, own in value.items()}
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value


def scratch_of(method: str, rank: int) -> str:
    """The scratch baseline with the network of a method, on data of this rank."""
    return SCRATCH_2D if 0 < METHODS[method].rank < rank else SCRATCH


def label_fraction(amount: str, subjects: int) -> float:
    """`config.data.label_fraction` of "5%", "8" or "all" of the subjects, or `UserError`."""
    share = _share(amount, subjects)
    if not 0 < share <= 1:
        known = f"{subjects} labelled training subjects"
        raise UserError(f"--fractions: {amount} of {known}; choose less, or all")
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


@dataclasses.dataclass(frozen=True)
class StudyData:
    """A study with its data."""

    study: Study
    dataset: store.Dataset  # downstream data
    corpus: store.Dataset  # pretraining data; often the same
    transductive: bool = False  # pretraining sees the images of validation and test cases too
    scale: float = 1.0  # of all numbers of steps
    source: str = ""  # folder the data were prepared from, to score on its voxel grids

    @property
    def elsewhere(self) -> bool:
        """Whether pretraining has a data set of its own."""
        return self.corpus.path.resolve() != self.dataset.path.resolve()

    @property
    def can_supervise(self) -> bool:
        """Whether separate pretraining data have label maps."""
        return self.elsewhere and any(case.labelled for case in self.corpus.split("train"))

    def labelled(self, split: str) -> tuple[store.Case, ...]:
        """The cases of a downstream split with a label map, or with a grade."""
        cases = self.dataset.split(split)
        if self.study.downstream == "classify":
            return tuple(case for case in cases if case.grade is not None)
        return tuple(case for case in cases if case.labelled)

    @property
    def subjects(self) -> int:
        """The number of labelled training subjects."""
        return len({case.subject for case in self.labelled("train")})


def check(data: StudyData, methods: Sequence[str], labels: Sequence[str] = ()) -> None:
    """Raises `UserError` for an unknown method, and where the data do not allow a cell."""
    for name in methods:
        if name not in METHODS:
            near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.0)[0]
            raise UserError(f"--methods: no method {name!r}; the nearest is {near}")
        if METHODS[name].rank > data.study.rank:
            raise UserError(f"--methods: {name} needs volumes, and these data are pictures")
        if data.study.rank == 2 and name in (SCRATCH_2D, DOUBLES[SCRATCH_2D]):
            other = name.replace(SCRATCH_2D, SCRATCH)
            raise UserError(f"--methods: {name} is for volumes; for pictures use {other}")
    for amount in labels:
        label_fraction(amount, data.subjects)
    if "supervised" in methods and not data.can_supervise:
        what = "pretrains on the labels of another data set; give it, --pretrain-data=DIR"
        raise UserError(f"--methods: supervised {what}")
    if not data.elsewhere:
        return
    seen, remedy = data.corpus.split("train", "unlabelled"), "add --transductive"
    if data.transductive:  # only the labels are hidden from pretraining
        seen = data.corpus.split("train") if "supervised" in methods else ()
        remedy = "leave supervised out of --methods"
    held_out = _by_content(data.dataset.split("val", "test"))
    for content, case in _by_content(seen).items():
        if double := held_out.get(content):
            raise UserError(
                f"{data.corpus.path}: {case.id} is the same image as {double.id}, a {double.split} "
                f"case of {data.dataset.path}; remove it, or {remedy}"
            )


def _by_content(cases: Iterable[store.Case]) -> dict[str, store.Case]:
    """Cases by the checksums of the image and, for a slice, of its volume."""
    keys = ("content", "volume_content")
    return {case.extra[key]: case for case in cases for key in keys if key in case.extra}
