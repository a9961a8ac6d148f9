import functools
import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl3d.errors import UserError
from ssl3d.models import encoders, heads, layers
from tests.support.oracles import normal
from tests.support.random_weights import random_variables

U_NETS = ("unet", "resunet")  # the third kind has a test file of its own

# Everything that `build` lets pass: the norm after the activation exists in `unet` alone, and not
# as an instance norm.
VARIANTS = [
    {"kind": kind, "norm": norm, "activation_first": first}
    for kind, norm, first in itertools.product(U_NETS, layers.NORMS, (False, True))
    if not first or (kind == "unet" and norm != "instance")
]
sizes = st.one_of(
    *(st.lists(st.integers(1, n), min_size=r, max_size=r).map(tuple) for r, n in ((2, 40), (3, 20)))
)


def pooled(config, x, train=False):
    """Pooled features of an untrained encoder, in one compilation."""
    encoder = encoders.build(config)

    @jax.jit
    def run(variables, x):
        features, _ = encoder.apply(variables, x, train=train, mutable=["batch_stats"])
        return heads.pooled(features)

    return run(random_variables(encoder, x), x)


def counts(config, channels, rank):
    shapes = jax.eval_shape(
        encoders.build(config).init, jax.random.key(0), jnp.zeros((1, *(16,) * rank, channels))
    )
    return {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in shapes.items()}


def test_size_of_the_original():
    """The released 3D encoder has 3,537,424 values, of which 1,984 are running statistics."""
    config = {"kind": "unet", "width": 16, "depth": 5, "norm": "batch", "activation_first": True}
    assert counts(config, channels=1, rank=3) == {
        "params": 3_537_424 - 1_984,
        "batch_stats": 1_984,
    }
    # To three digits in the reference: widths 8 and 32, and 2D at width 16.
    for width, rank, millions in ((8, 3, 0.886), (32, 3, 14.14), (16, 2, 1.18)):
        total = sum(counts(config | {"width": width}, channels=1, rank=rank).values())
        assert total / 1e6 == pytest.approx(millions, rel=5e-3)


@pytest.mark.parametrize("kind", U_NETS)
def test_initialisation_is_hes(kind):
    """Also what `random_variables` stands for in other tests."""
    encoder, x = encoders.build({"kind": kind, "width": 16, "depth": 2}), normal(0, 1, 8, 8, 4)
    variables = jax.jit(encoder.init)(jax.random.key(0), x)
    same = random_variables(encoder, x)
    assert jax.tree.structure(variables) == jax.tree.structure(same)
    for path, leaf in jax.tree.leaves_with_path(variables):
        expected = np.std(functools.reduce(lambda tree, key: tree[key.key], path, same))
        assert np.std(leaf) == pytest.approx(expected, rel=0.2), jax.tree_util.keystr(path)


