"""A study on data: what it may see, and what the case lists and the code are, in hashes."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import ssl3d
from experiments.engine.study import Study
from ssl3d.data import store
from ssl3d.errors import UserError

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Plan:
    """A study on data.

    Attributes:
      dataset: the downstream one.
      corpus: what is pretrained on; often the same.
      transductive: pretraining sees the images of all splits, validation and test too.
      scale: factor of all numbers of steps.
      source: the files the data set was prepared from, to score on their grid; "" for none.
    """

    study: Study
    dataset: store.Dataset
    corpus: store.Dataset
    transductive: bool = False
    scale: float = 1.0
    source: str = ""


def labelled_cases(plan: Plan, split: str) -> tuple[store.Case, ...]:
    """The cases of a split of the downstream data that have what it learns."""
    graded = plan.study.downstream == "classify"
    return tuple(
        case
        for case in plan.dataset.split(split)
        if (case.grade is not None if graded else case.labelled)
    )


def check_data(plan: Plan, methods: Sequence[str]) -> None:
    """Raises `UserError` where pretraining would see test cases, or a method lacks its data."""
    if "supervised" in methods and not can_supervise(plan):
        raise UserError(
            "--methods: supervised pretrains on the labels of another data set; give one that "
            "has label maps, --pretrain-data=DIR"
        )
    if not is_elsewhere(plan):
        return
    # Of a transductive study only the labels are none that pretraining may see.
    if not plan.transductive:
        splits, remedy = ("train", "unlabelled"), "say --transductive"
    elif "supervised" in methods:
        splits, remedy = ("train",), "leave supervised out of --methods"
    else:
        return
    held_out = {
        content: case for case in plan.dataset.split("val", "test") for content in _contents(case)
    }
    for case in plan.corpus.split(*splits):
        double = next((held_out[x] for x in _contents(case) if x in held_out), None)
        if double:
            raise UserError(
                f"{plan.corpus.path}: {case.id} is the same image as {double.id}, a {double.split} "
                f"case of {plan.dataset.path}; take it out, or {remedy}"
            )


def _contents(case: store.Case) -> list[str]:
    """Checksums of the image, and of the volume that it is a slice of."""
    return [case.extra[key] for key in ("content", "volume_content") if key in case.extra]


def can_supervise(plan: Plan) -> bool:
    """Whether there are labels other than the downstream ones to pretrain on."""
    return is_elsewhere(plan) and any(case.labelled for case in plan.corpus.split("train"))


def is_elsewhere(plan: Plan) -> bool:
    """Whether pretraining has a data set of its own."""
    return plan.corpus.path.resolve() != plan.dataset.path.resolve()


def case_hash(cases: Iterable[store.Case]) -> str:
    """A short hash of which cases these are, in whatever order."""
    return short_hash("\n".join(sorted(case.id for case in cases)))


def fingerprint(dataset: store.Dataset) -> str:
    """A hash of the manifest: which cases, whose, in which split and order, of which content."""
    lines = [
        (case.id, case.subject, case.split, case.order, case.extra.get("content", ""))
        for case in dataset.cases
    ]
    return short_hash(json.dumps([dataset.name, dataset.extra.get("seed"), lines]))


def short_hash(text: str) -> str:
    """Twelve digits of the SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@functools.cache
def code_version() -> str:
    """The package's version and, in a checkout, the commit."""
    if not (ROOT / ".git").exists():
        return ssl3d.__version__
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ssl3d.__version__
    return f"{ssl3d.__version__}+{commit.strip()}"
