import itertools
import math
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl3d.downstream import sliding_window
from ssl3d.errors import UserError

overlaps = st.sampled_from([0, 0.25, 0.5, 0.6, 0.8])


@st.composite
def problems(draw):
    """An image [*S, C], a window, an overlap, a batch and the axes to mirror."""
    rank = draw(st.sampled_from([2, 3]))
    side = {2: 20, 3: 8}[rank]
    shape = draw(st.tuples(*[st.integers(1, side)] * rank))
    window = draw(st.tuples(*[st.integers(1, 9)] * rank))
    mirror = draw(st.lists(st.sampled_from(range(rank)), unique=True, max_size=rank))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    image = rng.uniform(0, 1, (*shape, 2)).astype(np.float16)
    return image, window, draw(overlaps), draw(st.integers(1, 5)), tuple(mirror)


@given(st.integers(1, 200), st.integers(1, 50), st.floats(0, 0.99))
def test_windows_cover_the_image_evenly_and_end_with_it(side, window, overlap):
    starts = [start for (start,) in sliding_window.window_starts((side,), (window,), overlap)]
    assert starts[0] == 0
    assert starts[-1] == max(side - window, 0)
    if len(starts) > 1:
        steps = np.diff(starts)
        assert steps.min() > 0
        assert np.ptp(steps) <= 1
        assert (window - steps.max() >= overlap * window) or steps.max() == 1


def test_windows_of_several_axes_are_all_combinations():
    starts = sliding_window.window_starts((10, 3, 16), (4, 4, 8), 0.5)
    assert starts == list(itertools.product((0, 2, 4, 6), (0,), (0, 4, 8)))
    assert sliding_window.window_starts((8, 8), (4, 4), 0) == [(0, 0), (0, 4), (4, 0), (4, 4)]


@pytest.mark.parametrize("overlap", [-0.1, 1, 1.5])
def test_an_overlap_that_never_advances_is_refused(overlap):
    with pytest.raises(UserError, match=f"overlap={overlap}: "):
        sliding_window.window_starts((8, 8), (4, 4), overlap)


