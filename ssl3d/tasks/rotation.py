"""Rotation: by which quarter turns was the volume rotated?

Gidaris et al. 2018; Taleb et al. 2020, section 3.4: 10 classes in 3D (none; 90°, 180° and 270°
about each axis), 4 in 2D. Rotations run on the device, on cubes and without interpolation, whose
smoothing would reveal them. Optionally, a step rotates each crop several times.
"""

from __future__ import annotations

import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import Array

from ssl3d import augment, losses
from ssl3d.data.pipeline import Example, crop
from ssl3d.errors import UserError
from ssl3d.models import encoders, heads
from ssl3d.tasks import Box, Panel, Task


class Network(nn.Module):
    """Rotated crops [B, Q, *S, C] -> logits [B, Q, K]."""

    encoder: nn.Module
    head: nn.Module
    pool: str

    def __call__(self, crops: Array, train: bool = False) -> Array:
        return self.head(heads.encode_patches(self.encoder, crops, self.pool, train), train)


def views(
    key: Array,
    record: dict[str, Array],
    train: bool,
    turns: int,
    group: str,
    strength: float,
    coarsen: int,
) -> tuple[Array, dict[str, Array]]:
    """Samples Q different rotations: crop [*S, C] -> [Q, *S / coarsen, C] and the classes [Q]."""
    volume = augment.coarsen(record["volume"].astype(jnp.float32), coarsen)
    draw, intensity = jax.random.split(key)
    if train and strength > 0:
        volume = augment.monotone(intensity, volume, strength)
    classes = len(augment.signed_permutations(volume.ndim - 1, group))
    chosen = jax.random.choice(draw, classes, (turns,), replace=False)
    return jax.vmap(lambda i: augment.rotate(volume, i, group))(chosen), {"rotation": chosen}


def loss(logits: Array, targets: dict[str, Array]) -> tuple[Array, dict[str, Any]]:
    """Cross-entropy over rotations: logits [B, Q, K], targets.rotation [B, Q] -> [B], metrics."""
    return losses.classified(logits, targets["rotation"])


def name_of(index: int, rank: int, group: str) -> str:
    """The name of a rotation: its angle and plane, or else the origin of each axis.

    Angles as in `np.rot90`: from the first axis of the plane to the second.
    """
    axes, flips = augment.signed_permutations(rank, group)[index]
    for first, second in itertools.combinations(range(rank), 2):
        for quarters in range(4):
            if augment.quarter_turns(rank, (first, second), quarters) == (axes, flips):
                plane = "xyz"[first] + "xyz"[second]
                return f"{90 * quarters}° {plane}" if quarters else "not turned"
    return " ".join("+-"[flip] + "xyz"[axis] for axis, flip in zip(axes, flips, strict=True))


def build(config: ml_collections.ConfigDict) -> Task:
    """Raises `UserError` if the settings contradict each other."""
    task, size = config.task, tuple(config.data.crop)
    if len(set(size)) > 1:
        raise UserError(
            f"config.data.crop={size}: rotation needs cubes (squares); make the sides equal"
        )
    augment.check_coarsening(task.coarsen, size)
    if task.group not in ("axes", "all"):
        raise UserError(f"config.task.group={task.group!r}: choose axes (the paper's) or all")
    classes = len(augment.signed_permutations(len(size), task.group))
    if not 1 <= task.turns <= classes:
        raise UserError(f"config.task.turns={task.turns}: between 1 and {classes}")

    def record(rng: np.random.Generator, example: Example, train: bool) -> dict[str, np.ndarray]:
        volume, start = crop(rng, example.image, size, train)
        return {"volume": volume, "start": start}

    def panels(
        record: dict, inputs: np.ndarray, targets: dict, outputs: np.ndarray | None = None
    ) -> list[Panel]:
        return [Panel("whole image", None, (Box("crop", tuple(record["start"]), size),))] + [
            Panel(f"class {int(index)}: {name_of(int(index), len(size), task.group)}", turned)
            for index, turned in zip(targets["rotation"], inputs, strict=True)
        ]

    return Task(
        record=record,
        views=lambda key, record, train: views(
            key, record, train, task.turns, task.group, task.intensity, task.coarsen
        ),
        network=Network(
            encoder=encoders.build(config.encoder, tuple(side // task.coarsen for side in size)),
            head=heads.build(config.head, out=classes),
            pool=config.head.pool,
        ),
        loss=loss,
        panels=panels,
        headline="accuracy",
        spatial=("volume",),
    )
