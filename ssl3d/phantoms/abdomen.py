"""Synthetic portal-venous CT of the abdomen, with pancreas and tumour labels as in Task07.

The atlas is a set of shapes in mm: x from the patient's left to right, y from back to front, z
upwards, origin in front of the second lumbar vertebra. Its numbers are an adult's, fitted by eye to
real CTs; a subject has random sizes, courses and enhancement around them, a pose and a deformation.
Organs are painted from the outside in, each over the ones before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.random import Generator
from scipy.interpolate import CubicSpline

from ssl3d.phantoms import fields
from ssl3d.phantoms.fields import Vector

BACKGROUND, PANCREAS, TUMOUR = 0, 1, 2
FIELD_OF_VIEW_MM = (300.0, 300.0, 240.0)
TUMOUR_SHARE = 0.75  # of the subjects

Window = tuple[slice, ...]
Value = float | np.ndarray

# HU; `_Scan.enhanced` gives those of organs that take up contrast medium.
AIR, LUNG, FAT, GALL, FLUID, CORD = -1000, -840, -102, 8, 18, 38
MUSCLE, GUT_WALL, DISC, CARTILAGE, CANCELLOUS, CORTICAL = 58, 82, 85, 110, 190, 620
TEXTURE_MM = 7.0  # scale of the texture of fat, faeces and lobules

# Courses are rows of (x, y, z, radius) in mm; some end beyond the field of view.
ARTERIES = (
    ((-4, -8, 146, 11), (-8, -14, 60, 10), (-9, -16, 0, 9), (-8, -12, -92, 8)),
    ((-8, -12, -88, 7), (-34, -6, -148, 6)),
    ((-8, -12, -88, 7), (22, -6, -148, 6)),
    ((-8, -10, 8, 4), (-7, 0, -2, 4), (-6, 4, -30, 4), (-4, 12, -96, 3)),
    ((-8, -12, 22, 4), (-6, 0, 24, 3.5), (14, 12, 24, 3), (26, 16, 28, 2.5)),
)
VEINS = (
    ((8, 6, 120, 12), (15, -12, 86, 12), (20, -15, 30, 11), (17, -17, -40, 10), (14, -16, -96, 9)),
    ((14, -16, -92, 9), (42, -18, -148, 7)),
    ((14, -16, -92, 9), (-32, -18, -148, 7)),
    ((17, -15, -8, 5), (34, -24, -12, 5)),
    ((17, -14, 2, 5), (-8, -2, 4, 4), (-32, -24, 0, 5)),
)
PORTAL_VEINS = (
    ((12, 14, -100, 4), (12, 8, -50, 6), (11, 2, -18, 6.5), (12, 0, 2, 7)),
    ((12, 0, 2, 7.5), (19, 2, 16, 8), (28, 8, 30, 8)),
)
LIVER_VEINS = (
    ((15, -12, 84, 6), (44, -22, 66, 5), (80, -26, 42, 3)),
    ((14, -10, 84, 6), (34, 18, 68, 5), (52, 42, 42, 3)),
    ((14, -10, 84, 5), (4, 18, 74, 4), (-18, 38, 62, 3)),
    ((28, 8, 30, 7), (50, 2, 36, 6), (72, -10, 26, 4), (84, -20, 8, 3)),
    ((50, 2, 36, 5), (70, 18, 52, 4), (80, 30, 62, 3)),
    ((28, 8, 30, 6), (4, 26, 46, 5), (-16, 38, 52, 3)),
)
COLON = (
    ((76, -8, -146, 24), (84, -12, -84, 22), (82, 0, -44, 20), (70, 28, -38, 18)),
    ((-82, 26, 2, 16), (-92, -14, -14, 14), (-88, -22, -60, 13), (-82, -4, -146, 13)),
    ((70, 28, -38, 18), (48, 56, -52, 17), (4, 62, -64, 17), (-46, 58, -38, 16), (-82, 26, 2, 16)),
)
OESOPHAGUS = ((-2, 2, 146, 8), (-8, 2, 96, 8), (-26, 6, 78, 8))
STOMACH = (
    *((-44, -8, 68, 26), (-50, 14, 52, 26), (-48, 34, 28, 22)),
    *((-24, 50, 4, 18), (12, 48, 0, 14), (32, 32, 5, 9)),
)
DUODENUM = (
    *((34, 30, 6, 11), (50, 16, 4, 12), (54, 2, -22, 12)),
    *((40, -4, -48, 12), (4, 0, -52, 11), (-26, 6, -34, 11)),
)
PANCREAS_COURSE = (
    *((26, -2, -36, 9), (32, 4, -20, 13), (27, 9, -4, 13), (10, 15, 5, 8.5)),
    *((-12, 17, 11, 9.5), (-36, 6, 18, 10.5), (-55, -10, 25, 9.5), (-68, -20, 31, 6)),
)
PSOAS = ((27, -52, 26, 5), (33, -44, -30, 13), (42, -38, -80, 19), (52, -26, -146, 21))
CRUS = ((13, -14, 60, 5), (15, -20, 20, 5), (12, -26, -12, 4))
ILIAC_CREST = ((44, -72, -104, 6), (64, -66, -97, 6), (88, -40, -95, 6), (99, -12, -108, 6))


@dataclass
class _Scan:
    """An image under construction, its voxels, and properties of the patient.

    A shape is evaluated only in a window of the grid around it: slices that select `*W` voxels.
    """

    points: np.ndarray  # mm in the atlas [3, *S]
    height: np.ndarray  # mm in the scanner [*S], against gravity for a supine patient
    texture: np.ndarray  # noise of unit variance [*S]
    cavity: np.ndarray  # signed distance to the inner surface of the trunk's wall [*S] mm
    diaphragm: np.ndarray  # signed distance to the diaphragm [*S] mm, negative in the abdomen
    adiposity: float  # from 0 (lean) to 1 (obese)
    enhancement: float  # uptake of contrast medium, 1 on average

    def __post_init__(self) -> None:
        shape = self.height.shape
        self.peritoneum = np.maximum(self.cavity, self.diaphragm) + 3
        self.image = np.full(shape, AIR, np.float32)
        self.label = np.full(shape, BACKGROUND, np.uint8)
        self.voxel_mm = float(np.prod(np.divide(FIELD_OF_VIEW_MM, shape)) ** (1 / 3))
        # Smallest and largest atlas coordinate along each axis, for each plane of voxels across it.
        others = ((1, 2), (0, 2), (0, 1))
        self.extents = [(p.min(o), p.max(o)) for p, o in zip(self.points, others, strict=True)]

    def enhanced(self, native: float, uptake: float) -> float:
        """HU of a tissue about 70 s after the injection."""
        return native + self.enhancement * uptake

    def near(self, low: Vector, high: Vector) -> tuple[Window, np.ndarray]:
        """The window that contains a box of the atlas, and its points [3, *W]."""
        window = []
        for (first, last), start, stop in zip(self.extents, low, high, strict=True):
            planes = np.flatnonzero((last > start - self.voxel_mm) & (first < stop + self.voxel_mm))
            window.append(slice(planes[0], planes[-1] + 1) if planes.size else slice(0))
        return tuple(window), self.points[:, *window]

    def along(self, course: np.ndarray) -> tuple[Window, np.ndarray]:
        """The window around a course [P, 4] and the signed distance to it, [*W] mm."""
        path, radius = course[:, :3], course[:, 3]
        reach = radius.max() + 4
        window, points = self.near(path.min(axis=0) - reach, path.max(axis=0) + reach)
        return window, fields.tube(points, path, radius)

    def around(self, centre: Vector, radii: Vector, turn: np.ndarray) -> tuple[Window, np.ndarray]:
        """The window around an ellipsoid and the signed distance to it, [*W] mm."""
        reach = np.linalg.norm(turn * radii, axis=1) + 12
        window, points = self.near(np.subtract(centre, reach), np.add(centre, reach))
        return window, fields.ellipsoid(points, centre, radii, turn)

    def paint(self, window: Window, distance: np.ndarray, value: Value, label: int = 0) -> None:
        """Paints `value` HU (one or [*W]) and `label` where `distance` [*W] is negative."""
        share = fields.soft(distance, self.voxel_mm)
        image = self.image[window]
        image += share * (np.asarray(value, np.float32) - image)
        self.label[window][share >= 0.5] = label


def _cavity(rng: Generator, points: np.ndarray, adiposity: float) -> np.ndarray:
    """Signed distance to the inner surface of the trunk's wall, along the radius, [*S] mm."""
    x, y, _ = points
    width = 104 + 4 * adiposity + rng.uniform(-4, 3)
    front, back = 76 + 12 * adiposity + rng.uniform(-4, 4), 68 + rng.uniform(-2, 2)
    # A superellipse of exponent 5/2, with fuller flanks than an ellipse.
    across, along = np.abs(x) / width, np.maximum(y / front, -y / back)
    level = across**2 * np.sqrt(across) + along**2 * np.sqrt(along)
    level = np.maximum(level, np.float32(1e-6)) ** np.float32(0.4)
    return np.maximum(np.hypot(x, y), np.float32(0.5)) * (1 - 1 / level)


