"""Compiled training steps on a batch that stays on the device, timed in turns."""

import os
import time

import jax
import numpy as np

from ssl3d.data import pipeline
from ssl3d.training import sharding
from ssl3d.training import step as steps


def synthetic_batch(config, task, channels=1):
    """A batch of the record that `task` makes of a smooth image of the size of the crop."""
    rng = np.random.default_rng(0)
    waves = np.meshgrid(*[np.linspace(0, 9, side) for side in config.data.crop], indexing="ij")
    image = np.sin(sum(waves))[..., None] + rng.normal(0, 0.3, (*config.data.crop, channels))
    example = pipeline.Example(image.astype(np.float16), None)
    records = [pipeline.arrays(task.record(rng, example, True)) for _ in range(config.batch_size)]
    numbers = np.arange(config.batch_size, dtype=np.int32)
    return {
        "record": {key: np.stack([one[key] for one in records]) for key in records[0]},
        "case": numbers,
        "case_key": numbers.astype(np.uint32),
        "subject": numbers,
    }


def step_of(config, task, mesh=None):
    """A function that does one step, the bytes of its temporary arrays, and those it works on."""
    mesh = mesh or sharding.make_mesh(1)
    batch = synthetic_batch(config, task)
    record = {key: leaf[0] for key, leaf in batch["record"].items()}
    optimizers = steps.make_optimizers(config)
    carried = [steps.init_state(config, task, optimizers, record, mesh)]
    placed = sharding.to_devices(batch, mesh, task.spatial)
    lowered = steps.make_step(config, task, optimizers, mesh).lower(carried[0], placed)
    compiled = lowered.compile()
    memory = compiled.memory_analysis().temp_size_in_bytes

    def step():
        carried[0], metrics = compiled(carried[0], placed)
        jax.block_until_ready(metrics)

    step()
    return step, memory


def in_turns(functions, rounds=5):
    """Name -> median seconds of a call; the functions take turns, as the machine's load varies."""
    seconds = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            begun = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - begun)
    return {name: float(np.median(times)) for name, times in seconds.items()}


def load():
    return f"load {os.getloadavg()[0]:.1f}, {len(os.sched_getaffinity(0))} cores"
