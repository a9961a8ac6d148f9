import numpy as np
import pytest

from ssl3d.data import store
from ssl3d.downstream import predictor
from ssl3d.errors import UserError
from tests.support.evaluating import assert_pictures, run


def test_scores_of_a_classification_by_hand(classified, pictures, capsys):
    rows, summary = run(classified, "--split=train")
    first, last = capsys.readouterr().out.splitlines()
    assert "best model" in first
    assert f"accuracy {summary['scores']['accuracy']['value']:.3f}" in last
    cases = pictures.split("train")
    trained = predictor.load(classified)
    images = [np.asarray(store.load_image(pictures, case))[4:20, 4:20] for case in cases]
    probabilities = np.asarray(trained.forward(np.stack(images).astype(np.float32)))
    for row, case, probability in zip(rows, cases, probabilities, strict=True):
        written = [float(row[f"probability {name}"]) for name in pictures.classes]
        np.testing.assert_allclose(written, probability, atol=1e-6)
        assert (row["id"], row["subject"], int(row["grade"])) == (case.id, case.subject, case.grade)
        assert int(row["predicted"]) == probability.argmax()
    hits = [row["grade"] == row["predicted"] for row in rows]
    accuracy = summary["scores"]["accuracy"]
    assert accuracy["value"] == pytest.approx(np.mean(hits))
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    confusion = np.array(summary["confusion"])
    assert np.trace(confusion) == sum(hits)
    assert confusion.sum(1).tolist() == np.bincount([case.grade for case in cases]).tolist()
    assert set(summary["scores"]) == {"accuracy", "balanced_accuracy", "kappa", "auroc"}
    assert "reference_qw_kappa_kaggle" in summary["reference"]
    assert (summary["cases"], summary["subjects"]) == (8, 7)
    assert_pictures(classified / "evaluation", "confusion.png", "mistakes.png")


def test_a_source_is_of_no_use(classified, scans):
    with pytest.raises(UserError, match="a classification has none"):
        run(classified, f"--source={scans}")