def _diaphragm(points: np.ndarray) -> np.ndarray:
    """Signed distance to the domes of the diaphragm, negative in the abdomen, [*S] mm."""
    points = np.stack([*points[:2], np.maximum(points[2], 0)])  # open downwards
    right = fields.ellipsoid(points, (50, 4, 0), (64, 86, 98))
    left = fields.ellipsoid(points, (-50, 0, 0), (63, 82, 91))
    centre = fields.ellipsoid(points, (0, 8, 0), (70, 78, 84))
    return fields.blend(fields.blend(right, left, 12), centre, 12)


def subject(
    rng: Generator, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """The CT of a random patient: image float32 [*S, 1] in HU, label uint8 [*S], spacing in mm.

    `shape` has three sides; axes are RAS+, and the field of view is `FIELD_OF_VIEW_MM` for any
    `shape`. Labels are 0 background, 1 pancreas, 2 tumour, as in Task07.
    """
    spacing = tuple(extent / size for extent, size in zip(FIELD_OF_VIEW_MM, shape, strict=True))
    grid = fields.coordinates(shape, spacing)
    points = fields.pose(rng, grid, degrees=(4, 3, 5), scaling=0.04, shift=(4, 5, 10))
    for amplitude, reach in ((4.0, 60.0), (1.5, 25.0)):
        points = fields.deform(rng, points, amplitude, [reach / step for step in spacing])
    texture = fields.smooth_noise(rng, shape, [TEXTURE_MM / step for step in spacing])
    adiposity, enhancement = rng.beta(1.6, 2.0), rng.uniform(0.85, 1.2)
    cavity, diaphragm = _cavity(rng, points, adiposity), _diaphragm(points)
    scan = _Scan(points, grid[1], texture, cavity, diaphragm, adiposity, enhancement)

    for organs in (_trunk, _chest, _liver_and_spleen, _kidneys, _spine, _gut, _pancreas, _vessels):
        organs(rng, scan)

    # Stationary, slightly correlated quantum noise, and a calibration offset.
    noise = 0.8 * rng.standard_normal(shape, np.float32) + 0.6 * fields.smooth_noise(rng, shape, 1)
    image = scan.image + rng.uniform(7, 15) * noise + rng.normal(0, 2)
    return image[..., None], scan.label, spacing


@cache
def _spline(knots: int, pieces: int) -> np.ndarray:
    """Weights [P, knots] of a cubic spline through knots, `pieces` steps from knot to knot."""
    steps = np.linspace(0, knots - 1, (knots - 1) * pieces + 1)
    return CubicSpline(np.arange(knots), np.eye(knots))(steps).astype(np.float32)


def _course(
    rng: Generator, rows: Sequence[Vector] | np.ndarray, wander: float = 2.0, pieces: int = 3
) -> np.ndarray:
    """A smooth course through rows (x, y, z, radius) displaced by up to +- `wander` mm, [P, 4]."""
    knots = np.array(rows, np.float32)
    knots[:, :3] += rng.uniform(-wander, wander, (len(knots), 3))
    knots[:, 3] *= rng.uniform(0.88, 1.12)
    return _spline(len(knots), pieces) @ knots


def _trunk(rng: Generator, scan: _Scan) -> None:
    """Subcutaneous fat, the muscular wall, the fat-filled cavity, muscles of the back."""
    everywhere, (x, y, z), cavity = (slice(None),) * 3, scan.points, scan.cavity
    backward = np.clip(-y / (np.hypot(x, y) + 1), 0, 1)
    # Flanks are thicker than the front, where the recti meet in a thin midline.
    wall = rng.uniform(11, 14) - np.where(y > 42, 2 + 4 * np.exp(-((x / 7) ** 2)), 0)
    # Fat is thickest at the back and the flanks of the lower trunk.
    lower = np.clip(0.5 - z / 240, 0, 1)
    fat = (5 + 14 * scan.adiposity) * (0.75 + 0.35 * lower * (1 + backward))
    adipose = FAT + 9 * scan.texture
    scan.paint(everywhere, cavity - 12 - 18 * backward**3 - fat, adipose)
    scan.paint(everywhere, cavity - wall, MUSCLE + 5 * scan.texture)
    scan.paint(everywhere, cavity, adipose)
    bulk = rng.uniform(0.9, 1.12)
    for side in (-1, 1):  # the erectors of the spine; 400 mm make a pillar
        window, erector = scan.around((side * 26, -80, 0), (25 * bulk, 15 * bulk, 400), np.eye(3))
        scan.paint(window, erector, MUSCLE + 5 * scan.texture[window])


def _chest(rng: Generator, scan: _Scan) -> None:
    """Lung bases, diaphragm, heart, ribs with their cartilage."""
    window, points = scan.near((-160, -130, -20), (160, 130, 200))
    x, y, z = points
    texture = scan.texture[window]
    cavity, diaphragm = scan.cavity[window], scan.diaphragm[window]
    below = np.maximum(cavity, -z)
    lung = LUNG + 30 * texture + 500 * np.clip(texture - 1.3, 0, 1)  # its peaks are vessels
    scan.paint(window, np.maximum(below + 2, -diaphragm), lung)
    scan.paint(window, np.maximum(below, np.abs(diaphragm + 2) - 2), MUSCLE)
    scan.paint(window, np.maximum(np.hypot(x, 0.8 * (y + 18)) - 26, -diaphragm), FAT)
    heart = fields.ellipsoid(points, (-16, 28, rng.uniform(122, 134)), (56, 44, 36))
    scan.paint(window, heart - 4, FAT)
    scan.paint(window, heart, scan.enhanced(42, 95))

    # Ribs lie 27 mm apart in planes that descend forwards; upper ribs reach further.
    plane = z + 0.55 * (y + 68)
    number = np.floor(plane / 27)
    rib = np.hypot(cavity - 5, 0.8 * (plane % 27 - 13.5)) - 4.5
    rib = np.max([rib, 20 - np.abs(x), -27 * number, y - (36 * number - 30)], axis=0)
    scan.paint(window, rib, np.where(y < 45, CORTICAL, CARTILAGE))
    scan.paint(window, rib + 2.5, np.where(y < 45, CANCELLOUS, CARTILAGE))


def _liver_and_spleen(rng: Generator, scan: _Scan) -> None:
    """Liver, gall bladder and spleen."""
    window, points = scan.near((-90, -90, -100), (130, 110, 130))
    right = fields.ellipsoid(points, (54, 2, 26), rng.uniform(0.93, 1.08, 3) * (76, 84, 84))
    left = fields.ellipsoid(points, (-10, 38, 54), (rng.uniform(40, 66), 38, 40))
    # The visceral surface is a plane facing down, left and back.
    normal = np.array((0.52 + rng.uniform(-0.08, 0.08), 0.34, 0.76), np.float32)
    normal /= np.linalg.norm(normal)
    under = normal @ (10, 0, 22 + rng.uniform(-7, 9)) - np.tensordot(normal, points, 1)
    liver = -fields.blend(-fields.blend(right, left, 16), -under.astype(np.float32), 14)
    liver = np.maximum(liver, scan.peritoneum[window])
    scan.paint(window, liver, scan.enhanced(rng.uniform(45, 62), 52) + 3 * scan.texture[window])

    radii = np.multiply((12, 26, 14), rng.uniform(0.75, 1.2))
    turn = fields.rotation_matrix(25, 0, 10)
    window, bladder = scan.around(np.add((46, 44, -2), rng.uniform(-5, 5, 3)), radii, turn)
    scan.paint(window, bladder, GUT_WALL)
    scan.paint(window, bladder + 2, GALL)

    radii = np.multiply((29, 44, 46), rng.uniform(0.85, 1.12))
    turn = fields.rotation_matrix(0, rng.uniform(5, 20), -20)
    window, spleen = scan.around((-80, -32, 38), radii, turn)
    gastric = fields.ellipsoid(scan.points[:, *window], (-44, -4, 46), (24, 36, 46))
    spleen = np.max([spleen, -gastric, scan.peritoneum[window]], axis=0)
    scan.paint(window, spleen, scan.enhanced(48, 72))


def _kidneys(rng: Generator, scan: _Scan) -> None:
    """Kidneys in perirenal fat, with cortex, medulla and pelvis; the right one lies lower."""
    for side, rise in ((1, -24), (-1, -6)):
        centre = np.add((side * 56, -36, rise), rng.uniform(-4, 4, 3))
        radii = np.multiply((25, 23, 52), rng.uniform(0.9, 1.08))
        turn = fields.rotation_matrix(-8, side * 10, side * -25)
        window, kidney = scan.around(centre, radii, turn)
        hilum = centre - turn @ (side * 13, 0, 0)
        sinus = fields.ellipsoid(scan.points[:, *window], hilum, radii * (0.62, 0.4, 0.48), turn)
        scan.paint(window, kidney - 5 - 5 * scan.adiposity, FAT)
        scan.paint(window, kidney, scan.enhanced(38, 132))
        scan.paint(window, np.maximum(kidney + 7, 4 - sinus), scan.enhanced(36, 100))
        scan.paint(window, sinus, FAT)
        scan.paint(window, sinus + 6, FLUID)


def _spine(rng: Generator, scan: _Scan) -> None:
    """Vertebrae, discs and canal, the muscles beside them, iliac crests."""
    for side in (-1, 1):
        for rows in (PSOAS, CRUS):
            scan.paint(*scan.along(_course(rng, rows) * (side, 1, 1, 1)), MUSCLE)
        for depth in range(0, 45, 9):  # the wing of the ilium, as rods
            window, crest = scan.along(np.subtract(ILIAC_CREST, (0, 0, depth, 0)) * (side, 1, 1, 1))
            scan.paint(window, crest, CORTICAL)
            scan.paint(window, crest + 3, CANCELLOUS)

    window, (x, y, z) = scan.near((-50, -110, -200), (50, -10, 200))
    y = y - 5 * np.cos((z + 50) / 60)  # lumbar lordosis
    pitch = 35.0  # of a lumbar vertebra with its disc
    from_disc = np.abs((z + 12) % pitch - pitch / 2)
    column = np.hypot(x / 1.35, y + 46) - 16.5 - 2 * np.cos(from_disc / pitch * 2 * np.pi)
    body = np.maximum(column, 4 - from_disc)
    arch = np.maximum(np.hypot(x, y + 71) - 14, 7 - from_disc)
    spinous = np.maximum(np.hypot(x, np.maximum(np.abs(y + 86) - 8, 0)) - 4, 9 - from_disc)
    transverse = np.hypot(y + 66 - 0.1 * np.abs(x), from_disc - pitch / 2) - 5
    transverse = np.maximum(transverse, np.abs(x) - 38)
    scan.paint(window, np.hypot(x / 1.5, y + 74) - 16, MUSCLE)
    scan.paint(window, column, DISC)
    for bone in (body, arch, spinous, transverse):
        scan.paint(window, bone, CORTICAL)
        scan.paint(window, bone + 2.5, CANCELLOUS + 30 * scan.texture[window])
    scan.paint(window, np.hypot(x, 1.15 * (y + 71)) - 8, CORD)


def _hollow(scan: _Scan, course: np.ndarray, content: np.ndarray, gas: float) -> None:
    """A segment of gut: wall, `content` HU [*S], and gas in the upper fraction `gas`."""
    window, outer = scan.along(course)
    outer = np.maximum(outer, scan.peritoneum[window])
    scan.paint(window, outer - 2, FAT)  # serosal fat keeps neighbours apart
    scan.paint(window, outer, GUT_WALL)
    lumen = outer + 2.5
    scan.paint(window, lumen, content[window])
    height = scan.height[window]
    if gas > 0 and (lumen < 0).any():
        surface = np.quantile(height[lumen < 0], 1 - gas)
        scan.paint(window, np.maximum(lumen, surface - height), AIR)


def _gut(rng: Generator, scan: _Scan) -> None:
    """Small bowel, colon, oesophagus, stomach and duodenum."""
    faeces = np.clip(-60 + 130 * scan.texture, -500, 90)
    fluid = FLUID + rng.choice([0, 0, 130]) + 12 * scan.texture  # a third with oral contrast medium

    # Loops of the small bowel are random arcs in the lower cavity and in the left upper one.
    turns = np.linspace(0, 1, 6)
    for level in (*[-36] * 4, *np.linspace(-62, -140, 26)):
        upper = level == -36
        x, z = -38 if upper else rng.uniform(-56, 52), level + rng.uniform(-4, 4)
        angle, size = rng.uniform(0, 2 * np.pi) + rng.uniform(2.0, 4.5) * turns, rng.uniform(11, 24)
        y = rng.uniform(2, 54) + rng.uniform(-14, 14) * turns
        arc = [x + 1.3 * size * np.cos(angle), y, z + size * np.sin(angle), 10.5 + 0 * y]
        _hollow(scan, _course(rng, np.transpose(arc), pieces=2), fluid, rng.uniform(-0.3, 0.25))

    for rows in COLON:
        course = _course(rng, rows, wander=6)
        haustra = 1 + 0.13 * np.sin(2.1 * np.arange(len(course)) + rng.uniform(0, 6))
        course[:, 3] *= haustra * rng.uniform(0.75, 1.05)
        _hollow(scan, course, faeces, gas=rng.uniform(0.1, 0.7))
    scan.paint(*scan.along(_course(rng, OESOPHAGUS)), GUT_WALL - 20)
    stomach = _course(rng, STOMACH, wander=5, pieces=2)
    stomach[:, 3] *= rng.uniform(0.72, 1.08)
    stomach[:, 2] -= rng.uniform(0, 16) * np.sin(np.linspace(0, np.pi, len(stomach)))
    _hollow(scan, stomach, fluid, gas=rng.uniform(0.1, 0.5))
    _hollow(scan, _course(rng, DUODENUM, wander=3), fluid, gas=rng.uniform(-0.1, 0.25))


def _pancreas(rng: Generator, scan: _Scan) -> None:
    """The pancreas, often with a hypodense tumour and a dilated duct; the splenic vein."""
    course = _course(rng, PANCREAS_COURSE, wander=3, pieces=2)
    # As in people, tails end high or low, and bodies arch more or less over the spine.
    to_tail = np.clip((12 - course[:, 0]) / 80, 0, 1)
    arch = np.sin(np.pi * to_tail)
    course[:, 0] *= 1 - rng.uniform(-0.05, 0.16) * to_tail
    course[:, 1] += rng.uniform(-6, 6) * arch
    course[:, 2] += rng.uniform(-26, 14) * to_tail + rng.uniform(-8, 10) * arch
    course[:, 3] *= rng.uniform(1.0, 1.25)

    diseased = rng.uniform() < TUMOUR_SHARE
    seat = int(rng.integers(1, len(course) - 2))
    if diseased:  # the gland atrophies behind an obstructed duct
        course[seat + 1 :, 3] *= rng.uniform(0.7, 0.95)
    window, distance = scan.along(course)
    lobules = scan.texture[window]
    scan.paint(window, distance - 4, FAT + 9 * lobules)
    distance += rng.uniform(0.8, 1.5 + scan.adiposity) * lobules
    scan.paint(window, distance, scan.enhanced(49, 49) + 6 * lobules, PANCREAS)
    if diseased:
        window, duct = scan.along(course[seat:] * (1, 1, 1, 0) + (0, 0, 0, rng.uniform(1.5, 3.5)))
        duct[scan.label[window] != PANCREAS] = np.inf
        scan.paint(window, duct, FLUID, PANCREAS)
        centre = course[seat, :3] + rng.uniform(-0.4, 0.4, 3) * course[seat, 3]
        radii = rng.uniform(8, 17) * rng.uniform(0.8, 1.2, 3)
        window, tumour = scan.around(centre, radii, np.eye(3))
        grain = scan.texture[window]
        scan.paint(window, tumour + 1.2 * grain, rng.uniform(40, 60) + 4 * grain, TUMOUR)
    x, y, z, radius = course[course[:, 0] < 8].T
    splenic = np.transpose([x, y - radius - 2, z, 4 + 0 * x])  # along the back of the gland
    scan.paint(*scan.along(splenic), scan.enhanced(42, 128))


def _vessels(rng: Generator, scan: _Scan) -> None:
    """Aorta and vena cava with their branches, veins of the liver, portal vein."""
    for uptake, courses in ((115, LIVER_VEINS), (98, VEINS), (112, ARTERIES), (128, PORTAL_VEINS)):
        for rows in courses:
            scan.paint(*scan.along(_course(rng, rows, pieces=2)), scan.enhanced(42, uptake))
