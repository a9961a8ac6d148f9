"""What is installed and what it computes on, for people and for reports of faults."""

from __future__ import annotations

import collections
import importlib.metadata
import os
import platform
from pathlib import Path

import jax

import ssl3d
from ssl3d import accelerators, hardware, limits, xla
from ssl3d.models import weight_gradient

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def report() -> str:
    """Versions, devices, memory and kernels, one a line, and last what to mend."""
    devices = jax.local_devices()
    kinds = collections.Counter(f"{device.platform} {device.device_kind}" for device in devices)
    about = {
        "ssl3d": f"{ssl3d.__version__} in {Path(ssl3d.__file__).parent}",
        "python": f"{platform.python_version()} on {platform.platform()}",
        "packages": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES),
        "machine": hardware.machine(),
        "memory": f"{limits.machine_memory() / 2**30:.1f} GB",
        "devices": ", ".join(f"{count} x {kind}" for kind, count in kinds.items()),
        "device memory": _device_memory(devices),
        "convolutions": _convolutions(),
        "weight gradient": _weight_gradient(),
    }
    width = max(map(len, about))
    lines = [f"{name:{width}}  {value}" for name, value in about.items() if value]
    return "\n".join([*lines, *accelerators.unused(xla.platform())])


def _device_memory(devices: list[jax.Device]) -> str:
    """That JAX may use of each accelerator; "" for CPUs, which share the machine's."""
    found = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    return ", ".join(f"{count / 2**30:.1f} GB" for count in found if count)


def _convolutions() -> str:
    if xla.platform() != "cpu":
        return ""
    if xla.onednn():
        return "oneDNN"
    return "XLA's own, several times slower than oneDNN; x86 processors have it from jaxlib 0.12 on"


def _weight_gradient() -> str:
    if xla.platform() != "cpu":
        return ""
    if os.environ.get(weight_gradient.SWITCH) == "0":
        return f"XLA's own ({weight_gradient.SWITCH}=0)"
    return "native" if weight_gradient.available() else "XLA's own (see the note)"
