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
    more = with_2d(with_2d(record, "scratch2d", 0.52), "rpl2d", 0.62)
    facts = findings.find(study, more, 2, draws=2000)
    verdicts = {row[0]: row[2:] for row in tables.comparisons(facts).rows if row[1] == "5%"}
    assert verdicts["rpl2d"][0] == "scratch2d"
    assert verdicts["rpl2d"][1].startswith("gain: +0.100 ")
    assert verdicts["rpl3d"][0] == "scratch"
    ((method, _, against, verdict, _),) = tables.controls(facts).rows
    assert (method, against) == ("scratch2d", "scratch")
    assert verdict.startswith("gain: +0.020 ")
    words = sentences("summary", facts)
    assert any(
        text.startswith("With 5% labels significantly better than scratch2d: rpl2d")
        for text in words
    )


def test_gains_of_2d_methods_are_looked_at_against_2d_scratch(study, record):
    """In the repetitions that both have; 3D scratch of twice the steps is beyond them by far."""
    more = with_2d(with_2d(record, "scratch2d", 0.52), "rotation2d", 0.62)
    doubles = [result("scratch2d-double", "5%", 1, 0.55, 12)]
    doubles += [result("scratch-double", "5%", n, 0.9, 12) for n in (1, 2)]
    facts = findings.find(study, record_of(rows_of(more) + doubles), 2, draws=2000)
    about = findings.Key("rotation2d", "finetune"), "5%", "scratch2d-double"
    found = facts.beyond[about]
    assert found.repetitions == 1
    assert found.difference == pytest.approx(0.08)
    assert about not in facts.equal_steps_only  # a single repetition never shows anything


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
    for method, noise in (("scratch", 0.6), ("rotation3d", 0.1)):
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
    assert 0.3 < comparison.difference < 1
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
    assert not [note for note in tables.comparisons(facts).notes if "scratch2d" in note]
    assert len(tables.convergence(facts).notes) == 2


def test_controls_are_no_members_of_the_family(study, record):
    """Many of them leave the correction of the methods as it is."""
    alone = findings.find(study, record, 2, draws=500)
    controls = [
        result(method, "5%", n, 0.4 + n / 50, mode=mode)
        for method, mode in (
            ("scratch-long", "random"),
            ("untrained-frozen", "frozen"),
            ("supervised", "finetune"),
            ("scratch2d", "random"),
        )
        for n in (1, 2)
    ]
    facts = findings.find(study, record_of(rows_of(record) + controls), 2, draws=500)
    key = findings.Key("rpl3d", "finetune")
    assert facts.comparisons.keys() == alone.comparisons.keys()
    assert facts.comparisons[key, "5%"].p_holm == alone.comparisons[key, "5%"].p_holm
    assert {key.method for key, _ in facts.controls} == {
        *("scratch-long", "untrained-frozen", "supervised", "scratch2d")
    }
    for found in facts.controls.values():  # each for itself
        assert found.p_holm == found.estimate.p
    assert {row[0] for row in tables.controls(facts).rows} == {
        key.method for key, _ in facts.controls
    }


def test_a_plateau_is_one_by_its_interval(study, record):
    """+0.0050 [+0.0027, +0.0072], as was stored, is none; nor is a mean of zero that scatters."""

    def doubled(changes):
        rows = []
        for n, change in enumerate(changes, 1):
            rows.append(result("scratch", "5%", n, 0.6))
            rows.append(result("scratch-double", "5%", n, 0.6 + change, 12))
        facts = findings.find(study, record_of(rows), 2, draws=200)
        return tables.plateau(study, facts).rows[0][-1]

    assert doubled([0.0022, 0.0046, 0.0050, 0.0054, 0.0076]) == "not at its plateau in dice"
    assert doubled([-0.02, 0.02, -0.01, 0.01]) == "not shown to be at its plateau in dice"
    assert doubled([0.001, 0.0, 0.001, 0.002]) == "at its plateau in dice"


def test_there_is_no_verdict_before_all_planned_cells(study, record):
    facts = findings.find(study, record, 2, draws=500, missing=(3, 20))
    words = {row[3].partition(":")[0] for row in tables.comparisons(facts).rows}
    assert words == {"no verdict yet, 3 of 20 cells are missing"}
    assert {row[-1] for row in tables.plateau(study, facts).rows} == {"no verdict yet"}
    said = sentences("summary", facts)
    words = ("significantly", "no gain", "plateau")
    assert not [text for text in said if any(word in text for word in words)]
    assert facts.beyond == {}


