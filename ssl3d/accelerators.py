"""Accelerators of this machine that JAX does not use, and what mends it.

They are looked for in /dev and /sys, which need neither JAX nor a driver's tools.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

_NVIDIA = "0x10de"  # PCI vendor
_DISPLAY, _PROCESSING = "0x03", "0x12"  # PCI classes of GPUs, with and without a monitor's plug
_EXTRAS = {"gpu": "cuda12", "tpu": "tpu"}  # of jax, by platform
_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")


def install_line(platform: str) -> str:
    """The command that adds to the installed jax what "gpu" or "tpu" needs."""
    return f"pip install 'jax[{_EXTRAS[platform]}]=={importlib.metadata.version('jax')}'"


def nvidia_smi() -> list[str]:
    """A line for each NVIDIA GPU, as the driver's `nvidia-smi -L` prints it; empty without it."""
    command = shutil.which("nvidia-smi")
    if not command:
        return []
    try:
        done = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line for line in done.stdout.splitlines() if line.startswith("GPU ")]


def unused(
    platform: str, environment: Mapping[str, str] = os.environ, root: Path = Path("/")
) -> list[str]:
    """One line per kind of accelerator that is here while JAX computes on the CPU.

    Args:
      platform: of JAX's default device.
      root: of /dev and /sys.
    """
    if platform != "cpu":
        return []
    faults = []
    gpus = len(list(root.glob("dev/nvidia[0-9]*")))
    if gpus or nvidia_smi():
        faults.append(f"NVIDIA GPU not used: {_remedy_for_gpus(environment)}")
    elif _pci_gpus(root):
        faults.append(f"NVIDIA GPU not used: {_remedy_without_driver(root)}")
    if list(root.glob("dev/accel[0-9]*")):
        faults.append(f"TPU not used: {_remedy_for_tpus(environment)}")
    return faults


def _pci_gpus(root: Path) -> list[Path]:
    devices = root.glob("sys/bus/pci/devices/*")
    return [
        device
        for device in devices
        if _text(device / "vendor") == _NVIDIA
        and _text(device / "class").startswith((_DISPLAY, _PROCESSING))
    ]


def _text(file: Path) -> str:
    return file.read_text().strip() if file.is_file() else ""


def _remedy_for_gpus(environment: Mapping[str, str]) -> str:
    if all(importlib.util.find_spec(plugin) is None for plugin in _PLUGINS):
        return f"jax is installed without CUDA; {install_line('gpu')}"
    if fault := _switched_off(environment, "cuda", "CUDA_VISIBLE_DEVICES"):
        return fault
    return (
        "jax finds no working driver; update NVIDIA's driver, and see why by: "
        "JAX_PLATFORMS=cuda python -c 'import jax; jax.devices()'"
    )


def _remedy_without_driver(root: Path) -> str:
    if (root / ".dockerenv").exists():
        return "the container has no access; start it with docker run --gpus all"
    if (root / ".singularity.d").exists():
        return "the container has no access; start it with apptainer exec --nv"
    return "no driver is loaded; install NVIDIA's driver"


def _remedy_for_tpus(environment: Mapping[str, str]) -> str:
    if importlib.util.find_spec("libtpu") is None:
        return f"jax is installed without libtpu; {install_line('tpu')}"
    if fault := _switched_off(environment, "tpu", "TPU_VISIBLE_CHIPS"):
        return fault
    return (
        "another process may hold it; end that one, and see why by: "
        "JAX_PLATFORMS=tpu python -c 'import jax; jax.devices()'"
    )


def _switched_off(environment: Mapping[str, str], platform: str, visible: str) -> str:
    """The variable that hides the accelerators, with its remedy; "" if none does."""
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms and platform not in platforms.split(",") and "gpu" not in platforms.split(","):
        return f"JAX_PLATFORMS={platforms} excludes it; unset JAX_PLATFORMS"
    if environment.get(visible, "0") in ("", "-1"):
        return f"{visible}={environment[visible]} hides it; unset {visible}"
    return ""
