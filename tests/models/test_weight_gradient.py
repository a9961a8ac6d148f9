"""The weight gradient in C++ against the library's, and what happens where there is none."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl3d import xla
from ssl3d.errors import UserError
from ssl3d.models import layers, weight_gradient
from ssl3d.training import sharding
from tests.support.oracles import normal

needs_library = pytest.mark.usefixtures("library")


@pytest.fixture
def library():
    if not weight_gradient.available():
        pytest.skip("no CPU, or no C++ compiler")


def by_kernel(x, kernel):
    return jax.grad(lambda kernel: jnp.sin(layers.convolve(x, kernel)).sum())(kernel)


def is_native(x, kernel, platform="cpu"):
    traced = jax.jit(lambda *arrays: by_kernel(*arrays)).trace(x, kernel)  # anew at every call
    lowered = traced.lower(lowering_platforms=(platform,))
    return weight_gradient._TARGET in lowered.as_text()


@pytest.fixture
def unprobed(monkeypatch, tmp_path):
    """As in a new process of a user whose cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(weight_gradient.SWITCH, raising=False)
    weight_gradient.available.cache_clear()
    yield tmp_path / "ssl3d"
    weight_gradient.available.cache_clear()


@needs_library
@pytest.mark.parametrize(
    ("size", "inputs", "outputs"),
    [
        ((5, 3, 7), 3, 5),  # one, two and three vectors of sums, and more of them
        ((3, 4, 9), 1, 8),
        ((4, 3, 3), 16, 20),
        ((9, 70, 3), 9, 33),  # slabs in the middle of a plane
        ((3, 50), 20, 36),
    ],
)
def test_agrees_with_the_librarys(size, inputs, outputs):
    x, gradient = normal(0, 3, *size, inputs), normal(1, 3, *size, outputs)
    kernel = jnp.zeros((3,) * len(size) + (inputs, outputs))
    (expected,) = jax.linear_transpose(lambda k: layers._convolve(x, k), kernel)(gradient)
    found = jax.jit(weight_gradient.weight_gradient)(x, gradient)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@needs_library
def test_is_for_cpus_float32_and_kernels_of_three():
    x, kernel = normal(0, 2, 4, 5, 6, 3), normal(1, 3, 3, 3, 3, 4)
    assert is_native(x, kernel)
    assert not is_native(x, kernel, "tpu")
    assert not is_native(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    assert not is_native(x, kernel[1:, 1:, 1:])
    assert not is_native(x[:, :2], kernel)  # a matrix product is as fast


@needs_library
def test_of_each_of_several_kernels():
    x, kernels = normal(0, 3, 2, 4, 5, 3), normal(1, 3, 3, 3, 3, 4)
    found = jax.jit(jax.vmap(by_kernel))(x, kernels)
    expected = jnp.stack([jax.jit(by_kernel)(*pair) for pair in zip(x, kernels, strict=True)])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@needs_library
def test_bits_do_not_depend_on_threads_nor_sums_on_devices():
    command = [sys.executable, "-m", "tests.support.shared_gradients"]
    runs = [
        subprocess.Popen([*command, cores], stdout=subprocess.PIPE, text=True)
        for cores in ("1", "2")
    ]
    printed = [run.communicate(timeout=120)[0].split() for run in runs]
    assert printed[0] == printed[1]
    assert max(float(number) for number in printed[0][1::2]) < 1e-5
    assert printed[0][2::2] == ["False", "False", "True"]


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("", "found no C++ compiler"),
        ("false", "false failed"),
        ("no-such-compiler", "No such file"),
        ("'g++", "CXX='g++: No closing quotation"),
    ],
)
def test_without_a_compiler_xla_computes_it(compiler, reason, unprobed, monkeypatch, capfd):
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setattr(weight_gradient, "_COMPILERS", ())
    x, kernel = normal(0, 2, 4, 5, 6, 3), normal(1, 3, 3, 3, 3, 4)
    assert not is_native(x, kernel)
    assert not is_native(x, kernel)
    said = capfd.readouterr().err
    assert said.count("no native weight gradient") == 1
    assert reason in said
    assert not list(unprobed.glob("*"))


