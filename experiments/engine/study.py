"""The definition of a study, of which each study file holds one, and a study with its data."""

import ast
import csv
import dataclasses
import difflib
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ssl3d.bounds import dotted
from ssl3d.configs import datasets, default
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
    # Checks a study rather than competing in it: outside the family of Holm's procedure.
    control: bool
    about: str


def _read_methods() -> dict[str, Method]:
    with Path(__file__).with_name("methods.csv").open(newline="", encoding="utf-8") as file:
        _, *rows = csv.reader(file)
    return {
        name: Method(task, int(rank), mode, colour, control == "True", about)
        for name, task, rank, mode, colour, control, about in rows
    }


METHODS = _read_methods()
# What becomes of the pretrained encoders.
MODES = ("finetune", "frozen")
# Sections of a study that hold config keys, and those with a method or amount of labels between.
_SECTIONS = ("data", "encoder", "pretraining", "finetuning", "finetuning_slices", "corpus")
_SECTIONS_OF = ("pretraining_of", "finetuning_of")


class Column(NamedTuple):
    """A score of the tables."""

    name: str  # as in the results, e.g. "WT"
    of: str | int  # "mean" over the foreground classes, a class index, a region, or "kappa"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """A study of one downstream problem."""

    name: str  # of the command, experiments/NAME.py
    title: str  # of the report
    question: str  # which the report opens with
    preset: str  # of configs/datasets.py
    classes: tuple[str, ...] = ()  # of the prepared labels, without the background; (): any
    downstream: str = "segment"  # or "classify": with the rank, the downstream config
    rank: int = 3  # of the downstream data
    methods: tuple[str, ...]  # names of METHODS, in the order of the tables
    labels: tuple[str, ...]  # amounts of labelled training subjects: "5%", a number, or "all"
    repetitions: int = 10  # each with its own label subset and initial weights
    # Dealt to the repetitions in turn: pretraining seeds, and splits of the subjects (1: the data's
    # own). A study of several is judged by their means, see `statistics.estimate`.
    encoders: int = 1
    splits: int = 1
    # Name -> settings of downstream runs: each amount of labels is studied with all of them.
    arms: Mapping[str, Settings] = dataclasses.field(default_factory=dict)
    columns: tuple[Column, ...]  # methods are compared by the first
    # (prepared data, folder) -> downstream data, written on first use; None: the prepared data.
    derive: Callable[[store.Dataset, Path], store.Dataset] | None = None
    # The numbers of repetitions seed labels and weights: a confirmatory study needs fresh ones.
    first_repetition: int = 1
    modes: tuple[str, ...] = ("finetune",)  # of `MODES`, for the pretrained methods
    encoder: Settings = dataclasses.field(default_factory=dict)  # of every method
    pretraining: Settings = dataclasses.field(default_factory=dict)
    pretraining_of: Mapping[str, Settings] = dataclasses.field(default_factory=dict)  # by method
    finetuning: Settings = dataclasses.field(default_factory=dict)  # of every downstream run
    # From an amount of labels up to the next one: with more labels, scratch needs more steps.
    finetuning_of: Mapping[str, Settings] = dataclasses.field(default_factory=dict)
    # Of 2D networks on volumes; takes precedence.
    finetuning_slices: Settings = dataclasses.field(default_factory=dict)
    data: Settings = dataclasses.field(default_factory=dict)  # of every run
    # Of a phantom that is generated to pretrain on, by default; none: the downstream data.
    corpus: Settings = dataclasses.field(default_factory=dict)
    variant: str = ""  # of the proxy tasks' configs: "", "paper" or "original"
    pretraining_preset: str = ""  # of separate pretraining data, if another
    validations: int = 20  # per downstream run, for its curve; the last model is tested
    published: str = ""  # table of the paper's scores by amount of labels, see analysis.published,
    beside: str = ""  # our score of the same definition,
    published_scores: str = ""  # the paper's by column with all labels,
    published_convergence: str = ""  # and by epoch
    notes: tuple[str, ...] = ()  # on data and sizes, for the report

    def finetuning_with(self, amount: str, subjects: int) -> Settings:
        """The entry of `finetuning_of` for an amount of labels."""
        own = label_fraction(amount, subjects)
        listed = {_share(key, subjects): settings for key, settings in self.finetuning_of.items()}
        return listed.get(max((share for share in listed if share <= own), default=0.0), {})


def load(module: str, **more: Any) -> Study:
    """The study of the TOML file beside a module, whose keys are `Study`'s; `more` are others.

    Settings have dotted keys, e.g. `optimizer.learning_rate = 1e-4`.
    """
    file = Path(module).with_suffix(".toml")
    keys = as_tuples(tomllib.loads(file.read_text())) | more
    keys["columns"] = tuple(Column(*column) for column in keys["columns"].items())
    for key in {*_SECTIONS} & keys.keys():
        keys[key] = dotted(keys[key])
    for key in {*_SECTIONS_OF, "arms"} & keys.keys():
        keys[key] = {name: dotted(own) for name, own in keys[key].items()}
    return Study(**{"name": file.stem, **keys})


