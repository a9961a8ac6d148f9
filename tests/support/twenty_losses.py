"""A program for a process with eight devices: do two and eight train as one does?

python -m tests.support.twenty_losses DATASET CONFIG,SPACE...

Prints a line per config: by how much the losses of 20 steps differ at most, relatively, on two
devices and on eight, of which SPACE share an example.
"""

import itertools
import sys
from pathlib import Path

import jax
import numpy as np

from ssl3d.data import store
from ssl3d.training import sharding
from ssl3d.training import step as steps
from tests.support.eight_devices import mesh_of, task_and_batches
from tests.support.tiny_configs import tiny_config

STEPS = 20


def losses(config, dataset, mesh):
    """The losses of the first steps over `mesh`."""
    task, batches = task_and_batches(config, dataset)
    optimizers = steps.make_optimizers(config)
    first = next(batches)
    record = jax.tree.map(lambda leaf: leaf[0], first["record"])
    state = steps.init_state(config, task, optimizers, record, mesh)
    step = steps.make_step(config, task, optimizers, mesh)
    found = []
    for batch in itertools.islice(itertools.chain([first], batches), STEPS):
        state, metrics = step(state, sharding.to_devices(batch, mesh, task.spatial))
        found.append(metrics["loss"])
    return np.asarray(jax.device_get(found))


def compare(name, space, folder):
    """Prints how far the losses on two and on eight devices are from those on one."""
    config = tiny_config(name, folder, batch_size=8, mesh__space=space, steps=STEPS)
    dataset = store.read(folder)
    one, *others = (losses(config, dataset, mesh_of(count, space)) for count in (1, 2, 8))
    assert len(set(one)) == STEPS
    print(f"{name},{space}", *(np.abs(1 - other / one).max() for other in others), flush=True)


if __name__ == "__main__":
    for argument in sys.argv[2:]:
        name, space = argument.split(",")
        compare(name, int(space), Path(sys.argv[1]))
