import pytest

from experiments.analysis.published import (
    BRATS_FIGURE,
    BRATS_TABLE,
    PANCREAS_CONVERGENCE,
    PANCREAS_FIGURE,
    RETINA_CONVERGENCE,
    RETINA_FIGURE,
)
from experiments.engine.study import METHODS


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
    for name, numbers in published.rows.items():
        assert set(numbers) <= set(published.columns)
        gaps -= len(published.columns) - len(numbers)
        assert all(0 < float(text.removeprefix("~")) < 1 for text in numbers.values())
        assert name in METHODS or " " in name
    assert gaps == 0
    assert published.caveats
    assert published.source
    assert published.score


def test_published_numbers_pretrained_as_ours_are_beside_ours():
    own, other = (RETINA_FIGURE.like_ours(elsewhere) for elsewhere in (False, True))
    assert own.rows["cpc2d"]["5%"] == "0.187"
    assert own.rows["cpc2d on UK Biobank"]["5%"] == "~0.245"
    assert other.rows["cpc2d"]["5%"] == "~0.245"
    assert other.rows["cpc2d on Kaggle"]["5%"] == "0.187"
    assert own.rows["scratch"]["5%"] == other.rows["scratch"]["5%"] == "0.011"
    assert BRATS_FIGURE.like_ours(True) == BRATS_FIGURE.like_ours(False) == BRATS_FIGURE


def test_published_numbers_as_printed():
    assert BRATS_TABLE.rows["rpl3d"]["TC"] == "0.8612"
    assert BRATS_TABLE.rows["scratch"]["ET"] == "0.7638"
    assert PANCREAS_FIGURE.shown("cpc3d", "10%") == "≈ 0.470"
    assert RETINA_FIGURE.shown("scratch", "5%") == "0.011"
    assert BRATS_FIGURE.shown("rpl3d", "5%") == "–"
    assert BRATS_FIGURE.shown("scratch-long", "all") == "–"


def test_published_tables_have_the_paper_s_order():
    assert BRATS_TABLE.columns == ("ET", "WT", "TC")
    assert PANCREAS_FIGURE.columns == ("5%", "10%", "25%", "50%", "all")
    assert list(BRATS_TABLE.rows)[:3] == ["scratch", "supervised", "cpc2d"]
