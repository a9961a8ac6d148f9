import pytest

from ssl3d.experiments.analysis.published import TABLES
from ssl3d.experiments.engine.study import METHODS


@pytest.mark.parametrize(
    ("name", "gaps"),
    [
        ("brats figure", 0),
        ("brats table", 0),
        ("pancreas figure", 0),
        ("retina figure", 0),
        ("pancreas convergence", 2),
        ("retina convergence", 10),
    ],
)
def test_published_numbers_are_whole(name, gaps):
    published = TABLES[name]
    for entry, numbers in published.rows.items():
        assert set(numbers) <= set(published.columns)
        gaps -= len(published.columns) - len(numbers)
        assert all(0 < float(text.removeprefix("~")) < 1 for text in numbers.values())
        assert entry in METHODS or " " in entry
    assert gaps == 0
    assert published.caveats
    assert published.source
    assert published.score


def test_published_numbers_pretrained_as_ours_are_beside_ours():
    own, other = (TABLES["retina figure"].like_ours(elsewhere) for elsewhere in (False, True))
    assert own.rows["cpc2d"]["5%"] == "0.187"
    assert own.rows["cpc2d on UK Biobank"]["5%"] == "~0.245"
    assert other.rows["cpc2d"]["5%"] == "~0.245"
    assert other.rows["cpc2d on Kaggle"]["5%"] == "0.187"
    assert own.rows["scratch"]["5%"] == other.rows["scratch"]["5%"] == "0.011"
    assert (
        TABLES["brats figure"].like_ours(True)
        == TABLES["brats figure"].like_ours(False)
        == TABLES["brats figure"]
    )


def test_published_numbers_as_printed():
    assert TABLES["brats table"].rows["rpl3d"]["TC"] == "0.8612"
    assert TABLES["brats table"].rows["scratch"]["ET"] == "0.7638"
    assert TABLES["pancreas figure"].shown("cpc3d", "10%") == "≈ 0.470"
    assert TABLES["retina figure"].shown("scratch", "5%") == "0.011"
    assert TABLES["brats figure"].shown("rpl3d", "5%") == "–"
    assert TABLES["brats figure"].shown("scratch-long", "all") == "–"


def test_published_tables_have_the_paper_s_order():
    assert TABLES["brats table"].columns == ("ET", "WT", "TC")
    assert TABLES["pancreas figure"].columns == ("5%", "10%", "25%", "50%", "all")
    assert list(TABLES["brats table"].rows)[:3] == ["scratch", "supervised", "cpc2d"]
