import pandas as pd
import pytest

from ssl3d.experiments.analysis import figures, findings
from ssl3d.experiments.analysis.templates import sentences
from tests.support.hand_made_study import record_of, result, rows_of


def drawn(axes):
    return [line.get_label() for line in axes.lines if not line.get_label().startswith("_")]


def test_each_method_has_a_panel_with_its_scratch_and_no_check_of_it(study, found):
    for figure in (figures.data_efficiency(study, found), figures.convergence(found)):
        used = [axes for axes in figure.axes if axes.lines]
        assert [drawn(axes) for axes in used] == [["scratch", "rpl3d"]] * len(used)
    assert "scratch-double" in {key.method for key in found.rows}


def test_differences_are_drawn_with_their_intervals(study, found):
    figure = figures.differences(study, found)
    assert [axes.get_title() for axes in figure.axes] == ["5% labels", "all labels"]
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert names == ["rpl3d", "scratch-double"]
    key = findings.Key("rpl3d", "finetune")
    intervals = [
        tuple(line.get_xdata()) for line in figure.axes[0].lines if len(line.get_xdata()) > 1
    ]
    assert found.comparisons[key, "5%"].interval in intervals


def test_one_amount_of_labels_shows_every_repetition(study, record):
    few = record_of([row for row in rows_of(record) if row["labels"] == "5%"])
    figure = figures.data_efficiency(study, findings.find(study, few, 2, draws=200))
    (axes,) = figure.axes
    points = [len(line.get_xdata()) for line in axes.lines if line.get_marker() == "o"]
    assert points == [2, 2]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["scratch", "rpl3d"]


def test_figures_without_curves_or_a_single_repetition(study, tmp_path):
    rows = [result("scratch", "5%", 1, 0.5), result("rpl3d", "5%", 1, 0.6, mode="finetune")]
    full = record_of(rows)
    facts = findings.find(study, full, 2, draws=200)
    assert len(figures.write(tmp_path / "a", study, facts)) == 3
    facts = findings.find(study, full._replace(curves=pd.DataFrame()), 2, draws=200)
    assert len(figures.write(tmp_path / "b", study, facts)) == 2


@pytest.fixture(scope="module")
def of_arms(study):
    """The study with both amounts of labels in each of two arms."""
    rows = [
        result(method, amount, number, score + number / 100, mode=mode, arm=arm)
        | {"cell": f"{method}-{amount}-{arm}-{number}"}
        for method, mode in (("scratch", "random"), ("rpl3d", "finetune"))
        for arm, score in (("rate 0.002", 0.5), ("rate 0.005", 0.6))
        for amount in ("5%", "all")
        for number in (1, 2)
    ]
    return findings.find(study, record_of(rows), 2, draws=200)


def test_lines_join_the_amounts_of_labels_of_one_arm(study, of_arms):
    figure = figures.data_efficiency(study, of_arms)
    (panel,) = [axes for axes in figure.axes if axes.lines]
    amounts = [text.get_text() for text in panel.get_xticklabels()]
    joined = [[amounts[i] for i in line.get_xdata()] for line in panel.lines]
    each = [["5%, rate 0.002", "all, rate 0.002"], ["5%, rate 0.005", "all, rate 0.005"]]
    assert joined == each + each  # of scratch and of the method


def test_words_tell_the_arm_from_the_labels(study, of_arms):
    titles = [axes.get_title() for axes in figures.differences(study, of_arms).axes]
    assert titles[0] == "5% labels (rate 0.002)"
    assert sentences("summary", of_arms)[0].startswith("With 5% labels (rate 0.002) no gain")
