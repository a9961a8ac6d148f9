"""Comparisons, convergence and plateau of a small study made by hand."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ssl3d.experiments.analysis import findings, tables
from ssl3d.experiments.analysis.results_table import Record
from ssl3d.experiments.analysis.templates import sentences
from ssl3d.experiments.engine.study import Column, scratch_of
from tests.support.hand_made_study import record_of, result, rows_of, with_2d, with_rows


def graded_cases(rows):
    return pd.DataFrame(rows).set_index(["id", "subject", "grade", "score"])


def test_2d_methods_are_judged_against_2d_scratch(study, record):
    more = with_2d(with_2d(record, "scratch2d", 0.3), "rpl2d", 0.4)
    facts = findings.find(study, more, 2, draws=2000)
    verdicts = {row[0]: row[2:] for row in tables.comparisons(facts).rows if row[1] == "5%"}
    assert verdicts["rpl2d"][0] == "scratch2d"
    assert verdicts["rpl2d"][1].startswith("gain: +0.100 ")
    assert verdicts["scratch2d"][0] == verdicts["rpl3d"][0] == "scratch"
    assert verdicts["scratch2d"][1].startswith("loss: -0.200 ")
    words = sentences("summary", facts)
    assert any(
        text.startswith("With 5% labels significantly better than scratch2d: rpl2d")
        for text in words
    )
    assert any(
        text.startswith("With 5% labels significantly worse than scratch: scratch2d")
        for text in words
    )


def test_gains_of_2d_methods_are_looked_at_against_2d_scratch(study, record):
    """In the repetitions that both have; 3D scratch of twice the steps is beyond them by far."""
    more = with_2d(with_2d(record, "scratch2d", 0.3), "rotation2d", 0.4)
    doubles = [result("scratch2d-double", "5%", 1, 0.33, 12)]
    doubles += [result("scratch-double", "5%", n, 0.9, 12) for n in (1, 2)]
    facts = findings.find(study, record_of(rows_of(more) + doubles), 2, draws=2000)
    found = facts.beyond[findings.Key("rotation2d", "finetune"), "5%"]
    assert found.repetitions == 1
    assert found.difference == pytest.approx(0.08)


def test_gains_against_twice_the_steps_are_corrected_for_all_methods(study, record):
    """Those that gain are chosen by the noise that the others have too."""
    others = [result("jigsaw3d", "5%", n, 0.55 + 0.02 * (-1) ** n, mode="finetune") for n in (1, 2)]
    doubles = [result("scratch-double", "5%", n, 0.51 + n / 100, 12) for n in (1, 2)]
    facts = findings.find(study, record_of(rows_of(record) + others + doubles), 2, draws=2000)
    (found,) = facts.beyond.values()
    assert facts.comparisons[findings.Key("jigsaw3d", "finetune"), "5%"].shown() == 0
    assert found.p_holm == pytest.approx(2 * found.estimate.p)


def test_the_interval_of_doubled_steps_is_that_of_a_comparison(study, record):
    """Scipy's t where subjects are alike and repetitions differ."""
    changes = (0.01, 0.03, 0.04)
    rows = []
    for n, change in enumerate(changes, 1):
        rows.append(result("scratch", "5%", n, 0.5))
        rows.append(result("scratch-double", "5%", n, 0.5 + change, 12))
    doubled = findings.find(study, record_of(rows), 2, draws=200).plateau["scratch", "5%"]
    wanted = stats.t.interval(0.95, 2, np.mean(changes), stats.sem(changes))
    assert doubled.interval == pytest.approx(wanted)


def test_2d_methods_of_repetitions_that_2d_scratch_lacks(study, record):
    more = with_2d(with_2d(record, "scratch2d", 0.3), "rpl2d", 0.4)
    rows = [row for row in rows_of(more) if row["cell"] not in ("scratch2d-5%-1", "rpl2d-5%-2")]
    facts = findings.find(study, with_rows(more, rows), 2, draws=200)
    assert facts.comparisons[findings.Key("rpl2d", "finetune"), "5%"].against == "scratch"


def test_draws_of_another_version_are_told_of_what_is_compared(study, record):
    """Others in other repetitions are no harm, as long as those of one are alike."""
    rows = [row | {"draws": "2" if row["repetition"] == "2" else ""} for row in rows_of(record)]
    assert findings.find(study, with_rows(record, rows), 2, draws=200).mixed == []
    rows = [row | {"draws": "2"} if row["method"] == "scratch-double" else row for row in rows]
    facts = findings.find(study, with_rows(record, rows), 2, draws=200)
    assert facts.mixed == [findings.Key("scratch-double", "random")]


