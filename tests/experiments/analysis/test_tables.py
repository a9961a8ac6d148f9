"""The tables' layout, word for word, for a small study made by hand."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from experiments.analysis import figures, findings, page, tables
from experiments.analysis.published import (
    BRATS_FIGURE,
    BRATS_TABLE,
    PANCREAS_CONVERGENCE,
    PANCREAS_FIGURE,
    RETINA_CONVERGENCE,
    RETINA_FIGURE,
    Published,
    Value,
)
from experiments.analysis.results_table import Record
from experiments.engine.study import METHODS, Column, scratch_of
from tests.support.small_study import tiny

PUBLISHED = Published(
    source="Figure 0",
    score="Dice of nothing",
    columns=("5%", "all"),
    rows={"scratch": ".50 .70", "rpl3d": "~.55 -", "Somebody et al.": ".60 .80"},
    caveats=("Nobody knows.",),
)
CASES = 40


def result(method, labels, repetition, score, steps=6, mode="random", **more):
    return {
        "cell": f"{method}-{labels}-{repetition}",
        "method": method,
        "mode": mode,
        "labels": labels,
        "repetition": str(repetition),
        "training_cases": {"5%": "2", "all": "8"}[labels],
        "steps": str(steps),
        "pretraining": f"{method}-x" if mode == "finetune" else "",
        "dice": str(score),
        "WT": str(score - 0.1),
        "seconds": "60",
        "device_seconds": "30",
        "peak_memory_mb": "1024",
    } | more


def record_of(results):
    """Cases scatter around the cell's score, alike in all; curves rise to it, two steps apart."""
    noise = np.random.default_rng(0).normal(0, 0.05, CASES)
    noise -= noise.mean()
    cases, curves = [], []
    for row in results:
        own = np.random.default_rng(int(row["repetition"])).normal(0, 0.002, CASES)
        for i in range(CASES):
            value = float(row["dice"]) + noise[i] + own[i]
            cases.append(
                {"cell": row["cell"], "id": f"c{i:02d}", "subject": f"s{i}", "dice": str(value)}
            )
        for step in range(0, int(row["steps"]) + 1, 2):
            score = float(row["dice"]) * step / 6
            curves.append({"cell": row["cell"], "step": str(step), "score": str(score)})
    before = {
        "pretraining": "rpl3d-x",
        "method": "rpl3d",
        "steps": "4",
        "cases": "8",
        "transductive": "True",
        "trained_score": "0.91",
        "untrained_score": "0.05",
        "chance": "",
        "seconds": "120",
        "peak_memory_mb": "2048",
    }
    return Record(results, [before], cases, curves)


@pytest.fixture(scope="module")
def study():
    return tiny(published=PUBLISHED, beside="dice")


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


MARKDOWN = """\
## Dice on the test set, by labelled training subjects

| method | 5% | paper | all | paper |
|---|---|---|---|---|
| scratch | 0.515 ± 0.007 | 0.500 | 0.715 ± 0.007 | 0.700 |
| rpl3d | **0.615 ± 0.007** | ≈ 0.550 | 0.715 ± 0.007 | – |
| scratch-double | – | – | **0.718 ± 0.007** | – |
| Somebody et al. | – | 0.600 | – | 0.800 |

1. mean ± standard deviation over 2 repetitions, in bold the highest of ours
2. paper: Figure 0 of Taleb et al. 2020; Dice of nothing
3. Nobody knows.
"""


def test_markdown_word_for_word(study, found):
    table = tables.scores_by_label(study, found)
    assert tables.markdown([table], "Introduction.") == f"Introduction.\n\n{MARKDOWN}"


