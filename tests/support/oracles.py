"""A form of ours against the library's own, in value and gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

SPECS = {2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def agree(form, library, *arrays):
    """The same values, and the same gradients of a non-linear function of them."""

    def value_and_gradients(f, *arrays):
        y, pull = jax.vjp(f, *arrays)
        return y, *pull(jnp.cos(y))

    outputs = [jax.jit(partial(value_and_gradients, f))(*arrays) for f in (form, library)]
    for ours, theirs in zip(*outputs, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
