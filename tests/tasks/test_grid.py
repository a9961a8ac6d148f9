import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ssl3d.data import pipeline
from ssl3d.data.pipeline import Example, Pieces
from ssl3d.errors import UserError
from ssl3d.tasks import grid as grids


@st.composite
def patch_grids(draw):
    """A grid with its crop: any rank, sides, jitter and overlap that leave patches of 2 voxels."""
    rank, per_side = draw(st.integers(2, 3)), draw(st.integers(2, 5))
    size = tuple(draw(st.integers(2 * per_side, 20)) for _ in range(rank))
    jitter, overlap = draw(st.integers(0, 3)), draw(st.integers(0, 6))
    strides = [(side - overlap) // per_side for side in size]
    assume(min(strides) >= 1 and min(strides) + overlap - jitter >= 2)
    return size, grids.patch_grid(size, per_side, jitter, overlap)


@pytest.mark.parametrize(
    ("size", "per_side", "jitter", "overlap", "stride", "patch"),
    [
        ((128, 128, 128), 3, 3, 0, 42, 39),  # jigsaw and relative location, paper and code
        ((224, 224), 3, 8, 0, 74, 66),  # the same on retinal pictures
        ((128, 128), 3, 4, 0, 42, 38),  # on slices of the pancreas
        ((128, 128, 128), 4, 0, 0, 32, 32),  # CPC in the original code
        ((224, 224), 5, 0, 37, 37, 74),  # in 2D, with half overlap
        ((128, 128), 5, 0, 21, 21, 42),
    ],
)
def test_patch_sizes_of_the_paper(size, per_side, jitter, overlap, stride, patch):
    grid = grids.patch_grid(size, per_side, jitter, overlap)
    assert grid.stride == (stride,) * len(size)
    assert grid.patch == (patch,) * len(size)
    assert grid.rank == len(size)
    assert grid.count == per_side ** len(size)


@pytest.mark.parametrize(("rank", "centre"), [(2, 4), (3, 13)])
def test_patches_are_numbered_with_the_last_axis_fastest(rank, centre):
    grid = grids.patch_grid((12,) * rank, 3)
    assert grid.positions[centre] == (1,) * rank
    assert grid.positions[1] == (0,) * (rank - 1) + (1,)
    assert grid.positions[3 ** (rank - 1)] == (1,) + (0,) * (rank - 1)
    first_voxels = grids.starts(grid, np.random.default_rng(0))
    np.testing.assert_array_equal(first_voxels, 4 * np.array(grid.positions))


@given(patch_grids(), st.integers(0, 99))
def test_jitter_keeps_patches_in_their_cells(sized, seed):
    size, grid = sized
    at = grids.starts(grid, np.random.default_rng(seed))
    cells = np.array(grid.positions) * grid.stride
    overlap = np.array(grid.patch) + grid.jitter - grid.stride
    assert (at >= cells).all()
    assert (at + grid.patch <= cells + grid.stride + overlap).all()
    assert (at + grid.patch <= size).all()


def test_jitter_reaches_every_offset_on_each_axis():
    grid = grids.patch_grid((16, 20), 2, jitter=3)
    rng = np.random.default_rng(0)
    offsets = np.stack([grids.starts(grid, rng) for _ in range(64)]) % grid.stride
    for axis in range(2):
        assert set(offsets[..., axis].ravel()) == {0, 1, 2, 3}
    assert np.abs(np.corrcoef(offsets.reshape(-1, 2).T)[0, 1]) < 0.3  # axes move on their own


@given(patch_grids(), st.integers(1, 3), st.integers(0, 99))
def test_tiling_is_slicing(sized, channels, seed):
    size, grid = sized
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(*size, channels)).astype(np.float16)
    at = grids.starts(grid, rng)
    patches = np.asarray(Pieces(image, at, grid.patch))
    assert patches.shape == (grid.count, *grid.patch, channels)
    assert patches.dtype == image.dtype
    for patch, start in zip(patches, at, strict=True):
        here = tuple(slice(a, a + p) for a, p in zip(start, grid.patch, strict=True))
        np.testing.assert_array_equal(patch, image[here])


@given(patch_grids())
def test_rows_apart_is_the_least_safe_distance(sized):
    """With the worst jitter rows at this distance share no voxel, and a row less they do."""
    _, grid = sized
    last_voxel = grid.jitter + grid.patch[0] - 1  # of row 0
    assert last_voxel < grid.rows_apart * grid.stride[0]
    assert last_voxel >= (grid.rows_apart - 1) * grid.stride[0]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"per_side": 3, "jitter": 3}, r"config\.data\.crop=\(12, 12\).*config\.task\.jitter=3"),
        (
            {"per_side": 3, "overlap": 12},
            r"config\.data\.crop=\(12, 12\).*config\.task\.overlap=12",
        ),
        ({"per_side": 1}, r"config\.task\.per_side=1"),
        ({"per_side": 0}, r"config\.task\.per_side=0"),
        ({"per_side": 3, "jitter": -1}, r"config\.task\.jitter=-1"),
        ({"per_side": 3, "overlap": -1}, r"config\.task\.overlap=-1"),
    ],
)
def test_grids_that_cannot_be_are_refused_by_the_names_of_their_keys(numbers, message):
    with pytest.raises(UserError, match=message):
        grids.patch_grid((12, 12), **numbers)


@settings(max_examples=30)
@given(st.booleans(), st.integers(0, 99), st.tuples(*[st.integers(9, 16)] * 3))
def test_a_record_says_where_its_patches_are_in_the_image(train, seed, shape):
    image = np.arange(np.prod(shape) * 2, dtype=np.float32).reshape(*shape, 2)
    grid = grids.patch_grid((9, 9, 9), 3, jitter=1)
    rng = np.random.default_rng(seed)
    record = grids.cut(rng, Example(image, None), (9, 9, 9), grid, train)
    assert record["starts"].dtype == np.int32
    np.testing.assert_array_equal(
        record["patches"], np.asarray(Pieces(image, record["starts"], grid.patch)), strict=True
    )


def test_overlapping_patches_are_cut_on_the_device_from_a_crop_with_fewer_voxels():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(20, 21, 2)).astype(np.float16)
    example, size = Example(image, None), (18, 18)
    for overlap, jitter, cut_later in ((3, 0, True), (0, 0, False), (3, 1, False)):
        grid = grids.patch_grid(size, 5, jitter=jitter, overlap=overlap)
        record = pipeline.arrays(grids.cut(np.random.default_rng(1), example, size, grid, True))
        assert ("volume" in record) == cut_later
        patches = grids.patches_of(jax.tree.map(jnp.asarray, record), grid)
        expected = np.asarray(Pieces(image, record["starts"], grid.patch))
        np.testing.assert_array_equal(patches, expected, strict=True)


def test_validation_crops_from_the_middle_and_training_anywhere():
    image = np.zeros((30, 30, 1), np.float16)
    grid = grids.patch_grid((12, 12), 3)

    def origins(train):
        rngs = [np.random.default_rng(seed) for seed in range(40)]
        records = [grids.cut(rng, Example(image, None), (12, 12), grid, train) for rng in rngs]
        return np.stack([record["starts"][0] for record in records])

    assert (origins(train=False) == 9).all()
    assert origins(train=True).min() == 0
    assert origins(train=True).max() == 18
