"""A small study made by hand, and its findings."""

import pytest

from ssl3d.experiments.analysis import findings
from tests.support.hand_made_study import record_of, result
from tests.support.small_study import tiny


@pytest.fixture(scope="module")
def study():
    return tiny(published="hand made", beside="dice")


@pytest.fixture(scope="module")
def record():
    rows = []
    for repetition in (1, 2):
        shift = 0.01 * repetition
        rows += [
            result("scratch", "5%", repetition, 0.50 + shift),
            result("scratch", "all", repetition, 0.70 + shift),
            result("scratch-double", "all", repetition, 0.703 + shift, 12),
            result("rpl3d", "5%", repetition, 0.60 + shift, mode="finetune"),
            result("rpl3d", "all", repetition, 0.70 + shift, mode="finetune"),
        ]
    return record_of(rows)


@pytest.fixture(scope="module")
def found(study, record):
    return findings.find(study, record, 2, draws=2000)
