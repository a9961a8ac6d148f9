"""Accelerators that JAX does not use, in made-up machines."""

import importlib.util
import re

import pytest

from ssl3d import accelerators


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Makes files of /dev and /sys under a root, with jax's plugins installed or not."""
    monkeypatch.setenv("PATH", str(tmp_path))  # without nvidia-smi

    def make(*files, plugins=False):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if plugins else None)
        for file in files:
            name, _, text = file.partition("=")
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    return make


CARD = ("sys/bus/pci/devices/1/vendor=0x10de\n", "sys/bus/pci/devices/1/class=0x030200\n")


@pytest.mark.parametrize(
    ("files", "plugins", "environment", "message"),
    [
        (["dev/nvidia0"], False, {}, "NVIDIA GPU .* pip install 'jax\\[cuda12\\]==[0-9.]+'$"),
        (["dev/nvidia0"], True, {"JAX_PLATFORMS": "cpu"}, "unset JAX_PLATFORMS$"),
        (["dev/nvidia0"], True, {"CUDA_VISIBLE_DEVICES": ""}, "unset CUDA_VISIBLE_DEVICES$"),
        (["dev/nvidia0"], True, {"CUDA_VISIBLE_DEVICES": "0"}, "update NVIDIA's driver"),
        (CARD, False, {}, "install NVIDIA's driver$"),
        ([*CARD, ".dockerenv"], False, {}, "docker run --gpus all$"),
        ([*CARD, ".singularity.d/x"], False, {}, "apptainer exec --nv$"),
        (["dev/accel0"], False, {}, "TPU .* pip install 'jax\\[tpu\\]==[0-9.]+'$"),
        (["dev/accel0"], True, {"JAX_PLATFORMS": "cpu"}, "unset JAX_PLATFORMS$"),
        (["dev/accel0"], True, {"JAX_PLATFORMS": ""}, "another process"),
    ],
)
def test_an_accelerator_that_jax_does_not_use_is_named_with_its_remedy(
    machine, files, plugins, environment, message
):
    (line,) = accelerators.unused("cpu", environment, machine(*files, plugins=plugins))
    assert re.search(message, line), line


def test_the_drivers_tool_tells_of_gpus_too(machine):
    tool = machine() / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)'\n")
    tool.chmod(0o755)
    assert accelerators.nvidia_smi() == ["GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)"]
    assert len(accelerators.unused("cpu", {}, machine())) == 1
    tool.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n")
    assert accelerators.unused("cpu", {}, machine()) == []


def test_nothing_is_reported_where_jax_computes_on_it_or_there_is_none(machine):
    other_card = ("sys/bus/pci/devices/2/vendor=0x8086", "sys/bus/pci/devices/2/class=0x030000")
    sound = ("sys/bus/pci/devices/3/vendor=0x10de", "sys/bus/pci/devices/3/class=0x040300")
    assert accelerators.unused("cpu", {}, machine(*other_card, *sound)) == []
    assert accelerators.unused("gpu", {}, machine("dev/nvidia0")) == []
