"""The shapes in annotations are checked while the tests run, and cost nothing otherwise."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from ssl3d import augment, losses, metrics
from ssl3d.models import layers
from ssl3d.tasks import rotation

wrong = pytest.raises(jaxtyping.TypeCheckError)


def test_axes_of_one_name_must_agree():
    losses.cross_entropy(jnp.zeros((4, 3)), jnp.zeros(4, int))
    with wrong:
        losses.cross_entropy(jnp.zeros((4, 3)), jnp.zeros(5, int))
    with wrong:
        augment.affine(jnp.zeros((4, 4, 1)), jnp.zeros((4, 5), int), jnp.eye(2), 0)
    with wrong:
        metrics.accuracy(np.zeros(3, int), np.zeros(4, int), np.ones(3))


def test_types_are_checked():
    with wrong:
        losses.cross_entropy(jnp.zeros((4, 3), int), jnp.zeros(4, int))
    with wrong:
        losses.cross_entropy(np.zeros((4, 3), np.float32), jnp.zeros(4, int))


def test_shapes_are_checked_under_transformations():
    def loss(logits, labels):
        return losses.cross_entropy(logits, labels).mean()

    for run in (jax.jit(loss), jax.grad(loss), lambda *args: jax.eval_shape(loss, *args)):
        run(jnp.zeros((4, 3)), jnp.zeros(4, int))
        with wrong:
            run(jnp.zeros((4, 3)), jnp.zeros(5, int))
    with wrong:
        jax.vmap(losses.cross_entropy)(jnp.zeros((2, 4, 3)), jnp.zeros((2, 5), int))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_modules_are_checked(dtype):
    conv = layers.Conv(3, dtype=dtype)
    variables = conv.init(jax.random.key(0), jnp.zeros((1, 4, 4, 2), dtype))
    assert conv.apply(variables, jnp.zeros((1, 4, 4, 2), dtype)).shape == (1, 4, 4, 3)
    with wrong:
        conv.apply(variables, jnp.zeros((1, 4, 4, 2), int))


def test_a_task_is_checked():
    with wrong:
        rotation.loss(jnp.zeros((2, 3, 10)), {"rotation": jnp.zeros((2, 4), int)})


def test_only_tests_check():
    script = (
        "import sys, jax.numpy as jnp; from ssl3d.losses import per_example;"
        "import ssl3d.main, ssl3d.tasks.cpc;"
        "per_example(jnp.arange(4).reshape(2, 2));"  # no floats
        "print('jaxtyping' in sys.modules, 'beartype' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.stdout.split() == ["True", "False"], found.stderr
