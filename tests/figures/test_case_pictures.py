import matplotlib.colors
import numpy as np

from ssl3d.figures import case_pictures, slices


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


def test_classes_have_colours_and_reference_and_prediction_line_styles():
    truth = np.zeros((20, 24, 16), np.uint8)
    truth[4:9, 4:9, 4:9], truth[12:17, 4:9, 4:9] = 1, 2
    prediction = np.roll(truth, 1, axis=1)
    image = np.random.default_rng(0).random((20, 24, 16, 1))
    names = ("background", "liver", "tumour")
    figure = case_pictures.outlines(image, truth, prediction, (1, 1, 2), "case", names)
    assert [axes.get_title() for axes in figure.axes] == ["axial", "coronal", "sagittal"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        *names[1:],
        "reference",
        "prediction",
    ]
    axial = figure.axes[0]
    colours = {matplotlib.colors.to_hex(c.get_edgecolor()[0]) for c in axial.collections}
    assert colours == {slices.colour_of(1), slices.colour_of(2)}
    styles = [c.get_linestyle()[0][1] for c in axial.collections]
    assert styles[:2] == [None, None]  # the truth is solid
    assert all(styles[2:])


def test_a_preview_names_only_the_classes_that_it_shows():
    label = np.zeros((12, 12, 12), np.uint8)
    label[3:6, 3:6, 3:6] = 2
    image = np.random.default_rng(0).random((12, 12, 12, 1))
    figure = case_pictures.preview(image, label, ("none", "a", "b"), (1, 1, 1), "case")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["b"]
    empty = case_pictures.preview(image, label * 0, ("none", "a", "b"), (1, 1, 1), "case")
    assert not empty.legends
