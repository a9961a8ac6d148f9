"""Cost of a training step against its size: time and memory per volume, with the exponent.

python -m tests.support.size_cost [ROUNDS] [batch|side|base ...]

Rotation in 3D with the default encoder: batches of 1 to 64 crops of 32^3, crops of 32^3 to 128^3
voxels, and first levels of 8 to 32 channels, all else equal. The exponent is the slope of the cost
of a volume over its size, both logarithmic: over voxels 1 is linear; over the batch, where a volume
should cost the same, 0 is; over channels a convolution's work grows with the square.
"""

import math
import sys

import numpy as np

from ssl3d import tasks, xla
from ssl3d.configs import rotation3d
from tests.support.steps_timed import in_turns, load, step_of

SIZES = {
    "batch": (1, 4, 16, 64),
    "side": (32, 64, 128),
    "base": (8, 16, 32),
}


def config_of(batch=2, side=32, base=8):
    config = rotation3d.get_config("phantom")
    config.batch_size, config.data.crop, config.encoder.width = batch, (side,) * 3, base
    config.task.turns = config.task.coarsen = 1
    return config


def main(rounds=3, *names):
    xla.keep_memory()
    print(load())
    print("| | size | ms per volume | MB per volume |\n|---|---|---|---|")
    exponents = []
    for name in names or SIZES:
        sizes = SIZES[name]
        functions, megabytes, counts = {}, [], {}
        for size in sizes:
            config = config_of(**{name: size})
            functions[size], memory = step_of(config, tasks.build(config))
            counts[size] = config.batch_size
            megabytes.append(memory / 2**20 / config.batch_size)
        seconds = in_turns(functions, rounds)
        times = [1e3 * seconds[size] / counts[size] for size in sizes]
        for size, time, space in zip(sizes, times, megabytes, strict=True):
            print(f"| {name} | {size} | {time:.1f} | {space:.1f} |", flush=True)
        axis = np.log(sizes) * (3 if name == "side" else 1)
        slopes = [np.polyfit(axis, np.log(values), 1)[0] for values in (times, megabytes)]
        last = [math.log(v[-1] / v[-2]) / (axis[-1] - axis[-2]) for v in (times, megabytes)]
        exponents.append(
            f"{name}: exponent of time {slopes[0]:.2f} (last step {last[0]:.2f}), of memory "
            f"{slopes[1]:.2f} (last step {last[1]:.2f})"
        )
    print("\n".join(exponents))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *sys.argv[2:])
