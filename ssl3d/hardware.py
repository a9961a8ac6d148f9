"""What a program runs on, and how much memory it took."""

from __future__ import annotations

import os
import platform
import re
import resource
import sys
from pathlib import Path

import jax


def machine() -> str:
    """Processor, cores, accelerator if any, and the version of jax."""
    processor = _find(r"model name.*?:(.*)", "/proc/cpuinfo") or platform.machine()
    device = jax.devices()[0]
    kind = "" if device.platform == "cpu" else f", {jax.device_count()} x {device.device_kind}"
    return f"{processor}, {os.cpu_count()} cores{kind}, jax {jax.__version__}"


def peak_memory() -> float:
    """Peak memory in MB: of an accelerator or, without one, of this process."""
    found = [device.memory_stats() for device in jax.local_devices()]
    peaks = [about["peak_bytes_in_use"] for about in found if about]  # a CPU has none
    if peaks:
        return max(peaks) / 2**20
    # Rather than by getrusage, which includes the parent's memory at the fork.
    own = _find(r"VmHWM:\s*(\d+)", "/proc/self/status")
    peak = int(own or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _find(pattern: str, file: str) -> str:
    """The first match in a file of /proc; "" where there is none."""
    found = re.search(pattern, Path(file).read_text()) if Path(file).exists() else None
    return found[1].strip() if found else ""
