"""The notebook of the documentation, executed as it is: its halves in their environments."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import notebooks

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "notebooks" / "pytorch.ipynb"


def execute(python, torch, folder):
    path = os.pathsep.join([os.path.dirname(python), os.environ["PATH"]])
    done = subprocess.run(
        [python, "-c", notebooks.as_script(NOTEBOOK, torch)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT) * (not torch), "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder in which the half without PyTorch has run."""
    folder = tmp_path_factory.mktemp("notebook")
    execute(sys.executable, False, folder)
    return folder


@pytest.mark.slow
def test_a_pretrained_encoder_leaves_jax(exported):
    files = {file.name for file in (exported / "exported").iterdir()}
    assert {"encoder.py", "encoder.safetensors"} <= files
    assert (exported / "features.npz").exists()


@pytest.mark.slow
def test_it_is_fine_tuned_in_pytorch(exported):
    python = os.environ.get("SSL3D_TORCH_PYTHON")
    if not python:
        pytest.skip("set SSL3D_TORCH_PYTHON to a Python that has torch, safetensors and MONAI")
    found = subprocess.run([python, "-c", "import torch, safetensors, monai"], capture_output=True)
    if found.returncode:
        pytest.skip(f"{python} lacks torch, safetensors or MONAI")
    said = execute(python, True, exported)
    assert len(re.findall(r"relative difference \d\.\de-\d\d", said)) >= 3
    assert re.search(r"pretrained +loss .*, Dice 0\.\d+", said)
    assert re.search(r"from scratch +loss .*, Dice 0\.\d+", said)
    assert (exported / "fine_tuned.pt").exists()


def test_the_half_in_pytorch_imports_nothing_of_ours():
    text = notebooks.as_script(NOTEBOOK, torch=True)
    assert "from encoder import load" in text
    assert not re.search(r"^\s*(from|import) (ssl3d|jax|flax)", text, re.MULTILINE)
