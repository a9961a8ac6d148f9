"""Every layer against the library's own, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import unfreeze
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from ssl3d import xla
from ssl3d.models import layers
from tests.support.oracles import SPECS, agree, normal

sizes = st.one_of(*(st.lists(st.integers(1, 7), min_size=r, max_size=r).map(tuple) for r in (2, 3)))


def same_convolution(x, kernel):
    rank = x.ndim - 2
    return lax.conv_general_dilated(x, kernel, (1,) * rank, "SAME", dimension_numbers=SPECS[rank])


@settings(max_examples=5)
@given(sizes, st.sampled_from([1, 2, 3]))
def test_convolution_of_any_size(size, taps):
    x, kernel = normal(0, 2, *size, 3), normal(1, *(taps,) * len(size), 3, 4)
    agree(layers.convolve, same_convolution, x, kernel)


@pytest.mark.parametrize("onednn", [True, False])
# Larger than the kernel along every axis, or smaller along some.
@pytest.mark.parametrize("size", [(5, 4, 6), (5, 1, 6), (1, 2, 3)])
@pytest.mark.parametrize("taps", [2, 3])
def test_every_implementation_is_the_same_convolution(onednn, size, taps, monkeypatch):
    monkeypatch.setattr(xla, "onednn", lambda: onednn)
    x, kernel = normal(0, 2, *size, 3), normal(1, taps, taps, taps, 3, 4)
    agree(layers.convolve, same_convolution, x, kernel)


@pytest.mark.parametrize("size", [(5, 6, 4), (2, 2, 2)])
def test_implementation_follows_the_device_that_is_compiled_for(size, monkeypatch):
    """Without oneDNN a CPU gets no 3D convolution, and a TPU always does."""
    monkeypatch.setattr(xla, "onednn", lambda: False)
    traced = jax.jit(layers.convolve).trace(normal(0, 2, *size, 3), normal(1, 3, 3, 3, 3, 4))
    has_3d = {
        platform: "[b, 0, 1, 2, f]" in traced.lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "tpu")
    }
    assert has_3d == {"cpu": False, "tpu": True}


def test_both_cpu_implementations_share_parameters(monkeypatch):
    x, conv = normal(0, 2, 5, 6, 7, 3), layers.Conv(4)
    variables = conv.init(jax.random.key(0), x)
    outputs = []
    for onednn in (True, False):
        monkeypatch.setattr(xla, "onednn", lambda answer=onednn: answer)
        outputs.append(conv.apply(variables, x))
    np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-4)


@settings(max_examples=5)
@given(sizes)
def test_max_pool(size):
    window = (1, *(2,) * len(size), 1)
    agree(
        layers.max_pool,
        lambda x: lax.reduce_window(x, -jnp.inf, lax.max, window, window, "SAME"),
        normal(0, 2, *size, 3),
    )


def test_max_pool_of_negative_values_ignores_the_padding():
    assert layers.max_pool(-jnp.ones((1, 3, 3, 1))).max() == -1


@settings(max_examples=5)
@given(sizes)
def test_downsample_is_a_strided_convolution(size):
    x, rank = normal(0, 2, *size, 3), len(size)
    module = layers.Downsample(4)
    kernel = module.init(jax.random.key(0), x)["params"]["kernel"]
    agree(
        lambda x, kernel: module.apply({"params": {"kernel": kernel}}, x),
        lambda x, kernel: lax.conv_general_dilated(
            x, kernel, (2,) * rank, "SAME", dimension_numbers=SPECS[rank]
        ),
        x,
        kernel,
    )


@settings(max_examples=5)
@given(sizes)
def test_upsample_is_a_transposed_convolution(size):
    x, rank = normal(0, 2, *size, 3), len(size)
    module = layers.Upsample(4)
    kernel = module.init(jax.random.key(0), x)["params"]["kernel"]
    agree(
        lambda x, kernel: module.apply({"params": {"kernel": kernel}}, x),
        # jax correlates the dilated input with the kernel as it is, Keras and PyTorch flip it.
        lambda x, kernel: lax.conv_transpose(
            x,
            jnp.flip(kernel, range(rank)),
            (2,) * rank,
            "SAME",
            dimension_numbers=SPECS[rank],
        ),
        x,
        kernel,
    )


def test_upsample_keeps_the_scale():
    """He's: variance 2 per unit of input variance, as each output voxel sees one input voxel."""
    x = normal(0, 4, 3, 4, 5, 64)
    y, _ = layers.Upsample(64).init_with_output(jax.random.key(0), x)
    assert jnp.square(y).mean() == pytest.approx(2, rel=0.2)