@pytest.mark.parametrize("kind", U_NETS)
@pytest.mark.parametrize("final_pool", ["none", "max"])
@settings(max_examples=10)
@given(size=sizes, depth=st.integers(1, 5))
def test_level_shapes_of_any_size(kind, final_pool, size, depth):
    encoder = encoders.build({"kind": kind, "width": 4, "depth": depth, "final_pool": final_pool})
    x = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    features, _ = jax.eval_shape(encoder.init_with_output, jax.random.key(0), x)
    expected = [(2, *(-(-n // 2**i) for n in size), 4 * 2**i) for i in range(depth)]
    if final_pool == "max":
        expected[-1] = (2, *(-(-n // 2**depth) for n in size), 4 * 2 ** (depth - 1))
    assert [level.shape for level in features.levels] == expected


@pytest.mark.parametrize("kind", U_NETS)
@pytest.mark.parametrize("size", [(7, 3), (1, 1, 1), (5, 1, 9)])
def test_odd_sizes_run_and_are_finite(kind, size):
    features = pooled({"kind": kind, "width": 4, "depth": 2}, normal(0, 2, *size, 1))
    assert features.shape == (2, 8)
    assert jnp.isfinite(features).all()


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v.values())))
@pytest.mark.parametrize("size", [(8, 4), (4, 4, 4)])
def test_different_inputs_have_different_features(variant, size):
    config = variant | {"width": 4, "depth": 2}
    assert encoders.smallest_norm(config, size) == 8
    for train in (False, True) if variant["norm"] == "batch" else (False,):
        one, other = pooled(config, normal(0, 2, *size, 1), train)
        assert jnp.linalg.norm(one - other) > 0.02 * jnp.linalg.norm(one)


def test_a_norm_over_one_voxel_is_the_dead_encoder_that_smallest_norm_foretells():
    config = {"kind": "unet", "width": 4, "depth": 3, "norm": "instance"}
    assert encoders.smallest_norm(config, (4, 4, 4)) == 1
    one, other = pooled(config, normal(0, 2, 4, 4, 4, 1))
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("kind", U_NETS)
@settings(max_examples=8)
@given(size=sizes, depth=st.integers(1, 4))
def test_smallest_norm_is_what_the_smallest_norm_sees(kind, size, depth):
    config = {"kind": kind, "width": 4, "depth": depth}
    encoder = encoders.build(config)

    def outputs_of_norms(x):
        variables = encoder.init(jax.random.key(0), x)
        _, state = encoder.apply(
            variables, x, capture_intermediates=lambda module, _: isinstance(module, layers.Norm)
        )
        return state["intermediates"]

    seen = jax.eval_shape(outputs_of_norms, jax.ShapeDtypeStruct((1, *size, 1), jnp.float32))
    voxels = [math.prod(leaf.shape[1:-1]) for leaf in jax.tree.leaves(seen)]
    assert len(voxels) == 2 * depth
    assert encoders.smallest_norm(config, size) == min(voxels)


@pytest.mark.parametrize("kind", U_NETS)
def test_every_parameter_has_a_gradient(kind):
    encoder = encoders.build({"kind": kind, "width": 8, "depth": 2})
    x, direction = normal(0, 2, 4, 4, 4, 2), normal(1, 16)
    variables = random_variables(encoder, x)
    gradients = jax.jit(jax.grad(lambda v: (heads.pooled(encoder.apply(v, x)) @ direction).sum()))(
        variables
    )
    for path, leaf in jax.tree.leaves_with_path(gradients):
        assert jnp.abs(leaf).max() > 1e-6, jax.tree_util.keystr(path)


def test_pooling_passes_the_whole_gradient_on(monkeypatch):
    """Also where XLA computes the pooled values anew, with other rounding, on the way back.

    The gradient of a maximum as jax has it is lost or NaN in this very network.
    """
    encoder = encoders.build({"kind": "unet", "width": 8, "depth": 3})
    x, direction = normal(0, 2, 8, 8, 8, 2), normal(1, 32)
    variables = random_variables(encoder, x)

    def gradients():
        def score(v, shift):
            bottleneck = encoder.apply(v, x).levels[-1]
            mean, maximum = (
                heads.pooled(encoders.Features((bottleneck + shift[how],)), how)
                for how in ("mean", "max")
            )
            return ((mean + 2 * maximum) @ direction).sum()

        zeros = {"mean": jnp.zeros(32), "max": jnp.zeros(32)}
        return jax.jit(jax.grad(score, (0, 1)))(variables, zeros)

    ours, by_shift = gradients()
    np.testing.assert_allclose(by_shift["mean"], 2 * direction, rtol=1e-5)
    np.testing.assert_allclose(by_shift["max"], 4 * direction, rtol=1e-5)
    window = (1, 2, 2, 2, 1)
    monkeypatch.setattr(
        layers,
        "max_pool",
        lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "SAME"),
    )
    theirs, _ = gradients()
    for left, right in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", U_NETS)
def test_bfloat16_has_float32_parameters_and_close_values(kind):
    config = {"kind": kind, "width": 8, "depth": 2}
    x = normal(0, 2, 8, 8, 8, 1)
    half = encoders.build(config | {"dtype": "bfloat16"})
    variables = random_variables(half, x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    coarse = jax.jit(half.apply)(variables, x)
    fine = jax.jit(encoders.build(config).apply)(variables, x)
    assert {level.dtype for level in coarse.levels} == {jnp.dtype("bfloat16")}
    for how in ("mean", "max"):
        expected = heads.pooled(fine, how)
        assert heads.pooled(coarse, how).dtype == jnp.float32
        error = jnp.linalg.norm(heads.pooled(coarse, how) - expected) / jnp.linalg.norm(expected)
        assert error < 0.03


@pytest.mark.parametrize("kind", U_NETS)
def test_dropout_acts_in_training_alone(kind):
    encoder = encoders.build({"kind": kind, "width": 4, "depth": 1, "dropout": 0.5})
    x = normal(0, 1, 8, 8, 1)
    variables = random_variables(encoder, x)

    @partial(jax.jit, static_argnums=0)
    def bottleneck(train, key):
        return encoder.apply(variables, x, train=train, rngs={"dropout": key}).levels[-1]

    keys = jax.random.split(jax.random.key(0))
    assert not np.array_equal(*(bottleneck(True, key) for key in keys))
    np.testing.assert_array_equal(*(bottleneck(False, key) for key in keys))
    jax.eval_shape(encoder.apply, variables, x)  # asks for no key


def test_config_dict_and_dict_build_the_same():
    config = {"kind": "unet", "width": 8, "depth": 3, "norm": "instance"}
    assert encoders.build(ml_collections.ConfigDict(config)) == encoders.build(config)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "resnet"}, ["encoder.kind", "resunet"]),
        ({"widht": 8}, ["encoder.widht", "encoder.width"]),
        ({"colour": 8}, ["encoder.colour", "width"]),
        ({"width": 0}, ["encoder.width"]),
        ({"depth": 2.5}, ["encoder.depth"]),
        ({"norm": "layer"}, ["encoder.norm", "group, instance, batch"]),
        ({"dtype": "float16"}, ["encoder.dtype", "bfloat16"]),
        ({"final_pool": "mean"}, ["encoder.final_pool", "max"]),
        ({"dropout": 1.0}, ["encoder.dropout"]),
        ({"activation_first": True}, ["encoder.activation_first", "set it to False", "unet"]),
        ({"kind": "unet", "activation_first": True, "norm": "instance"}, ["encoder.norm=instance"]),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(change, words):
    with pytest.raises(UserError) as error:
        encoders.build({"kind": "resunet", "width": 8, "depth": 3} | change)
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words)


def test_an_encoder_outside_the_repository(tmp_path, monkeypatch):
    folder = tmp_path / "our_encoders"
    folder.mkdir()
    (folder / "residual.py").write_text(
        "from ssl3d.models import encoders, unet\n"
        "def build(blocks, **settings):\n"
        "    assert blocks == 2\n"
        "    return unet.residual(**settings)\n"
        "ENCODER = encoders.Kind(build, ('blocks',))\n"
    )
    (folder / "unfinished.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    sizes = {"width": 4, "depth": 2}
    config = sizes | {"kind": "our_encoders.residual", "blocks": 2}
    assert encoders.build(config) == encoders.build(sizes | {"kind": "resunet"})
    for change, message in (
        ({"blok": 1}, r"encoder\.blok is not .* encoder\.blocks\?"),
        (
            {"kind": "our_encoders.other"},
            r"kind='our_encoders\.other': there is no module",
        ),
        ({"kind": "our_encoders.unfinished"}, r"unfinished\.py does not define ENCODER"),
    ):
        with pytest.raises(UserError, match=message):
            encoders.build(config | change)
