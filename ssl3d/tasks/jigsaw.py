"""Jigsaw: by which permutation were the patches shuffled?

Noroozi & Favaro 2016; Taleb et al. 2020, section 3.3: 27 patches in 3D (9 in 2D), in an order
sampled from K permutations far apart in Hamming distance; the class is the number of the
permutation. Beyond the paper, Q puzzles share one encoding of their patches: the encoder sees each
patch alone, so permuting the embeddings equals permuting the patches.
"""

from __future__ import annotations

import functools
import math

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
from ssl3d.tasks.grid import Cut, grid_of
from ssl3d.tasks.grid import encoded_sizes as encoded_sizes

# Random candidates among which each permutation is chosen.
_CANDIDATES = 20


@functools.cache
def permutations(
    count: int, patches: int, seed: int, spread: bool
) -> Int[np.ndarray, "{count} {patches}"]:
    """K different permutations of N patches, the same on any machine.

    With `spread`, they are chosen greedily from a pool of random candidates: always the one whose
    least Hamming distance to those already chosen is largest, then the one with the largest mean
    distance (Noroozi & Favaro 2016, algorithm 1, on a sample of the N! permutations). Without
    `spread`, they are the first candidates, as in the released code.

    Raises:
      UserError: there are fewer than K permutations of N patches, or K is below 2.
    """
    if not 2 <= count <= math.factorial(patches):
        raise UserError(
            f"config.task.permutations={count}: must be between 2 and {patches}! for {patches} "
            "patches"
        )
    # RandomState's stream is frozen by NumPy's policy; Generator's may change.
    random = np.random.RandomState(seed)
    drawn = random.random_sample((_CANDIDATES * count, patches)).argsort(axis=1, kind="stable")
    _, first = np.unique(drawn, axis=0, return_index=True)
    pool = drawn[np.sort(first)]
    if len(pool) < count:
        raise UserError(
            f"config.task.permutations={count}: too close to the {patches}! possible ones; "
            f"{len(pool)} were found, set no more than that"
        )
    if not spread:
        return pool[:count]
    chosen = [0]
    least = np.full(len(pool), patches)
    total = np.zeros(len(pool), np.int64)
    for _ in range(count - 1):
        distance = (pool != pool[chosen[-1]]).sum(axis=1)
        least, total = np.minimum(least, distance), total + distance
        # The least distance decides, then the total; it is 0 for those already chosen.
        chosen.append(int(np.argmax(least * (patches * count) + total * (least > 0))))
    return pool[chosen]


class Network(nn.Module):
    """Patches and orders of Q puzzles -> logits; place i of puzzle q holds patch orders[q, i].

    Without `code`, as in the released code, the head sees the pooled features.
    """

    encoder: nn.Module
    code: nn.Module | None
    head: nn.Module
    pool: str

    def __call__(
        self, inputs: tuple[Float[Array, "B N *P C"], Int[Array, "B Q N"]], train: bool = False
    ) -> Float[Array, "B Q K"]:
        patches, orders = inputs
        codes = heads.encode_patches(self.encoder, patches, self.pool, train)
        if self.code is not None:
            codes = self.code(codes)
        puzzles = jnp.take_along_axis(codes[:, None], orders[..., None], axis=2)
        return self.head(puzzles.reshape(*orders.shape[:2], -1), train)


def views(
    key: PRNGKeyArray,
    record: dict[str, Array],
    train: bool,
    table: Int[Array, "K N"],
    puzzles: int,
    strength: float,
) -> tuple[
    tuple[Float[Array, "N *P C"], Int[Array, "{puzzles} N"]], dict[str, Int[Array, " {puzzles}"]]
]:
    """Samples Q permutations: patches [N, *P, C] -> the same and their orders, and the classes."""
    patches = record["patches"].astype(jnp.float32)
    draw, intensity = jax.random.split(key)
    # Without replacement: K different puzzles teach more than repeated ones.
    chosen = jax.random.choice(draw, table.shape[0], (puzzles,), replace=False)
    if train and strength > 0:
        keys = jax.random.split(intensity, patches.shape[0])
        patches = jax.vmap(lambda k, x: augment.scale_and_shift(k, x, strength))(keys, patches)
    return (patches, table[chosen]), {"permutation": chosen}


def loss(logits: Float[Array, "B Q K"], targets: Targets) -> tuple[Float[Array, " B"], Metrics]:
    """Cross-entropy over permutations, targets.permutation [B, Q]."""
    return losses.classified(logits, targets["permutation"])


def build(config: ml_collections.ConfigDict) -> Task:
    """Raises `UserError` if the settings contradict each other."""
    task = config.task
    grid = grid_of(config)
    chosen = permutations(task.permutations, grid.count, task.permutation_seed, task.spread)
    if not 1 <= task.puzzles <= task.permutations:
        raise UserError(
            f"config.task.puzzles={task.puzzles}: must be between 1 and {task.permutations}"
        )

    def panels(
        record: dict, inputs: tuple, targets: dict, outputs: np.ndarray | None = None
    ) -> list[Panel]:
        patches, orders = inputs
        boxes = tuple(
            Box(str(i), tuple(start), grid.patch) for i, start in enumerate(record["starts"])
        )
        number = int(targets["permutation"][0])
        return [Panel(f"whole image, to be shuffled by permutation {number}", None, boxes)] + [
            Panel(f"place {place}: {patch}", patches[patch])
            for place, patch in enumerate(orders[0])
        ]

    return Task(
        record=Cut(tuple(config.data.crop), grid),
        views=lambda key, record, train: views(
            key, record, train, jnp.asarray(chosen), task.puzzles, task.intensity
        ),
        network=Network(
            encoder=encoders.build(config.encoder, grid.patch),
            code=nn.Dense(task.code) if task.code else None,
            head=heads.build(config.head, out=task.permutations),
            pool=config.head.pool,
        ),
        loss=loss,
        panels=panels,
        headline="accuracy",
    )