@pytest.mark.parametrize("window", [(16, 9), (8, 12, 1), (96, 96, 96)])
def test_gaussian_weights_are_separable_and_largest_in_the_middle_above_a_floor(window):
    weights = sliding_window.gaussian(window)
    assert weights.shape == window
    assert weights.dtype == np.float32
    assert weights.min() >= 0.999e-3 * weights.max()
    np.testing.assert_array_equal(weights, np.flip(weights))
    middle = tuple(length // 2 for length in window)
    assert weights[middle] == weights.max()
    for axis, length in enumerate(window):
        line = weights[(*middle[:axis], slice(None), *middle[axis + 1 :])]
        offset = np.arange(length) - (length - 1) / 2
        expected = np.exp(-0.5 * (offset / (length / 8)) ** 2)
        expected = np.maximum(expected / expected.max(), 1e-3)
        np.testing.assert_allclose(line / line.max(), expected, rtol=1e-5)


def voxelwise(windows):
    return np.concatenate([windows, 1 - windows[..., :1] * windows[..., 1:]], axis=-1)


@settings(max_examples=60)
@given(problems())
def test_a_voxelwise_network_gives_what_it_gives_on_the_whole_image(problem):
    image, window, overlap, batch, mirror = problem
    found = sliding_window.predict(voxelwise, image, window, overlap, batch, mirror)
    assert found.dtype == np.float32
    assert found.shape == (*image.shape[:-1], 3)
    # A mean of up to eight mirror images of each of a few windows, in float32.
    np.testing.assert_allclose(found, voxelwise(image.astype(np.float32)), rtol=0, atol=1e-5)


def reflected(side, length):
    """Indices that continue an axis by its mirror image to `length`, and where it begins."""
    begin = max(length - side, 0) // 2
    period = np.arange(max(side, length)) - begin
    period %= 2 * side
    return np.minimum(period, 2 * side - 1 - period), begin


def brute_force(forward, image, window, overlap, mirror):
    """The same by definition, in double precision, on the whole continued image."""
    shape = image.shape[:-1]
    indices, begins = zip(*map(reflected, shape, window), strict=True)
    whole = image[np.ix_(*indices)].astype(np.float32)
    gauss = np.ones(window)
    for axis, length in enumerate(window):
        z = (np.arange(length) - (length - 1) / 2) / (length / 8)
        gauss *= np.exp(-z * z / 2).reshape([-1 if a == axis else 1 for a in range(len(window))])
    gauss = np.maximum(gauss, 1e-3 * gauss.max())
    total, weight = 0, np.zeros((*whole.shape[:-1], 1))
    for start in sliding_window.window_starts(shape, window, overlap):
        box = tuple(slice(a, a + length) for a, length in zip(start, window, strict=True))
        for bits in itertools.product((False, True), repeat=len(mirror)):
            axes = [axis for axis, bit in zip(mirror, bits, strict=True) if bit]
            output = np.flip(forward(np.flip(whole[box], axes)[None])[0], axes)
            if np.isscalar(total):
                total = np.zeros((*whole.shape[:-1], output.shape[-1]))
            total[box] += gauss[..., None] * output
            weight[box] += gauss[..., None]
    cut = tuple(slice(b, b + side) for b, side in zip(begins, shape, strict=True))
    return (total / weight)[cut]


@settings(max_examples=40)
@given(problems())
def test_outputs_that_depend_on_the_place_are_blended_with_gaussian_weights(problem):
    image, window, overlap, batch, mirror = problem
    place = np.random.default_rng(0).uniform(0, 1, (*window, 2)).astype(np.float32)

    def forward(windows):
        """What is next to a voxel counts, and where in the window it is."""
        return place * (windows + np.roll(windows, 1, axis=1))

    found = sliding_window.predict(forward, image, window, overlap, batch, mirror)
    expected = brute_force(forward, image, window, overlap, mirror)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rank", [2, 3])
def test_an_image_smaller_than_the_window_is_continued_by_its_mirror_image(rank):
    image = np.arange(1.0, 3.0**rank + 1).reshape((3,) * rank + (1,)).astype(np.float16)
    seen = []
    sliding_window.predict(lambda x: seen.append(x) or x, image, (10,) * rank, 0.5, 1)
    line = seen[0][(0, *(4,) * (rank - 1))].ravel()
    first = image[(1,) * (rank - 1)].ravel()  # the middle of the image is that of the window
    np.testing.assert_array_equal(line, first[[2, 1, 0, 0, 1, 2, 2, 1, 0, 0]])


def test_a_jitted_network_sees_full_batches_of_one_shape_and_compiles_once():
    image = np.random.default_rng(0).normal(size=(13, 9, 5, 2)).astype(np.float16)
    traced, calls = [], []

    @jax.jit
    def network(windows):
        traced.append(windows.shape)
        return jax.nn.softmax(windows.astype(jnp.bfloat16))

    def forward(windows):
        calls.append((windows.shape, windows.dtype))
        return network(windows)

    found = sliding_window.predict(forward, image, (4, 4, 8), 0.5, 7, mirror=(0, 2))
    starts = sliding_window.window_starts(image.shape[:-1], (4, 4, 8), 0.5)
    assert len(calls) == math.ceil(4 * len(starts) / 7)
    assert 4 * len(starts) % 7  # the last batch is not full
    assert set(calls) == {((7, 4, 4, 8, 2), np.dtype(np.float32))}
    assert len(traced) == 1
    np.testing.assert_allclose(found, jax.nn.softmax(image.astype(np.float32)), atol=0.01)


def test_memory_holds_the_sums_and_few_windows_but_no_copy_of_the_image(tmp_path):
    shape, window = (128, 96, 96), (16, 16, 16)
    image = np.lib.format.open_memmap(tmp_path / "image.npy", "w+", np.float16, (*shape, 1))
    image[...] = np.linspace(0, 1, shape[0])[:, None, None, None]
    image = np.load(tmp_path / "image.npy", mmap_mode="r")
    tracemalloc.start()
    found = sliding_window.predict(lambda windows: windows, image, window, 0.5, 4)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_allclose(found, image, atol=1e-6)
    batch_bytes = 4 * 4 * math.prod(window)
    assert peak < 2 * found.nbytes + 20 * batch_bytes
    assert 20 * batch_bytes < image.size * 4 / 2


def test_the_label_is_the_largest_channel():
    probabilities = np.random.default_rng(0).random((3, 4, 5, 6)).astype(np.float32)
    labels = sliding_window.label_map(probabilities)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, probabilities.argmax(-1))


def test_regions_write_their_class_one_over_the_other():
    whole, core, enhancing = 0, 1, 2
    probabilities = np.zeros((2, 2, 3), np.float32)
    probabilities[0, 1, whole] = 0.6
    probabilities[1, 0, [whole, core]] = 0.7
    probabilities[1, 1] = 0.8
    probabilities[0, 0] = 0.5
    labels = sliding_window.label_map(probabilities, sigmoid_regions=(2, 1, 3))
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, [[0, 2], [1, 3]])
    np.testing.assert_array_equal(probabilities[1, 0, enhancing], 0)
