"""Batches of a shared data set, and the first state of a network."""

import jax

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
    }
    if validation:
        options["repeats"] = config.validation.repeats
        function, cases = pipeline.validation_batches, dataset.split("val")
    else:
        options["threads"] = 1
        function, cases = pipeline.train_batches, dataset.split("train")
    return function(dataset, cases, task.record, **options | overrides)


def initial(config, dataset):
    """The task, its first state and its first training batch."""
    task, mesh = tasks.build(config), sharding.make_mesh(1)
    batch = next(batches(config, dataset, task))
    record = jax.tree.map(lambda leaf: leaf[0], batch["record"])
    return task, steps.init_state(config, task, steps.make_optimizers(config), record, mesh), batch
