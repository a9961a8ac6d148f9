"""Atlas of the head: anatomy, and the signal of each tissue in four MR contrasts.

Lengths are MNI millimetres (x to the right, y anterior, z superior, origin at the anterior
commissure), so that every number can be checked against a textbook. Shapes take points [3, n] and
return signed distances, negative inside.

Left and right differ slightly more than in the average person: the torque (the left
occipital and the right frontal lobe protrude, and bend the midline), a larger left ventricle with a
longer occipital horn, a longer and flatter left Sylvian fissure, a dominant right transverse sinus,
and of the veins on the convexity Trolard's on the right and Labbe's on the left.
"""

from copy import copy
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy import ndarray as Array
from scipy.ndimage import map_coordinates

from ssl3d.phantoms.fields import blend, ellipsoid, paint, rotation_matrix, smooth_noise, soft, tube

CONTRASTS = ("T1ce", "FLAIR", "T1", "T2")
# Signal of a tissue in each contrast, in units of white matter on T1.
TISSUES = {
    #            T1ce FLAIR    T1    T2
    "air":      (0.00, 0.00, 0.00, 0.00),
    "fat":      (1.30, 0.80, 1.28, 0.85),
    "muscle":   (0.62, 0.42, 0.52, 0.33),
    "mucosa":   (1.25, 0.80, 0.55, 1.25),
    "bone":     (0.10, 0.08, 0.09, 0.08),
    "marrow":   (0.72, 0.40, 0.68, 0.42),
    "fluid":    (0.24, 0.12, 0.24, 1.55),
    "grey":     (0.66, 0.84, 0.62, 0.90),
    "nucleus":  (0.78, 0.80, 0.76, 0.76),
    "pallidum": (0.88, 0.68, 0.86, 0.54),
    "white":    (1.00, 0.64, 1.00, 0.56),
    "stem":     (0.93, 0.68, 0.92, 0.62),
    "choroid":  (1.55, 0.70, 0.55, 1.10),
    "dura":     (1.10, 0.50, 0.45, 0.40),
    "blood":    (1.75, 0.22, 0.38, 0.15),
    "vitreous": (0.30, 0.16, 0.28, 1.75),
    "necrosis": (0.36, 0.55, 0.40, 1.40),
    "oedema":   (0.74, 1.30, 0.72, 1.18),
    "enhancing":(1.75, 1.02, 0.70, 0.98),
}  # fmt: skip

VAULT = np.array([70, 88, 68])  # radii of the cerebrum, around:
VAULT_CENTRE = np.array([0, -17, 10])
STEM = ((0, -20, -6), (0, -27, -28), (0, -34, -48), (0, -42, -72), (0, -46, -150))


@dataclass(frozen=True)
class Traits:
    """Individual variation besides pose and deformation; lengths in mm."""

    sulcus: float  # half the width of a sulcus
    cortex: float  # thickness
    gyrus: float  # node distance of the folding pattern; sulci lie about 2.6 of them apart
    ventricle: float  # added to the radius of the ventricles
    skull: float  # thickness
    scalp: float  # thickness
    asymmetry: float  # 1 on average, at least one half

    @classmethod
    def sample(cls, rng: np.random.Generator) -> "Traits":
        age = rng.uniform()  # widens sulci and ventricles together, and thins the cortex
        return cls(
            sulcus=0.5 + age + rng.uniform(-0.2, 0.2),
            cortex=3.4 - 0.5 * age,
            gyrus=rng.uniform(7, 8.5),
            ventricle=-0.8 + 2.8 * age + rng.normal(0, 0.5),
            skull=rng.uniform(6, 9),
            scalp=rng.uniform(4.5, 7.5),
            asymmetry=max(0.5, rng.normal(1, 0.2)),
        )


