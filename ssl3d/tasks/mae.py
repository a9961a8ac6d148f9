"""Masked autoencoder: what do the masked blocks of the image show?

He et al. 2022; for CNNs Tian et al. 2023 (SparK) and Wald et al. 2025 (nnssl): most blocks of a
crop are set to zero, and the encoder with a U-Net decoder predicts them from the others. The loss
is the mean squared error over the masked voxels alone.

Targets are relative to the mean of the visible voxels. The headline, `explained`, is 1 - error /
error of that mean: 1 is perfect, 0 is what a network with zero output scores. `explained_filling`
is that of trilinear filling from visible voxels, without a network. There is no `chance` to exceed
by a shortcut: smooth noise can be filled in too.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, PRNGKeyArray

from ssl3d import augment
from ssl3d.errors import UserError
from ssl3d.models import decoders, encoders
from ssl3d.tasks import Metrics, Panel, Targets, Task, whole

Image = Float[Array, "*S C"]
Images = Float[Array, "B *S C"]


class Network(nn.Module):
    """Masked crops -> predicted targets, float32."""

    encoder: nn.Module

    @nn.compact
    def __call__(self, masked: Images, train: bool = False) -> Images:
        decoder = decoders.build(self.encoder, masked.shape[-1], name="decoder")
        return decoder(self.encoder(masked, train), train)[0]


def block_grid(size: tuple[int, ...], block: int) -> tuple[int, ...]:
    """Blocks per axis of a crop of `size` voxels; the last ones may be partial."""
    return tuple(-(-side // block) for side in size)


def spread(blocks: Array, size: tuple[int, ...], block: int) -> Array:
    """A value per block [*blocks, ...] -> per voxel [*S, ...]."""
    for axis, side in enumerate(size):
        blocks = jax.lax.slice_in_dim(jnp.repeat(blocks, block, axis), 0, side, axis=axis)
    return blocks


def normalised(image: Image, block: int) -> Image:
    """Every block of an image with mean 0 and variance 1 in each channel."""
    size = image.shape[:-1]
    missing = [*((0, -side % block) for side in size), (0, 0)]

    def mean(x: Image) -> Image:
        total, count = (augment.coarsen(jnp.pad(y, missing), block) for y in (x, jnp.ones_like(x)))
        return spread(total / count, size, block)

    centred = image - mean(image)
    return centred / jnp.sqrt(mean(jnp.square(centred)) + 1e-6)


def filling(image: Image, visible: Bool[Array, "*S 1"], block: int) -> Image:
    """Trilinear filling: weighted means of visible voxels; 0 where none is in reach.

    Normalised convolution (Knutsson & Westin 1993), weights fall linearly over `block` voxels.
    """
    sums = jnp.concatenate([jnp.where(visible, image, 0), visible.astype(image.dtype)], axis=-1)
    for axis, side in enumerate(image.shape[:-1]):
        places = jnp.arange(side)
        kernel = jnp.maximum(0, 1 - jnp.abs(places[:, None] - places) / (block + 1))
        sums = jnp.moveaxis(jnp.tensordot(kernel, sums, (1, axis), precision="highest"), 0, axis)
    values, weight = sums[..., :-1], sums[..., -1:]
    return jnp.where(weight > 0, values / jnp.where(weight > 0, weight, 1), 0)


def views(
    key: PRNGKeyArray, record: dict[str, Array], masked: int, block: int, normalise: bool
) -> tuple[Image, dict[str, Array]]:
    """Masks some blocks of a crop; targets: `mask` bool [*S], `target` and `filling` [*S, C]."""
    volume = record["volume"].astype(jnp.float32)
    size = volume.shape[:-1]
    blocks = block_grid(size, block)
    order = jax.random.permutation(key, math.prod(blocks)).reshape(blocks)
    visible = spread(order >= masked, size, block)[..., None]
    target = normalised(volume, block) if normalise else volume
    target -= target.mean(tuple(range(len(size))), where=visible)
    targets = {"target": target, "filling": filling(target, visible, block)}
    return jnp.where(visible, volume, 0), targets | {"mask": ~visible[..., 0]}


def loss(outputs: Images, targets: Targets) -> tuple[Float[Array, " B"], Metrics]:
    """Mean squared error over the masked voxels, and what prediction and filling explain."""
    mask, target = targets["mask"][..., None], targets["target"]

    def error(prediction: Images) -> Float[Array, " B"]:
        return jnp.square(prediction - target).mean(tuple(range(1, target.ndim)), where=mask)

    of_mean = error(jnp.zeros_like(target))
    errors = {"explained": error(outputs), "explained_filling": error(targets["filling"])}
    return errors["explained"], {key: (of_mean - e, of_mean) for key, e in errors.items()}


def build(config: ml_collections.ConfigDict) -> Task:
    """Raises `UserError` if the settings contradict each other."""
    task, size = config.task, tuple(config.data.crop)
    encoders.check_full_resolution(config.encoder, "reconstruct")
    if config.encoder.depth < 2:
        raise UserError("config.encoder.depth=1: leaves nothing to decode; use 2 or more")
    count = math.prod(block_grid(size, task.block))
    masked = round(task.ratio * count)
    if not 0 < masked < count:
        raise UserError(
            f"config.task.ratio={task.ratio}: masks {masked} of {count} blocks; mask some, not all"
        )

    def panels(
        record: dict, inputs: np.ndarray, targets: dict, outputs: np.ndarray | None = None
    ) -> list[Panel]:
        shown = {"input": np.asarray(record["volume"], np.float32), "masked input": inputs}
        if outputs is not None:
            mask = targets["mask"][..., None]
            shown["reconstruction"] = np.where(mask, outputs, targets["target"])
        shown["target"] = targets["target"]
        return [whole.panel(record, size), *(Panel(*item) for item in shown.items())]

    return Task(
        record=whole.cut(size),
        views=lambda key, record, train: views(key, record, masked, task.block, task.normalise),
        network=Network(encoder=encoders.build(config.encoder, size)),
        loss=loss,
        panels=panels,
        headline="explained",
        shown=("explained_filling",),
        spatial=("volume",),
        learns_from_noise=True,
    )