LATEX = r"""\begin{table}
\caption{Dice on the test set, by labelled training subjects}
\begin{tabular}{lllll}
\toprule
method & 5\% & paper & all & paper \\
\midrule
scratch & 0.515 $\pm$ 0.007 & 0.500 & 0.715 $\pm$ 0.007 & 0.700 \\
rpl3d & \textbf{0.615 $\pm$ 0.007} & $\approx$ 0.550 & 0.715 $\pm$ 0.007 & -- \\
scratch-double & -- & -- & \textbf{0.718 $\pm$ 0.007} & -- \\
Somebody et al. & -- & 0.600 & -- & 0.800 \\
\bottomrule
\end{tabular}
\par\footnotesize mean $\pm$ standard deviation over 2 repetitions, in bold the highest of ours
\par\footnotesize paper: Figure 0 of Taleb et al. 2020; Dice of nothing
\par\footnotesize Nobody knows.
\end{table}
"""


def test_latex_word_for_word(study, found):
    assert tables.latex([tables.scores_by_label(study, found)]) == LATEX


def test_scores_beside_one_another(study, record, found):
    study = dataclasses.replace(
        study,
        columns=(Column("dice", "mean"), Column("WT", "WT")),
        published_scores=dataclasses.replace(
            PUBLISHED, columns=("WT",), rows={"scratch": ".88", "Somebody et al.": ".9"}
        ),
    )
    table = tables.scores_by_column(study, record, found)
    assert table.header == ("method", "dice", "paper", "WT", "paper")
    assert table.rows == (
        ("scratch", "0.715 ± 0.007", "–", "0.615 ± 0.007", "0.880"),
        ("rpl3d", "0.715 ± 0.007", "–", "0.615 ± 0.007", "–"),
        ("scratch-double", "0.718 ± 0.007", "–", "0.618 ± 0.007", "–"),
        ("Somebody et al.", "–", "–", "–", "0.900"),
    )


def test_scores_of_all_labels_are_not_set_beside_ours_of_fewer(study, record):
    study = dataclasses.replace(
        study,
        columns=(Column("dice", "mean"), Column("WT", "WT")),
        published_scores=dataclasses.replace(PUBLISHED, columns=("WT",), rows={"scratch": ".88"}),
    )
    few = record_of([row for row in record.results if row["labels"] == "5%"])
    table = tables.scores_by_column(study, few, findings.find(study, few, 2, draws=200))
    assert table.title == "scores with 5% labelled training subjects"
    assert table.header == ("method", "dice", "WT")


def test_fewer_repetitions_than_others_are_counted(study, record):
    rows = [row for row in record.results if row["cell"] != "rpl3d-5%-2"]
    facts = findings.find(study, record_of(rows), 2, draws=200)
    table = tables.scores_by_label(study, facts)
    assert [row[1] for row in table.rows] == ["0.515 ± 0.007", "0.610 (1)", "–", "–"]
    said = "over 2 repetitions (or as many as the brackets say; only means of as many compare)"
    assert said in table.notes[0]
    # The highest, but of one repetition alone: it may be that one's label subset.
    assert (1, 1) not in table.bold


def test_an_undefined_score_is_left_out(study, record):
    rows = [row | {"dice": "" if row["labels"] == "5%" else row["dice"]} for row in record.results]
    facts = findings.find(study, record._replace(results=rows), 2, draws=200)
    assert {row[1] for row in tables.scores_by_label(study, facts).rows} == {"–"}
    figures.data_efficiency(study, facts)


def test_verdicts(found):
    by_place = {row[:2]: row[3] for row in tables.comparisons(found).rows}
    # Scratch with twice the steps is a check of scratch, not a method against it.
    assert set(by_place) == {("rpl3d", "5%"), ("rpl3d", "all")}
    assert {row[2] for row in tables.comparisons(found).rows} == {"scratch"}
    assert by_place["rpl3d", "5%"].startswith("gain: +0.100 [+0.")
    assert by_place["rpl3d", "all"].startswith("no gain shown: +0.000 [")
    words = page.summary(found)
    assert words[0].startswith("With 5% labels significantly better than scratch: rpl3d (+0.100")
    assert words[-1] == "With all labels no gain of any pretraining over scratch is shown."


