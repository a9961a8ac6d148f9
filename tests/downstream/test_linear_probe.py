import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from ssl3d import probe, tasks
from ssl3d.data import store
from ssl3d.downstream import voxel_features
from ssl3d.downstream.voxel_features import NormalEquations
from ssl3d.errors import UserError
from ssl3d.models import encoders, export, heads
from ssl3d.tasks.segmentation import OUTSIDE
from ssl3d.training import transfer
from ssl3d.training.cases import choose_cases, labels_of

ENCODER = {"kind": "resunet", "width": 4, "depth": 3, "norm": "group"}


def write_encoder(folder, rank, channels, seed=5):
    encoder = encoders.build(ENCODER)
    variables = jax.jit(encoder.init)(jax.random.key(seed), jnp.zeros((1, *(16,) * rank, channels)))
    export.save_encoder(
        folder / "encoder",
        jax.device_get(variables),
        {"encoder": ENCODER, "rank": rank, "channels": channels},
    )
    return folder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Rank -> the folder of an encoder for the shared data set of that rank."""
    folder = tmp_path_factory.mktemp("pretrained")
    return {
        2: write_encoder(folder / "2d", 2, 3),
        3: write_encoder(folder / "3d", 3, 2),
        "slices": write_encoder(folder / "slices", 2, 2),
    }


def modified(dataset, folder, change, label=None):
    """A copy of the data set in which every case is `change(case)` and has the label `label(case)`.

    Without `label` the label maps are the same.
    """
    shutil.copytree(dataset.path, folder)
    cases = tuple(change(case) for case in dataset.cases)
    copy = dataclasses.replace(dataset, path=folder, cases=cases)
    for case in cases:
        if label:
            store.write_arrays(folder, case.id, store.load_image(dataset, case), label(case))
    store.write_manifest(copy)
    return copy


# The closed form.


def examples(seed, size=60, features=7, targets=3):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(size, features)) @ rng.normal(size=(features, features)) + 3
    x *= 10.0 ** rng.uniform(-2, 2, features)
    y = np.eye(targets)[rng.integers(0, targets, size)]
    return x, y, rng.uniform(0, 2, size)


def solve(x, y, weights, penalties=voxel_features.PENALTIES):
    equations = NormalEquations(x.shape[1], y.shape[1])
    equations.add(x, y, weights)
    return equations.solve(penalties)


@given(
    seed=st.integers(0, 1000),
    size=st.integers(5, 80),
    features=st.integers(1, 20),
    targets=st.integers(2, 4),
)
@settings(max_examples=30)
def test_every_penalty_is_scikit_learns_ridge(seed, size, features, targets):
    x, y, weights = examples(seed, size, features, targets)
    scaler = StandardScaler().fit(x, sample_weight=weights)
    readouts = solve(x, y, weights)
    assert [readout.penalty for readout in readouts] == list(voxel_features.PENALTIES)
    for readout in readouts:
        ridge = Ridge(alpha=readout.penalty * weights.sum(), solver="svd")
        ridge.fit(scaler.transform(x), y, sample_weight=weights)
        np.testing.assert_allclose(readout(x), ridge.predict(scaler.transform(x)), atol=1e-5)


def test_without_a_penalty_it_is_least_squares():
    x, y, _ = examples(0)
    (readout,) = solve(x, y, np.ones(len(x)), (0.0,))
    solution, *_ = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y)
    np.testing.assert_allclose(readout.coefficients, solution[:-1], atol=1e-8)
    np.testing.assert_allclose(readout.intercept, solution[-1], atol=1e-8)


@given(cuts=st.lists(st.integers(0, 60), max_size=5))
def test_case_by_case_is_all_at_once(cuts):
    x, y, weights = examples(1)
    equations = NormalEquations(x.shape[1], y.shape[1])
    for part in np.split(np.arange(len(x)), sorted(cuts)):
        equations.add(x[part], y[part], weights[part])
    for one, other in zip(equations.solve(), solve(x, y, weights), strict=True):
        np.testing.assert_allclose(one.coefficients, other.coefficients, rtol=1e-6, atol=1e-9)


def test_a_weight_is_a_number_of_repetitions():
    x, y, _ = examples(2)
    times = np.random.default_rng(0).integers(0, 4, len(x))
    repeated = solve(np.repeat(x, times, 0), np.repeat(y, times, 0), np.ones(times.sum()))
    for one, other in zip(solve(x, y, times), repeated, strict=True):
        np.testing.assert_allclose(one(x), other(x), atol=1e-8)


def test_features_that_never_change_or_are_twice_the_same():
    x, y, weights = examples(3)
    constant = np.full((len(x), 1), 1e4 + 0.1)
    for plain, more in zip(
        solve(x, y, weights), solve(np.c_[x, constant], y, weights), strict=True
    ):
        np.testing.assert_array_equal(more.coefficients[-1], 0)
        np.testing.assert_allclose(more(np.c_[x, constant]), plain(x), atol=1e-6)
    for readout in solve(np.c_[x, x], y, weights):
        np.testing.assert_allclose(*np.split(readout.coefficients, 2), rtol=1e-4, atol=1e-6)


def test_features_that_are_not_finite_are_refused():
    x, y, weights = examples(4)
    x[3, 1] = np.inf
    with pytest.raises(UserError, match="not finite"):
        solve(x, y, weights)


# Voxels.


def random_levels(shape, channels=(2, 3, 4), seed=0):
    rng = np.random.default_rng(seed)
    return tuple(
        jnp.asarray(rng.normal(size=(2, *(-(-side // 2**i) for side in shape), width)), jnp.float32)
        for i, width in enumerate(channels)
    )


@pytest.mark.parametrize("shape", [(8, 12), (7, 13), (5, 6, 9)])
def test_features_are_interpolated_linearly(shape):
    """Against SciPy; and the readout of interpolated features is the interpolated readout."""
    levels = random_levels(shape)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, len(shape))
    features = np.asarray(voxel_features.features_at(levels, np.stack([grid, grid])))
    begin = 0
    for i, level in enumerate(levels):
        places = ((grid + 0.5) / 2**i - 0.5).T
        for channel in range(level.shape[-1]):
            for row in range(2):
                wanted = ndimage.map_coordinates(
                    np.asarray(level[row, ..., channel]), places, order=1, mode="nearest"
                )
                np.testing.assert_allclose(features[row, :, begin + channel], wanted, atol=1e-5)
        begin += level.shape[-1]
    rng = np.random.default_rng(1)
    coefficients, intercept = rng.normal(size=(begin, 3)), rng.normal(size=3)
    scores = voxel_features.scores_of(levels, jnp.asarray(coefficients), jnp.asarray(intercept))
    assert scores.shape == (2, *shape, 3)
    wanted = (features @ coefficients + intercept).reshape(scores.shape)
    np.testing.assert_allclose(scores, wanted, atol=1e-4)


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


@given(seed=st.integers(0, 1000), most=st.integers(4, 400))
def test_drawn_voxels_stand_for_all(seed, most):
    rng = np.random.default_rng(seed)
    shape = (6, 7, 8)
    label = rng.choice([0, 1, 2, OUTSIDE], shape, p=rng.dirichlet((9, 1, 0.3, 2))).astype(np.uint8)
    if (label == OUTSIDE).all():
        return
    voxels, stands_for = voxel_features.draw(rng, label, most)
    assert voxels.shape == (most, 3)
    used = stands_for > 0
    assert used.sum() == min(most, (label != OUTSIDE).sum())
    assert len(np.unique(voxels[used], axis=0)) == used.sum()
    drawn = label[tuple(voxels[used].T)]
    for index in np.unique(label[label != OUTSIDE]):
        assert stands_for[used][drawn == index].sum() == pytest.approx((label == index).sum())


def test_rare_classes_count_more_but_not_as_much():
    weights = voxel_features.class_weights(np.array([10000, 100, 0]))
    np.testing.assert_allclose(weights, [1, 10, 0])


def test_all_thresholds_at_once():
    rng = np.random.default_rng(0)
    scores, label = rng.normal(0.3, 0.4, (500, 4)), rng.integers(0, 4, 500)
    thresholds = np.linspace(-1, 1, 21)
    right, answered = voxel_features.foreground_counts(scores, label, thresholds)
    for number, threshold in enumerate(thresholds):
        answer = (scores + np.array([threshold, 0, 0, 0])).argmax(-1)
        for index in (1, 2, 3):
            assert answered[number, index - 1] == (answer == index).sum()
            assert right[number, index - 1] == ((answer == index) & (label == index)).sum()


def prepare(config, dataset):
    """What `probe.probe` makes of a config: itself with the encoder's settings, and encoders."""
    config = config.copy_and_resolve_references()
    transfer.adopt_architecture(config, len(dataset.modalities))
    training, _ = choose_cases(config, dataset)
    task = tasks.build(config, labels_of(dataset, training))
    return config, probe.build_encoders(config, dataset, task)