def test_a_scratch_that_was_trained_too_shortly_judges_nothing(study):
    """A Dice of 0.3 may be all there is to learn: if twice the steps add nothing."""
    rows = [result("scratch", "5%", n, 0.3 + n / 1000) for n in (1, 2, 3)]
    rows += [result("rpl3d", "5%", n, 0.5 + n / 1000, mode="finetune") for n in (1, 2, 3)]
    (found,) = findings.find(study, record_of(rows), 2, draws=500).comparisons.values()
    assert (found.shown(), found.word) == (0, "too short to judge")
    for more, word in ((0.0, "gain"), (0.01, "gain"), (0.03, "too short to judge")):
        doubles = [result("scratch-double", "5%", n, 0.3 + more + n / 1000, 12) for n in (1, 2, 3)]
        (found,) = findings.find(
            study, record_of(rows + doubles), 2, draws=500
        ).comparisons.values()
        assert found.word == word


def test_repetitions_with_one_encoder_are_one_replication(study):
    encoders = [1, 2, 3, 1, 2, 3]
    rows = [result("scratch", "5%", n, 0.6) for n in range(1, 7)]
    rows += [
        result("rpl3d", "5%", n, 0.6 + e / 100, mode="finetune", pretraining=f"rpl3d-e{e}")
        for n, e in enumerate(encoders, 1)
    ]
    facts = findings.find(study, record_of(rows), 2, draws=200)
    (found,) = facts.comparisons.values()
    assert (found.repetitions, found.units) == (6, 3)
    wanted = stats.t.interval(0.95, 2, 0.02, stats.sem([0.01, 0.02, 0.03]))
    assert found.interval == pytest.approx(wanted, abs=1e-4)
    assert tables.comparisons(facts).rows[0][-1] == "6 repetitions, 3 encoders"
    assert facts.single_encoders == []


def test_splits_are_judged_by_their_means_on_their_own_test_cases(study):
    rows = []
    for n in range(1, 5):
        about = {"split": str((n - 1) % 2 + 1)}
        rows.append(result("scratch", "5%", n, 0.6, **about))
        gain = 0.02 * int(about["split"])
        rows.append(result("rpl3d", "5%", n, 0.6 + gain, mode="finetune", **about))
    record = record_of(rows)
    cases = record.cases.copy()
    for row in rows:  # of the forty cases, each split tests its half
        others = np.arange(40) % 2 == int(row["split"]) - 1
        cases.loc[others, row["cell"]] = ""
    facts = findings.find(study, record._replace(cases=cases), 2, draws=200)
    (found,) = facts.comparisons.values()
    assert (found.repetitions, found.units) == (4, 2)
    assert found.difference == pytest.approx(0.03, abs=0.003)
    assert tables.comparisons(facts).rows[0][-1] == "4 repetitions, 2 splits, 1 encoder"


def test_encoders_that_splits_share_are_the_units(study):
    """Eight splits with two encoders of other data are two replications of the encoder."""
    rows = []
    for n in range(1, 9):
        split, encoder = str(n), f"rpl3d-e{n % 2}"
        rows.append(result("scratch", "5%", n, 0.6, split=split))
        about = {"mode": "finetune", "pretraining": encoder, "split": split}
        rows.append(result("rpl3d", "5%", n, 0.62 + n % 2 / 100, **about))
    facts = findings.find(study, record_of(rows), 2, draws=200)
    (found,) = facts.comparisons.values()
    assert (found.repetitions, found.units) == (8, 2)


def test_arms_are_compared_within_each(study):
    rows = []
    for arm, gain in (("slow", 0.1), ("fast", 0.0)):
        for n in (1, 2, 3):
            about = {"arm": arm, "cell": f"s-{arm}-{n}"}
            rows.append(result("scratch", "5%", n, 0.6 + n / 1000, **about))
            about["cell"] = f"r-{arm}-{n}"
            rows.append(result("rpl3d", "5%", n, 0.6 + gain + n / 1000, mode="finetune", **about))
    facts = findings.find(study, record_of(rows), 2, draws=200)
    gains = {amount: found.difference for (_, amount), found in facts.comparisons.items()}
    assert gains == {"5%, slow": pytest.approx(0.1), "5%, fast": pytest.approx(0.0, abs=0.003)}
