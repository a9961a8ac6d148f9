"""Rematerialised levels: the same numbers with less memory."""

import jax
import numpy as np
import pytest

from ssl3d import xla
from ssl3d.models import decoders, encoders
from ssl3d.tasks.segmentation import Network
from ssl3d.training import hlo
from tests.support.oracles import normal

X = normal(0, 2, 32, 32, 1)


def gradients_of(kind, depth, remat):
    """The compiled gradients of a network, its parameters, flops, and bytes kept for them."""
    settings = {"kind": kind, "width": 4, "depth": depth, "norm": "batch", "dropout": 0.2}
    encoder = encoders.build(settings | {"remat": remat})
    full = encoders.kind_of(settings).full_resolution
    network = Network(encoder, decoders.build(encoder, 3)) if full else encoder
    variables = xla.jit_once(network.init)(jax.random.key(1), X)

    def loss(params):
        dropout = {"dropout": jax.random.key(2)}
        out, changed = network.apply(
            variables | {"params": params}, X, True, mutable=["batch_stats"], rngs=dropout
        )
        return (jax.tree.leaves(out)[-1] ** 2).mean(), changed

    params = variables["params"]
    lowered = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(params)
    # What a compiler makes of it depends on its version.
    kept = jax.eval_shape(lambda params: jax.vjp(loss, params, has_aux=True)[1], params)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))
    return lowered.compile(), params, hlo.flops(hlo.traced(lowered)), size


@pytest.mark.parametrize(
    ("kind", "depth"),
    [
        ("resunet", 2),
        pytest.param("unet", 2, marks=pytest.mark.slow),
        pytest.param("densenet121", 3, marks=pytest.mark.slow),
    ],
)
def test_less_memory_for_the_same_numbers(kind, depth):
    (plain, params, flops, one), (remat, others, more, other) = (
        gradients_of(kind, depth, on) for on in (False, True)
    )
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(others), strict=True):
        np.testing.assert_array_equal(a, b)
    expected, found = plain(params), remat(params)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected[1]))
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6 * largest)
    assert other < 0.5 * one
    # No convolution but those of one voxel is computed again.
    assert flops < more < 1.15 * flops
