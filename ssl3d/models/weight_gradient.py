"""The gradient of a convolution's kernel on CPUs, in C++ (`weight_gradient.cc`).

XLA:CPU takes up to ten times as long for it as for the convolution itself. The system's compiler
($CXX, or c++, g++, clang++) translates the source on first use; the library is kept in the user's
cache ($XDG_CACHE_HOME/ssl3d, or ~/.cache/ssl3d) under a name that follows from everything it
depends on, once it has given the right numbers. Where nothing can be written there, each process
compiles for itself. Without a compiler, or with SSL3D_NATIVE=0 in the environment, XLA's own
gradient is used.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import itertools
import math
import os
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jax import Array
from jax.custom_batching import sequential_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Float32

from ssl3d import xla
from ssl3d.atomic import atomic_write
from ssl3d.errors import UserError

SWITCH = "SSL3D_NATIVE"
TAPS = 3

_SOURCE = Path(__file__).with_suffix(".cc")
_TARGET = "ssl3d_weight_gradient"
_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = ("-std=c++17", "-O3", "-w", "-shared", "-fPIC")
_PATIENCE = 120  # seconds for the compiler
_DIGEST = hashlib.sha256().digest_size
# [B, *S, C] and D of the test problems: odd, shorter than the kernel, several vectors of channels.
_TESTS = (((2, 5, 3, 7, 3), 5), ((1, 1, 1, 1, 1), 1), ((3, 2, 9, 4, 20), 17), ((2, 7, 35, 4), 36))


class _UnavailableError(Exception):
    """Why there is no library."""


def switched_on() -> bool:
    """Whether the environment allows the library. Raises `UserError` unless it says 0 or 1."""
    value = os.environ.get(SWITCH) or "1"
    if value not in ("0", "1"):
        raise UserError(f"{SWITCH}={value!r}: must be 0 or 1 (the default)")
    return value == "1"


def leave_out() -> None:
    """Lets this process, and those that it starts, go without the library."""
    os.environ[SWITCH] = "0"
    available.cache_clear()


@functools.cache
def available() -> bool:
    """Whether the library can be used; compiled and tested, if need be, at the first call.

    Raises:
      UserError: see `switched_on`.
    """
    if not switched_on() or jax.default_backend() != "cpu":
        return False
    try:
        _load(_cache())
    except (OSError, RuntimeError, ValueError, _UnavailableError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        print(
            f"note: no native weight gradient, training steps take up to twice as long ({reason}); "
            f"{SWITCH}=0 leaves it out",
            file=sys.stderr,
            flush=True,
        )
        return False
    return True


def suits(x: Float[Array, "B *S C"], kernel: Float[Array, "*k C D"]) -> bool:
    """Whether `native` is made for such a convolution."""
    taps = set(kernel.shape[:-2])
    return taps == {TAPS} and x.ndim in (4, 5) and x.dtype == kernel.dtype == jnp.float32


def native(convolution: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    """A "SAME" convolution (x, kernel) of stride 1 with the library's weight gradient on CPUs.

    For arguments that it `suits`. The input gradient is the convolution of the output's with the
    kernel turned around: transposing forms that are fast need not give such forms.
    """

    def by_kernel(x: Array, kernel: Array, gradient: Array) -> Array:
        return jax.linear_transpose(functools.partial(convolution, x), kernel)(gradient)[0]

    def by_library(x: Array, _: Array, gradient: Array) -> Array:
        return weight_gradient(x, gradient)

    def backward(residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
        x, kernel = residuals
        turned = jnp.flip(kernel, range(x.ndim - 2)).swapaxes(-1, -2)
        by_x = convolution(gradient, turned)
        # In a few voxels there is little to add up, and a matrix product is as fast.
        if min(x.shape[1:-1]) < TAPS or xla.platform() != "cpu" or not available():
            return by_x, by_kernel(x, kernel, gradient)
        arrays = x, kernel, gradient
        return by_x, jax.lax.platform_dependent(*arrays, cpu=by_library, default=by_kernel)

    differentiable = jax.custom_vjp(convolution)
    differentiable.defvjp(lambda x, kernel: (convolution(x, kernel), (x, kernel)), backward)
    return differentiable


@sequential_vmap
def weight_gradient(
    x: Float32[Array, "B *S C"], gradient: Float32[Array, "B *S D"]
) -> Float32[Array, "*k C D"]:
    """The gradient of a "SAME" convolution of x with 3^rank taps, in 2D or 3D, by the library.

    Devices that share the batch, or the first spatial axis, add up what each finds for its share.
    The bits do not depend on the number of threads.
    """
    return _sharded(x.ndim - 2)(x, gradient)


def _call(
    x: Float32[Array, "B *S C"], gradient: Float32[Array, "B *S D"]
) -> Float32[Array, "*k C D"]:
    shape = (*(TAPS,) * (x.ndim - 2), x.shape[-1], gradient.shape[-1])
    result = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.ffi.ffi_call(_TARGET, result)(x, gradient)


@functools.cache
def _sharded(rank: int) -> custom_partitioning:
    """`_call`, telling XLA how devices share it; XLA would give each of them the whole batch."""

    def partition(mesh: Mesh, arguments: tuple, result: object) -> tuple:
        x, _ = arguments
        # Another kind of sharding, without a mesh of named axes: each device computes the whole.
        given = [*getattr(x.sharding, "spec", ()), None, None][:2]
        batch, space = (
            axes if size % _devices(mesh, axes) == 0 else None
            for axes, size in zip(given, x.shape, strict=False)
        )

        def share(x: Array, gradient: Array) -> Array:
            if space:
                x, gradient = _with_neighbours(x, gradient, space, _devices(mesh, space))
            return jax.lax.psum(_call(x, gradient), (*_names(batch), *_names(space)))

        split, whole = (NamedSharding(mesh, PartitionSpec(*a)) for a in ((batch, space), ()))
        return mesh, share, whole, (split, split)

    space, taps = ([f"{name}{axis}" for axis in range(rank)] for name in "sk")
    shape = " ".join(space)
    call = custom_partitioning(_call)
    call.def_partition(
        partition=partition,
        sharding_rule=f"b {shape} c, b {shape} d -> {' '.join(taps)} c d",
        need_replication_factors=(*space[1:], "c", "d", *taps),
    )
    return call


# What splits an axis of an array: one axis of the mesh, several, or none.
_Axes = str | tuple[str, ...] | None


def _names(axes: _Axes) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else axes or ()


def _devices(mesh: Mesh, axes: _Axes) -> int:
    return math.prod(mesh.shape[name] for name in _names(axes))


def _with_neighbours(
    x: Float32[Array, "B *S C"], gradient: Float32[Array, "B *S D"], axes: _Axes, count: int
) -> tuple[Float32[Array, "B *padded C"], Float32[Array, "B *padded D"]]:
    """A device's planes of x between one of each neighbour, and zeros in the gradient beside them.

    Beyond the first device and the last are zeros, as in "SAME".
    """
    pairs = [(device, device + 1) for device in range(count - 1)]
    before = jax.lax.ppermute(x[:, -1:], axes, pairs)
    after = jax.lax.ppermute(x[:, :1], axes, [pair[::-1] for pair in pairs])
    widths = [(int(axis == 1),) * 2 for axis in range(x.ndim)]
    return jnp.concatenate([before, x, after], axis=1), jnp.pad(gradient, widths)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ssl3d"


def _load(folder: Path) -> None:
    """Registers the library with XLA; compiles and tests it unless `folder` holds it.

    Raises `_UnavailableError`, `OSError`, `RuntimeError`.
    """
    command = _compiler()
    name = f"weight_gradient-{_key(command)}.so"
    with _writable(folder) as place:
        if os.access(folder, os.F_OK):
            _check_owner(folder)
        if _intact(folder / name):
            _register(folder / name)
            return
        # Under its name only when it is right; several processes may be at it.
        with atomic_write(place / name) as partial:
            _compile(command, partial)
            _register(partial)
            _test()


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[Path]:
    """The folder, made if need be; a temporary one where nothing can be written to it.

    A library stays loaded when its file is removed.
    """
    own: contextlib.AbstractContextManager[str] = contextlib.nullcontext(str(folder))
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:  # a home that is read-only, full, or not there
        own = tempfile.TemporaryDirectory()
    with own as place:
        yield Path(place)


def _compiler() -> list[str]:
    """The command without its files."""
    try:
        given = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise _UnavailableError(f"CXX={os.environ['CXX']}: {error}") from None
    found = next((path for path in map(shutil.which, _COMPILERS) if path), None)
    if not given and not found:
        raise _UnavailableError("found no C++ compiler: set CXX, or install g++ or clang++")
    arm = platform.machine().lower() in ("arm64", "aarch64")
    native = "-mcpu=native" if arm else "-march=native"
    return [*(given or [str(found)]), *_FLAGS, native, f"-I{jax.ffi.include_dir()}"]


def _key(command: list[str]) -> str:
    """Names everything that the library depends on."""
    # With what comes before the flags: in "ccache g++" the first word is no compiler.
    version = _run([*command[: command.index(_FLAGS[0])], "--version"])
    about = (command, version, _processor(), jaxlib.version.__version__)
    return hashlib.sha256(_SOURCE.read_bytes() + repr(about).encode()).hexdigest()[:32]


def _processor() -> str:
    """What tells processors apart for which -march=native means different things."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return f"{platform.machine()} {platform.processor()}"
    first = info.read_text().split("\n\n")[0].splitlines()
    kinds = ("model name", "flags", "Features", "CPU part")
    return "\n".join(line for line in first if line.startswith(kinds))


