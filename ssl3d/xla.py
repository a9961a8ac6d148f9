"""What this machine's XLA can do, asked once and only when it is needed; and memory on a CPU.

Importing this module touches no device: programs over several hosts call
`jax.distributed.initialize` first.
"""

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# XLA:CPU's own convolutions are several times slower than oneDNN's. jaxlib 0.12 on x86 honours
# the option, older ones accept it and change nothing, machines other than x86 have no oneDNN.
_ONEDNN = {"xla_cpu_experimental_onednn_custom_call": True}
# Parameters of mallopt and what they are set to, of glibc's <malloc.h>.
_MALLOC = {
    "M_MMAP_THRESHOLD": (-3, 1 << 30),  # bytes from which a block is mapped on its own: 1 GB
    "M_TRIM_THRESHOLD": (-1, -1),  # bytes free at the heap's end that are given back: never
}


@functools.cache
def onednn() -> bool:
    """Whether convolutions compiled by `jit` run in oneDNN: a tiny one is compiled to find out."""
    if jax.default_backend() != "cpu":
        return False

    def convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((1, 16, 16, 8), (3, 3, 8, 8))]
    try:
        compiled = jax.jit(convolution, compiler_options=_ONEDNN).lower(*shapes).compile()
    except (RuntimeError, ValueError):  # the option is experimental and may be renamed or dropped
        return False
    # The whole name of the call: the text also holds the names of Python functions, this one's too.
    return "__onednn$convolution" in compiled.as_text()


def jit(f: Callable, **options: Any) -> Callable:
    """`jax.jit` with this machine's fastest convolutions; for outermost functions only.

    jax refuses compiler options on a function that is called inside another jitted one.
    """
    if onednn():
        options["compiler_options"] = _ONEDNN | (options.get("compiler_options") or {})
    return jax.jit(f, **options)


def jit_once(f: Callable, **options: Any) -> Callable:
    """`jax.jit` for what runs a single time, such as initialisation: compiled in a hurry.

    LLVM spends a minute on the random numbers of a network's parameters that take a millisecond.
    """
    if jax.default_backend() == "cpu":
        options["compiler_options"] = {"xla_backend_optimization_level": 0}
    return jax.jit(f, **options)


def keep_memory() -> bool:
    """Lets this process keep the memory that it frees, where the CPU is the device.

    XLA:CPU allocates its buffers anew in each step. Blocks of more than 32 MB glibc gives back to
    the system at once, and has them mapped and cleared again: a quarter of a step's time with 2D
    networks. The price is memory, a few per cent to a fifth more at the peak.

    Returns:
      Whether it is so from now on; false on accelerators, and where malloc is another's.
    """
    if jax.default_backend() != "cpu":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return False
    # An older glibc refuses a threshold above 32 MB, and then nothing changes.
    return all(mallopt(parameter, value) == 1 for parameter, value in _MALLOC.values())
