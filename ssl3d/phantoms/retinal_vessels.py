"""Retinal vessels: arcades around the macula, branches and twigs."""

from typing import NamedTuple

import numpy as np
from scipy.interpolate import CubicSpline

from ssl3d.phantoms.eye import ARTERY, VEIN, Eye, Strokes, absorb, coverage

# The arcades beyond the disc, as control points (inferior, temporal) in mm.
COURSES = {
    "superior temporal": ((-1.1, 0.1), (-2.5, 1), (-3.6, 3.1), (-3.8, 5.4), (-3.2, 7.8), (-2, 10)),
    "inferior temporal": ((1.1, 0.0), (2.4, 0.9), (3.3, 2.8), (3.5, 5.2), (3.1, 7.6), (2.2, 10)),
    "superior nasal": ((-0.9, -0.6), (-1.9, -1.6), (-2.9, -3.0), (-3.8, -4.8)),
    "inferior nasal": ((1.0, -0.7), (2.2, -1.5), (3.5, -2.6), (4.8, -4.0)),
}
ARTERY_RADIUS, VEIN_RADIUS = (
    0.065,
    0.09,
)  # mm at the disc, a third wider than in life, to be visible at 128 pixels
BEAD = 0.7  # mm between the swellings of a beaded vein
STEP = 0.15  # mm between the vertices of a vessel: 1.5 pixels of a 128-pixel photograph


class Paths(NamedTuple):
    """Vessels as polylines: `points` [n, P, 2], `radius` [n, P] in mm, 0 beyond the end."""

    points: np.ndarray
    radius: np.ndarray

    def strokes(self) -> Strokes:
        """The segments of all vessels."""
        present = self.radius[:, 1:] > 0
        pieces = self.points[:, :-1], self.points[:, 1:], self.radius[:, 1:]
        return Strokes(*(part[present] for part in pieces))


def add_vessels(rng: np.random.Generator, image: np.ndarray, eye: Eye, grade: int) -> None:
    """Adds arteries and veins of three generations; from grade 3 on the veins are beaded."""
    entry = rng.uniform((-0.35, -0.3), (-0.15, -0.05))
    size = rng.uniform((0.85, 0.95), (1.1, 1.05))
    courses = {
        name: size * (course + rng.normal(0, 0.22, np.shape(course)))
        for name, course in COURSES.items()
    }
    contrast = rng.uniform(0.8, 1.15)
    veins = _tree(rng, eye, entry, courses, VEIN_RADIUS)
    if grade >= 3:
        beads = 1 + 0.4 * np.sin(2 * np.pi / BEAD * STEP * np.arange(veins.radius.shape[1]))
        veins = veins._replace(radius=veins.radius * beads)
    # Arteries accompany the veins, on either side of them, mostly on the inside.
    beside = {
        name: rng.uniform(0.86, 0.98) * course + rng.normal(0, 0.18, course.shape)
        for name, course in courses.items()
    }
    arteries = _tree(rng, eye, entry + np.array((0.1, -0.1)), beside, ARTERY_RADIUS)
    absorb(image, contrast * coverage(eye, veins.strokes()), VEIN)
    absorb(image, contrast * coverage(eye, arteries.strokes()), ARTERY)


def _tree(
    rng: np.random.Generator,
    eye: Eye,
    entry: np.ndarray,
    courses: dict[str, np.ndarray],
    radius: float,
) -> Paths:
    """Four arcades and small vessels from the disc, branches, and twigs of the branches."""
    radius = radius * rng.uniform(0.85, 1.15)
    arcades = [
        _arcade(
            rng,
            np.vstack([entry, course]),
            radius * rng.uniform(0.9, 1.1) * (1.2 if name == "inferior temporal" else 1),
            eye.tortuosity,
        )
        for name, course in courses.items()
    ]

    # Small vessels run from the disc to the macula (+1) and the nasal periphery (-1).
    goal = np.repeat([1, -1], 3)
    heading = np.where(goal > 0, 0, np.pi) + rng.uniform(-0.8, 0.8, goal.size)
    length, start = rng.uniform(2.5, 4, goal.size), np.tile(entry, (goal.size, 1))
    small = grow(rng, eye, start, heading, np.full(goal.size, 0.4 * radius), length, goal)

    temporal, nasal = _join(arcades[:2]), _join(arcades[2:])
    inner = _branches(rng, eye, temporal, 6, 1, (1.5, 4.5))
    outer = _branches(rng, eye, temporal, 6, -1, (2.0, 4.5))
    outer_nasal = _branches(rng, eye, nasal, 6, -1, (1.0, 3.0))
    twigs = [
        _branches(rng, eye, parents, 2, goal, (0.6, 2.0))
        for parents, goal in ((inner, 1), (outer, -1), (outer_nasal, -1))
    ]
    return _join([temporal, nasal, small, inner, outer, outer_nasal, *twigs])