def _check_owner(folder: Path) -> None:
    """Raises `_UnavailableError`: others could put a library of theirs into the folder."""
    status = folder.stat()
    if status.st_uid not in (0, os.getuid()) or status.st_mode & stat.S_IWOTH:
        raise _UnavailableError(
            f"{folder} belongs to another user or can be written by all: set XDG_CACHE_HOME"
        )


def _compile(command: list[str], library: Path) -> None:
    _run([*command, str(_SOURCE), "-o", str(library)])
    # Loaders ignore what follows the end of a library.
    content = library.read_bytes()
    library.write_bytes(content + hashlib.sha256(content).digest())


def _intact(library: Path) -> bool:
    """Whether it is there as it was written: loading a damaged one could crash this process."""
    if not os.access(library, os.R_OK):
        return False
    content = library.read_bytes()
    return hashlib.sha256(content[:-_DIGEST]).digest() == content[-_DIGEST:]


def _run(command: list[str]) -> str:
    # In a session of its own: Ctrl-C is for the run, which ends after its step, and what the
    # compiler has started ends with it.
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            out, said = process.communicate(timeout=_PATIENCE)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                message = f"{command[0]} took more than {_PATIENCE} s"
                raise _UnavailableError(message) from None
            raise
    if process.returncode:
        lines = said.splitlines() or [f"status {process.returncode}"]
        reason = next((line for line in lines if "error" in line.lower()), lines[0])
        raise _UnavailableError(f"{command[0]} failed: {reason}")
    return out