@settings(max_examples=5)
@given(sizes)
def test_space_to_depth_and_back(size):
    x = normal(0, 2, *(2 * n for n in size), 3)
    blocks = layers.space_to_depth(x)
    assert blocks.shape == (2, *size, 3 * 2 ** len(size))
    np.testing.assert_array_equal(layers.depth_to_space(blocks), x)


@settings(max_examples=5)
@given(sizes)
def test_nearest_upsampling(size):
    doubled = (2, *(2 * n for n in size), 3)
    agree(
        layers.upsample_nearest,
        lambda x: jax.image.resize(x, doubled, "nearest"),
        normal(0, 2, *size, 3),
    )


def oracle(x, kind, groups, epsilon):
    """Group, instance or batch norm as the papers define them, in float64."""
    x = np.asarray(x, np.float64)
    batch, channels = x.shape[0], x.shape[-1]
    if kind == "batch":
        axes, parts = tuple(range(x.ndim - 1)), x
    else:
        count = groups if kind == "group" else channels
        parts = x.reshape(batch, -1, count, channels // count)
        axes = (1, 3)
    mean = parts.mean(axes, keepdims=True)
    variance = parts.var(axes, keepdims=True)
    return ((parts - mean) / np.sqrt(variance + epsilon)).reshape(x.shape)


@pytest.mark.parametrize(
    ("kind", "epsilon"), [("group", 1e-5), ("instance", 1e-5), ("batch", 1e-3)]
)
@pytest.mark.parametrize("size", [(5, 4), (4, 5, 3)])
@pytest.mark.parametrize("channels", [4, 12])
def test_norm_against_numpy(kind, epsilon, size, channels):
    x = 3 + 2 * normal(0, 3, *size, channels) * jnp.arange(1.0, channels + 1)
    norm = layers.Norm(kind)
    variables = unfreeze(norm.init(jax.random.key(0), x))
    scale, bias = normal(1, channels), normal(2, channels)
    variables["params"] = {"scale": scale, "bias": bias}
    y, _ = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    expected = oracle(x, kind, layers.groups(channels), epsilon) * scale + bias
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-3)


