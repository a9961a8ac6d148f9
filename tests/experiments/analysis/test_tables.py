"""The tables' layout, word for word, for a small study made by hand."""

import dataclasses

import numpy as np
import pytest

from ssl3d.experiments.analysis import figures, findings, tables, templates
from ssl3d.experiments.analysis.published import TABLES
from ssl3d.experiments.engine.study import Column
from tests.support.hand_made_study import PUBLISHED, record_of, rows_of, with_rows

MARKDOWN = """\
## Dice on the test set, by labelled training subjects

| method | 5% | paper | all | paper |
|---|---|---|---|---|
| scratch | 0.515 ± 0.007 | 0.500 | 0.715 ± 0.007 | 0.700 |
| rpl3d | **0.615 ± 0.007** | ≈ 0.550 | 0.715 ± 0.007 | – |
| scratch-double | – | – | **0.718 ± 0.007** | – |
| Somebody et al. | – | 0.600 | – | 0.800 |

1. mean ± standard deviation over 2 repetitions, our highest in bold
2. paper: Figure 0 of Taleb et al. 2020; Dice of nothing
3. Nobody knows.
"""


def test_markdown_word_for_word(study, found):
    table = tables.scores_by_label(study, found)
    about = {
        "study": study,
        "notes": ["A note."],
        "summary": ["Words."],
        "about": [("data", "none")],
        "equal_steps_only": [],
        "opening": [("Question", "why?")],
    }
    text = templates.render("tables.md", tables=[table], **about)
    assert (
        text
        == f"# {study.title}\n\nQuestion: why?\n\nA note.\n\nWords.\n\n- data: none\n\n{MARKDOWN}"
    )


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
\par\footnotesize mean $\pm$ standard deviation over 2 repetitions, our highest in bold
\par\footnotesize paper: Figure 0 of Taleb et al. 2020; Dice of nothing
\par\footnotesize Nobody knows.
\end{table}
"""


def test_latex_word_for_word(study, found):
    table = tables.scores_by_label(study, found)
    assert templates.render("tables.tex", tables=[table], notes=[]) == LATEX
    two = templates.render("tables.tex", tables=[table, table], notes=["Cut down to 5 %."])
    whole = LATEX.replace(r"\end{table}", "\\par\\footnotesize Cut down to 5 \\%.\n\\end{table}")
    assert two == f"{whole}\n{whole}"


@pytest.fixture
def two_scores(study, monkeypatch):
    """The study with two columns, the second also published."""
    rows = {"scratch": {"WT": ".88"}, "Somebody et al.": {"WT": ".9"}}
    table = dataclasses.replace(PUBLISHED, columns=("WT",), rows=rows)
    monkeypatch.setitem(TABLES, "two scores", table)
    columns = Column("dice", "mean"), Column("WT", "WT")
    return dataclasses.replace(study, columns=columns, published_scores="two scores")


def test_scores_beside_one_another(two_scores, record, found):
    table = tables.scores_by_column(two_scores, found)
    assert table.header == ("method", "dice", "paper", "WT", "paper")
    assert table.rows == (
        ("scratch", "0.715 ± 0.007", "–", "0.615 ± 0.007", "0.880"),
        ("rpl3d", "0.715 ± 0.007", "–", "0.615 ± 0.007", "–"),
        ("scratch-double", "0.718 ± 0.007", "–", "0.618 ± 0.007", "–"),
        ("Somebody et al.", "–", "–", "–", "0.900"),
    )


def test_scores_as_the_challenge_has_them_are_beside_the_same_of_the_paper(two_scores, record):
    columns = *two_scores.columns, Column("WT (BraTS)", "WT as in BraTS")
    study = dataclasses.replace(two_scores, columns=columns)
    rows = [row | {"WT (BraTS)": "0.5"} for row in rows_of(record)]
    table = tables.scores_by_column(study, findings.find(study, record_of(rows), 2, draws=200))
    assert table.header[-2:] == ("WT (BraTS)", "paper")
    assert table.rows[0][-1] == "0.880"


def test_scores_of_all_labels_are_not_set_beside_ours_of_fewer(two_scores, record):
    few = record_of([row for row in rows_of(record) if row["labels"] == "5%"])
    facts = findings.find(two_scores, few, 2, draws=200)
    table = tables.scores_by_column(two_scores, facts)
    assert table.title == "Scores with 5% labels"
    assert table.header == ("method", "dice", "WT")


def test_fewer_repetitions_than_others_are_counted(study, record):
    rows = [row for row in rows_of(record) if row["cell"] != "rpl3d-5%-2"]
    facts = findings.find(study, record_of(rows), 2, draws=200)
    table = tables.scores_by_label(study, facts)
    assert [row[1] for row in table.rows] == ["0.515 ± 0.007", "0.610 (1)", "–", "–"]
    said = "over 2 repetitions (fewer where in brackets; only means over as many compare)"
    assert said in table.notes[0]
    # The highest, but of one repetition alone: it may be that one's label subset.
    assert (1, 1) not in table.bold


def test_an_undefined_score_is_left_out(study, record):
    rows = [row | {"dice": "" if row["labels"] == "5%" else row["dice"]} for row in rows_of(record)]
    facts = findings.find(study, with_rows(record, rows), 2, draws=200)
    assert {row[1] for row in tables.scores_by_label(study, facts).rows} == {"–"}
    figures.data_efficiency(study, facts)


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
        for row in rows_of(record)
        if row["cell"] != "scratch-double-all-2"
    ]
    table = tables.plateau(study, findings.find(study, record_of(rows), 2, draws=200))
    verdict = "not shown to be at its plateau in dice"
    row = ("scratch", "all", "+0.0030", "+0.2900", "–", "1", verdict)
    assert table.rows == (row,)  # a single repetition has no interval


def test_gains_without_twice_the_steps_have_no_table(study, found):
    assert found.beyond == {}
    assert tables.beyond(found).rows == ()


def test_an_undefined_score_has_no_plateau(study, record):
    rows = [row | {"dice": ""} if row["labels"] == "all" else row for row in rows_of(record)]
    cases = record.cases.copy()
    cases.loc[:, cases.columns.str.contains("-all-")] = "nan"
    facts = findings.find(study, with_rows(record, rows)._replace(cases=cases), 2, draws=200)
    assert tables.plateau(study, facts).rows == (("scratch", "all", "–", "–", "2", "–"),)


def test_the_convergence_of_the_paper():
    table = tables.published_convergence(TABLES["pancreas convergence"])
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
    assert tables.costs(found).rows[0] == ("scratch", "6, 6", "30, 30", "60, 60", "1.0")
