"""What the XLA compiled for can do, probed once and on demand; and the CPU's memory allocator.

Importing this module touches no device: with several hosts, `jax.distributed.initialize` comes
first.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

# XLA:CPU's own convolutions are several times slower than oneDNN's. jaxlib 0.12 on x86 honours
# the option, older versions accept and ignore it, other processors have no oneDNN.
_ONEDNN = {"xla_cpu_experimental_onednn_custom_call": True}
# XLA:GPU's convolutions in the layout of JAX's arrays, channels last, with fewer transpositions.
_CHANNELS_LAST = {"xla_gpu_force_conv_nhwc": True}
# Parameters of glibc's mallopt, with their numbers in <malloc.h> and their new values.
_MALLOC = {
    "M_MMAP_THRESHOLD": (-3, 1 << 30),  # larger blocks are mapped separately: 1 GB
    "M_TRIM_THRESHOLD": (-1, -1),  # free bytes at the end of the heap to return: never
}
# The platform of `compiling_for`; "" outside.
_target: contextvars.ContextVar[str] = contextvars.ContextVar("target", default="")


def platform() -> str:
    """The platform compiled for: "cpu", "gpu" or "tpu"."""
    return _target.get() or jax.default_backend()


@contextlib.contextmanager
def compiling_for(target: str) -> Iterator[None]:
    """Lets `platform` be `target` inside, for ahead-of-time compilation on a machine without it."""
    token = _target.set(target)
    try:
        yield
    finally:
        _target.reset(token)


def onednn() -> bool:
    """Whether convolutions compiled by `jit` use oneDNN."""
    return platform() == "cpu" and _onednn()


@functools.cache
def _onednn() -> bool:
    """The same for this machine's CPU, probed by compiling a tiny convolution."""

    def convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((1, 16, 16, 8), (3, 3, 8, 8))]
    try:
        compiled = jax.jit(convolution, compiler_options=_ONEDNN).lower(*shapes).compile()
    except (RuntimeError, ValueError):  # the option is experimental and may be renamed or dropped
        return False
    # The full name of the call: the text also names Python functions, this one among them.
    return "__onednn$convolution" in (compiled.as_text() or "")


def jit(f: Callable, channels_last: bool = False, **options: Any) -> Callable:
    """`jax.jit` with the fastest convolutions of this machine, for outermost functions only.

    jax refuses compiler options for a function called inside another jitted one.

    Args:
      channels_last: on GPUs, let cuDNN's convolutions have channels last too.
    """
    own: dict[str, Any] = _ONEDNN if onednn() else {}
    if channels_last and platform() == "gpu":
        own = _CHANNELS_LAST
    if own:
        options["compiler_options"] = own | (options.get("compiler_options") or {})
    return jax.jit(f, **options)


def jit_once(f: Callable, **options: Any) -> Callable:
    """`jit` for what runs once or a few times: compiled without optimisation.

    LLVM would optimise for a minute what initialises a network's parameters in a millisecond.
    """
    if platform() == "cpu":
        options["compiler_options"] = {"xla_backend_optimization_level": 0}
    return jit(f, **options)


def keep_memory() -> bool:
    """Makes this process reuse the memory that it frees, if the CPU is the device.

    XLA:CPU allocates its buffers anew in each step. glibc returns blocks above 32 MB to the system
    at once; mapping and clearing them again takes a quarter of a step with 2D networks. The cost
    is up to a fifth more memory at the peak.

    Returns:
      Whether it does; false on accelerators and with another malloc than glibc's.
    """
    if jax.default_backend() != "cpu":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return False
    # Older glibc versions refuse a threshold above 32 MB; then nothing changes.
    return all(mallopt(parameter, value) == 1 for parameter, value in _MALLOC.values())