def with_settings(study: Study, given: Sequence[str]) -> Study:
    """The study with settings KEY=VALUE, whose keys are those of its file; or `UserError`.

    What is set for all runs also replaces what single methods or amounts of labels have.
    """
    for text in given:
        key, equals, value = text.partition("=")
        section, _, name = key.partition(".")
        owner, _, inner = name.partition(".")
        parsed = as_tuples(_literal(value))
        if equals and section in _SECTIONS and name:
            changes: dict[str, Any] = {section: {**getattr(study, section), name: parsed}}
            if (table := f"{section}_of") in _SECTIONS_OF:
                changes[table] = {
                    one: {own: kept for own, kept in settings.items() if own != name}
                    for one, settings in getattr(study, table).items()
                }
            if section == "finetuning":
                # A crop of volumes is none of slices.
                changes["finetuning_slices"] = {
                    own: kept
                    for own, kept in study.finetuning_slices.items()
                    if own != name or _sides(kept) != _sides(parsed)
                }
        elif equals and section in _SECTIONS_OF and inner:
            table = getattr(study, section)
            changes = {section: {**table, owner: {**table.get(owner, {}), inner: parsed}}}
        else:
            raise UserError(
                f"--set={text}: write SECTION.KEY=VALUE, e.g. finetuning.steps=800; sections: "
                f"{', '.join((*_SECTIONS, *(f'{name}.NAME' for name in _SECTIONS_OF)))}"
            )
        _check_used(study, text, section, name)
        study = dataclasses.replace(study, **changes)
    return study


def _check_used(study: Study, text: str, section: str, name: str) -> None:
    """Raises `UserError` for a setting that no run would have."""
    owner, _, inner = name.partition(".")
    if section == "pretraining_of" and owner not in METHODS:
        near = difflib.get_close_matches(owner, METHODS, n=1, cutoff=0.0)[0]
        raise UserError(f"--set={text}: no method {owner!r}; the nearest is {near}")
    key = inner if section == "finetuning_of" else name
    arms = [arm for arm, settings in study.arms.items() if key in settings]
    if section.startswith("finetuning") and arms:
        raise UserError(
            f"--set={text}: is what the arms of {study.name} differ in ({', '.join(arms)}); change "
            "them in its file"
        )


def with_variant(study: Study, variant: str) -> Study:
    """The study with its proxy tasks, and the network of all its runs, as published.

    At laptop size the study keeps the width of its own.
    """
    preset = datasets.PRESETS[study.preset]
    network = preset.encoders[study.rank].get(variant, {})
    published = {**default.PUBLISHED[variant][study.rank], **network}
    network = {key: published.pop(key) for key in [*published] if key.startswith("encoder.")}
    if study.preset not in datasets.PAPER_SIZED:
        network.pop("encoder.width", None)
    encoder = {key.removeprefix("encoder."): value for key, value in network.items()}

    def kept(settings: Settings) -> Settings:
        return {key: value for key, value in settings.items() if key not in published}

    return dataclasses.replace(
        study,
        variant=variant,
        encoder={**study.encoder, **encoder},
        pretraining=kept(study.pretraining),
        pretraining_of={name: kept(own) for name, own in study.pretraining_of.items()},
    )


def _sides(value: Any) -> int:
    return len(value) if isinstance(value, tuple) else 0


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


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
    source: str = ""  # folder the data were prepared from, to score on its voxel grids
    dealt: tuple[store.Dataset, ...] = ()  # the downstream data in each split of several
    # The keys of each config file when the study was begun, see `grid.config_hash`.
    keys: Mapping[str, Collection[str]] = dataclasses.field(default_factory=dict)
    # Of data sets, by identity and what a task needs of them; see `grid.fingerprint`.
    fingerprints: dict[tuple[int, str], tuple[store.Dataset, str]] = dataclasses.field(
        default_factory=dict, repr=False, compare=False
    )

    def of(self, split: int) -> "StudyData":
        """The study on one of its splits, counted from 1; 0 is the data's own."""
        if not split:
            return self
        dataset = self.dealt[split - 1]
        corpus = self.corpus if self.elsewhere else dataset
        return dataclasses.replace(self, dataset=dataset, corpus=corpus, dealt=())

    @property
    def elsewhere(self) -> bool:
        """Whether pretraining has a data set of its own."""
        return self.corpus.path.resolve() != self.dataset.path.resolve()

    @property
    def can_supervise(self) -> bool:
        """Whether separate pretraining data have label maps."""
        cases = self.corpus.split("train")
        return self.elsewhere and any(case.labelled or case.grade is not None for case in cases)

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
    """Cases by the checksums of the image and, for a slice, of its volume (of a phantom: file)."""
    found: dict[str, store.Case] = {}
    for case in cases:
        keys = [case.extra[key] for key in ("content", "volume_content") if key in case.extra]
        if not keys and "image" in case.files:
            keys = [case.files["image"].sha256]
        found |= dict.fromkeys(keys, case)
    return found
