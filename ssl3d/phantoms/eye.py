"""Retinal coordinates and the rendering of strokes and pigments on a photograph.

Coordinates are mm on the retina, in a frame that is the same for both eyes: the origin is the
centre of the optic disc, axis 0 points inferiorly and axis 1 temporally.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ssl3d.phantoms.fields import Vector, coordinates, rotation_matrix

# Absorbance of one unit of each pigment at red, green and blue.
MELANIN = (0.42, 0.80, 1.15)
MACULAR_PIGMENT = (0.10, 0.35, 0.60)
ARTERY, VEIN, BLOOD = (0.10, 0.75, 0.60), (0.40, 1.05, 0.75), (0.55, 1.45, 0.90)


@dataclass(frozen=True)
class Eye:
    """An eye and the geometry of its photograph."""

    shape: tuple[int, ...]  # (H, W)
    right: bool  # a right eye, whose disc (nasal) is on the right of the picture
    pixel: float  # mm
    radius: float  # of the round field of view, mm
    centre: np.ndarray  # of the picture, in the eye's frame [2]
    tilt: np.ndarray  # of the head [2, 2]
    fovea: np.ndarray  # [2]
    disc: np.ndarray  # radii [2]
    tortuosity: float  # of the vessels, about 1

    @staticmethod
    def sample(rng: np.random.Generator, shape: tuple[int, ...]) -> "Eye":
        """A random eye: 45 to 50 degrees of field (12.6 to 14 mm), centred near the macula."""
        radius = rng.uniform(6.3, 7.0)
        return Eye(
            shape=shape,
            right=bool(rng.integers(2)),
            pixel=2 * radius / (rng.uniform(0.94, 1.0) * min(shape)),
            radius=radius,
            centre=rng.uniform((-0.25, 3.1), (0.75, 4.5)).astype(np.float32),
            tilt=rotation_matrix(rng.uniform(-4, 4)),
            fovea=rng.uniform((0.45, 4.2), (0.85, 4.9)),
            disc=rng.uniform(0.8, 1.0) * rng.uniform((0.97, 0.87), (1.05, 0.99)),
            tortuosity=rng.uniform(0.5, 1.5),
        )

    def retina(self) -> np.ndarray:
        """Coordinates of the pixels in the frame of the eye, mm, float32 [2, H, W]."""
        points = coordinates(self.shape, (self.pixel, self.pixel))
        points = np.tensordot(self.tilt * self.mirror, points, axes=1).astype(np.float32)
        return points + self.centre[:, None, None]

    def indices(self, points: np.ndarray) -> np.ndarray:
        """Pixel coordinates [..., 2] of points [..., 2] in the frame of the eye."""
        offset = (points - self.centre) @ (self.tilt * self.mirror) / self.pixel
        return offset + (np.array(self.shape) - 1) / 2

    @property
    def mirror(self) -> np.ndarray:
        """Signs [2] that map the axes of the picture to those of the eye, before the tilt."""
        return np.array([1, -1 if self.right else 1])


class Strokes(NamedTuple):
    """Line segments with round ends: `start`, `end` [n, 2], `radius` [n] mm; `density` 0..1."""

    start: np.ndarray
    end: np.ndarray
    radius: np.ndarray
    density: np.ndarray | float = 1.0


def coverage(eye: Eye, strokes: Strokes, softness: float = 0.5) -> np.ndarray:
    """The density of `strokes` at each pixel, 0..1 [H, W]; edges are `softness` pixels wide.

    A subject has thousands of strokes of a few pixels each, so each is rendered in a window of its
    own, unlike `fields.tube`, which evaluates a distance over the whole picture.
    """
    start, end = (eye.indices(points).astype(np.float32) for points in (strokes.start, strokes.end))
    radius = (strokes.radius / eye.pixel).astype(np.float32)
    middle = np.rint((start + end) / 2)
    extent = radius + np.linalg.norm(end - start, axis=1) / 2
    reach = int(np.ceil(extent.max(initial=0) + 2 * softness))
    window = np.indices((2 * reach + 1, 2 * reach + 1), np.float32).reshape(2, -1).T - reach
    pixels = middle[:, None] + window
    along = (end - start)[:, None]
    local = pixels - start[:, None]
    share = np.sum(local * along, axis=2) / np.maximum(np.sum(along**2, axis=2), 1e-6)
    local -= np.clip(share, 0, 1)[..., None] * along
    distance = np.sqrt(np.sum(local**2, axis=2))
    # A box as wide as the stroke, blurred by a bell curve: thin strokes fade, thick ones do not.
    edges = [np.tanh((radius[:, None] + sign * distance) / softness) for sign in (1, -1)]
    density = np.reshape(strokes.density, (-1, 1)) * (edges[0] + edges[1]) / 2
    inside = np.all((pixels >= 0) & (pixels < eye.shape), axis=2)
    row, column = pixels[inside].astype(int).T
    cover = np.zeros(eye.shape, np.float32)
    np.maximum.at(cover, (row, column), density[inside])
    return cover


def absorb(image: np.ndarray, density: np.ndarray, absorbance: Vector) -> None:
    """Attenuates `image` [3, H, W] in place by a pigment of `density` [H, W] (Beer-Lambert law)."""
    image *= np.exp(-column(absorbance) * density)


def squared_distance(points: np.ndarray, centre: Vector) -> np.ndarray:
    """Squared distance of points [2, H, W] from `centre`, [H, W]."""
    return np.sum((points - column(centre)) ** 2, axis=0)


def column(values: Vector) -> np.ndarray:
    """One value per channel or axis, [n, 1, 1], to broadcast over a picture."""
    return np.asarray(values, np.float32)[:, None, None]
