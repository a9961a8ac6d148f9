import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl3d import augment, tasks
from ssl3d.errors import UserError
from ssl3d.tasks import rotation

# The original code's ten, as np.rot90(x, k, plane): reference, section 1.5.
TEN = [(0, (0, 1))]
TEN += [(k, (0, 1)) for k in (1, 2, 3)]
TEN += [(k, (1, 2)) for k in (3, 2, 1)]
TEN += [(k, (0, 2)) for k in (3, 2, 1)]
FOUR = [(k, (0, 1)) for k in range(4)]


def cube(rank, side=3, channels=2):
    return np.random.default_rng(0).normal(size=(side,) * rank + (channels,)).astype(np.float32)


def turn(x, rotation):
    """The rotation (axes, flips) of the array x [*S, C], in NumPy."""
    axes, flipped = rotation
    turned = x.transpose(*axes, x.ndim - 1)
    return np.flip(turned, [axis for axis, flip in enumerate(flipped) if flip])


@pytest.mark.parametrize(("rank", "expected"), [(3, TEN), (2, FOUR)])
def test_the_classes_are_those_of_the_original_code(rank, expected):
    x = cube(rank)
    table = augment.signed_permutations(rank, "axes")
    assert len(table) == len(expected)
    for number, (k, plane) in enumerate(expected):
        np.testing.assert_array_equal(turn(x, table[number]), np.rot90(x, k, plane), str(number))
    assert len({turn(x, entry).tobytes() for entry in table}) == len(table)


def test_the_whole_group_has_24_rotations_and_is_closed():
    x = cube(3)
    table = augment.signed_permutations(3, "all")
    turned = {turn(x, entry).tobytes() for entry in table}
    assert len(turned) == len(table) == 24
    for first in table:
        for second in table:
            assert turn(turn(x, first), second).tobytes() in turned
    # A closed set of 24 that holds the quarter turns about each axis holds no mirror image.
    assert table[:10] == augment.signed_permutations(3, "axes")


def test_in_the_plane_the_whole_group_is_the_four_turns():
    assert augment.signed_permutations(2, "all") == augment.signed_permutations(2, "axes")


@pytest.mark.parametrize("rank", [2, 3])
def test_the_device_turns_as_numpy_does(rank):
    x = cube(rank, side=4)
    for group in ("axes", "all"):
        table = augment.signed_permutations(rank, group)
        turned = jax.jit(jax.vmap(lambda i, g=group: augment.rotate(jnp.asarray(x), i, g)))(
            jnp.arange(len(table))
        )
        for number, entry in enumerate(table):
            np.testing.assert_array_equal(turned[number], turn(x, entry), f"{group} {number}")


@pytest.mark.parametrize(
    ("rank", "group", "classes"), [(3, "axes", 10), (3, "all", 24), (2, "", 4)]
)
def test_number_of_classes(tiny, rank, group, classes):
    config = tiny(f"rotation{rank}d", task__group=group or "axes", task__turns=2)
    task = tasks.build(config)
    crops = jnp.zeros((1, 2, *config.data.crop, 1))
    shapes = jax.eval_shape(task.network.init_with_output, jax.random.key(0), crops)
    assert shapes[0].shape == (1, 2, classes)


@pytest.mark.parametrize(("rank", "group"), [(2, "axes"), (3, "axes"), (3, "all")])
def test_targets_name_what_was_done_to_the_crop(rank, group):
    x = cube(rank, side=4).astype(np.float16)
    table = augment.signed_permutations(rank, group)

    @jax.jit
    @jax.vmap
    def draw(key):
        return rotation.views(
            key, {"volume": jnp.asarray(x)}, False, 3, group, 0.5, 1, (0.0,) * rank
        )

    views, targets = draw(jax.random.split(jax.random.key(0), 100))
    assert views.shape == (100, 3, *x.shape)
    assert views.dtype == jnp.float32
    drawn = np.asarray(targets["rotation"])
    for shown, numbers in zip(views[:5], drawn[:5], strict=True):
        for view, number in zip(shown, numbers, strict=True):
            np.testing.assert_array_equal(view, turn(x, table[number]))
    assert set(drawn.ravel()) == set(range(len(table)))
    assert all(len(set(numbers)) == 3 for numbers in drawn)  # never the same one twice
    assert np.bincount(drawn[:, 0]).max() < 0.5 * len(drawn)