def test_convergence_and_plateau(study, found):
    # 95 % of scratch's end: scratch at step 6; rpl3d with 5 % has 0.2 a third higher up.
    assert tables.convergence(found).rows == (
        ("scratch", "6", "6"),
        ("rpl3d", "6", "6"),
        ("scratch-double", "–", "6"),
    )
    table = tables.plateau(study, found)
    assert table.header == ("method", "labels", "dice", "interval", "repetitions", "verdict")
    ((*row, verdict),) = table.rows
    assert row == ["scratch", "all", "+0.0030", "[+0.0030, +0.0030]", "2"]
    assert verdict == "at its plateau in dice"
    never = tables._steps((100.0, np.inf, np.inf))
    assert never == "never (1 of 3)"
    assert tables._steps((100.0, 200.0, np.inf)) == "200 (2 of 3)"


def test_the_plateau_of_every_score(study, record):
    study = dataclasses.replace(study, columns=(Column("dice", "mean"), Column("WT", "WT")))
    rows = [
        row | {"WT": "0.9"} if row["cell"] == "scratch-double-all-1" else row
        for row in record.results
        if row["cell"] != "scratch-double-all-2"
    ]
    table = tables.plateau(study, findings.find(study, record_of(rows), 2, draws=200))
    row = ("scratch", "all", "+0.0030", "+0.2900", "–", "1", "at its plateau in dice")
    assert table.rows == (row,)  # a single repetition has no interval


def with_2d(record, method, score):
    """Rows of a 2D method beside those that there are, its curves on slices above all."""
    mode = "random" if method.startswith("scratch2d") else "finetune"
    own = [result(method, "5%", number, score + number / 100, mode=mode) for number in (1, 2)]
    more = record_of(record.results + own)
    curves = [
        row | {"score": str(float(row["score"]) + 0.5)} if "2d" in row["cell"] else row
        for row in more.curves
    ]
    return more._replace(curves=curves)


def test_2d_methods_are_judged_against_2d_scratch(study, record):
    more = with_2d(with_2d(record, "scratch2d", 0.3), "rpl2d", 0.4)
    facts = findings.find(study, more, 2, draws=2000)
    verdicts = {row[0]: row[2:] for row in tables.comparisons(facts).rows if row[1] == "5%"}
    assert verdicts["rpl2d"][0] == "scratch2d"
    assert verdicts["rpl2d"][1].startswith("gain: +0.100 ")
    assert verdicts["scratch2d"][0] == verdicts["rpl3d"][0] == "scratch"
    assert verdicts["scratch2d"][1].startswith("loss: -0.200 ")
    words = page.summary(facts)
    assert any(
        text.startswith("With 5% labels significantly better than scratch2d: rpl2d")
        for text in words
    )
    assert any(
        text.startswith("With 5% labels significantly worse than scratch: scratch2d")
        for text in words
    )


def test_2d_scratch_has_a_plateau_of_its_own(study, record):
    more = with_2d(with_2d(record, "scratch2d", 0.3), "scratch2d-double", 0.32)
    facts = findings.find(study, more, 2, draws=200)
    row = tables.plateau(study, facts).rows[0]
    assert (*row[:3], *row[4:]) == ("scratch2d", "5%", "+0.0200", "2", "not at its plateau in dice")
    assert not any(key.method == "scratch2d-double" for key, _ in facts.comparisons)
    (said,) = [line for line in page.summary(facts) if "plateau" in line]  # scratch is at its own
    assert said.startswith("With 5% labels scratch2d is not at its plateau: twice the steps change")
    assert said.endswith(" it by +0.020.")
    # Without it there is nothing to compare its double with, least of all 3D scratch.
    alone = findings.find(study, with_2d(record, "scratch2d-double", 0.32), 2, draws=200)
    assert set(alone.plateau) == {("scratch", "all")}
    assert page._unchecked(facts) == [
        "Whether scratch was trained to its plateau with 5% labels was not checked here "
        "(--methods=scratch,scratch-double checks it)."
    ]


