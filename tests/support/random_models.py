"""Downstream models without their training."""

import jax
import numpy as np

from ssl3d import tasks
from ssl3d.training import trained_model
from tests.support.tiny_configs import tiny_config


def save_random_model(workdir, dataset, name="segment3d", kind="best", **overrides):
    """The folder of a run that never was: a model with random weights, for windows of 16 voxels.

    How a model's predictions are written and scored does not depend on training.
    """
    rank = int(name[-2])
    sizes = {"data__crop": (16,) * rank, "predict__batch": 3}
    config = tiny_config(name, dataset.path, **sizes | overrides)
    labels = tasks.Labels(dataset.classes, (1,) * len(dataset.classes))
    network = tasks.build(config, labels).network
    inputs = np.zeros((1, *config.data.crop, len(dataset.modalities)), np.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), inputs)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)
    trained_model.save(workdir, kind, variables, trained_model.describe(config, dataset, (), 0, {}))
    return workdir
