"""Lesions of diabetic retinopathy, by grade on the international scale.

0 none; 1 mild: microaneurysms only; 2 moderate: haemorrhages and hard exudates too; 3 severe: many
haemorrhages all over, beaded veins, cotton wool spots; 4 proliferative: new vessels, blood before
the retina or the scars of the laser that treated them.
"""

from dataclasses import replace
from enum import Flag, auto

import numpy as np

from ssl3d.phantoms.eye import BLOOD, MELANIN, Eye, Strokes, absorb, coverage
from ssl3d.phantoms.fields import deform, ellipsoid, paint, rotation_matrix, soft
from ssl3d.phantoms.retinal_vessels import grow

# Red, green, blue.
EXUDATE, COTTON_WOOL, SCAR = (1.1, 0.95, 0.45), (1.05, 0.92, 0.7), (1.0, 0.8, 0.45)

# Lesions per grade, lowest and highest number.
MICROANEURYSMS = ((0, 0), (4, 9), (9, 18), (18, 35), (15, 35))
HAEMORRHAGES = ((0, 0), (0, 0), (4, 10), (24, 40), (14, 30))
EXUDATES = ((0, 0), (0, 0), (1, 4), (1, 4), (0, 4))  # clusters
COTTON_WOOL_SPOTS = ((0, 0), (0, 0), (0, 0), (2, 6), (0, 4))


class Proliferation(Flag):
    """Signs of grade 4 beyond grade 3, one or more of them."""

    SCARS = auto()  # of panretinal laser treatment
    NEW_VESSELS = auto()  # at the disc
    PRERETINAL_BLOOD = auto()

    @staticmethod
    def sample(rng: np.random.Generator, grade: int) -> "Proliferation":
        """A random non-empty set for grade 4, none below."""
        return Proliferation(int(rng.integers(1, 8)) if grade == 4 else 0)


def add_scars(rng: np.random.Generator, image: np.ndarray, eye: Eye) -> None:
    """Rows of laser burns that spare the macula and the disc: pale, with a pigmented centre."""
    spacing = rng.uniform(0.8, 1.1)
    steps = np.arange(-12, 12, spacing)
    grid = np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1).reshape(-1, 2)
    grid = grid @ rotation_matrix(rng.uniform(0, 90)) + rng.normal(0, 0.12, grid.shape)
    outside = np.linalg.norm((grid - eye.fovea) / (3.4, 3.8), axis=1) > 1
    outside &= np.linalg.norm(grid, axis=1) > 1.7
    outside &= rng.uniform(size=len(grid)) < 0.85
    spots = grid[outside]
    radius = rng.uniform(0.16, 0.3, len(spots))
    paint(image, 0.65 * coverage(eye, Strokes(spots, spots, radius)), SCAR)
    dark = rng.uniform(size=len(spots)) < 0.6
    centres = Strokes(spots[dark], spots[dark], 0.4 * radius[dark])
    absorb(image, 0.8 * coverage(eye, centres), MELANIN)