@pytest.mark.parametrize(("double", "said"), [(0.55, "gain: +0.050 "), (0.60, "no gain shown: ")])
def test_gains_are_looked_at_against_twice_the_steps(study, record, double, said):
    """They have to be 0.1 of scratch, in all repetitions; of others nobody asks."""
    doubles = [result("scratch-double", "5%", n, double + n / 100, 12) for n in (1, 2)]
    facts = findings.find(study, record_of(record.results + doubles), 2, draws=2000)
    assert set(facts.beyond) == {(findings.Key("rpl3d", "finetune"), "5%")}
    ((*row, verdict, repetitions),) = tables.beyond(facts).rows
    assert (*row, repetitions) == ("rpl3d", "5%", "scratch-double", "2")
    assert verdict.startswith(said)
    words = "rpl3d against scratch-double, scratch with twice the steps, in 2 repetitions"
    assert f"With 5% labels {words}: {verdict}." in page.summary(facts)
    assert facts.plateau["scratch", "5%"].changes == (pytest.approx(double - 0.5),)


def test_gains_of_2d_methods_are_looked_at_against_2d_scratch(study, record):
    """In the repetitions that both have; 3D scratch of twice the steps is beyond them by far."""
    more = with_2d(with_2d(record, "scratch2d", 0.3), "rotation2d", 0.4)
    doubles = [result("scratch2d-double", "5%", 1, 0.33, 12)]
    doubles += [result("scratch-double", "5%", n, 0.9, 12) for n in (1, 2)]
    facts = findings.find(study, record_of(more.results + doubles), 2, draws=2000)
    found = facts.beyond[findings.Key("rotation2d", "finetune"), "5%"]
    assert found.repetitions == 1
    assert found.difference == pytest.approx(0.08)


def test_gains_against_twice_the_steps_are_corrected_for_all_methods(study, record):
    """Those that gain are chosen by the noise that the others have too."""
    others = [result("jigsaw3d", "5%", n, 0.55 + 0.02 * (-1) ** n, mode="finetune") for n in (1, 2)]
    doubles = [result("scratch-double", "5%", n, 0.51 + n / 100, 12) for n in (1, 2)]
    facts = findings.find(study, record_of(record.results + others + doubles), 2, draws=2000)
    (found,) = facts.beyond.values()
    assert facts.comparisons[findings.Key("jigsaw3d", "finetune"), "5%"].shown() == 0
    assert found.p_holm == pytest.approx(2 * found.p)


def test_gains_without_twice_the_steps_have_no_table(study, found):
    assert found.beyond == {}
    assert tables.beyond(found).rows == ()


def test_the_interval_of_doubled_steps_is_that_of_a_comparison(study, record):
    """Scipy's t where subjects are alike and repetitions differ."""
    changes = (0.01, 0.03, 0.04)
    rows = []
    for n, change in enumerate(changes, 1):
        rows.append(result("scratch", "5%", n, 0.5))
        rows.append(result("scratch-double", "5%", n, 0.5 + change, 12))
    doubled = findings.find(study, record_of(rows), 2, draws=200).plateau["scratch", "5%"]
    wanted = stats.t.interval(0.95, 2, np.mean(changes), stats.sem(changes))
    assert (doubled.low, doubled.high) == pytest.approx(wanted)


def test_an_undefined_score_has_no_plateau(study, record):
    rows = [row | {"dice": ""} if row["labels"] == "all" else row for row in record.results]
    cases = [row | {"dice": ""} if "-all-" in row["cell"] else row for row in record.cases]
    facts = findings.find(study, record._replace(results=rows, cases=cases), 2, draws=200)
    assert tables.plateau(study, facts).rows == (("scratch", "all", "–", "–", "2", "–"),)


