"""Rates of the loader at paper size, without a device: volumes per second and peak memory.

python -m tests.support.loader_speed FOLDER [SIDE] [CHANNELS]

Writes eight volumes of SIDE^3 (128) voxels and CHANNELS (2) modalities in FOLDER, once, and reads
batches of them as the presets of the paper's size do, with one reader thread and with two. The
files stay in the page cache, as on a machine whose memory holds the collection or whose disk is
fast enough. Each rate is the median of windows of a second that alternate among the configs.
"""

import importlib
import sys
import time
from pathlib import Path

import numpy as np

from ssl3d import bounds, hardware
from ssl3d.data import store
from ssl3d.training import problem
from tests.support.datasets import write_dataset
from tests.support.steps_timed import load

CONFIGS = ("rotation3d:ukb", "rpl3d:ukb", "jigsaw3d:ukb", "cpc3d:ukb", "cpc3d:ukb,paper")
CONFIGS += ("joint3d:ukb",)
THREADS = (1, 2)
WINDOWS, SECONDS = 3, 1.0


def loader(name, folder, threads, side):
    """Training batches of a config on the data in `folder`, and its batch size."""
    module, _, argument = name.partition(":")
    config = importlib.import_module(f"ssl3d.configs.{module}").get_config(argument)
    config.data.path, config.data.threads = str(folder), threads
    if side < 128:
        config.data.crop = (side,) * 3
    bounds.derive(config)
    given, _ = problem.open_problem(config)
    return problem.train_batches(given, first_batch=0), config.batch_size


def rate(batches, size, seconds):
    begun, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - begun < seconds:
        next(batches)
        count += size
    return count / (time.perf_counter() - begun)


def main(folder, side=128, channels=2, windows=WINDOWS, seconds=SECONDS, configs=CONFIGS):
    if not (folder / store.MANIFEST).exists():
        write_dataset(folder, 3, channels, splits={"train": 6, "val": 2}, side=side)
    print(load())
    found = {}
    for _ in range(windows):
        for name in configs:
            for threads in THREADS:
                batches, size = loader(name, folder, threads, side)
                next(batches)
                found.setdefault((name, threads), []).append(rate(batches, size, seconds))
                del batches
    for (name, threads), rates in found.items():
        print(f"{name}, {threads} threads: {np.median(rates):.0f} volumes/s")
    print(f"peak memory {hardware.peak_memory():.0f} MB")
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