def test_can_be_switched_off(unprobed, monkeypatch, capfd):
    monkeypatch.setenv(weight_gradient.SWITCH, "0")
    assert not weight_gradient.available()
    assert capfd.readouterr().err == ""


def test_the_switch_is_0_or_1(unprobed, monkeypatch):
    monkeypatch.setenv(weight_gradient.SWITCH, "no")
    for call in (weight_gradient.available, sharding.start):
        with pytest.raises(UserError, match=r"^SSL3D_NATIVE='no': must be 0 or 1"):
            call()


COMPILER = """#!/bin/sh
[ "$1" = --version ] && { echo stand-in; exit; }
while [ "$1" != -o ]; do shift; done
echo translated >> "$0.log"
echo a library > "$2"
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A compiler that writes a log; its libraries pass for good ones."""
    compiler = tmp_path / "compiler"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(weight_gradient, "_register", lambda library: None)
    monkeypatch.setattr(weight_gradient, "_test", lambda: None)
    return compiler.with_suffix(".log")


def test_is_compiled_once_and_again_if_damaged(stand_in, tmp_path):
    def compiled():
        weight_gradient._load(tmp_path / "cache")
        return len(stand_in.read_text().splitlines())

    assert [compiled(), compiled()] == [1, 1]
    (library,) = (tmp_path / "cache").iterdir()
    library.write_bytes(library.read_bytes()[:-1])
    assert [compiled(), compiled()] == [2, 2]
    library.write_bytes(b"")
    assert compiled() == 3


def test_where_nothing_can_be_written_it_is_compiled_elsewhere(stand_in, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    for count in (1, 2):
        weight_gradient._load(tmp_path / "file" / "cache")
        assert len(stand_in.read_text().splitlines()) == count
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_compiler_that_hangs_ends_with_what_it_started(monkeypatch, tmp_path):
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\nsleep 600 &\necho $! > "$0.child"\nwait\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(weight_gradient, "_PATIENCE", 2)
    with pytest.raises(weight_gradient._UnavailableError, match="took more than 2 s"):
        weight_gradient._load(tmp_path / "cache")
    child = Path(f"{compiler}.child").read_text().strip()
    deadline = time.monotonic() + 10
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(child)


def is_running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_folder_of_others_is_not_used(stand_in, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    with pytest.raises(weight_gradient._UnavailableError, match="cache belongs to another user"):
        weight_gradient._load(tmp_path / "cache")
    assert not stand_in.exists()


def test_a_compiler_of_several_words_is_asked_for_its_version(monkeypatch, tmp_path):
    for name in ("one", "two"):
        compiler = tmp_path / name
        compiler.write_text(f"#!/bin/sh\necho {name}\n")
        compiler.chmod(0o755)
    keys = set[str]()
    for version in ("one", "two", "two"):
        (tmp_path / "c++").unlink(missing_ok=True)
        (tmp_path / "c++").symlink_to(version)
        monkeypatch.setenv("CXX", f"env {tmp_path}/c++")
        keys.add(weight_gradient._key(weight_gradient._compiler()))
    assert len(keys) == 2


def test_compiling_for_another_platform_needs_no_library(monkeypatch):
    monkeypatch.setattr(weight_gradient, "available", lambda: pytest.fail("compiled"))
    with xla.compiling_for("tpu"):
        assert not is_native(normal(0, 2, 4, 5, 6, 3), normal(1, 3, 3, 3, 3, 4), "tpu")


def test_a_library_that_computes_something_else_is_not_kept(stand_in, tmp_path, monkeypatch):
    def fail():
        raise weight_gradient._UnavailableError("wrong numbers")

    monkeypatch.setattr(weight_gradient, "_test", fail)
    with pytest.raises(weight_gradient._UnavailableError):
        weight_gradient._load(tmp_path / "cache")
    assert os.listdir(tmp_path / "cache") == []


@needs_library
def test_wrong_numbers_are_noticed(monkeypatch):
    call = weight_gradient._call
    weight_gradient._test()
    monkeypatch.setattr(weight_gradient, "_call", lambda x, g: call(x, g).at[0].multiply(1.001))
    with pytest.raises(weight_gradient._UnavailableError, match="wrong numbers"):
        weight_gradient._test()