def test_2d_methods_of_repetitions_that_2d_scratch_lacks(study, record):
    more = with_2d(with_2d(record, "scratch2d", 0.3), "rpl2d", 0.4)
    rows = [row for row in more.results if row["cell"] not in ("scratch2d-5%-1", "rpl2d-5%-2")]
    facts = findings.find(study, more._replace(results=rows), 2, draws=200)
    assert facts.against[findings.Key("rpl2d", "finetune"), "5%"] == "scratch"


def test_draws_of_another_version_are_told_of_what_is_compared(study, record):
    """Others in other repetitions are no harm, as long as those of one are alike."""
    rows = [row | {"draws": "2" if row["repetition"] == "2" else ""} for row in record.results]
    assert findings.find(study, record._replace(results=rows), 2, draws=200).mixed == ()
    rows = [row | {"draws": "2"} if row["method"] == "scratch-double" else row for row in rows]
    facts = findings.find(study, record._replace(results=rows), 2, draws=200)
    assert facts.mixed == (findings.Key("scratch-double", "random"),)


def test_2d_methods_without_2d_scratch(study, record):
    """Are judged against the other one, and not by curves of another kind."""
    facts = findings.find(study, with_2d(record, "rpl2d", 0.4), 2, draws=200)
    key = findings.Key("rpl2d", "finetune")
    assert facts.against[key, "5%"] == "scratch"
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


def test_the_convergence_of_the_paper():
    table = tables.published_convergence(PANCREAS_CONVERGENCE)
    assert table.header == ("method", "epoch 0", "epoch 10", "epoch 20", "epoch 400")
    assert table.rows[0] == ("scratch", "≈ 0.165", "≈ 0.120", "≈ 0.350", "≈ 0.550")
    assert table.rows[1][3] == "–"
    assert table.notes[0].startswith(
        "paper: Figures 5 and 8 of Taleb et al. 2020; mean validation Dice"
    )


def test_pretrainings_and_costs(record, found):
    assert tables.pretrainings(record).rows == (
        ("rpl3d", "4", "8 (transductive)", "0.910", "0.050", "–", "2.0", "2.0"),
    )
    assert tables.costs(found, record).rows[0] == ("scratch", "6, 6", "30, 30", "60, 60", "1.0")


def test_intervals_hold_the_means(found):
    for entry in found.entries.values():
        assert entry.low < entry.mean < entry.high


def test_kappa_is_compared_by_cases(study):
    study = dataclasses.replace(study, columns=(Column("kappa", "kappa"),), published=None)
    random = np.random.default_rng(0)
    grades = random.integers(0, 3, 200)
    results, cases = [], []
    for method, noise in (("scratch", 0.9), ("rotation3d", 0.1)):
        for repetition in (1, 2):
            mode = "random" if method == "scratch" else "finetune"
            row = result(method, "all", repetition, 0.5, mode=mode, kappa="0.5")
            results.append(row)
            guess = np.where(random.random(200) < noise, random.integers(0, 3, 200), grades)
            cases += [
                {
                    "cell": row["cell"],
                    "id": f"c{i:03d}",
                    "subject": f"c{i:03d}",
                    "grade": str(grades[i]),
                    "predicted": str(guess[i]),
                }
                for i in range(200)
            ]
    facts = findings.find(study, Record(results, [], cases, []), 3, draws=500)
    comparison = facts.comparisons[findings.Key("rotation3d", "finetune"), "all"]
    assert comparison.shown() == 1
    assert 0.6 < comparison.difference < 1
    assert facts.curves == {}


