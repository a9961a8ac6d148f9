"""The devices that `ssl3d.plan` compiles for, none of which need be at hand.

    v5e:2x2, v5p:2x2x1, v6e:2x2, v4:2x2x1   a TPU slice by its topology
    h100x8, a100x8                          GPUs, eight to a host
    cpu:8                                   so many CPU devices of this machine

Importing this module imports no JAX: `environment` comes before that.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, NamedTuple

from ssl3d import accelerators
from ssl3d.errors import UserError

if TYPE_CHECKING:
    import jax

_GPUS_PER_HOST = 8


class Chip(NamedTuple):
    """What one device can do at most.

    Attributes:
      platform: "tpu", "gpu" or "cpu".
      bfloat16, float32: flops per second in products of that type.
      memory: bytes.
      usable: share of them that JAX gives to a program.
      bandwidth: bytes per second, of the memory.
      link: bytes per second in each direction to the other devices of a host or slice.
      network: the same to those of other hosts.
      clock: cycles per second, of a TPU.
    """

    platform: str
    bfloat16: float
    float32: float
    memory: float
    usable: float
    bandwidth: float
    link: float
    network: float
    clock: float = 0.0


# TPUs: cloud.google.com/tpu/docs/v4, v5e, v5p, v6e; products of float32 take one bfloat16 pass by
# default, and libtpu keeps some memory. A slice has one network. GPUs: NVIDIA's data sheets of H100
# SXM and A100 SXM 80 GB, dense; float32 as TF32, NVLink, a 400 (200) Gbit/s adapter per GPU; JAX
# reserves 75 % of the memory. CPU: assumed.
CHIPS = {
    "v4": Chip("tpu", 275e12, 275e12, 32 * 2**30, 0.98, 1228e9, 150e9, 150e9, 1.05e9),
    "v5e": Chip("tpu", 197e12, 197e12, 16 * 2**30, 0.984, 819e9, 100e9, 100e9, 1.5e9),
    "v5p": Chip("tpu", 459e12, 459e12, 95 * 2**30, 0.98, 2765e9, 300e9, 300e9, 1.75e9),
    "v6e": Chip("tpu", 918e12, 918e12, 32 * 2**30, 0.98, 1640e9, 200e9, 200e9, 1.75e9),
    "h100": Chip("gpu", 989e12, 494e12, 84.9e9, 0.75, 3352e9, 450e9, 50e9),
    "a100": Chip("gpu", 312e12, 156e12, 85.1e9, 0.75, 2039e9, 300e9, 25e9),
    "cpu": Chip("cpu", 50e9, 100e9, 0, 0.8, 10e9, 10e9, 1e9),
}

# XLA's description of a GPU; the values are those of XLA's own target_config/specs.
_GPU = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: {core} threads_per_core_limit: 2048 core_count: {cores}
  fpus_per_core: {fpus} memory_bandwidth: {bandwidth} l2_cache_size: {cache}
  clock_rate_ghz: {clock} device_memory_size: {memory} shared_memory_per_block_optin: {block}
  cuda_compute_capability {{ major: {major} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{name}"
"""
_GPUS = {
    "h100": _GPU.format(
        core=233472, cores=132, fpus=128, bandwidth=3352320000000, cache=52428800, clock=1.98,
        memory=84942979072, block=232448, major=9, name="NVIDIA H100 80GB HBM3",
    ),
    "a100": _GPU.format(
        core=167936, cores=108, fpus=64, bandwidth=2039040000000, cache=41943040, clock=1.41,
        memory=85100068864, block=166912, major=8, name="NVIDIA A100-SXM4-80GB",
    ),
}  # fmt: skip


class Target(NamedTuple):
    """Devices to compile for: the name given, that of the chip, and the topology or number."""

    name: str
    kind: str
    shape: str

    @property
    def chip(self) -> Chip:
        chip = CHIPS[self.kind]
        if chip.platform == "cpu":  # the devices share the machine's memory
            machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            chip = chip._replace(memory=machine / int(self.shape))
        return chip


def parse(name: str) -> Target:
    """Raises `UserError` for a target that there is no figure of, or that has another form."""
    found = re.fullmatch(
        r"(h100|a100)x([1-9]\d*)|(cpu):([1-9]\d*)|(v4|v5e|v5p|v6e):(\d+(x\d+)+)", name
    )
    if not found:
        raise UserError(
            f"--target={name}: write a TPU topology (v5e:2x2, v5p:2x2x1, v6e:2x2, v4:2x2x1), "
            "GPUs (h100x8, a100x8) or CPU devices (cpu:8)"
        )
    kind, shape = found[1] or found[3] or found[5], found[2] or found[4] or found[6]
    if found[1] and int(shape) > _GPUS_PER_HOST and int(shape) % _GPUS_PER_HOST:
        raise UserError(f"--target={name}: a multiple of {_GPUS_PER_HOST} on several hosts")
    return Target(name, kind, shape)


def environment(target: Target, variables: MutableMapping[str, str]) -> None:
    """Sets what XLA reads when it is loaded: only this machine's CPU runs anything."""
    variables["JAX_PLATFORMS"] = "cpu"
    # What libtpu and XLA would tell about the devices they do not find.
    variables.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    flags = ""
    if target.chip.platform == "cpu":
        flags = f" --xla_force_host_platform_device_count={target.shape}"
    elif target.chip.platform == "gpu":
        variables["CUDA_VISIBLE_DEVICES"] = "-1"
        flags = " --xla_gpu_autotune_level=0"  # would time kernels on the GPU
    else:
        quiet = {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4"}
        quiet |= {"TPU_MIN_LOG_LEVEL": "4", "TPU_STDERR_LOG_LEVEL": "4"}
        variables.update(quiet, TPU_SKIP_MDS_QUERY="1")
    variables["XLA_FLAGS"] = variables.get("XLA_FLAGS", "") + flags


def devices(target: Target) -> list[jax.Device]:
    """The devices of a target, to compile for.

    Raises:
      UserError: what compiles for them is not installed, or there is no such topology.
    """
    import jax
    from jax.experimental import topologies

    platform = target.chip.platform
    if platform == "cpu":
        found = jax.devices()
        if len(found) < int(target.shape):
            raise UserError(f"--target={target.name}: JAX has started with {len(found)} devices")
        return found[: int(target.shape)]
    check_installed(target)
    try:
        if platform == "tpu":
            topology = topologies.get_topology_desc(f"{target.kind}:{target.shape}", "tpu")
        else:
            hosts, each = divmod(int(target.shape), _GPUS_PER_HOST)
            shape = f"1x{hosts}x{_GPUS_PER_HOST}" if hosts and not each else f"1x1x{each}"
            topology = topologies.get_topology_desc(
                target.kind, "cuda", topology=shape, target_config=_GPUS[target.kind]
            )
    except (RuntimeError, ValueError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"--target={target.name}: no such topology ({reason})") from None
    return list(topology.devices)


def check_installed(target: Target) -> None:
    """Raises `UserError` where the compiler for the target's platform is not installed."""
    platform = target.chip.platform
    module = {"tpu": "libtpu", "gpu": "jax_cuda12_plugin"}[platform]
    if importlib.util.find_spec(module) is None:
        raise UserError(
            f"--target={target.name}: its compiler is not installed; run "
            f"{accelerators.install_line(platform)} (no device is needed)"
        )
