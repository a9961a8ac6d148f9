"""Fixtures that tests of all folders share; what they hand out is in `tests.support`."""

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

# Before jax is imported. Tests compile far more than they run, and LLVM's optimisation of XLA's
# code is most of that time; convolutions run in a library and do not notice. The cores are busy
# with other tests: threads of one compilation would only wait for each other.
FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"

# Tracing allocates millions of objects that live on: looking through them again and again for
# garbage takes a tenth of the suite's time.
gc.set_threshold(50_000, 20, 50)

import hypothesis
import jaxtyping
import pytest

# Before ssl3d is imported: its annotations, shapes included, are checked at every call.
CHECKED = ("augment", "losses", "metrics", "intervals", "models", "tasks")
jaxtyping.install_import_hook(
    [f"ssl3d.{name}" for name in CHECKED],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",  # an int is a float
)

from ssl3d import cli
from tests.support import compiled_once
from tests.support.datasets import write_dataset
from tests.support.random_models import save_random_model
from tests.support.tiny_configs import tiny_arguments, tiny_config

compiled_once.install()

# The machine may be busy, and the first example of a test compiles.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

HANDLERS = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}


@pytest.fixture(scope="session")
def tiny():
    """The function `tiny_config`."""
    return tiny_config


@pytest.fixture(scope="session")
def make_dataset():
    """The function `write_dataset`."""
    return write_dataset


@pytest.fixture(scope="session")
def tiny_options():
    """The function `tiny_arguments`."""
    return tiny_arguments


@pytest.fixture(scope="session")
def save_model():
    """The function `save_random_model`."""
    return save_random_model


@pytest.fixture(scope="session")
def volumes(tmp_path_factory):
    """A 3D data set with two channels."""
    return write_dataset(tmp_path_factory.mktemp("data") / "volumes", rank=3, channels=2)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A 2D data set with three channels."""
    return write_dataset(tmp_path_factory.mktemp("data") / "pictures", rank=2, channels=3)


@pytest.fixture(scope="session")
def task04():
    """The hippocampus data of the Decathlon; tests on them are skipped where there are none."""
    folder = os.environ.get("SSL3D_TEST_DATA")
    if not folder:
        pytest.skip("set SSL3D_TEST_DATA to the folder that holds Task04_Hippocampus")
    return Path(folder) / "Task04_Hippocampus"


@pytest.fixture(scope="session")
def datasets(volumes, pictures):
    return {2: pictures, 3: volumes}


@pytest.fixture
def in_repository(request, monkeypatch):
    """Commands name their configs relative to the checkout."""
    monkeypatch.chdir(request.config.rootpath)
    return request.config.rootpath


@pytest.fixture
def as_typed(in_repository):
    """`python -m MODULE ARGUMENT...` in a process of its own, which has ended."""

    def function(module, *arguments):
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return function


@pytest.fixture
def call_command(monkeypatch, capsys, in_repository):
    """A command's `main` with arguments, without a new process: (status, stdout, stderr)."""

    def function(main, *arguments):
        monkeypatch.setattr(sys, "argv", [main.__module__, *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.run(main)
        said = capsys.readouterr()
        return caught.value.code, said.out, said.err

    return function


@pytest.fixture(autouse=True)
def restore_signal_handlers():
    """A run that a test broke off must not leave pytest deaf to Ctrl-C."""
    yield
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)
