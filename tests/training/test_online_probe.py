"""The online probe, in runs of seconds and against plain computations."""

import dataclasses
import importlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Ridge

from ssl3d import bounds
from ssl3d.data import store
from ssl3d.errors import UserError
from ssl3d.models import encoders, export
from ssl3d.models.readouts import THRESHOLDS, VoxelSample
from ssl3d.training import loop, online_probe, problem, run_log
from tests.support.shipped_configs import PROXY_CONFIGS

SHORT = {"steps": 4, "validate_every": 4, "checkpoint_every": 1, "optimizer__ema": 0.5}


def probes(workdir):
    """The probe's lines without their times."""
    lines = [line for line in run_log.read_metrics(workdir) if line["split"] == "probe"]
    return [{key: line[key] for key in line if key != "seconds"} for line in lines]


def weights(workdir):
    return (workdir / "encoder" / "encoder.safetensors").read_bytes()


def opened(config):
    given, _ = problem.open_problem(config)
    return given


def untrained(config, channels, seed=0):
    shape = (1, *(16,) * config.rank, channels)
    return encoders.build(config.encoder).init(jax.random.key(seed), jnp.zeros(shape, np.float32))


# In a run.


@pytest.fixture(scope="module")
def config(tiny, pictures):
    return tiny("rpl2d", pictures.path, probe_every=2, **SHORT)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """The folder of a run with a probe."""
    workdir = tmp_path_factory.mktemp("probed")
    assert loop.train(config, workdir)
    return workdir


def test_lines_of_a_probe(whole):
    lines = [line for line in run_log.read_metrics(whole) if line["split"] == "probe"]
    assert [line["step"] for line in lines] == [0, 2, 4]
    for line in lines:
        assert list(line) == ["step", "split", "kappa", "untrained", "intensities", "seconds"]
        for row in ("untrained", "intensities"):
            assert line[row] == lines[0][row]
    assert lines[0]["kappa"] == lines[0]["untrained"]


def test_a_probe_changes_no_weights(config, whole, tmp_path):
    without = config.copy_and_resolve_references()
    without.probe_every = 0
    assert loop.train(without, tmp_path)
    assert probes(tmp_path) == []
    assert weights(tmp_path) == weights(whole)


def test_a_resumed_run_has_the_same_lines(config, whole, tmp_path, capsys):
    assert loop.train(config, tmp_path, stop_at=3)
    assert loop.train(config, tmp_path)
    assert "going on at step 3" in capsys.readouterr().out
    assert probes(tmp_path) == probes(whole)
    assert weights(tmp_path) == weights(whole)
    assert loop.train(config, tmp_path)  # finished: nothing to probe
    assert probes(tmp_path) == probes(whole)


def test_averaged_weights_are_probed(config, whole, pictures):
    _, exported = export.load_encoder(whole)
    probe, note = online_probe.make_probe(opened(config), untrained(config, 3))
    assert note == ""
    assert probes(whole)[-1]["kappa"] == pytest.approx(probe.score(exported), abs=1e-6)


def test_without_labels_there_is_one_line_and_no_probe(tiny, volumes, tmp_path, capsys):
    plain = bare(volumes, tmp_path / "plain")
    overrides = {"steps": 2, "validate_every": 2, "probe_every": 1}
    assert loop.train(tiny("rpl3d", plain.path, **overrides), tmp_path / "run")
    said = [line for line in capsys.readouterr().out.splitlines() if "probe" in line]
    assert len(said) == 1
    assert said[0].startswith(f"no probe: {plain.path} has no labels")
    assert "--config.probe.data=DIR" in said[0]
    assert probes(tmp_path / "run") == []


# The labelled cases.


def bare(dataset, folder):
    """The data set without its labels."""
    shutil.copytree(dataset.path / "images", folder / "images")
    cases = tuple(dataclasses.replace(case, labelled=False, grade=None) for case in dataset.cases)
    copy = dataclasses.replace(dataset, path=folder, cases=cases)
    store.write_manifest(copy)
    return copy


def test_labels_of_another_data_set(tiny, volumes, pictures, tmp_path):
    plain = bare(volumes, tmp_path / "plain")
    config = tiny("rpl3d", plain.path, probe__data=str(volumes.path), probe__cases=3)
    found = online_probe.find_labels(opened(config))
    assert found.dataset.path == volumes.path
    assert [case.id for case in found.fitted] == ["case_00", "case_01", "case_02"]
    assert [case.id for case in found.scored] == ["case_08", "case_09", "case_10"]
    config.probe.data = str(pictures.path)
    with pytest.raises(UserError, match=r"config\.probe\.data=.* 2D images of 3 channels"):
        online_probe.find_labels(opened(config))


def test_grades_of_volumes_are_not_those_of_their_slices(tiny, volumes, tmp_path):
    plain = bare(volumes, tmp_path / "plain")
    cases = tuple(dataclasses.replace(case, grade=1) for case in plain.cases)
    store.write_manifest(dataclasses.replace(plain, cases=cases))
    assert online_probe.find_labels(opened(tiny("rpl2d", plain.path))) is None
    assert online_probe.find_labels(opened(tiny("rpl3d", plain.path))).needs == "grade"


