"""A study with its data: which cases a run may see, and hashes of case lists and code."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import hashlib
import json
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import ssl3d
from experiments.engine.study import DOUBLES, METHODS, SCRATCH, SCRATCH_2D, Study, label_fraction
from ssl3d.data import store
from ssl3d.errors import UserError

ROOT = Path(__file__).parents[2]


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
    """Raises `UserError` for an unknown method, and where the data do not allow a cell.

    Pretraining sees no test cases, and `supervised` needs labels of other data.
    """
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
        raise UserError(
            "--methods: supervised pretrains on the labels of another data set; give one with "
            "label maps, --pretrain-data=DIR"
        )
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


def case_hash(cases: Iterable[store.Case]) -> str:
    """A short hash of the case ids, independent of their order."""
    return digest("\n".join(sorted(case.id for case in cases)))


def fingerprint(dataset: store.Dataset) -> str:
    """A short hash of the manifest: cases, subjects, splits, order, contents."""
    cases = [(c.id, c.subject, c.split, c.order, c.extra.get("content", "")) for c in dataset.cases]
    return digest(json.dumps([dataset.name, dataset.extra.get("seed"), cases]))


def digest(text: str) -> str:
    """Twelve digits of the SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@functools.cache
def code_version() -> str:
    """The package's version and, in a checkout, the commit."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    if (ROOT / ".git").exists():
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            commit = subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL)
            return f"{ssl3d.__version__}+{commit.strip()}"
    return ssl3d.__version__
