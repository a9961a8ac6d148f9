import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl3d import xla


@pytest.fixture
def fresh_probe():
    xla._onednn.cache_clear()
    yield
    xla._onednn.cache_clear()


def convolve(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )


ARRAYS = jnp.ones((1, 8, 8, 8, 8)), jnp.ones((3, 3, 3, 8, 8))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="oneDNN is the CPU's")
def test_probe_says_what_becomes_of_a_3d_convolution():
    compiled = xla.jit(convolve).lower(*ARRAYS).compile().as_text()
    assert ("__onednn$convolution" in compiled) == xla.onednn()


def test_the_answer_is_not_in_the_probes_own_name(fresh_probe, monkeypatch):
    """The compiled text names the Python functions it comes from, `onednn` among them."""
    monkeypatch.setattr(xla, "_ONEDNN", {"xla_cpu_experimental_onednn_custom_call": False})
    assert not xla.onednn()


def test_an_option_that_xla_no_longer_knows_means_no(fresh_probe, monkeypatch):
    monkeypatch.setattr(xla, "_ONEDNN", {"xla_cpu_option_of_another_day": True})
    assert not xla.onednn()
    np.testing.assert_allclose(xla.jit(convolve)(*ARRAYS), convolve(*ARRAYS), rtol=1e-5)


def test_probe_compiles_once_per_process(fresh_probe, monkeypatch):
    compilations = []
    jit = jax.jit
    monkeypatch.setattr(jax, "jit", lambda *a, **k: compilations.append(a) or jit(*a, **k))
    answers = {xla.onednn() for _ in range(3)}
    assert len(answers) == 1
    assert len(compilations) <= 1


def test_jit_keeps_the_callers_options():
    step = xla.jit(lambda x, n: x * n, static_argnums=1, donate_argnums=0)
    x = jnp.arange(3.0)
    np.testing.assert_array_equal(step(x, 2), [0, 2, 4])
    assert x.is_deleted()


def test_convolutions_with_channels_last_are_those_of_gpus_alone(monkeypatch):
    given = []
    jit = jax.jit
    monkeypatch.setattr(jax, "jit", lambda f, **options: given.append(options) or jit(f))
    for target in ("cpu", "gpu", "tpu"):
        with xla.compiling_for(target):
            step = xla.jit(convolve, channels_last=True)
    found = ["xla_gpu_force_conv_nhwc" in each.get("compiler_options", {}) for each in given]
    assert found[-3:] == [False, True, False]
    np.testing.assert_allclose(step(*ARRAYS), convolve(*ARRAYS), rtol=1e-5)


def test_jit_once_computes_the_same():
    np.testing.assert_array_equal(xla.jit_once(lambda x: x * 2)(jnp.arange(3)), [0, 2, 4])


def test_import_touches_no_device():
    """Programs over several hosts call jax.distributed.initialize after their imports."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = (
        "import ssl3d.xla, ssl3d.models.heads, ssl3d.models.export\n"
        "import jax\n"
        f"jax.distributed.initialize('127.0.0.1:{port}', 1, 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


# Page faults of a second block of 64 MB, freed and allocated again.
FAULTS = """
import resource
import numpy as np
from ssl3d import xla

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**23)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

freed_at_once = [faults(), faults()][1]
keeps = xla.keep_memory()
print(keeps, freed_at_once, [faults(), faults()][1])
"""


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="accelerators have memory of their own")
def test_memory_that_was_freed_is_used_again():
    run = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    keeps, before, after = run.stdout.split()
    if keeps == "False":
        pytest.skip("not the malloc of a glibc that takes large thresholds")
    assert int(after) < int(before) / 10


def test_a_malloc_that_takes_no_wishes_is_left_alone(monkeypatch):
    def no_library(name):
        raise OSError("no such library")

    monkeypatch.setattr(xla.ctypes, "CDLL", no_library)
    assert not xla.keep_memory()
