import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from ssl3d.data.pipeline import OUTSIDE
from ssl3d.errors import UserError
from ssl3d.models import readouts
from ssl3d.models.readouts import NormalEquations

# The closed form.


def examples(seed, size=60, features=7, targets=3):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(size, features)) @ rng.normal(size=(features, features)) + 3
    x *= 10.0 ** rng.uniform(-2, 2, features)
    y = np.eye(targets)[rng.integers(0, targets, size)]
    return x, y, rng.uniform(0, 2, size)


def solve(x, y, weights, penalties=readouts.PENALTIES):
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
    fitted = solve(x, y, weights)
    assert [readout.penalty for readout in fitted] == list(readouts.PENALTIES)
    for readout in fitted:
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
    """Against SciPy, in JAX and in NumPy; the readout of interpolated features is interpolated."""
    levels = random_levels(shape)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, len(shape))
    features = np.asarray(readouts.features_at(levels, np.stack([grid, grid])))
    host = [np.asarray(level) for level in levels]
    parts = readouts.interpolate(host, readouts.corners_of(host, np.stack([grid, grid])))
    np.testing.assert_allclose(np.concatenate(parts, -1), features, atol=1e-6)
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
    scores = readouts.scores_of(levels, jnp.asarray(coefficients), jnp.asarray(intercept))
    assert scores.shape == (2, *shape, 3)
    wanted = (features @ coefficients + intercept).reshape(scores.shape)
    np.testing.assert_allclose(scores, wanted, atol=1e-4)


@given(seed=st.integers(0, 1000), size=st.integers(4, 400))
def test_sampled_voxels_represent_all(seed, size):
    rng = np.random.default_rng(seed)
    shape = (6, 7, 8)
    label = rng.choice([0, 1, 2, OUTSIDE], shape, p=rng.dirichlet((9, 1, 0.3, 2))).astype(np.uint8)
    if (label == OUTSIDE).all():
        return
    voxels, own, represents = readouts.sample_voxels(rng, label, size)
    assert voxels.shape == (size, 3)
    used = represents > 0
    assert used.sum() == min(size, (label != OUTSIDE).sum())
    assert len(np.unique(voxels[used], axis=0)) == used.sum()
    sampled = label[tuple(voxels[used].T)]
    np.testing.assert_array_equal(own, np.where(used, label[tuple(voxels.T)], 0))
    for index in np.unique(label[label != OUTSIDE]):
        assert represents[used][sampled == index].sum() == pytest.approx((label == index).sum())


def test_rare_classes_count_more_but_not_as_much():
    weights = readouts.class_weights(np.array([10000, 100, 0]))
    np.testing.assert_allclose(weights, [1, 10, 0])


def test_all_thresholds_at_once():
    rng = np.random.default_rng(0)
    scores, label = rng.normal(0.3, 0.4, (500, 4)), rng.integers(0, 4, 500)
    thresholds = np.linspace(-1, 1, 21)
    correct, predicted = readouts.foreground_counts(scores, label, thresholds)
    for number, threshold in enumerate(thresholds):
        prediction = (scores + np.array([threshold, 0, 0, 0])).argmax(-1)
        for index in (1, 2, 3):
            assert predicted[number, index - 1] == (prediction == index).sum()
            assert correct[number, index - 1] == ((prediction == index) & (label == index)).sum()
    times = rng.integers(0, 4, 500)
    repeated = readouts.foreground_counts(
        np.repeat(scores, times, 0), np.repeat(label, times), thresholds
    )
    counted = readouts.foreground_counts(scores, label, thresholds, times)
    np.testing.assert_allclose(counted, repeated)


def test_dice_is_averaged_over_present_classes_then_cases():
    correct = np.array([[4, 1], [3, 0], [0, 0]])[:, None]
    predicted = np.array([[4, 4], [9, 5], [7, 0]])[:, None]
    truth = np.array([[4, 4], [3, 0], [0, 0]])
    # The second case lacks a class, the third has no foreground.
    expected = ((1 + 0.25) / 2 + 0.5) / 2
    np.testing.assert_allclose(readouts.mean_foreground_dice(correct, predicted, truth), [expected])
    nothing = readouts.mean_foreground_dice(correct, predicted, np.zeros((3, 2)))
    assert np.isnan(nothing).all()


# Nearest neighbours.


@given(seed=st.integers(0, 1000), known=st.integers(3, 30))
def test_neighbours_are_scikit_learns(seed, known):
    rng = np.random.default_rng(seed)
    x, other, grades = rng.normal(2, 1, (9, 4)), rng.normal(2, 1, (known, 4)), np.arange(known) % 3
    found = readouts.nearest_neighbours(x, other, grades, 3)
    model = KNeighborsClassifier(
        min(5, known), metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07)
    )
    model.fit(other - other.mean(0), grades)
    np.testing.assert_array_equal(found, model.predict(x - other.mean(0)))