def _register(library: Path) -> None:
    function = ctypes.CDLL(str(library)).WeightGradient
    jax.ffi.register_ffi_target(_TARGET, jax.ffi.pycapsule(function), platform="cpu")


def _test() -> None:
    """Raises `_UnavailableError` unless the library agrees with NumPy."""
    random = np.random.default_rng(0)
    for shape, channels in _TESTS:
        x, gradient = (
            random.normal(size=size).astype(np.float32) for size in (shape, (*shape[:-1], channels))
        )
        # Compiled ahead of time: called inside a function that is being traced, jit would not run.
        found = np.asarray(jax.jit(_call).lower(x, gradient).compile()(x, gradient))
        expected = _reference(x, gradient)
        if not np.allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()):
            raise _UnavailableError(f"{_SOURCE.name} compiles to wrong numbers on this machine")


def _reference(x: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    rank = x.ndim - 2
    padded = np.pad(x.astype(np.float64), [(0, 0), *[(1, 1)] * rank, (0, 0)])
    taps = [
        padded[:, *(slice(t, t + n) for t, n in zip(tap, x.shape[1:-1], strict=True))]
        for tap in itertools.product(range(TAPS), repeat=rank)
    ]
    each = [_flat(t).T @ _flat(gradient) for t in taps]
    return np.stack(each).reshape(*(TAPS,) * rank, x.shape[-1], gradient.shape[-1])


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, x.shape[-1])
