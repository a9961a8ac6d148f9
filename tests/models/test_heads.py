import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl3d.models import encoders, heads
from tests.support.oracles import normal
from tests.support.random_weights import random_variables


@pytest.mark.parametrize("size", [(3, 4), (2, 3, 4)])
def test_pooling_is_over_the_bottleneck(size):
    bottleneck = normal(0, 2, *size, 5)
    features = encoders.Features((normal(1, 2, *(2 * n for n in size), 3), bottleneck))
    flat = np.asarray(bottleneck).reshape(2, -1, 5)
    np.testing.assert_allclose(heads.pooled(features), flat.mean(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(heads.pooled(features, "max"), flat.max(1))
    with pytest.raises(ValueError, match="median"):
        heads.pooled(features, "median")


def test_pooling_sums_in_float32():
    ones = jnp.ones((1, 16, 16, 16, 1), jnp.bfloat16)
    mean = heads.pooled(encoders.Features((ones,)))
    assert mean.dtype == jnp.float32
    assert mean[0, 0] == 1


def test_patches_are_encoded_each_on_its_own():
    encoder = encoders.build({"kind": "unet", "width": 4, "depth": 2})
    patches = normal(0, 2, 3, 8, 8, 1)
    variables = random_variables(encoder, patches[:, 0])

    @jax.jit
    def encode(patches):
        return heads.encode_patches(encoder.bind(variables), patches, "mean", train=False)

    together = encode(patches)
    assert together.shape == (2, 3, 8)
    np.testing.assert_allclose(encode(patches[1:, 2:])[0, 0], together[1, 2], rtol=1e-5, atol=1e-6)


def test_head_of_the_original():
    """Dense 2048, Dense 1024, each with ReLU, batch norm, dropout (keys `hidden`, ...)."""
    config = {"hidden": (2048, 1024), "batch_norm": True, "dropout": 0.5}
    head, x = heads.build(config, out=26), normal(0, 4, 256)
    variables = head.init(jax.random.key(0), x)
    sizes = {name: sum(a.size for a in jax.tree.leaves(t)) for name, t in variables.items()}
    dense = 257 * 2048 + 2049 * 1024 + 1025 * 26
    assert sizes == {"params": dense + 2 * (2048 + 1024), "batch_stats": 2 * (2048 + 1024)}
    y, changed = head.apply(
        variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)}
    )
    assert y.shape == (4, 26)
    assert jnp.abs(jax.tree.leaves(changed)[0]).max() > 0
    assert not np.allclose(y, head.apply(variables, x))


def test_norm_follows_the_activation():
    """Dense, ReLU, batch norm: what reaches the last layer has mean zero over the batch."""
    head, x = heads.MLP((16,), 3, batch_norm=True), normal(0, 64, 8)
    variables = head.init(jax.random.key(0), x)
    y, _ = head.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-4)


def test_head_without_hidden_layers_is_linear():
    head, x = heads.MLP((), 3), normal(0, 4, 8)
    y, variables = head.init_with_output(jax.random.key(0), x)
    dense = nn.Dense(3).apply({"params": variables["params"]["Dense_0"]}, x)
    np.testing.assert_allclose(y, dense, rtol=1e-6)


def test_head_takes_any_leading_axes_and_answers_in_float32():
    head, x = heads.MLP((8,), 3), normal(0, 2, 5, 7, 4).astype(jnp.bfloat16)
    y, variables = head.init_with_output(jax.random.key(0), x)
    assert y.shape == (2, 5, 7, 3)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(head.apply(variables, x[1, 2]), y[1, 2], rtol=1e-5, atol=1e-6)