def test_training_changes_intensities_and_validation_does_not():
    record = {"volume": jnp.asarray(cube(2, side=6))}
    key = jax.random.key(1)
    draw = jax.jit(
        lambda train: rotation.views(key, record, train, 1, "axes", 0.5, 1, (0.0, 0.0)),
        static_argnums=0,
    )
    (plain, targets), (changed, same) = draw(False), draw(True)
    assert targets["rotation"] == same["rotation"]
    assert not np.allclose(plain, changed)
    assert np.array_equal(np.argsort(plain[..., 0], None), np.argsort(changed[..., 0], None))


@pytest.mark.parametrize("rank", [2, 3])
def test_every_class_has_a_name_of_its_own(rank):
    count = len(augment.signed_permutations(rank, "all"))
    assert len({rotation.name_of(i, rank, "all") for i in range(count)}) == count
    assert rotation.name_of(0, rank, "all") == "not turned"
    assert rotation.name_of(3, rank, "all") == "270° xy"


def test_a_coarser_crop_is_turned_alike():
    small = jnp.asarray(cube(2, side=4))
    fine = jnp.repeat(jnp.repeat(small, 2, axis=0), 2, axis=1)
    key, sharp = jax.random.key(0), (0.0, 0.0)
    views, targets = rotation.views(key, {"volume": small}, False, 2, "axes", 0.5, 1, sharp)
    coarse, same = rotation.views(key, {"volume": fine}, False, 2, "axes", 0.5, 2, sharp)
    np.testing.assert_array_equal(targets["rotation"], same["rotation"])
    np.testing.assert_allclose(views, coarse, atol=1e-6)


def test_an_evened_out_crop_is_smoothed_before_it_is_turned():
    volume, blur = jnp.asarray(cube(3, side=8)), (0.8, 0.0, 0.3)
    views, targets = rotation.views(
        jax.random.key(0), {"volume": volume}, False, 1, "axes", 0.0, 1, blur
    )
    smooth = augment.blur(volume.astype(jnp.float32), blur)
    assert smooth.shape[:-1] == (4, 8, 6)  # two voxels, none and one from either side
    assert rotation.inner_size((8, 8, 8), blur) == (4, 4, 4)
    expected = augment.rotate(smooth[:, 2:6, 1:5], targets["rotation"][0])
    np.testing.assert_allclose(views[0], expected, atol=1e-5)


def test_turns_in_one_plane_leave_the_third_axis(tiny):
    volume = jnp.asarray(cube(3, side=4)[..., :3, :])  # thick slices: fewer along the third axis
    views, targets = rotation.views(
        jax.random.key(0), {"volume": volume}, False, 4, "xy", 0.0, 1, (0.0,) * 3
    )
    for turned, k in zip(views, targets["rotation"], strict=True):
        np.testing.assert_allclose(turned, np.rot90(volume, int(k), (0, 1)))
    config = tiny("rotation3d", task__group="xy", data__crop=(16, 16, 8))
    assert rotation.equal_axes(config) == (0, 1)
    assert tasks.build(config).network.head.out == 4


def test_accuracy_stands_beside_chance():
    logits = 9.0 * jax.nn.one_hot(jnp.array([[3, 1], [2, 2]]), 10)
    loss, metrics = rotation.loss(logits, {"rotation": jnp.array([[3, 1], [2, 7]])})
    hits, count = metrics["accuracy"]
    np.testing.assert_array_equal(hits, [2, 1])
    np.testing.assert_array_equal(count, [2, 2])
    assert metrics["chance"][0].sum() / metrics["chance"][1].sum() == pytest.approx(0.1)
    assert loss[0] < 0.01 < loss[1]


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ({"data__crop": (24, 24, 20)}, "config.data.crop"),
        ({"task__group": "mirror"}, "config.task.group"),
        ({"task__turns": 11}, "config.task.turns"),
        ({"task__turns": 0}, "config.task.turns"),
        ({"task__coarsen": 5}, "config.task.coarsen"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(tiny, overrides, key):
    with pytest.raises(UserError, match=key):
        tasks.build(tiny("rotation3d", **overrides))