def test_penalty_and_threshold_are_the_best_of_validation(tiny, volumes, pretrained):
    """Against trying all of them on whole label maps."""
    config, encodes = prepare(
        tiny("segment3d", volumes.path, init__encoder=str(pretrained[3])), volumes
    )
    encode = encodes["pretrained encoder"]
    readouts = voxel_features.fit_voxels(encode, config, volumes, volumes.split("train"))
    validation = volumes.split("val")
    chosen = voxel_features.choose_voxels(encode, readouts, config, volumes, validation)
    dice = np.zeros((len(readouts), len(voxel_features.THRESHOLDS)))
    for case in validation:
        levels = encode(np.asarray(store.load_image(volumes, case), np.float32)[None])
        truth = np.asarray(store.load_label(volumes, case)) == 1
        for row, readout in enumerate(readouts):
            scores = np.asarray(voxel_features.scores_of(levels, *readout.on_device()))[0]
            for column, threshold in enumerate(voxel_features.THRESHOLDS):
                answer = scores[..., 1] - scores[..., 0] > threshold
                dice[row, column] += 2 * (answer & truth).sum() / (answer.sum() + truth.sum())
    dice /= len(validation)
    assert chosen[2] == pytest.approx(dice.max())
    row, column = np.unravel_index(dice.argmax(), dice.shape)
    assert (chosen[0].penalty, chosen[1]) == (
        readouts[row].penalty,
        voxel_features.THRESHOLDS[column],
    )


