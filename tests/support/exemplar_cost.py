"""The transformations of exemplar against those of SciPy's splines, per volume.

python -m tests.support.exemplar_cost [SIDE] [CHANNELS] [ROUNDS]

Ours: flips, quarter turns, separable linear zoom and a monotone map, jitted, on a batch of four
volumes of SIDE^3 (128) voxels and CHANNELS (2). SciPy's: a rotation and a zoom of one of them by
cubic splines (`ndimage.rotate` and `ndimage.zoom`, their default order). Prints the ratio of both
to ours, and that of their times at the paper's probabilities; ours takes as long in either case.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from ssl3d import xla
from ssl3d.configs import exemplar3d
from ssl3d.tasks import exemplar
from tests.support.steps_timed import in_turns, load

BATCH = 4


def main(side=128, channels=2, rounds=3):
    task = exemplar3d.get_config("ukb,paper").task
    rng = np.random.default_rng(0)
    volumes = rng.normal(size=(BATCH, *(side,) * 3, channels)).astype(np.float32)
    on_device, keys = jnp.asarray(volumes), jax.random.split(jax.random.key(0), BATCH)
    transform = xla.jit(jax.vmap(lambda key, volume: exemplar.transform(key, volume, task)))
    jax.block_until_ready(transform(keys, on_device))
    parts = np.moveaxis(volumes[0], -1, 0)
    functions = {
        "ours": lambda: jax.block_until_ready(transform(keys, on_device)),
        "rotate": lambda: [ndimage.rotate(part, 30, (0, 1), reshape=False) for part in parts],
        "zoom": lambda: [ndimage.zoom(part, 1.1) for part in parts],
    }
    seconds = in_turns(functions, rounds)
    ours = seconds["ours"] / BATCH
    both = seconds["rotate"] + seconds["zoom"]
    likely = task.turn * seconds["rotate"] + task.zoom * seconds["zoom"]
    print(
        f"{load()}: {side}^3 x {channels}: ours {1e3 * ours:.1f} ms per volume; splines: rotation "
        f"{1e3 * seconds['rotate']:.0f} ms, zoom {1e3 * seconds['zoom']:.0f} ms; ratio "
        f"{both / ours:.0f} of both, {likely / ours:.0f} at the probabilities of training "
        "(goal >= 30)"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
