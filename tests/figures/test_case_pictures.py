import numpy as np

from ssl3d.figures import case_pictures


def test_outlines_of_pictures_and_of_classes_at_the_edge(tmp_path):
    rng = np.random.default_rng(0)
    truth = np.zeros((20, 30), np.uint8)
    truth[:6, :6], truth[10:15, 10:20] = 1, 2
    figure = case_pictures.outlines(rng.random((20, 30, 3)), truth, truth * 0, (1.0, 1.0), "case")
    (axes,) = figure.axes
    assert axes.get_xlim() == (-0.5, 29.5)
    assert len(axes.collections) == 2  # the truth's classes; of the prediction there is none
    for contours, corners in zip(axes.collections, ([0, 0, 5, 5], [10, 10, 19, 14]), strict=True):
        (path,) = contours.get_paths()
        low, high = path.vertices.min(0), path.vertices.max(0)
        np.testing.assert_allclose([*low, *high], np.add(corners, [-0.5, -0.5, 0.5, 0.5]))


def test_worst_mistakes_are_the_farthest_then_the_surest():
    def row(name, grade, predicted, probability):
        return {"id": name, "grade": grade, "predicted": predicted, "probability": probability}

    rows = [
        row("right", 0, 0, [0.8, 0.1, 0.1]),
        row("near", 0, 1, [0.0, 1.0, 0.0]),
        row("far", 0, 2, [0.4, 0.0, 0.6]),
        row("far and sure", 2, 0, [0.9, 0.0, 0.1]),
    ]
    worst = case_pictures.worst_mistakes(rows)
    assert [row["id"] for row in worst] == ["far and sure", "far", "near"]
