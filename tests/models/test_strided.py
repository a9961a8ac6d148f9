"""Kernels and strides per axis against the library's operators, in value and gradient."""

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from ssl3d import xla
from ssl3d.models import layers, strided
from tests.support.oracles import SPECS, agree, normal


@st.composite
def problems(draw):
    """A size, and for each of its axes a kernel and a stride."""
    rank = draw(st.sampled_from([2, 3]))
    lists = (st.lists(numbers, min_size=rank, max_size=rank) for numbers in (
        st.integers(1, 6), st.sampled_from([1, 3]), st.sampled_from([1, 2])
    ))  # fmt: skip
    return tuple(tuple(draw(numbers)) for numbers in lists)


def library_convolution(x, kernel, strides):
    around = [((taps - 1) // 2,) * 2 for taps in kernel.shape[:-2]]
    return lax.conv_general_dilated(
        x, kernel, strides, around, dimension_numbers=SPECS[len(strides)]
    )


@settings(max_examples=8)
@given(problems())
def test_convolution_of_any_kernel_and_stride(problem):
    size, taps, strides = problem
    x, kernel = normal(0, 2, *size, 3), normal(1, *taps, 3, 4)
    agree(
        lambda x, kernel: strided.convolve(x, kernel, strides),
        lambda x, kernel: library_convolution(x, kernel, strides),
        x,
        kernel,
    )


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize(("taps", "strides"), [((3, 3, 1), (2, 2, 1)), ((1, 3, 3), (1, 1, 1))])
def test_both_cpu_implementations_and_the_accelerators_agree(taps, strides, onednn, monkeypatch):
    monkeypatch.setattr(xla, "onednn", lambda: onednn)
    x, kernel = normal(0, 2, 5, 4, 6, 3), normal(1, *taps, 3, 4)
    agree(
        lambda x, kernel: strided.convolve(x, kernel, strides),
        lambda x, kernel: strided._convolve_strided(x, kernel, strides),
        x,
        kernel,
    )


@settings(max_examples=6)
@given(problems())
def test_mean_pool_is_over_the_voxels_there_are(problem):
    size, _, strides = problem
    window = (1, *strides, 1)

    def add(x):
        return lax.reduce_window(x, 0.0, lax.add, window, window, "SAME")

    x = normal(0, 2, *size, 3)
    agree(lambda x: strided.mean_pool(x, strides), lambda x: add(x) / add(jnp.ones_like(x)), x)


@pytest.mark.parametrize("strides", [(2, 2), (1, 2), (2, 1, 2), (2, 2, 2)])
def test_upsample_is_a_transposed_convolution(strides):
    rank = len(strides)
    x, kernel = normal(0, 2, *(5, 4, 3)[:rank], 3), normal(1, *strides, 3, 4)
    up = layers.Upsample(4, bias=True, strides=strides)
    agree(
        lambda x, kernel: up.apply({"params": {"kernel": kernel, "bias": jnp.ones(4)}}, x),
        # The library's turns the kernel around.
        lambda x, kernel: 1 + lax.conv_transpose(
            x, jnp.flip(kernel, range(rank)), strides, "VALID", dimension_numbers=SPECS[rank]
        ),
        x,
        kernel,
    )  # fmt: skip


def test_a_cpu_convolves_nothing_with_a_stride():
    x, kernel = normal(0, 2, 6, 6, 6, 3), normal(1, 3, 3, 3, 3, 4)
    traced = jax.jit(lambda x, kernel: strided.convolve(x, kernel, (2, 2, 2))).trace(x, kernel)
    convolves = {
        platform: "convolution(" in traced.lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "tpu")
    }
    assert convolves == {"cpu": False, "tpu": True}