class Canvas:
    """An image at some voxels of a grid, onto which tissues are painted one over another."""

    def __init__(
        self, rng: np.random.Generator, shape: tuple[int, ...], step: Array, index: Array
    ) -> None:
        """`step` [r] mm between voxels, `index` [n] flat positions of the voxels in the grid."""
        jitter = rng.normal(1, 0.04, (len(TISSUES), len(CONTRASTS)))
        self.signal = dict(zip(TISSUES, np.array(list(TISSUES.values())) * jitter, strict=True))
        self.image = np.zeros((len(CONTRASTS), len(index)), np.float32)
        self.shape, self.step, self.index = shape, step, index

    def share(self, distance: Array) -> Array:
        """Partial volume inside a surface, given by its signed distance, [n]."""
        return soft(distance, float(np.mean(self.step)))

    def lay(self, tissue: str, distance: Array, opacity: float | Array = 1) -> None:
        """Paints a tissue inside a surface, given by its signed distance [n]."""
        paint(self.image, self.share(distance) * opacity, self.signal[tissue])

    def part(self, chosen: Array) -> "Canvas":
        """A new canvas at the voxels `chosen` [m] of this one."""
        part = copy(self)
        part.image, part.index = self.image[:, chosen], self.index[chosen]
        return part

    def volume(self, values: Array) -> Array:
        """Values at the voxels, [..., n], on the grid [..., *S], zero elsewhere."""
        volume = np.zeros((*values.shape[:-1], *self.shape), values.dtype)
        volume.reshape(*values.shape[:-1], -1)[..., self.index] = values
        return volume

    def slope(self, values: Array) -> Array:
        """Norm of the gradient of a field at the voxels, [n] per mm."""
        gradient = np.gradient(self.volume(values), *self.step)
        return np.sqrt(np.sum([np.square(part.ravel()[self.index]) for part in gradient], axis=0))


class Cerebrum(NamedTuple):
    """Partial volumes of the cerebrum that a tumour needs, [n] each."""

    hull: Array  # including sulci, excluding ventricles
    tissue: Array  # excluding both
    white: Array


# Shapes ---------------------------------------------------------------------------------------


def torque(points: Array, traits: Traits) -> Array:
    """Coordinates in the symmetric atlas of points in an asymmetric head, [3, n]."""
    x, y, z = points
    along = np.clip((y + 17) / 88, -1, 1)
    midline = -6 * traits.asymmetry * along**3
    forward = 5.5 * traits.asymmetry * np.abs(along) * np.tanh(x / 12)
    return np.stack([x - midline, y - forward, z])


def outline(points: Array, traits: Traits) -> Array:
    """The skin; also takes points on a grid, [3, *S] -> [*S]."""
    depth = 3 + traits.skull + traits.scalp
    cranium = ellipsoid(_egg(points), VAULT_CENTRE, VAULT + depth)
    occiput = ellipsoid(points, (0, -55, -30), (62, 56, 42))
    face = ellipsoid(points, (0, 32, -58), (60, 52, 64))
    nose = ellipsoid(points, (0, 77, -56), (13, 11, 20))
    neck = tube(points, [(0, -36, -50), (0, -30, -160)], 52)
    return blend(blend(blend(cranium, occiput, 20), blend(face, nose, 10), 20), neck, 20)


def cavity(points: Array) -> Array:
    """The space inside the dura: the brain and the fluid around it."""
    brain = blend(cerebrum(points), _cerebellum(points), 15)
    return blend(brain, tube(points, STEM, (15, 17, 11, 7, 6)), 10) - 2.5


def cerebrum(points: Array, base: float = 1) -> Array:
    """Both hemispheres without folds; `base` scales the distance to their lower surface."""
    x, y, z = points
    vault = ellipsoid(_egg(points), VAULT_CENTRE, VAULT)
    chiasm = 8 * np.exp(-((x / 18) ** 2) - ((y - 2) / 25) ** 2)
    floor = -18 + chiasm + 0.06 * np.minimum(y + 17, 0) - z
    temporal = ellipsoid(_fold(points), (43, -18, -20), (23, 47, 22))
    return blend(np.maximum(vault, base * floor), temporal, 6)