def _arcade(rng: np.random.Generator, knots: np.ndarray, radius: float, tortuosity: float) -> Paths:
    """A tortuous vessel through `knots` [k, 2] that tapers to under half of `radius`."""
    along = np.cumsum([0, *np.linalg.norm(np.diff(knots, axis=0), axis=1)])
    distance = np.arange(0, along[-1], STEP)
    course = CubicSpline(along, knots)
    tangent = course(distance, 1)
    wave = np.sin(2 * np.pi * distance / rng.uniform(1.2, 2.2) + rng.uniform(0, 2 * np.pi))
    offset = 0.07 * tortuosity * np.minimum(distance / 2, 1) * wave
    points = course(distance) + offset[:, None] * tangent[:, ::-1] * (1, -1)
    return Paths(points[None], (radius * (1 - 0.6 * distance / along[-1]))[None])


def _branches(
    rng: np.random.Generator,
    eye: Eye,
    parents: Paths,
    count: int,
    goal: int,
    lengths: tuple[float, float],
) -> Paths:
    """`count` branches of each of `parents`, towards the fovea (`goal` 1) or away from it (-1)."""
    vertices = np.sum(parents.radius > 0, axis=1, keepdims=True)
    spread = (np.arange(count) + rng.uniform(0.1, 0.9, (len(vertices), count))) / count
    index = (vertices * (0.1 + 0.87 * spread)).astype(int)
    index = np.clip(index, 0, parents.points.shape[1] - 2).ravel()
    parent = np.repeat(np.arange(len(parents.points)), count)
    start = parents.points[parent, index]
    heading = _bearing(parents.points[parent, index + 1] - start)
    # A branch leaves on the side of its goal; on a random side if the goal is straight ahead.
    wanted = np.sin(_bearing(goal * (eye.fovea - start)) - heading)
    side = np.sign(wanted + rng.uniform(-0.5, 0.5, len(wanted)))
    heading = heading + side * rng.uniform(0.5, 1.1, len(side))
    radius = parents.radius[parent, index] * rng.uniform(0.5, 0.8, len(parent))
    length = rng.uniform(*lengths, len(parent))
    return grow(rng, eye, start, heading, radius, length, goal)


def grow(
    rng: np.random.Generator,
    eye: Eye,
    start: np.ndarray,
    heading: np.ndarray,
    radius: np.ndarray,
    length: np.ndarray,
    goal: int | np.ndarray,
) -> Paths:
    """Random paths from `start` [n, 2] that bend towards the fovea (`goal` 1) or away from it (-1).

    `heading` in radians from temporal through inferior, `radius` and `length` in mm, all [n]. The
    vessels taper to half, and end at the avascular zone of the fovea.
    """
    point, steps = start, [start]
    for _ in range(int(length.max() / STEP) + 1):
        target = _bearing(np.reshape(goal, (-1, 1)) * (eye.fovea - point))
        heading = heading + 0.7 * STEP * np.sin(target - heading)
        heading = heading + 0.3 * eye.tortuosity * np.sqrt(STEP) * rng.standard_normal(len(heading))
        point = point + STEP * np.stack([np.sin(heading), np.cos(heading)], axis=1)
        steps.append(point)
    points = np.stack(steps, axis=1)
    share = STEP * np.arange(points.shape[1]) / length[:, None]
    avascular = np.linalg.norm(points - eye.fovea, axis=2) < 0.45
    ended = (share > 1) | np.logical_or.accumulate(avascular, axis=1)
    return Paths(points, np.where(ended, 0, radius[:, None] * (1 - 0.5 * share)))


def _join(groups: list[Paths]) -> Paths:
    """All vessels of several groups, padded to the longest."""
    longest = max(group.radius.shape[1] for group in groups)
    padded = []
    for group in groups:
        pad = (0, longest - group.radius.shape[1])
        points = np.pad(group.points, ((0, 0), pad, (0, 0)))
        padded.append(Paths(points, np.pad(group.radius, ((0, 0), pad))))
    return Paths(*map(np.concatenate, zip(*padded, strict=True)))


def _bearing(vectors: np.ndarray) -> np.ndarray:
    """Angles of vectors [n, 2] from temporal (0) through inferior, radians [n]."""
    return np.arctan2(vectors[:, 0], vectors[:, 1])
