"""Rotation: by which quarter turns was the volume rotated?

Gidaris et al. 2018; Taleb et al. 2020, section 3.4: 10 classes in 3D (none; 90°, 180° and 270°
about each axis), 4 in 2D. Rotations run on the device, on cubes and without interpolation, whose
smoothing would reveal them. Optionally, a step rotates each crop several times.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import Array
from jaxtyping import Float, Int, PRNGKeyArray

from ssl3d import augment, losses
from ssl3d.data import sharpness
from ssl3d.errors import UserError
from ssl3d.models import encoders, heads
from ssl3d.tasks import Metrics, Panel, Targets, Task, whole


def equal_axes(config: ml_collections.ConfigDict) -> tuple[int, ...]:
    """The axes that the rotations exchange."""
    return augment.PLANES.get(config.task.group, tuple(range(config.rank)))


def adapt(config: ml_collections.ConfigDict, images: Sequence[np.ndarray]) -> str:
    """Sets `config.task.blur` so that no axis is told by its sharpness, if `config.task.even`.

    On anisotropic images, such as resampled thick slices, the sharpest axis gives the turn away.

    Returns:
      What was done, for the log; "" if nothing.
    """
    if not config.task.even:
        return ""
    variances = sharpness.evening(images, equal_axes(config))
    config.task.blur = tuple(round(float(variance), 2) for variance in variances)
    if not any(config.task.blur):
        return ""
    blur = sharpness.blur_per_axis(images)
    return (
        f"axes differ in sharpness (blur of {_list(blur)} voxels), which would reveal rotations: "
        f"smoothed by Gaussians of {_list(np.sqrt(variances))} voxels to match "
        "(config.task.even=False leaves them; config.task.group=xy turns in one plane only)"
    )


def _list(values: np.ndarray) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


class Network(nn.Module):
    """Rotated crops -> logits of each crop's rotation."""

    encoder: nn.Module
    head: nn.Module
    pool: str

    def __call__(
        self, crops: Float[Array, "B Q *S C"], train: bool = False
    ) -> Float[Array, "B Q K"]:
        return self.head(heads.encode_patches(self.encoder, crops, self.pool, train), train)


def views(
    key: PRNGKeyArray,
    record: dict[str, Array],
    train: bool,
    turns: int,
    group: str,
    strength: float,
    coarsen: int,
    blur: Sequence[float],
) -> tuple[Float[Array, "{turns} *inner C"], dict[str, Int[Array, " {turns}"]]]:
    """Samples Q different rotations: crop [*S, C] -> Q crops, blurred and coarser, and classes."""
    volume = augment.blur(record["volume"].astype(jnp.float32), blur)
    volume = augment.coarsen(
        _middle(volume, inner_size(record["volume"].shape[:-1], blur)), coarsen
    )
    draw, intensity = jax.random.split(key)
    if train and strength > 0:
        volume = augment.monotone(intensity, volume, strength)
    classes = len(augment.signed_permutations(volume.ndim - 1, group))
    chosen = jax.random.choice(draw, classes, (turns,), replace=False)
    return jax.vmap(lambda i: augment.rotate(volume, i, group))(chosen), {"rotation": chosen}


def inner_size(size: Sequence[int], blur: Sequence[float]) -> tuple[int, ...]:
    """The crop that is left of `size` where smoothing needs no voxel from beyond it."""
    reach = max(augment.blur_reach(variance) for variance in blur)
    return tuple(side - 2 * reach for side in size)


def _middle(volume: Float[Array, "*S C"], size: Sequence[int]) -> Float[Array, "*inner C"]:
    starts = [(side - length) // 2 for side, length in zip(volume.shape, size, strict=False)]
    return volume[tuple(slice(a, a + length) for a, length in zip(starts, size, strict=True))]


def encoded_sizes(config: ml_collections.ConfigDict) -> tuple[tuple[int, ...], ...]:
    """What smoothing leaves of the crop, coarser."""
    inner = inner_size(config.data.crop, config.task.blur)
    return (tuple(side // config.task.coarsen for side in inner),)


def loss(logits: Float[Array, "B Q K"], targets: Targets) -> tuple[Float[Array, " B"], Metrics]:
    """Cross-entropy over rotations, targets.rotation [B, Q]."""
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
    groups = ("axes", "all", *(augment.PLANES if config.rank == 3 else ()))
    if task.group not in groups:
        raise UserError(f"config.task.group={task.group!r}: choose one of {', '.join(groups)}")
    if len({size[axis] for axis in equal_axes(config)}) > 1:
        raise UserError(
            f"config.data.crop={size}: rotation needs cubes (squares); make the sides equal"
        )
    if len(task.blur) != config.rank or min(task.blur) < 0:
        raise UserError(f"config.task.blur={tuple(task.blur)}: must be a variance per axis")
    inner = inner_size(size, task.blur)
    if min(inner) < 1:
        raise UserError(f"config.data.crop={size}: is too small for config.task.blur={task.blur}")
    augment.check_coarsening(task.coarsen, inner)
    classes = len(augment.signed_permutations(len(size), task.group))
    if not 1 <= task.turns <= classes:
        raise UserError(f"config.task.turns={task.turns}: between 1 and {classes}")

    def panels(
        record: dict, inputs: np.ndarray, targets: dict, outputs: np.ndarray | None = None
    ) -> list[Panel]:
        return [whole.panel(record, size)] + [
            Panel(f"class {int(index)}: {name_of(int(index), len(size), task.group)}", turned)
            for index, turned in zip(targets["rotation"], inputs, strict=True)
        ]

    return Task(
        record=whole.cut(size),
        views=lambda key, record, train: views(
            key, record, train, task.turns, task.group, task.intensity, task.coarsen, task.blur
        ),
        network=Network(
            encoder=encoders.build(config.encoder, *encoded_sizes(config)),
            head=heads.build(config.head, out=classes),
            pool=config.head.pool,
        ),
        loss=loss,
        panels=panels,
        headline="accuracy",
        spatial=("volume",),
    )