def test_2d_methods_without_2d_scratch(study, record):
    """Are judged against the other one, and not by curves of another kind."""
    facts = findings.find(study, with_2d(record, "rpl2d", 0.4), 2, draws=200)
    key = findings.Key("rpl2d", "finetune")
    assert facts.comparisons[key, "5%"].against == "scratch"
    assert facts.comparisons[key, "5%"].difference == pytest.approx(-0.1)
    assert (key, "5%") not in facts.convergence
    assert (key, "5%") in facts.curves


def test_the_convergence_of_2d_methods_is_that_to_2d_scratch(study, record):
    more = with_2d(with_2d(record, "scratch2d", 0.3), "rpl2d", 0.4)
    facts = findings.find(study, more, 2, draws=200)
    rows = {row[0]: row[1] for row in tables.convergence(facts).rows}
    # Of 0.81 that scratch2d ends at, 0.77: rpl2d is there at step 4, scratch2d at the end.
    assert (rows["scratch2d"], rows["rpl2d"], rows["rpl3d"]) == ("6", "4", "6")


def test_of_pictures_2d_is_the_rank_of_scratch():
    assert scratch_of("rotation2d", 2) == scratch_of("rotation3d", 3) == "scratch"
    assert scratch_of("rotation2d", 3) == scratch_of("scratch2d", 3) == "scratch2d"


def test_intervals_hold_the_means(found):
    for score in found.scores.values():
        low, high = score.interval()
        assert low < score.value < high


def test_kappa_is_compared_by_cases(study):
    study = dataclasses.replace(study, columns=(Column("kappa", "kappa"),), published="")
    random = np.random.default_rng(0)
    grades = random.integers(0, 3, 200)
    results = []
    cases = [
        {"id": f"c{i:03d}", "subject": f"c{i:03d}", "grade": str(grades[i]), "score": "predicted"}
        for i in range(200)
    ]
    for method, noise in (("scratch", 0.9), ("rotation3d", 0.1)):
        for repetition in (1, 2):
            mode = "random" if method == "scratch" else "finetune"
            row = result(method, "all", repetition, 0.5, mode=mode, kappa="0.5")
            results.append(row)
            guess = np.where(random.random(200) < noise, random.integers(0, 3, 200), grades)
            for i in range(200):
                cases[i][row["cell"]] = str(guess[i])
    tables = pd.DataFrame(results), pd.DataFrame(), graded_cases(cases), pd.DataFrame()
    facts = findings.find(study, Record(*tables), 3, draws=500)
    comparison = facts.comparisons[findings.Key("rotation3d", "finetune"), "all"]
    assert comparison.shown() == 1
    assert 0.6 < comparison.difference < 1
    assert facts.curves == {}


def test_pictures_have_one_scratch(study):
    """Of rank 2 all networks are 2D ones: scratch is theirs, of plateau and convergence too."""
    study = dataclasses.replace(study, rank=2, columns=(Column("kappa", "kappa"),), published="")
    rows = []
    for method, score in (("scratch", 0.5), ("rotation2d", 0.6), ("scratch-double", 0.503)):
        mode = "finetune" if method.endswith("2d") else "random"
        for number in (1, 2):
            rows.append(result(method, "all", number, score, mode=mode, kappa=str(score)))
    record = record_of(rows)
    graded = [
        {key: str((i + (i % 5 == 0)) % 3) for key in record.cases}
        | {"id": name, "subject": subject, "grade": str(i % 3), "score": "predicted"}
        for i, (name, subject, _) in enumerate(record.cases.index)
    ]
    facts = findings.find(study, record._replace(cases=graded_cases(graded)), 3, draws=200)
    key = findings.Key("rotation2d", "finetune")
    assert not facts.sliced
    assert not facts.mixed
    assert {place: found.against for place, found in facts.comparisons.items()} == {
        (key, "all"): "scratch"
    }
    assert set(facts.plateau) == {("scratch", "all")}
    assert tables.plateau(study, facts).rows[0][2] == "+0.0030"
    assert facts.convergence[key, "all"] == [6.0, 6.0]
    assert len(tables.comparisons(facts).notes) == len(tables.convergence(facts).notes) == 2