# The whole probe.


def test_what_is_linear_in_the_features_of_voxels_is_found(tiny, volumes, pretrained, tmp_path):
    module, variables = export.load_encoder(pretrained[3])
    coefficients = jnp.asarray(np.random.default_rng(3).normal(size=(4 + 8 + 16, 1)))
    coefficients /= jnp.linalg.norm(coefficients)

    def score(case):
        image = np.asarray(store.load_image(volumes, case), np.float32)[None]
        levels = module.apply(variables, image).levels
        return np.asarray(voxel_features.scores_of(levels, coefficients, jnp.zeros(1)))[0, ..., 0]

    limit = np.quantile([score(case) for case in volumes.cases], 0.8)
    dataset = modified(
        volumes, tmp_path / "data", lambda case: case, lambda case: score(case) > limit
    )
    config = tiny("segment3d", dataset.path, init__encoder=str(pretrained[3]))
    rows = {row["row"]: row for row in probe.probe(config, "test")["rows"]}
    dice = {name: row["scores"]["mean foreground Dice"]["value"] for name, row in rows.items()}
    # Least squares answers a sum above a limit nearly, but not exactly.
    assert dice["pretrained encoder"] > 0.9
    assert dice["untrained encoder"] < 0.8
    assert dice["raw intensities"] < 0.8
    assert rows["pretrained encoder"]["features"] == 28
    assert rows["raw intensities"]["features"] == 2


