"""Relative patch location: where does a patch lie relative to the centre of its grid?

Doersch et al. 2015; Taleb et al. 2020, section 3.2: a 3x3(x3) grid, its centre patch as the
reference, a query sampled from the other patches, and its position as the class (26 in 3D, 8 in
2D). Beyond the paper, Q queries share one encoding of the centre, and only the patches in use leave
the host.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import Array
from jaxtyping import Float, Int, PRNGKeyArray

from ssl3d import augment, losses
from ssl3d.errors import UserError
from ssl3d.models import encoders, heads
from ssl3d.tasks import Box, Metrics, Panel, Targets, Task
from ssl3d.tasks.grid import Chosen, Cut, Grid, grid_of
from ssl3d.tasks.grid import encoded_sizes as encoded_sizes


class Network(nn.Module):
    """Patches, the centre first -> logits of each query's position."""

    encoder: nn.Module
    head: nn.Module
    pool: str

    def __call__(
        self, patches: Float[Array, "B N *P C"], train: bool = False
    ) -> Float[Array, "B N-1 K"]:
        features = heads.encode_patches(self.encoder, patches, self.pool, train)
        centre, queries = features[:, :1], features[:, 1:]
        pairs = jnp.concatenate([jnp.broadcast_to(centre, queries.shape), queries], axis=-1)
        return self.head(pairs, train)


def class_of(patch: Int[Array, "*Q"], centre: int) -> Int[Array, "*Q"]:
    """Number of a patch in its grid -> class; the centre has none, later patches move up by one."""
    return jnp.where(patch > centre, patch - 1, patch)


def sample(
    rng: np.random.Generator, count: int, centre: int, queries: int
) -> Int[np.ndarray, " 1+{queries}"]:
    """Numbers of the centre and of Q different queries among `count` patches."""
    return np.append(centre, rng.permutation(np.delete(np.arange(count), centre))[:queries])


def views(
    key: PRNGKeyArray, record: dict[str, Array], train: bool, centre: int, strength: float
) -> tuple[Float[Array, "N *P C"], dict[str, Int[Array, " N-1"]]]:
    """The centre and Q queries [N, *P, C], each with its own gain and shift, and the classes."""
    shown, queries = record["patches"].astype(jnp.float32), record["chosen"][1:]
    if train and strength > 0:
        keys = jax.random.split(key, len(shown))
        shown = jax.vmap(lambda k, x: augment.scale_and_shift(k, x, strength))(keys, shown)
    return shown, {"position": class_of(queries, centre), "query": queries}


def loss(logits: Float[Array, "B Q K"], targets: Targets) -> tuple[Float[Array, " B"], Metrics]:
    """Cross-entropy over positions, targets.position [B, Q]."""
    return losses.classified(logits, targets["position"])


def direction(query: int, grid: Grid) -> str:
    """The query's position relative to the centre, in patches along each axis."""
    return " ".join(f"{step - grid.per_side // 2:+d}" for step in grid.positions[query])


def build(config: ml_collections.ConfigDict) -> Task:
    """Raises `UserError` if the settings contradict each other."""
    task = config.task
    grid = grid_of(config)
    if task.per_side % 2 == 0:
        raise UserError(f"config.task.per_side={task.per_side}: a grid with a centre needs it odd")
    centre = grid.count // 2
    if not 1 <= task.queries < grid.count:
        raise UserError(f"config.task.queries={task.queries}: between 1 and {grid.count - 1}")

    def panels(
        record: dict, inputs: np.ndarray, targets: dict, outputs: np.ndarray | None = None
    ) -> list[Panel]:
        names = ["centre", *(direction(int(q), grid) for q in targets["query"])]
        boxes = tuple(
            Box(name, tuple(start), grid.patch)
            for name, start in zip(names, record["starts"], strict=True)
        )
        labels = ["", *(f" = class {int(k)}" for k in targets["position"])]
        return [Panel("whole image", None, boxes)] + [
            Panel(name + label, patch)
            for name, label, patch in zip(names, labels, inputs, strict=True)
        ]

    return Task(
        record=Chosen(
            Cut(tuple(config.data.crop), grid),
            functools.partial(sample, count=grid.count, centre=centre, queries=int(task.queries)),
        ),
        views=lambda key, record, train: views(key, record, train, centre, task.intensity),
        network=Network(
            encoder=encoders.build(config.encoder, grid.patch),
            head=heads.build(config.head, out=grid.count - 1),
            pool=config.head.pool,
        ),
        loss=loss,
        panels=panels,
        headline="accuracy",
    )