def gradients_by_hand(x, upstream, kind, groups, epsilon):
    """Of sum(norm(x) * upstream) with respect to x and the scale, in float64."""
    x, upstream = np.asarray(x, np.float64), np.asarray(upstream, np.float64)
    batch, channels = x.shape[0], x.shape[-1]
    count = groups if kind == "group" else channels
    shape, axes = (batch, -1, count, channels // count), (1, 3)
    if kind == "batch":
        shape, axes = (-1, channels), (0,)
    parts, pull = x.reshape(shape), upstream.reshape(shape)
    deviation = np.sqrt(parts.var(axes, keepdims=True) + epsilon)
    unit = (parts - parts.mean(axes, keepdims=True)) / deviation
    within = pull - pull.mean(axes, keepdims=True)
    within -= unit * (pull * unit).mean(axes, keepdims=True)
    scale = (unit.reshape(x.shape) * upstream).reshape(-1, channels).sum(0)
    return (within / deviation).reshape(x.shape), scale


@pytest.mark.parametrize(
    ("kind", "epsilon"), [("group", 1e-5), ("instance", 1e-5), ("batch", 1e-3)]
)
@pytest.mark.parametrize("size", [(40, 36), (20, 24, 17)])
@pytest.mark.parametrize(("ratio", "dtype"), [(1e3, "float32"), (1e4, "float32"), (64, "bfloat16")])
def test_norm_of_values_far_from_zero(kind, epsilon, size, ratio, dtype):
    """`ratio` is mean / deviation. In the second half of the channels the mean is negative."""
    far = ratio * jnp.where(jnp.arange(16) < 8, 1.0, -1.0)
    x = (normal(0, 2, *size, 16) + far).astype(dtype)
    upstream = normal(1, *x.shape) + 0.5
    norm = layers.Norm(kind)
    variables = unfreeze(norm.init(jax.random.key(0), x))

    @jax.jit
    def run(x, scale):
        def apply(x, scale):
            new = variables | {"params": variables["params"] | {"scale": scale}}
            return norm.apply(new, x, train=True, mutable=["batch_stats"])[0]

        y, pull = jax.vjp(apply, x, scale)
        return y, *pull(upstream)

    y, by_x, by_scale = run(x, jnp.ones(16))
    count = layers.groups(16)
    expected = oracle(x, kind, count, epsilon)
    np.testing.assert_allclose(y, expected, atol=1e-3)
    wanted_x, wanted_scale = gradients_by_hand(x, upstream, kind, count, epsilon)
    # A gradient has the type of its array.
    precision = 1e-3 if dtype == "float32" else 2**-8 * np.abs(wanted_x).max()
    np.testing.assert_allclose(by_x.astype(jnp.float32), wanted_x, atol=precision)
    np.testing.assert_allclose(by_scale, wanted_scale, atol=1e-3 * np.abs(upstream).sum() / 16)


def test_norm_of_values_near_one_outlier():
    """The estimate of the mean holds voxels of the outlier alone, at worst."""
    x = normal(0, 1, 32, 32, 32, 4) + 1e3
    x = x.at[:, ::8, ::8, ::8].set(0)
    norm = layers.Norm("instance")
    y, _ = norm.init_with_output(jax.random.key(0), x)
    np.testing.assert_allclose(y, oracle(x, "instance", 4, 1e-5), atol=1e-3)


def test_batch_norm_keeps_running_statistics():
    x, norm = 5 + 3 * normal(0, 8, 6, 6, 2), layers.Norm("batch")
    variables = norm.init(jax.random.key(0), x, train=True)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], 0)
    for _ in range(2):
        _, new = norm.apply(variables, x, train=True, mutable=["batch_stats"])
        variables = {**variables, **new}
    flat = np.asarray(x).reshape(-1, 2)
    running = variables["batch_stats"]
    np.testing.assert_allclose(running["mean"], (1 - 0.99**2) * flat.mean(0), rtol=1e-4)
    np.testing.assert_allclose(running["var"], 0.99**2 + (1 - 0.99**2) * flat.var(0), rtol=1e-4)


def test_batch_norm_evaluates_with_what_it_stored():
    x, norm = normal(0, 8, 6, 6, 2), layers.Norm("batch")
    variables = unfreeze(norm.init(jax.random.key(0), x))
    variables["batch_stats"] = {"mean": jnp.array([5.0, -5.0]), "var": jnp.array([4.0, 9.0])}
    expected = (x - jnp.array([5.0, -5.0])) / jnp.sqrt(jnp.array([4.0, 9.0]) + 1e-3)
    np.testing.assert_allclose(norm.apply(variables, x), expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=50)
@given(st.integers(1, 600))
def test_groups_divide_the_channels_and_are_never_single(channels):
    count = layers.groups(channels)
    assert channels % count == 0
    assert 1 <= count <= 8
    assert count == 1 or channels // count >= 4


def test_statistics_are_float32_in_bfloat16():
    """Sums of 512 values around 8 would stop growing in bfloat16's 8 bits."""
    x = (8 + normal(0, 2, 8, 8, 8, 4)).astype(jnp.bfloat16)
    norm = layers.Norm("instance", dtype=jnp.bfloat16)
    variables = norm.init(jax.random.key(0), x)
    assert variables["params"]["scale"].dtype == jnp.float32
    y = norm.apply(variables, x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32).mean((1, 2, 3)), 0, atol=5e-3)
    np.testing.assert_allclose(y.astype(jnp.float32).std((1, 2, 3)), 1, atol=2e-2)


def test_norm_of_a_constant_has_finite_gradients():
    norm, x = layers.Norm("group"), jnp.full((1, 4, 4, 4, 8), 7.0)
    variables = norm.init(jax.random.key(0), x)
    gradient = jax.grad(lambda x: jnp.square(norm.apply(variables, x)).sum())(x)
    assert jnp.isfinite(gradient).all()