def _cerebellum(points: Array) -> Array:
    hemispheres = ellipsoid(_fold(points), (23, -64, -38), (31, 30, 21))
    return blend(hemispheres, ellipsoid(points, (0, -60, -28), (18, 27, 22)), 10)


def _egg(points: Array) -> Array:
    """Points in an ellipsoidal head of a head that is wider at the back."""
    x, y, z = points
    return np.stack([x * (1 + 0.0016 * (y + 17)), y, z])


def _fold(points: Array) -> Array:
    """Points with the left side mirrored to the right, for paired structures."""
    return np.stack([np.abs(points[0]), *points[1:]])


def _sylvian_fissure(points: Array, traits: Traits) -> Array:
    x, y, z = points
    left, lateral = x < 0, np.abs(x)
    end = np.where(left, -34 - 14 * traits.asymmetry, -30)
    rise = np.where(left, 0.3, 0.3 + 0.25 * traits.asymmetry)
    height = -12 + rise * (22 - y) + 3 * np.sin(y / 6 + lateral / 9) + 0.15 * (lateral - 40)
    insula = 36 + (y + 2) ** 2 / 90
    beyond = [np.maximum(gap, 0) for gap in (insula - lateral, y - 26, end - y)]
    return np.sqrt((z - height) ** 2 + sum(gap**2 for gap in beyond)) - 0.4


def _folds(rng: np.random.Generator, canvas: Canvas, points: Array, scale: float) -> Array:
    """Distance to the sheets along which the cortex folds inwards, extended without end.

    The sheets are the zeros of a random field that varies little along the radii of a hemisphere.
    """
    x, y, z = points
    local = np.stack([np.abs(x) - 18, y + 17, z - 6])
    level = np.sqrt(np.sum((local / np.array([[50], [88], [68]], np.float32)) ** 2, axis=0))
    local *= np.maximum(level, 0.2) ** -0.65
    local[0] = np.where(x < 0, -1, 1) * (local[0] + 80)
    fine = 4  # lattice points per node, enough for linear interpolation
    lattice = smooth_noise(rng, (120, 80, 80), fine)
    position = local * (fine / scale) + np.array([[60], [40], [40]])
    field = map_coordinates(lattice, position, order=1, mode="mirror")
    return np.abs(field) / np.maximum(canvas.slope(field), 0.5 / scale)


# Painting -------------------------------------------------------------------------------------


def paint_head(
    canvas: Canvas, traits: Traits, skin: Array, outer: Array, inner: Array, texture: Array
) -> Array:
    """Paints everything but the brain; returns the distance to the `cavity`, [n].

    `skin` [n] is the distance to the `outline`, `outer` [3, n] the points, `inner` those after
    `torque`, and `texture` [3, n] independent smooth noise.
    """
    mirrored = _fold(outer)
    canvas.lay("fat", skin)
    canvas.lay("muscle", skin + 7 - 3 * texture[0])

    canvas.lay("fat", ellipsoid(mirrored, (29, 50, -37), (19, 28, 17)))
    canvas.lay("muscle", tube(mirrored, [(20, 25, -36), (33, 55, -37)], 6))
    canvas.lay("vitreous", ellipsoid(mirrored, (32, 62, -37), (12.5, 12.5, 12.5)))
    canvas.lay("mucosa", ellipsoid(outer, (0, 48, -64), (18, 32, 25)))
    canvas.lay("air", ellipsoid(mirrored, (9, 48, -64), (6, 32, 21)))
    for height in (-58, -73):  # the nasal conchae
        canvas.lay("mucosa", tube(mirrored, [(12, 28, height), (12, 68, height)], 4))
    canvas.lay("air", ellipsoid(mirrored, (33, 46, -68), (14, 18, 16)))
    pharynx, spine = [(0, 8, -58), (0, -2, -90), (0, 0, -150)], [(0, -18, -70), (0, -22, -150)]
    canvas.lay("air", tube(outer, pharynx, (9, 8, 9)))
    canvas.lay("bone", tube(outer, spine, 14))
    canvas.lay("marrow", tube(outer, spine, 11))

    skull, dura = cavity(outer) - traits.skull, cavity(inner)
    canvas.lay("bone", skull)
    canvas.lay("marrow", 2.6 + np.maximum(skull, -dura) + 0.6 * texture[1])
    canvas.lay("air", ellipsoid(mirrored, (9, 22, -36), (9, 14, 10)))
    canvas.lay("air", ellipsoid(mirrored, (10, 77, -14), (9, 5, 11)))
    mastoid = ellipsoid(mirrored, (56, -40, -42), (9, 14, 14))
    canvas.lay("air", mastoid, 0.5 + 0.5 * np.tanh(2 * texture[2]))
    canvas.lay("dura", dura - 1)
    canvas.lay("fluid", dura + 0.5)
    return dura


