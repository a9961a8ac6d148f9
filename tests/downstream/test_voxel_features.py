import numpy as np
import pytest

from ssl3d import tasks
from ssl3d.data import store
from ssl3d.data.pipeline import OUTSIDE
from ssl3d.downstream import linear_probe, voxel_features
from ssl3d.models.readouts import THRESHOLDS, scores_of
from ssl3d.training import transfer
from ssl3d.training.cases import choose_cases, labels_of


@pytest.mark.parametrize(
    ("name", "crop"),
    [("segment3d", (24, 24, 24)), ("segment3d", (10, 32, 16)), ("segment2d", (16, 20))],
)
def test_windows_hold_every_voxel_once(tiny, volumes, name, crop):
    config = tiny(name, volumes.path, data__crop=crop)
    cases = volumes.split("val")
    counts = np.zeros((len(cases), 3))
    sums = np.zeros(len(cases))
    for window in list(voxel_features.windows(config, volumes, cases)):
        assert window.image.shape == (*crop, 2)
        assert window.label.shape == crop
        inside = window.label != OUTSIDE
        counts[window.case] += np.bincount(window.label[inside], minlength=3)
        sums[window.case] += window.image[inside].astype(np.float64).sum()
    for number, case in enumerate(cases):
        label = store.load_label(volumes, case)
        np.testing.assert_array_equal(counts[number], np.bincount(label.ravel(), minlength=3))
        image = store.load_image(volumes, case).astype(np.float64)
        assert sums[number] == pytest.approx(image.sum(), abs=1e-6)


def with_encoders(config, dataset):
    """What a probe makes of a config: itself with the encoder's settings, and the encoders."""
    config = config.copy_and_resolve_references()
    transfer.adopt_architecture(config, len(dataset.modalities))
    training, _ = choose_cases(config, dataset)
    task = tasks.build(config, labels_of(dataset, training))
    return config, linear_probe.build_encoders(config, dataset, task)


def test_penalty_and_threshold_are_the_best_of_validation(tiny, volumes, pretrained):
    """Against trying all of them on whole label maps."""
    config, encodes = with_encoders(
        tiny("segment3d", volumes.path, init__encoder=str(pretrained[3])), volumes
    )
    encode = encodes["pretrained encoder"]
    readouts = voxel_features.fit_voxels(encode, config, volumes, volumes.split("train"))
    validation = volumes.split("val")
    chosen = voxel_features.choose_voxels(encode, readouts, config, volumes, validation)
    dice = np.zeros((len(readouts), len(THRESHOLDS)))
    for case in validation:
        levels = encode(np.asarray(store.load_image(volumes, case), np.float32)[None])
        truth = np.asarray(store.load_label(volumes, case)) == 1
        for row, readout in enumerate(readouts):
            scores = np.asarray(scores_of(levels, *readout.on_device()))[0]
            for column, threshold in enumerate(THRESHOLDS):
                prediction = scores[..., 1] - scores[..., 0] > threshold
                dice[row, column] += (
                    2 * (prediction & truth).sum() / (prediction.sum() + truth.sum())
                )
    dice /= len(validation)
    assert chosen[2] == pytest.approx(dice.max())
    row, column = np.unravel_index(dice.argmax(), dice.shape)
    assert (chosen[0].penalty, chosen[1]) == (
        readouts[row].penalty,
        THRESHOLDS[column],
    )
