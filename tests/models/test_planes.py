"""3D convolutions by planes have the values and gradients of 3D convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from ssl3d.models import layers, planes
from tests.support.oracles import normal


@pytest.mark.parametrize(
    ("by_planes", "whole", "taps"),
    [(planes.convolve, layers._convolve, 3), (planes.downsample, layers._downsample, 2)],
)
@pytest.mark.parametrize("size", [(6, 4, 8), (7, 5, 9), (1, 3, 2)])
def test_values_and_gradients(by_planes, whole, taps, size):
    x, kernel = normal(0, 2, *size, 3), normal(1, *(taps,) * 3, 3, 5)

    def values_and_gradients(function):
        y, backward = jax.vjp(function, x, kernel)
        return y, *backward(normal(2, *y.shape))

    found, expected = (
        jax.jit(values_and_gradients, static_argnums=0)(f) for f in (by_planes, whole)
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * jnp.abs(other).max())


def convolutions(platform, batch, side):
    """Spatial ranks of the convolutions that a platform's program has."""
    shapes = [(batch, *(side,) * 3, 4), (3, 3, 3, 4, 4)]
    arguments = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    program = export.export(jax.jit(layers.convolve), platforms=[platform])(*arguments)
    lines = [line for line in program.mlir_module().splitlines() if "stablehlo.convolution" in line]
    return [line.split("[b, ")[1].split("f]")[0].count(",") for line in lines]


@pytest.mark.parametrize(
    ("batch", "side", "ranks"),
    [(2, 64, [2, 2, 2]), (2, 16, [2, 2, 2]), (128, 48, [2, 2, 2]), (128, 34, [3]), (2, 8, [3])],
)
def test_tpus_convolve_large_volumes_by_planes_and_small_patches_whole(batch, side, ranks):
    assert convolutions("tpu", batch, side) == ranks
    assert convolutions("cuda", batch, side) == [3]