def paint_brain(
    rng: np.random.Generator, canvas: Canvas, traits: Traits, points: Array, texture: Array
) -> Cerebrum:
    """Paints the brain and its vessels at `points` [3, n]; `texture` [n] is smooth noise."""
    x, y, z = points
    mirrored = _fold(points)
    cerebellum, stem = _cerebellum(points), tube(points, STEM, (15, 17, 11, 7, 6))
    hull = np.maximum(cerebrum(points), 3 - cerebellum)

    # Distance to the pia, which lines the surface, the fissures and the sulci. Sulci end below the
    # surface, earlier at the base of the brain; the falx ends above the corpus callosum.
    depth = np.maximum(-cerebrum(points, base=2) - 19 - 4 * texture, 0)
    sulci = np.hypot(_folds(rng, canvas, points, traits.gyrus), depth)
    core = ellipsoid(points, (0, -8, 0), (60, 42, 29))
    beyond = np.max([mirrored[0] - 12 - 4 * texture, -z, -45 - y], axis=0)
    cingulate = np.hypot(core - 12 - 4 * texture, np.maximum(beyond, 0))
    midline = np.hypot(x, np.maximum(-core, 0))
    sheets = np.stack([sulci, cingulate, midline, _sylvian_fissure(points, traits)])
    pia = np.minimum(sheets.min(axis=0) - traits.sulcus, -hull)
    canvas.lay("grey", -pia)
    canvas.lay("white", traits.cortex - pia)

    ventricles = _ventricles(points, traits)
    _paint_nuclei(canvas, mirrored)
    canvas.lay("fluid", ventricles)
    canvas.lay("choroid", ellipsoid(mirrored, (24, -42, 13), (3, 6, 4)), 0.8)

    lobules = np.cos(13 * np.arctan2(z + 36, -(y + 38)) + 0.08 * mirrored[0])
    canvas.lay("grey", cerebellum)
    fissures = np.clip(-lobules - 0.4, 0, 1) * np.clip(1 + cerebellum / 9, 0, 1)
    canvas.lay("fluid", cerebellum + 0.5, fissures)
    branches = np.maximum(cerebellum + 4, 2 - 4 * lobules)
    canvas.lay("white", np.minimum(cerebellum + 13, branches))
    canvas.lay("stem", stem)
    canvas.lay("stem", tube(mirrored, [(8, -28, -30), (20, -52, -36)], 7))
    canvas.lay("fluid", ellipsoid(points, (0, -44, -36), (7, 5, 10)))  # fourth ventricle
    _paint_vessels(canvas, traits, points)

    dry = (1 - canvas.share(ventricles)) * canvas.share(3 - np.minimum(stem, cerebellum))
    white = canvas.share(traits.cortex - pia)
    return Cerebrum(hull=dry * canvas.share(hull + 2), tissue=dry * canvas.share(-pia), white=white)