def add_lesions(
    rng: np.random.Generator, image: np.ndarray, eye: Eye, grade: int, signs: Proliferation
) -> None:
    """Paints the lesions over the vessels: spots by `grade`, and the `signs`."""

    def count(limits: tuple[tuple[int, int], ...]) -> int:
        return int(rng.integers(*limits[grade], endpoint=True))

    spots = _scatter(rng, eye, count(COTTON_WOOL_SPOTS), 3.0)
    ends = spots + rng.normal(0, 0.15, spots.shape)
    wool = Strokes(spots, ends, rng.uniform(0.15, 0.3, len(spots)))
    paint(image, 0.8 * coverage(eye, wool, 0.15 / eye.pixel), COTTON_WOOL)

    for centre in _scatter(rng, eye, count(EXUDATES), 1.8):  # each a ring or an arc
        size = int(rng.integers(8, 22))
        angle = rng.uniform(0, 2 * np.pi) + rng.uniform(1, 2 * np.pi) * rng.uniform(size=size)
        ring = rng.uniform(0.2, 0.7) * np.stack([np.sin(angle), np.cos(angle)], axis=1)
        dots = centre + ring + rng.normal(0, 0.1, ring.shape)
        dots = Strokes(dots, dots, rng.uniform(0.04, 0.11, size))
        paint(image, 0.95 * coverage(eye, dots), EXUDATE)

    spots = _scatter(rng, eye, count(HAEMORRHAGES), 5.0)
    density = np.repeat(rng.uniform(0.5, 0.95, len(spots)), 3)
    flame = np.repeat(rng.uniform(size=len(spots)) < 0.3, 3)[:, None]
    spots = np.repeat(spots, 3, axis=0)  # each of three lumps
    fibres = spots / np.linalg.norm(spots, axis=1, keepdims=True)
    spots += rng.normal(0, np.where(flame, 0.05, 0.1), spots.shape)
    # Flames lie along the nerve fibres, blots have no direction.
    reach = rng.uniform(0.15, 0.5, flame.shape) * fibres
    ends = spots + np.where(flame, reach, rng.normal(0, 0.06, spots.shape))
    radius = np.where(flame[:, 0], 0.05, rng.uniform(0.05, 0.17, len(spots)))
    absorb(image, coverage(eye, Strokes(spots, ends, radius, density)), BLOOD)

    spots = _scatter(rng, eye, count(MICROANEURYSMS), 2.2)
    dots = Strokes(spots, spots, rng.uniform(0.06, 0.1, len(spots)), 0.85)
    absorb(image, coverage(eye, dots), BLOOD)

    if Proliferation.NEW_VESSELS in signs:
        _add_new_vessels(rng, image, eye)
    if Proliferation.PRERETINAL_BLOOD in signs:
        _add_preretinal_blood(rng, image, eye)


def _scatter(rng: np.random.Generator, eye: Eye, count: int, spread: float) -> np.ndarray:
    """`count` random points in view, outside the disc and the foveola, [count, 2] mm.

    Their density falls with the distance from the fovea, as a Gaussian of `spread` mm.
    """
    places = eye.centre + rng.uniform(-eye.radius, eye.radius, (50 * count + 50, 2))
    keep = np.linalg.norm(places - eye.centre, axis=1) < 0.92 * eye.radius
    keep &= np.linalg.norm(places, axis=1) > 1.3
    from_fovea = np.linalg.norm(places - eye.fovea, axis=1)
    keep &= from_fovea > 0.4
    keep &= rng.uniform(size=len(places)) < np.exp(-(from_fovea**2) / (2 * spread**2))
    return places[keep][:count]


def _add_new_vessels(rng: np.random.Generator, image: np.ndarray, eye: Eye) -> None:
    """A tangle of fine vessels that grow from the disc over the retina."""
    count = int(rng.integers(18, 32))
    heading = rng.uniform(0, 2 * np.pi, count)
    start = 0.6 * np.stack([np.sin(heading), np.cos(heading)], axis=1)
    wild = replace(eye, tortuosity=5.0)
    radius, length = rng.uniform(0.035, 0.06, count), rng.uniform(0.8, 2.4, count)
    tangle = grow(rng, wild, start, heading, radius, length, -1)
    absorb(image, 0.9 * coverage(eye, tangle.strokes()), BLOOD)


def _add_preretinal_blood(rng: np.random.Generator, image: np.ndarray, eye: Eye) -> None:
    """A boat-shaped preretinal haemorrhage, its upper border level by gravity."""
    retina = eye.retina()
    centre = eye.fovea + rng.choice([-1, 1]) * rng.uniform((1.6, -1.5), (3.2, 1.5))
    boat = ellipsoid(
        deform(rng, retina, 0.06, 0.5 / eye.pixel), centre, rng.uniform((0.6, 0.9), (1.1, 1.7))
    )
    level = centre[0] - rng.uniform(0, 0.3) - retina[0]
    absorb(image, 1.1 * soft(np.maximum(boat, level), 2 * eye.pixel), BLOOD)
