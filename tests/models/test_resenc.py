"""nnU-Net's residual encoder; its numbers are compared with nnU-Net's own in tests/exchange."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl3d.errors import UserError
from ssl3d.models import decoders, encoders, heads, resenc
from ssl3d.tasks import segmentation
from tests.support.oracles import normal
from tests.support.random_weights import random_variables

SMALL = {"kind": "resenc", "width": 4, "depth": 3, "norm": "instance", "blocks": (1, 2, 1)}
FLAT = SMALL | {
    "strides": ((1, 1, 1), (2, 2, 1), (2, 2, 2)),
    "kernels": ((3, 3, 1), (3, 3, 3), (3, 3, 3)),
}


def shapes(module, *inputs):
    return jax.eval_shape(module.init_with_output, jax.random.key(0), *inputs)


@pytest.mark.parametrize(("rank", "values"), [(2, 63_780_416), (3, 90_296_576)])
def test_six_levels_have_as_many_values_as_the_preset_l(rank, values):
    encoder = encoders.build({"kind": "resenc", "width": 32, "depth": 6, "norm": "instance"})
    _, variables = shapes(encoder, jax.ShapeDtypeStruct((1, *(32,) * rank, 1), jnp.float32))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == values


@pytest.mark.parametrize(
    ("settings", "size"), [(SMALL, (9, 6)), (SMALL, (5, 8, 7)), (FLAT, (9, 6, 5))]
)
def test_levels_and_logits_of_any_size(settings, size):
    encoder = encoders.build(settings)
    features, _ = shapes(encoder, jax.ShapeDtypeStruct((2, *size, 3), jnp.float32))
    strides = settings.get("strides") or ((1,) * len(size), *((2,) * len(size),) * 2)
    expected, sides = [], size
    for channels, axes in zip((4, 8, 16), strides, strict=True):
        sides = tuple(-(-side // stride) for side, stride in zip(sides, axes, strict=True))
        expected.append((2, *sides, channels))
    assert [level.shape for level in features.levels] == expected
    assert encoders.smallest_norm(settings, size) == math.prod(sides)
    logits, _ = shapes(decoders.build(encoder, 5, deep=1), features)
    assert [part.shape for part in logits] == [(*shape[:-1], 5) for shape in expected[:2]]


def test_deep_supervision_takes_the_labels_of_each_level():
    """Where a level keeps an axis, so do its labels."""
    label = jnp.asarray(np.random.default_rng(0).integers(0, 2, (1, 5, 4, 3)))
    coarse = label[:, ::2, ::2]
    logits = tuple(20.0 * jax.nn.one_hot(part, 2) - 10 for part in (label, coarse))
    belongs = segmentation.members((), 2)
    loss, _ = jax.jit(lambda *a: segmentation.loss(*a, belongs))(logits, {"label": label})
    np.testing.assert_allclose(loss, 0, atol=1e-3)


def test_a_block_starts_as_its_shortcut():
    block = resenc.Block(2, (3, 3), (1, 1), "instance", 0.0, jnp.float32)
    x = normal(0, 1, 4, 4, 2)
    y, _ = jax.jit(partial(block.init_with_output, train=False))(jax.random.key(0), x)
    np.testing.assert_allclose(y, jnp.where(x < 0, 0.01 * x, x), rtol=1e-6)


def test_every_parameter_has_a_gradient_but_biases_before_norms():
    encoder = encoders.build(SMALL)
    x, direction = normal(0, 2, 8, 8, 2), normal(1, 16)
    variables = random_variables(encoder, x)
    variables["params"] = jax.tree.map(lambda leaf: leaf + 0.1, variables["params"])

    def score(params):
        features = encoder.apply({**variables, "params": params}, x)
        return (heads.pooled(features) @ direction).sum()

    gradients = jax.jit(jax.grad(score))(variables["params"])
    for path, leaf in jax.tree.leaves_with_path(gradients):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not name.endswith("conv/bias"):
            assert jnp.abs(leaf).max() > 1e-6, name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_width": 2}, ["encoder.max_width", "2"]),
        ({"max_width": "8"}, ["encoder.max_width"]),
        ({"blocks": (1, 2)}, ["encoder.blocks", "3 levels"]),
        ({"blocks": (1, 0, 2)}, ["encoder.blocks", "1 to"]),
        ({"blocks": 3}, ["encoder.blocks"]),
        ({"strides": ((1, 1), (2, 2))}, ["encoder.strides", "3 levels"]),
        ({"strides": (1, 2, 2)}, ["encoder.strides", "1 or 2"]),
        ({"strides": ((1, 1), (2, 2), (2, 2, 2))}, ["encoder.strides"]),
        ({"strides": ((1, 1), (4, 2), (2, 2))}, ["encoder.strides", "1 or 2"]),
        ({"strides": ((2, 2), (2, 2), (2, 2))}, ["encoder.strides", "first level"]),
        ({"kernels": ((3, 3), (5, 3), (3, 3))}, ["encoder.kernels", "1 or 3"]),
        ({"strides": ((1, 1), (2, (2,)), (2, 2))}, ["encoder.strides", "1 or 2"]),
        ({"kind": "resunet"}, ["encoder.blocks", "resenc"]),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(change, words):
    with pytest.raises(UserError) as error:
        encoders.build(SMALL | change)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words)


def test_settings_of_another_rank_are_named():
    encoder = encoders.build(FLAT)
    with pytest.raises(UserError, match=r"encoder\.strides=.* is for 3D images, these are 2D"):
        shapes(encoder, jnp.zeros((1, 8, 8, 1)))
    with pytest.raises(UserError, match=r"encoder\.strides is .*; these are 2D images"):
        encoders.build(FLAT, (8, 8))


def test_settings_from_a_json_are_the_same():
    lists = {key: [list(a) if isinstance(a, tuple) else a for a in value]
             if isinstance(value, tuple) else value for key, value in FLAT.items()}  # fmt: skip
    assert encoders.build(lists) == encoders.build(FLAT)
    neutral = {"kind": "resunet", "width": 4, "depth": 2}
    assert encoders.build(neutral | {"blocks": [], "strides": []}) == encoders.build(neutral)
