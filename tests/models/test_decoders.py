import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl3d.models import decoders, encoders
from ssl3d.training import hlo
from tests.support.oracles import normal
from tests.support.random_weights import random_variables

SETTINGS = {
    "residual": {"kind": "resunet", "width": 4, "depth": 3},
    "plain": {"kind": "unet", "width": 4, "depth": 3, "norm": "batch", "activation_first": True},
    "pooled once more": {"kind": "unet", "width": 4, "depth": 3, "final_pool": "max"},
}


@pytest.mark.parametrize("size", [(16, 16), (13, 9), (8, 12, 9)])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_logits_have_the_size_of_the_input(settings, size):
    encoder = encoders.build(settings)
    decoder = decoders.build(encoder, 3, deep=1)

    def logits(key, x):
        features, _ = encoder.init_with_output(key, x)
        return decoder.init_with_output(key, features)[0]

    x = jax.ShapeDtypeStruct((2, *size, 2), jnp.float32)
    finest, coarser = jax.eval_shape(logits, jax.random.key(0), x)
    assert finest.shape == (2, *size, 3)
    assert coarser.shape == (2, *(-(-side // 2) for side in size), 3)
    assert finest.dtype == jnp.float32


def test_every_level_of_the_encoder_reaches_the_logits():
    encoder = encoders.build(SETTINGS["residual"])
    decoder = decoders.build(encoder, 2)
    x = jax.random.normal(jax.random.key(0), (1, 16, 16, 1))
    features = jax.jit(encoder.apply)(random_variables(encoder, x), x)
    variables = random_variables(decoder, features)

    def total(levels):
        return decoder.apply(variables, encoders.Features(levels))[0].sum()

    for gradient in jax.jit(jax.grad(total))(features.levels):
        assert np.abs(gradient).max() > 0


def test_the_decoder_of_the_original_has_as_many_parameters():
    """2,113,411 values with three classes, width 16, in 3D, running statistics included."""
    settings = {
        "kind": "unet", "width": 16, "depth": 5, "norm": "batch", "activation_first": True,
    }  # fmt: skip
    encoder = encoders.build(settings)
    decoder = decoders.build(encoder, 3)
    x = jax.ShapeDtypeStruct((1, 16, 16, 16, 1), jnp.float32)
    features = jax.eval_shape(lambda x: encoder.init_with_output(jax.random.key(0), x)[0], x)
    shapes = jax.eval_shape(decoder.init, jax.random.key(0), features)
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count == 2_113_411
    biases = {f"up_{i}": shapes["params"][f"up_{i}"]["bias"].shape for i in range(4)}
    assert biases == {f"up_{i}": (16 * 2**i,) for i in range(4)}


@pytest.mark.parametrize("kind", ["resunet", "unet"])
def test_other_decoders_have_no_such_bias(kind):
    encoder = encoders.build({"kind": kind, "width": 4, "depth": 2})
    x = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    features = jax.eval_shape(lambda x: encoder.init_with_output(jax.random.key(0), x)[0], x)
    shapes = jax.eval_shape(decoders.build(encoder, 3).init, jax.random.key(0), features)
    assert list(shapes["params"]["up_0"]) == ["kernel"]


def test_a_projection_is_a_dense_layer_with_factors_of_the_features_type():
    x = normal(0, 2, 6, 5, 8)
    dense, projection = nn.Dense(3), decoders.Projection(3)
    variables = dense.init(jax.random.key(1), x)
    for a, b in zip(*(jax.tree.leaves(m.init(jax.random.key(1), x)) for m in (dense, projection)),
                    strict=True):  # fmt: skip
        np.testing.assert_array_equal(a, b)

    def gradients(module, x):
        loss = lambda v, x: jnp.sin(module.apply(v, x)).sum()  # noqa: E731
        return jax.jit(jax.value_and_grad(loss, (0, 1)))

    expected = gradients(dense, x)(variables, x)
    found = gradients(projection, x)(variables, x)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)

    half = x.astype(jnp.bfloat16)
    step = gradients(projection, half).lower(variables, half)
    products = [one for one in hlo.operations(step.compiler_ir("hlo").as_hlo_text()) if one.flops]
    assert {one.dtype for one in products} == {"bf16"}
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(step.compile()(variables, half)),
                    strict=True):  # fmt: skip
        np.testing.assert_allclose(b.astype(np.float32), a, rtol=0.02, atol=0.02 * np.abs(a).max())
