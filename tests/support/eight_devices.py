"""A program for a process with several devices: do they compute what a single one does?

python -m tests.support.eight_devices DATASET CONFIG,SPACE...

Prints lines per config, then one on a crop that two devices cannot share and one on a batch that
eight devices cannot.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ssl3d import tasks, xla
from ssl3d.data import pipeline, store
from ssl3d.errors import UserError
from ssl3d.training import hlo, loop, sharding
from ssl3d.training import step as steps
from ssl3d.training.cases import labels_of
from tests.support.tiny_configs import tiny_config


def mesh_of(count, space):
    """A mesh over the first `count` devices."""
    return sharding.make_mesh(min(space, count), jax.devices()[:count])


def task_and_batches(config, dataset):
    task = tasks.build(config, labels_of(dataset, dataset.split("train")))
    return task, pipeline.train_batches(
        dataset,
        dataset.split("train"),
        task.record,
        rank=config.rank,
        slice_axis=0,
        margin=0,
        batch_size=config.batch_size,
        seed=0,
        threads=1,
        label_map=tasks.needs(config) == "label_map",
    )


def gradients_on(mesh, config, dataset):
    """Gradients and metrics of the same batch with the draws of three steps, over `mesh`.

    Also the operations of the compiled program.
    """
    task, batches = task_and_batches(config, dataset)
    batch = next(batches)
    record = jax.tree.map(lambda leaf: leaf[0], batch["record"])
    state = steps.init_state(config, task, steps.make_optimizers(config), record, mesh)
    whole = sharding.replicated(mesh)
    gradients = steps.make_gradients(config, task, mesh=mesh)
    placed = sharding.to_devices(batch, mesh, task.spatial)
    for name, leaf in placed["record"].items():
        in_space = name in task.spatial
        sides = [mesh.shape["data"], mesh.shape["space"] if in_space else 1]
        own = leaf.addressable_shards[0].data
        assert [n * side for n, side in zip(own.shape, sides, strict=False)] == list(leaf.shape[:2])
    state = jax.device_put(state, whole)
    numbered = [state | {"step": jax.device_put(jnp.int32(n), whole)} for n in range(3)]
    step = xla.jit(gradients, out_shardings=whole).lower(numbered[0], placed).compile()
    results = [step(each, placed) for each in numbered]
    found = [(grads, metrics) for grads, _, metrics in jax.device_get(results)]
    return found, hlo.operations(step.as_text())


def relative_difference(one, other):
    """The largest over the leaves of |a - b| / |a|, each a norm."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(np.linalg.norm(a - b) / max(np.linalg.norm(a), 1e-12) for a, b in pairs)


def compare(name, space, folder):
    """Prints how far eight devices are from one; `space` of the eight share an image.

    The smallest difference among three draws: where some activation is as good as zero, at the
    ReLU's kink, rounding alone moves the gradient by 1e-3 or more, on a single device too.
    """
    assert jax.device_count() == 8
    config = tiny_config(name, folder, batch_size=8, mesh__space=space)
    (one, whole), (eight, operations) = (
        gradients_on(mesh_of(count, space), config, store.read(folder)) for count in (1, 8)
    )
    difference = min(relative_difference(a, b) for a, b in zip(one, eight, strict=True))
    print(name, space, difference, float(one[0][1]["loss"]), flush=True)
    sent = dict.fromkeys(hlo.COLLECTIVES, 0)
    for each in operations:
        if each.collective:
            sent[each.collective] += int(each.bytes) * each.times
    parameters = sum(leaf.size for leaf in jax.tree.leaves(one[0][0]))
    print(f"{name}:sent", json.dumps(sent | {"parameters": parameters}), flush=True)
    print(f"{name}:work", hlo.flops(operations) / hlo.flops(whole), flush=True)


def batch_unevenly(folder):
    """Prints how a run answers whose batch eight devices cannot share."""
    try:
        loop.train(tiny_config("rotation3d", folder, batch_size=12), folder.parent / "batch")
    except UserError as error:
        print("batch", type(error).__name__, " ".join(str(error).split()), flush=True)


def share_unevenly(folder):
    """Prints how a run answers whose volumes two devices cannot share."""
    overrides = {"data__crop": (21,) * 3, "task__coarsen": 1, "mesh__space": 2, "batch_size": 4}
    try:
        loop.train(tiny_config("rotation3d", folder, **overrides), folder.parent / "uneven")
    except UserError as error:
        print("uneven", type(error).__name__, " ".join(str(error).split()), flush=True)


if __name__ == "__main__":
    for argument in sys.argv[2:]:
        name, space = argument.split(",")
        compare(name, int(space), Path(sys.argv[1]))
    share_unevenly(Path(sys.argv[1]))
    batch_unevenly(Path(sys.argv[1]))