def _paint_nuclei(canvas: Canvas, mirrored: Array) -> None:
    thalamus = ellipsoid(mirrored, (12, -19, 7), (10, 16, 10), rotation_matrix(0, 0, 25))
    putamen = ellipsoid(mirrored, (27, 3, 2), (6, 18, 11), rotation_matrix(0, 0, 12))
    caudate = [(12, 20, 0), (13, 14, 10), (16, 0, 18), (20, -16, 22), (27, -34, 18)]
    canvas.lay("nucleus", np.minimum(thalamus, putamen))
    canvas.lay("nucleus", tube(mirrored, caudate, (8, 8, 6, 4, 2.5)))
    pallidum = ellipsoid(mirrored, (20, -4, 0), (4, 9, 6), rotation_matrix(0, 0, 20))
    canvas.lay("pallidum", pallidum)
    hippocampus = [(24, -6, -20), (28, -22, -14), (29, -34, -4)]
    canvas.lay("grey", tube(mirrored, hippocampus, (7, 5, 4)))


def _ventricles(points: Array, traits: Traits) -> Array:
    left = points[0] < 0
    x, y, z = _fold(points)
    # Coordinates are compressed behind the left atrium and stretched behind the right one: the left
    # occipital horn is longer.
    stretch = np.where(left, 1 / (1 + 0.3 * traits.asymmetry), 1.2)
    horns = np.stack([x, np.where(y < -48, -48 + (y + 48) * stretch, y), z])
    atrium = (25, -42, 16)
    lateral = [
        tube(horns, [(13, 34, 0), (9, 22, 10), (9, 2, 22), (15, -22, 25), atrium], (4, 6, 6, 6, 8)),
        tube(horns, [atrium, (23, -62, 9), (20, -76, 6)], (7, 5, 2)),
        tube(horns, [atrium, (34, -30, -8), (33, -12, -19)], (6, 2.5, 3)),
    ]
    excess = traits.asymmetry * np.where(left, 1.8, -1.2)
    septum = 1.5 - x
    paired = np.maximum(np.min(lateral, axis=0) - traits.ventricle - excess, septum)
    third = ellipsoid(points, (0, -9, -1), (2.5 + max(traits.ventricle, 0), 16, 11))
    return np.minimum(paired, third)


def _paint_vessels(canvas: Canvas, traits: Traits, points: Array) -> None:
    mirrored, flipped = _fold(points), points * np.array([[-1], [1], [1]], np.float32)
    falx = np.maximum(mirrored[0] - 0.8, -ellipsoid(points, (0, -14, 0), (60, 62, 52)))
    canvas.lay("dura", np.maximum(falx, cerebrum(points)), 0.8)

    sagittal = [(0, 66, 30), (0, 35, 72), (0, -17, 81), (0, -70, 63), (0, -100, 30), (0, -106, 0)]
    straight = [(0, -42, 4), (0, -100, -4)]
    transverse = [(0, -104, -6), (30, -97, -16), (54, -72, -22), (57, -50, -34), (42, -40, -52)]
    canvas.lay("blood", tube(points, sagittal, (1.5, 2, 3, 4, 4.5, 5)))
    canvas.lay("blood", tube(points, straight, 2))
    canvas.lay("blood", tube(points, transverse, 4.2 + traits.asymmetry))
    canvas.lay("blood", tube(flipped, transverse, 2.6 - traits.asymmetry))
    trolard = [(2, -32, 79), (36, -22, 69), (60, -8, 44), (67, 5, 12)]
    labbe = [(67, 0, 8), (68, -30, -2), (57, -60, -16)]
    canvas.lay("blood", tube(points, trolard, 1 + traits.asymmetry))
    canvas.lay("blood", tube(flipped, labbe, 1 + traits.asymmetry))

    canvas.lay("blood", tube(mirrored, [(9, 12, -56), (13, 5, -36), (10, 8, -20)], 2.5))
    canvas.lay("blood", tube(mirrored, [(8, 5, -17), (30, 6, -15), (40, 2, -6)], 1.8))
    canvas.lay("blood", tube(mirrored, [(6, 6, -17), (1, 28, -6), (1, 36, 12)], 1.3))
    canvas.lay("blood", tube(points, [(0, -8, -16), (0, -10, -34), (3, -20, -55)], 2))
