import pandas as pd

from ssl3d.experiments.analysis import figures, findings
from tests.support.hand_made_study import record_of, result


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
    facts = findings.find(study, full._replace(curves=pd.DataFrame()), 2, draws=200)
    assert len(figures.write(tmp_path / "b", study, facts)) == 1
