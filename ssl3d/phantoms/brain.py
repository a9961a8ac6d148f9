"""Synthetic heads in four MR contrasts, most of them with a glioma.

A subject is the atlas of `head` under a random pose, an elastic deformation and the mass effect of
a tumour, imaged by a scanner model.
"""

from dataclasses import dataclass

import numpy as np
from numpy import ndarray as Array

from ssl3d.phantoms import head
from ssl3d.phantoms.fields import (
    bias_field,
    coordinates,
    deform,
    ellipsoid,
    paint,
    pose,
    rician,
    rotation_matrix,
    smooth_noise,
)

CONTRASTS = head.CONTRASTS
CLASSES = ("background", "necrosis", "oedema", "enhancing")  # of BraTS, its label 4 as 3
NECROSIS, OEDEMA, ENHANCING = 1, 2, 3

FIELD_OF_VIEW = 192.0  # mm along every axis, for any number of voxels
HEAD_SIZE = 0.78  # of the MNI head, which would touch the borders of the field of view
CENTRE = (0.0, -17.0, -11.0)  # of the field of view, in MNI mm
TUMOUR_SHARE = 0.8  # of the subjects


def subject(
    rng: np.random.Generator, shape: tuple[int, ...]
) -> tuple[Array, Array, tuple[float, ...]]:
    """One head: image float32 [*S, 4] (`CONTRASTS`), labels uint8 [*S] (`CLASSES`), spacing in mm.

    `shape` has three sides; axes are RAS+, and the field of view is 192 mm for any `shape`. The
    signal is at least 0, in arbitrary units, with a separate gain per contrast. The result is a
    function of `rng` and `shape` alone.
    """
    spacing = np.array([FIELD_OF_VIEW / size for size in shape])
    step = spacing / HEAD_SIZE
    traits = head.Traits.sample(rng)
    points = _atlas_points(rng, shape, spacing)
    skin = head.outline(points, traits)
    inside = np.flatnonzero(skin < np.max(step))
    texture = np.stack([smooth_noise(rng, shape, 7 / step).ravel()[inside] for _ in range(3)])

    canvas = head.Canvas(rng, shape, step, inside)
    outer = points.reshape(3, -1)[:, inside]
    inner = head.torque(outer, traits)
    dura = head.paint_head(canvas, traits, skin.ravel()[inside], outer, inner, texture)

    within = np.flatnonzero(dura < np.max(step))
    part, inner, texture = canvas.part(within), inner[:, within], texture[:, within]
    if rng.uniform() < TUMOUR_SHARE:
        tumour = Tumour.sample(rng)
        inner = tumour.displace(inner)
        cerebrum = head.paint_brain(rng, part, traits, inner, texture[0])
        classes = tumour.paint(part, inner, cerebrum, texture)
    else:
        head.paint_brain(rng, part, traits, inner, texture[0])
        classes = np.zeros(len(within), np.uint8)
    canvas.image[:, within] = part.image

    image = _acquire(rng, canvas.volume(canvas.image), height=points[2])
    return image, part.volume(classes), tuple(spacing.tolist())


def _atlas_points(rng: np.random.Generator, shape: tuple[int, ...], spacing: Array) -> Array:
    """MNI coordinates of the voxels of a randomly deformed and posed head, [3, *S]."""
    points = deform(rng, coordinates(shape, spacing), 1.3, 30 / spacing)
    points = pose(rng, points, degrees=6, scaling=0.04, shift=3)
    return points / np.float32(HEAD_SIZE) + np.array(CENTRE, np.float32).reshape(3, 1, 1, 1)


def _acquire(rng: np.random.Generator, image: Array, height: Array) -> Array:
    """The image [*S, 4] that a scanner acquires of the signal [4, *S]; `height` [*S] is atlas z."""
    # Coil sensitivity ends at the neck: a neck cut off by the border would reveal the border.
    image *= 1 / (1 + np.exp((-96 - height) / 4))
    shape = image.shape[1:]
    image *= bias_field(rng, shape, 0.12)
    for contrast in image:
        contrast *= np.float32(rng.lognormal(0, 0.2)) * bias_field(rng, shape, 0.05)
    noisy = rician(rng, image, sigma=rng.uniform(0.015, 0.04))
    return np.ascontiguousarray(np.moveaxis(noisy, 0, -1))


@dataclass(frozen=True)
class Tumour:
    """A glioma of the cerebral white matter; lengths in mm of the atlas."""

    centre: Array  # [3]
    radii: Array  # [3]
    rotation: Array  # [3, 3]
    rim: float  # thickness of the enhancing wall around the necrosis
    reach: float  # extent of the oedema beyond the wall

    @classmethod
    def sample(cls, rng: np.random.Generator) -> "Tumour":
        while True:
            centre = (head.VAULT_CENTRE + head.VAULT * rng.uniform(-1, 1, 3)).astype(np.float32)
            depth = -head.cerebrum(centre[:, None]).item()
            lateral, _, height = np.abs(centre[0]), centre[1], centre[2]
            if depth > 16 and lateral > 14 and height > -8:
                break
        radius = rng.uniform(10, min(24, 6 + depth, 2 + lateral))
        return cls(
            centre=centre,
            radii=radius * rng.uniform(0.75, 1.25, 3),
            rotation=rotation_matrix(*rng.uniform(-180, 180, 3)),
            rim=rng.uniform(3.5, 7),
            reach=rng.uniform(8, 24),
        )

    def displace(self, points: Array) -> Array:
        """Mass effect: the positions before the tumour grew of the tissue at `points`, [3, n]."""
        away = points - self.centre[:, None]
        distance = np.sqrt(np.sum(away**2, axis=0)) + np.float32(1e-3)
        radius = np.float32(self.radii.mean())
        push = 0.45 * radius * np.exp(-(((distance - radius) / (1.6 * radius)) ** 2))
        return points - away * np.minimum(push / distance, 0.6)

    def paint(
        self, canvas: head.Canvas, points: Array, cerebrum: head.Cerebrum, texture: Array
    ) -> Array:
        """Paints the tumour over the brain; returns the class of every voxel, uint8 [n].

        `texture` [3, n] is smooth noise.
        """
        wall = ellipsoid(points, self.centre, self.radii, self.rotation)
        wall += 0.22 * self.radii.mean() * texture[0]
        core = wall + self.rim * (1 + 0.3 * texture[1])
        # Oedema spreads in the white matter, spares the cortex and does not cross the falx.
        across = points[0] * self.centre[0] < 0
        barrier = 14 * (1 - cerebrum.white) + 20 * across
        swelling = wall - self.reach * (1 + 0.4 * texture[2]) + barrier
        shares = {
            OEDEMA: canvas.share(swelling) * cerebrum.tissue,
            ENHANCING: canvas.share(wall) * cerebrum.hull,
            NECROSIS: canvas.share(core) * cerebrum.hull,
        }
        classes = np.zeros(points.shape[1], np.uint8)
        for label, share in shares.items():
            paint(canvas.image, share, canvas.signal[CLASSES[label]])
            classes[share > 0.5] = label
        return classes
