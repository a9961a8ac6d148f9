"""Batches of a shared data set, and the first state of a network."""

import jax
import jax.numpy as jnp
import numpy as np

from ssl3d import tasks
from ssl3d.data import pipeline
from ssl3d.training import sharding
from ssl3d.training import step as steps


def batches(config, dataset, task, validation=False, **overrides):
    options = {
        "rank": config.rank,
        "slice_axis": config.data.slice_axis,
        "margin": config.data.margin,
        "batch_size": config.batch_size,
        "seed": config.seed,
        "threads": 1,
    }
    if validation:
        options["repeats"] = config.validation.repeats
        function, cases = pipeline.validation_batches, dataset.split("val")
    else:
        function, cases = pipeline.train_batches, dataset.split("train")
    return function(dataset, cases, task.record, **options | overrides)


def initial(config, dataset):
    """The task, its first state and its first training batch."""
    task, mesh = tasks.build(config), sharding.make_mesh(1)
    batch = next(batches(config, dataset, task))
    record = jax.tree.map(lambda leaf: leaf[0], batch["record"])
    return task, steps.init_state(config, task, steps.make_optimizers(config), record, mesh), batch


def traced_step(config, dataset):
    """Shapes of loss and metrics of a training step with four examples.

    Whether settings and shapes fit; to compile the step takes far longer.
    """
    task = tasks.build(config)
    example = pipeline.open_example(
        dataset, dataset.cases[0], config.rank, 2, 0, np.random.default_rng(0)
    )
    record = pipeline.arrays(task.record(np.random.default_rng(0), example, True))
    records = jax.tree.map(lambda leaf: jnp.zeros((4, *leaf.shape), leaf.dtype), record)

    def step(key, records):
        keys = jax.random.split(key, 4)
        inputs, targets = jax.vmap(lambda k, r: task.views(k, r, True))(keys, records)
        variables = task.network.init({"params": key}, inputs, train=False)
        outputs, _ = task.network.apply(
            variables, inputs, train=True, mutable=["batch_stats"], rngs={"dropout": key}
        )
        labels = {"subject": jnp.arange(4), "valid": jnp.ones(4, bool)}
        return task.loss(outputs, targets | labels)

    return jax.eval_shape(step, jax.random.key(0), records)