@pytest.mark.parametrize("name", ["rpl3d", "rpl2d"])
def test_windows_of_label_maps(tiny, volumes, name):
    config = tiny(name, volumes.path, probe__cases=2)
    found = online_probe.find_labels(opened(config))
    assert found.needs == "label_map"
    windows = list(online_probe.read_windows(config, found))
    assert len(windows) == 4
    for case, (image, sample) in zip((*found.fitted, *found.scored), windows, strict=True):
        assert image.shape == (24,) * config.rank + (2,)
        label = np.asarray(store.load_label(volumes, case))
        whole = np.asarray(store.load_image(volumes, case), np.float32)
        if config.rank == 2:
            at = label.sum((0, 1)).argmax()  # axial slices
            label, whole = label[:, :, at], whole[:, :, at]
        np.testing.assert_array_equal(image, whole)  # as large as the crop
        np.testing.assert_array_equal(sample.label, label[tuple(sample.voxels.T)])
        assert sample.represents[sample.label == 1].sum() == pytest.approx(label.sum())
    again = list(online_probe.read_windows(config, found))
    for (_, sample), (_, other) in zip(windows, again, strict=True):
        np.testing.assert_array_equal(sample.voxels, other.voxels)


def test_windows_grow_with_the_run(tiny):
    def size(name, argument="phantom", **overrides):
        config = importlib.import_module(f"ssl3d.configs.{name}").get_config(argument)
        config.update_from_flattened_dict(overrides)
        return online_probe.window_size(config)

    assert size("rpl3d") == (24, 24, 24)
    assert size("rpl3d", "brats") == (128, 128, 128)
    assert size("rpl3d", "brats", steps=10) == (24, 24, 24)
    assert size("rpl2d") == (64, 64)
    # Six levels: the deepest norm needs a larger window.
    config = importlib.import_module("ssl3d.configs.rotation2d").get_config()
    window = online_probe.window_size(config)
    assert encoders.smallest_norm(config.encoder, window) >= 8


# The scores.


def samples(rng, count, size=200, classes=3):
    """Windows whose voxels represent different numbers of voxels."""
    found = []
    for _ in range(count):
        label = rng.integers(0, classes, size)
        found.append(VoxelSample(np.zeros((size, 3), int), label, rng.integers(1, 4, size) * 1.0))
    return found


def test_dice_is_that_of_a_ridge_regression(monkeypatch):
    """Against scikit-learn, with each voxel repeated as often as the voxels it represents."""
    rng = np.random.default_rng(0)
    labels = samples(rng, 5)
    x = [np.eye(3)[s.label] @ rng.normal(size=(3, 6)) + rng.normal(size=(200, 6)) for s in labels]
    times = [sample.represents.astype(int) for sample in labels]
    repeated = [np.repeat(part, n, 0) for part, n in zip(x, times, strict=True)]
    truth = [np.repeat(s.label, n) for s, n in zip(labels, times, strict=True)]
    fit_x, fit_y = np.concatenate(repeated[:3]), np.concatenate(truth[:3])
    counts = np.bincount(fit_y)
    class_weights = np.sqrt(counts.max() / counts)[fit_y]
    mean = np.average(fit_x, 0, class_weights)
    scale = np.sqrt(np.average((fit_x - mean) ** 2, 0, class_weights))
    ridge = Ridge(alpha=online_probe._PENALTY * class_weights.sum())
    ridge.fit((fit_x - mean) / scale, np.eye(3)[fit_y], class_weights)

    def dice(threshold, part):
        values = []
        for own_x, own in zip(repeated[part], truth[part], strict=True):
            scores = ridge.predict((own_x - mean) / scale) + np.array([threshold, 0, 0])
            answer = scores.argmax(-1)
            values += [
                2 * ((answer == k) & (own == k)).sum() / ((answer == k).sum() + (own == k).sum())
                for k in (1, 2)
            ]
        return np.mean(values)

    best = max(THRESHOLDS, key=lambda threshold: dice(threshold, slice(3)))
    found = online_probe.score_voxels(x, labels, 3, 3)
    assert found == pytest.approx(dice(best, slice(3, None)), abs=1e-9)


def test_features_that_are_not_finite_have_no_score():
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(200, 4)) for _ in range(4)]
    x[3][0, 0] = np.nan
    assert np.isnan(online_probe.score_voxels(x, samples(rng, 4), 2, 3))
    assert np.isnan(online_probe.score_images([row[0] for row in x], [0, 1, 0, 1], 2, 2))


def test_intensities_find_what_is_bright(tiny, volumes):
    """The label of the shared volumes is a threshold on their first channel."""
    config = tiny("rpl3d", volumes.path)
    probe, _ = online_probe.make_probe(opened(config), untrained(config, 2))
    assert probe.metric == "dice"
    assert probe.intensities > 0.8
    other = probe.score(untrained(config, 2, seed=1))
    assert 0 < other < 1
    assert other != probe.untrained == probe.score(untrained(config, 2))


# The config.


@pytest.mark.parametrize(("steps", "expected"), [(3, 1), (200, 50), (1000, 250), (100_000, 5000)])
def test_a_run_is_probed_four_times_or_more_often(tiny, steps, expected):
    config = importlib.import_module("ssl3d.configs.rpl3d").get_config()
    config.steps = steps
    bounds.derive(config)
    assert config.probe_every == expected


def test_only_proxy_tasks_have_a_probe():
    downstream = ("segment3d", "segment2d", "classify3d", "classify2d")
    for name in (*PROXY_CONFIGS, *downstream):
        config = importlib.import_module(f"ssl3d.configs.{name}").get_config()
        assert ("probe_every" in config) == ("probe" in config) == (name in PROXY_CONFIGS)