def test_what_is_linear_in_the_pooled_features_is_found(tiny, pretrained, tmp_path, make_dataset):
    splits = {"train": 200, "val": 40, "test": 40}
    pictures = make_dataset(tmp_path / "plain", 2, 3, splits=splits, side=16)
    module, variables = export.load_encoder(pretrained[2])
    images = np.stack([store.load_image(pictures, case) for case in pictures.cases])
    features = module.apply(variables, images.astype(np.float32))
    pooled = np.concatenate([heads.pooled(features, how) for how in ("mean", "max")], axis=-1)
    pooled = (pooled - pooled.mean(0)) / (pooled.std(0) + 1e-3)
    score = pooled @ np.random.default_rng(0).normal(size=pooled.shape[1])
    grades = dict(
        zip((case.id for case in pictures.cases), (score > np.median(score)) * 1, strict=True)
    )
    dataset = modified(
        pictures,
        tmp_path / "data",
        lambda case: dataclasses.replace(case, grade=int(grades[case.id])),
    )
    config = tiny("classify2d", dataset.path, init__encoder=str(pretrained[2]), data__crop=(16, 16))
    document = probe.probe(config, "test")
    rows = {row["row"]: row for row in document["rows"]}
    areas = {name: row["scores"]["AUROC"]["value"] for name, row in rows.items()}
    assert areas["pretrained encoder"] > 0.9
    assert areas["untrained encoder"] < 0.8
    assert areas["majority class"] == 0.5
    assert rows["pretrained encoder"]["features"] == pooled.shape[1]
    assert rows["majority class"]["scores"]["quadratic kappa"]["value"] == 0
    assert [d["row"] for d in document["differences"]] == ["untrained encoder", "majority class"]
    kappa = rows["pretrained encoder"]["scores"]["quadratic kappa"]["value"]
    assert document["differences"][1]["value"] == pytest.approx(kappa)


def without_seconds(document):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in document["rows"]]


def test_rows_are_reproducible_and_the_untrained_one_is_of_the_seed(tiny, pictures, pretrained):
    def run(**overrides):
        config = tiny("classify2d", pictures.path, init__encoder=str(pretrained[2]), **overrides)
        return without_seconds(probe.probe(config, "train"))

    first, again, other = run(), run(), run(seed=1)
    assert first == again
    assert first[0] == other[0]
    assert first[1] != other[1]


def test_the_label_fraction_is_respected(tiny, pictures, pretrained):
    penalties = []
    for fraction in (0.25, 1.0):
        config = tiny(
            "classify2d",
            pictures.path,
            init__encoder=str(pretrained[2]),
            data__label_fraction=fraction,
            data__label_seed=2,
        )
        document = probe.probe(config, "test")
        training, validation = choose_cases(config, pictures)
        assert document["cases"] == {
            "train": [case.id for case in training],
            "validation": [case.id for case in validation],
            "test": [case.id for case in pictures.split("test")],
        }
        penalties.append(without_seconds(document)[0])
    assert penalties[0] != penalties[1]


@pytest.mark.parametrize("name", ["segment2d", "classify3d"])
def test_slices_of_volumes_and_grades_of_volumes(tiny, volumes, pretrained, tmp_path, name):
    dataset = modified(
        volumes,
        tmp_path / "data",
        lambda case: dataclasses.replace(case, grade=case.order % 2),
    )
    encoder = pretrained["slices" if name == "segment2d" else 3]
    config = tiny(name, dataset.path, init__encoder=str(encoder), predict__batch=24)
    document = probe.probe(config, "test")
    for row in document["rows"]:
        assert all(np.isfinite(score["value"]) for score in row["scores"].values())


def test_an_encoder_of_fewer_channels_is_repeated(tiny, pictures, tmp_path):
    folder = write_encoder(tmp_path, 2, 1)
    config = tiny("classify2d", pictures.path, init__encoder=str(folder))
    assert probe.probe(config, "test")["rows"][0]["features"] == 2 * 16