def test_pictures_have_one_scratch(study):
    """Of rank 2 all networks are 2D ones: scratch is theirs, of plateau and convergence too."""
    study = dataclasses.replace(study, rank=2, columns=(Column("kappa", "kappa"),), published=None)
    rows = []
    for method, score in (("scratch", 0.5), ("rotation2d", 0.6), ("scratch-double", 0.503)):
        mode = "finetune" if method.endswith("2d") else "random"
        for number in (1, 2):
            rows.append(result(method, "all", number, score, mode=mode, kappa=str(score)))
    record = record_of(rows)
    graded = [
        row | {"grade": str(i % 3), "predicted": str((i + (i % 5 == 0)) % 3)}
        for i, row in enumerate(record.cases)
    ]
    facts = findings.find(study, record._replace(cases=graded), 3, draws=200)
    key = findings.Key("rotation2d", "finetune")
    assert facts.sliced == facts.mixed == ()
    assert facts.against == {(key, "all"): "scratch"}
    assert facts.plateau["scratch", "all"].changes == (pytest.approx(0.003),)
    assert facts.convergence[key, "all"] == (6.0, 6.0)
    assert len(tables.comparisons(facts).notes) == len(tables.convergence(facts).notes) == 2


def test_figures_show_methods_and_no_check_of_scratch(study, found):
    for figure in (figures.data_efficiency(study, found), figures.convergence(found)):
        legend = figure.axes[-1].get_legend()
        assert [text.get_text() for text in legend.get_texts()] == ["scratch", "rpl3d"]
    assert "scratch-double" in {key.method for key in found.rows}


def test_figures_without_curves_or_a_single_repetition(study, tmp_path):
    rows = [result("scratch", "5%", 1, 0.5), result("rpl3d", "5%", 1, 0.6, mode="finetune")]
    full = record_of(rows)
    facts = findings.find(study, full, 2, draws=200)
    assert len(figures.write(tmp_path / "a", study, facts)) == 2
    facts = findings.find(study, full._replace(curves=[]), 2, draws=200)
    assert len(figures.write(tmp_path / "b", study, facts)) == 1


@pytest.mark.parametrize(
    ("published", "gaps"),
    [
        (BRATS_FIGURE, 0),
        (BRATS_TABLE, 0),
        (PANCREAS_FIGURE, 0),
        (RETINA_FIGURE, 0),
        (PANCREAS_CONVERGENCE, 2),
        (RETINA_CONVERGENCE, 10),
    ],
)
def test_published_numbers_are_whole(published, gaps):
    for name, text in published.rows.items():
        values = [published.value(name, column) for column in published.columns]
        assert len(text.split()) == len(published.columns)
        gaps -= values.count(None)
        assert all(0 < value.number < 1 for value in values if value)
        assert name in METHODS or " " in name
    assert gaps == 0
    assert published.caveats


def test_published_numbers_pretrained_as_ours_are_beside_ours():
    own, other = (RETINA_FIGURE.like_ours(elsewhere) for elsewhere in (False, True))
    assert own.value("cpc2d", "5%") == Value(0.187, False)
    assert own.value("cpc2d on UK Biobank", "5%") == Value(0.245, True)
    assert other.value("cpc2d", "5%") == Value(0.245, True)
    assert other.value("cpc2d on Kaggle", "5%") == Value(0.187, False)
    assert own.value("scratch", "5%") == other.value("scratch", "5%") == Value(0.011, False)
    assert BRATS_FIGURE.like_ours(True) == BRATS_FIGURE.like_ours(False) == BRATS_FIGURE


def test_published_numbers_as_printed():
    assert BRATS_TABLE.value("rpl3d", "TC") == Value(0.8612, False)
    assert BRATS_TABLE.value("scratch", "ET") == Value(0.7638, False)
    assert PANCREAS_FIGURE.value("cpc3d", "10%") == Value(0.47, True)
    assert RETINA_FIGURE.value("scratch", "5%") == Value(0.011, False)
    assert BRATS_FIGURE.value("rpl3d", "5%") is None
    assert BRATS_FIGURE.value("scratch-long", "all") is None
