"""Intensity normalisation.

Every normalisation is one `Scaling` per image, `(clip(x, low, high) - shift) / scale` per channel,
so that the manifest can record it and `undo` can invert it.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ssl3d.errors import UserError

# Percentiles of the foreground that exclude vessels and reconstruction spikes, as in nnU-Net
# (Isensee et al. 2021) for clipped modalities.
MR_PERCENTILES = (0.5, 99.5)
# HU: from fat to enhanced vessels, with the pancreas (30 to 130 HU) well inside.
ABDOMEN_WINDOW = (-150.0, 250.0)
# Grey levels (of 255); a channel with a smaller deviation is compression noise, not contrast.
MIN_PICTURE_DEVIATION = 1.0
# Percentiles of the values that are shown as black and white.
DISPLAY_PERCENTILES = (1, 99)


@dataclasses.dataclass(frozen=True)
class Scaling:
    """`(clip(x, low, high) - shift) / scale`, one number of each per channel."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    shift: tuple[float, ...]
    scale: tuple[float, ...]


def apply(image: np.ndarray, scaling: Scaling) -> np.ndarray:
    """The normalised image, float32 [*S, C]; modifies a float32 `image` in place."""
    image = np.asarray(image, np.float32)
    if image.shape[-1] != len(scaling.low):
        raise ValueError(f"{image.shape[-1]} channels, scaling for {len(scaling.low)}")
    for channel in range(image.shape[-1]):
        values = image[..., channel]
        np.clip(values, scaling.low[channel], scaling.high[channel], out=values)
        values -= np.float32(scaling.shift[channel])
        values /= np.float32(scaling.scale[channel])
    return image


def undo(image: np.ndarray, scaling: Scaling) -> np.ndarray:
    """Normalised [*S, C] -> source units (HU, scanner units, grey levels), float32, a copy."""
    shift, scale = np.array([scaling.shift, scaling.scale], np.float32)
    return image.astype(np.float32) * scale + shift


def mr_scaling(image: np.ndarray, foreground: np.ndarray | None = None) -> Scaling:
    """Percentile clip, then mean 0 and standard deviation 1 in the foreground, per channel.

    Args:
      image: [*S, C], any unit.
      foreground: bool [*S]; all voxels where None.

    Raises:
      UserError: a channel is constant within the foreground.
    """
    columns = []
    for channel in range(image.shape[-1]):
        values = _values(image, foreground, channel)
        low, high = np.percentile(values, MR_PERCENTILES, overwrite_input=True).tolist()
        np.clip(values, low, high, out=values)
        mean = float(values.mean(dtype=np.float64))
        # In place: a float64 copy of the values would be twice the volume.
        values -= np.float32(mean)
        deviation = float(np.sqrt(np.mean(np.square(values, out=values), dtype=np.float64)))
        columns.append((low, high, mean, _positive(deviation, channel)))
    return Scaling(*zip(*columns, strict=True))


def minmax_scaling(
    image: np.ndarray, foreground: np.ndarray | None = None, joint: bool = False
) -> Scaling:
    """Minimum of the foreground to 0, maximum to 1, per channel or for all channels jointly.

    Args:
      image: [*S, C], any unit.
      foreground: bool [*S]; all voxels where None.
      joint: one minimum and maximum for all channels, as in the paper's code for UK Biobank and
        BraTS.

    Raises:
      UserError: a channel (with `joint`, the image) is constant within the foreground.
    """
    values = [_values(image, foreground, channel) for channel in range(image.shape[-1])]
    lows = [float(v.min()) for v in values]
    highs = [float(v.max()) for v in values]
    if joint:
        lows, highs = [min(lows)] * len(lows), [max(highs)] * len(highs)
    ranges = [
        _positive(high - low, channel)
        for channel, (low, high) in enumerate(zip(lows, highs, strict=True))
    ]
    return Scaling(tuple(lows), tuple(highs), tuple(lows), tuple(ranges))


def ct_scaling(window: tuple[float, float], channels: int = 1) -> Scaling:
    """A window in HU to [-1, 1], the same for every case, as HU are calibrated."""
    low, high = float(window[0]), float(window[1])
    if not low < high:
        raise UserError(f"window {window}: give the lower HU value first")
    columns = (low, high, (low + high) / 2, (high - low) / 2)
    return Scaling(*((value,) * channels for value in columns))


def picture_scaling(image: np.ndarray, foreground: np.ndarray | None = None) -> Scaling:
    """Mean 0 and standard deviation 1 in the foreground, per colour.

    A colour almost without contrast (the blue channel of many fundus cameras is black) is centred
    but not amplified.

    Args:
      image: [*S, C], grey levels 0 to 255.
      foreground: bool [*S], e.g. the disc of a fundus; all pixels where None.
    """
    columns = []
    for channel in range(image.shape[-1]):
        values = _values(image, foreground, channel).astype(np.float64)
        deviation = max(float(values.std()), MIN_PICTURE_DEVIATION)
        columns.append((0.0, 255.0, float(values.mean()), deviation))
    return Scaling(*zip(*columns, strict=True))


def normalise_mr(image: np.ndarray, foreground: np.ndarray | None = None) -> np.ndarray:
    """[*S, C] -> float32 [*S, C], clipped and z-scored per channel (`mr_scaling`), a copy."""
    return apply(np.array(image, np.float32), mr_scaling(image, foreground))


def normalise_ct(image: np.ndarray, window: tuple[float, float] = ABDOMEN_WINDOW) -> np.ndarray:
    """HU [*S, C] -> float32 [*S, C] in [-1, 1] (`ct_scaling`), a copy."""
    return apply(np.array(image, np.float32), ct_scaling(window, image.shape[-1]))


def normalise_picture(image: np.ndarray, foreground: np.ndarray | None = None) -> np.ndarray:
    """Grey levels 0 to 255 [*S, C] -> float32 [*S, C], z-scored per colour, a copy."""
    return apply(np.array(image, np.float32), picture_scaling(image, foreground))


def display_window(image: np.ndarray) -> np.ndarray:
    """The values of an image [..., C] that are shown as black and white, [2, C]."""
    return np.percentile(image.reshape(-1, image.shape[-1]), DISPLAY_PERCENTILES, axis=0)


def _values(image: np.ndarray, foreground: np.ndarray | None, channel: int) -> np.ndarray:
    """The values of one channel in the foreground, float32 [n], a copy."""
    values = image[..., channel]
    if foreground is not None:
        values = values[foreground]
    if values.size == 0:
        raise UserError("the foreground is empty, so the image cannot be normalised")
    return np.array(values, np.float32).reshape(-1)


def _positive(width: float, channel: int) -> float:
    if not width > 0:
        raise UserError(f"channel {channel} is constant within the foreground")
    return width
