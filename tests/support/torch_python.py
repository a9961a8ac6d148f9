"""PyTorch in a process of its own: the second opinion on exported networks.

SSL3D_TORCH_PYTHON names a Python with torch and safetensors, and for some tests nnU-Net's
dynamic-network-architectures or MONAI. Without it these tests are skipped.
"""

import functools
import os
import subprocess

import pytest

VARIABLE = "SSL3D_TORCH_PYTHON"


@functools.cache
def has(module):
    return run_with(os.environ[VARIABLE], "-c", f"import {module}").returncode == 0


def run_with(python, *arguments):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [python, *map(str, arguments)],
        capture_output=True, text=True, timeout=300, check=False, env=environment, cwd="/",
    )  # fmt: skip


def required(*modules):
    """Skips the test without a Python that has torch, safetensors and these modules."""
    if not os.environ.get(VARIABLE):
        pytest.skip(f"{VARIABLE} names no Python with torch")
    for module in ("torch", "safetensors", *modules):
        if not has(module):
            pytest.skip(f"the Python of {VARIABLE} has no {module}")


def run(*arguments):
    """Runs a script there; the finished process."""
    required()
    return run_with(os.environ[VARIABLE], *arguments)


def succeeds(*arguments):
    """Runs a script there, which must succeed; what it printed."""
    done = run(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


_CHECK = """
import runpy, sys
files, sys.argv = sys.argv[1:], sys.argv[:1]
for file in files:
    try:
        runpy.run_path(file, run_name="__main__")
    except SystemExit as status:
        if status.code:
            raise
"""


def check(*files):
    """Runs the `encoder.py` or `network.py` of exports, each of which must find its outputs right.

    In one process: torch takes seconds to import.
    """
    assert succeeds("-c", _CHECK, *files).count("largest difference") == len(files)