# The command.


@pytest.fixture
def call(call_command):
    return functools.partial(call_command, probe.main)


def test_as_typed(tiny_options, pictures, pretrained, as_typed, tmp_path):
    options = tiny_options("classify2d", pictures.path, init__encoder=str(pretrained[2]))
    file = tmp_path / "new" / "probe.json"
    done = as_typed("ssl3d.probe", *options, "--split=val", f"--output={file}")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert [line[:19].strip() for line in lines[2:5]] == [
        "pretrained encoder",
        "untrained encoder",
        "majority class",
    ]
    assert "quadratic kappa" in lines[-1]
    assert "against untrained encoder" in lines[-1]
    document = json.loads(file.read_text())
    assert document["split"] == "val"
    assert [row["row"] for row in document["rows"]] == [line[:19].strip() for line in lines[2:5]]


def test_help(call):
    status, out, _ = call("--help")
    assert status == 0
    assert "--config.init.encoder=RUN" in out


@pytest.mark.parametrize(
    ("name", "encoder", "options", "message"),
    [
        ("classify2d", 2, ["--split=unlabelled"], "no labelled case in the split unlabelled"),
        ("classify2d", 2, ["--split=tset"], "invalid choice: 'tset'"),
        ("classify2d", 2, ["--output=/dev/null/x/y.json"], "/dev/null/x"),
        ("classify2d", 2, ["--output=."], "is a folder"),
        ("classify2d", 2, ["--config.init.encoder="], "--config.init.encoder=DIR"),
        ("classify2d", 2, ["--config.init.encoder=nowhere"], "nowhere/encoder.json: missing"),
        ("classify2d", 2, ["--config.data.path=nowhere"], "nowhere: no prepared data set"),
        ("classify2d", 2, ["--config.data.label_fraction=0.0"], "label_fraction"),
        ("classify2d", 2, ["--config.init.encode=x"], "nearest is --config.init.encoder"),
        ("classify2d", 3, [], "an encoder of 3D images does not fit a 2D network"),
        ("rotation2d", None, [], "rotation has no labels"),
    ],
)
def test_errors_are_one_line(
    call, tiny_options, pictures, pretrained, name, encoder, options, message
):
    own = {"init__encoder": str(pretrained[encoder])} if encoder else {}
    status, _, err = call(*tiny_options(name, pictures.path, **own), *options)
    assert status == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_data_that_do_not_fit_are_refused(call, tiny_options, volumes, pretrained, tmp_path):
    own = {"init__encoder": str(pretrained["slices"])}
    status, _, err = call(*tiny_options("classify2d", volumes.path, **own))
    assert (status, err.count("\n")) == (2, 1)
    dataset = modified(volumes, tmp_path / "data", lambda case: case)
    for case in dataset.split("val"):
        path = store.label_path(dataset.path, case.id)
        np.save(path, np.zeros_like(np.load(path)))
    own = {"init__encoder": str(pretrained[3])}
    status, _, err = call(*tiny_options("segment3d", dataset.path, **own))
    assert (status, err.count("\n")) == (2, 1)
    assert "no case of the split val has any foreground" in err


def test_scores_that_are_not_defined_are_null(call, tiny_options, volumes, pretrained, tmp_path):
    empty, _ = volumes.split("test")
    dataset = modified(
        volumes,
        tmp_path / "data",
        lambda case: case,
        lambda case: np.asarray(store.load_label(volumes, case)) * (case.id != empty.id),
    )
    file = tmp_path / "probe.json"
    own = {"init__encoder": str(pretrained[3])}
    status, *_ = call(*tiny_options("segment3d", dataset.path, **own), f"--output={file}")
    assert status == 0
    row = json.loads(file.read_text())["rows"][0]
    assert row["dice"][empty.id] is None
    assert row["scores"]["mean foreground Dice"]["low"] is None
    assert 0 <= row["scores"]["mean foreground Dice"]["value"] <= 1
