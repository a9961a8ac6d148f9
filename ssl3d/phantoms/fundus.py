"""Synthetic fundus photographs with diabetic retinopathy of grade 0 to 4.

Melanin, macular pigment and blood absorb the light reflected by the sclera (Beer-Lambert law);
pale structures (disc, exudates, scars) are painted over it.

Only anatomy distinguishes up from down: the fovea lies below the level of the disc; the inferior
arcade runs closer to it and has the thicker vein; the superior retina has more pigment, the
inferior one shows more of the choroid; the vessels enter the disc above its centre; the crescent
lies below and temporally. Illumination, noise and the rim of the field are symmetric.
"""

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from ssl3d.phantoms.eye import MACULAR_PIGMENT, MELANIN, Eye, absorb, column, squared_distance
from ssl3d.phantoms.fields import coordinates, ellipsoid, paint, smooth_noise, soft
from ssl3d.phantoms.retinal_vessels import add_vessels
from ssl3d.phantoms.retinopathy import Proliferation, add_lesions, add_scars

# Proportions of the grades, flatter than in APTOS 2019 (49, 10, 27, 5, 8 %), so that a few hundred
# subjects include enough of each.
GRADE_SHARES = (0.34, 0.14, 0.24, 0.14, 0.14)

# Light reflected through the retina before absorption: red, green, blue.
SCLERA = (1.15, 0.80, 0.48)
RIM, CUP, CRESCENT = (1.1, 0.82, 0.5), (1.15, 1.05, 0.8), (1.05, 0.78, 0.48)


def subject(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, int]:
    """A fundus photograph of `shape` (H, W), float32 [H, W, 3] in 0..1, and its grade 0..4."""
    grade = int(rng.choice(len(GRADE_SHARES), p=GRADE_SHARES))
    return photograph(rng, shape, grade), grade


def photograph(rng: np.random.Generator, shape: tuple[int, ...], grade: int) -> np.ndarray:
    """A photograph of an eye with retinopathy of `grade`, float32 [H, W, 3] in 0..1.

    The same generator state gives the same eye and camera at every grade; only the lesions differ.
    """
    seeds = rng.integers(2**63, size=3)
    eye_rng, disease_rng, camera_rng = (np.random.default_rng(seed) for seed in seeds)
    eye = Eye.sample(eye_rng, tuple(shape))
    image = _background(eye_rng, eye)
    signs = Proliferation.sample(disease_rng, grade)
    if Proliferation.SCARS in signs:
        add_scars(disease_rng, image, eye)
    add_vessels(eye_rng, image, eye, grade)
    add_lesions(disease_rng, image, eye, grade, signs)
    return _expose(camera_rng, image, eye)


# --- tissue ---------------------------------------------------------------------------------------


def _background(rng: np.random.Generator, eye: Eye) -> np.ndarray:
    """Choroid, pigment, macula and disc, float32 [3, H, W]."""
    retina = eye.retina()
    superior = np.tanh((eye.fovea[0] - retina[0]) / 4)
    macula = np.exp(-squared_distance(retina, eye.fovea) / (2 * rng.uniform(0.9, 1.3) ** 2))
    foveola = np.exp(-squared_distance(retina, eye.fovea) / (2 * rng.uniform(0.28, 0.4) ** 2))
    periphery = np.minimum(squared_distance(retina, eye.fovea / 2) / 7**2, 1)  # 7 mm: the rim

    # Choroidal vessels show where the pigment epithelium is thin: more below, not at the macula.
    tigroid = rng.uniform(0.02, 0.12) * (1 - 0.8 * macula) * (1 - 0.4 * superior)
    melanin = rng.uniform(0.55, 1.35) * (
        1
        + rng.uniform(0.05, 0.22) * superior
        + 0.45 * macula
        + 0.35 * foveola
        - rng.uniform(0.1, 0.3) * periphery
    )
    melanin += tigroid * _choroidal_vessels(rng, eye, retina)
    melanin += 0.10 * smooth_noise(rng, eye.shape, 3.0 / eye.pixel)
    melanin += 0.05 * smooth_noise(rng, eye.shape, 1.0 / eye.pixel)
    melanin += 0.03 * smooth_noise(rng, eye.shape, 0.12 / eye.pixel)

    image = np.ones((3, *eye.shape), np.float32) * column(SCLERA)
    absorb(image, melanin, MELANIN)
    absorb(image, rng.uniform(0.5, 1.1) * foveola, MACULAR_PIGMENT)
    image *= 1 + rng.uniform(0.05, 0.15) * _nerve_fibres(retina, eye)
    _paint_disc(rng, image, eye, retina)
    return image


def _choroidal_vessels(rng: np.random.Generator, eye: Eye, retina: np.ndarray) -> np.ndarray:
    """Choroidal vessels: texture of unit variance, elongated towards the four vortex veins."""
    pad = int(2 / eye.pixel) + 1
    grain = smooth_noise(rng, [size + 2 * pad for size in eye.shape], 0.15 / eye.pixel)
    # The vortex veins leave above and below, so vessels run steeper than radially from the pole.
    away = (retina - column(eye.fovea / 2)) * column((1.5, 1))
    away /= np.sqrt(np.sum(away**2, axis=0)) + 1  # mm: no preferred direction at the pole
    direction = np.tensordot((eye.tilt * eye.mirror).T, away, axes=1) / eye.pixel
    winding = [smooth_noise(rng, eye.shape, 0.5 / eye.pixel) for _ in eye.shape]
    start = np.indices(eye.shape) + pad + 0.16 / eye.pixel * np.stack(winding)
    smeared = np.zeros(eye.shape, np.float32)
    for along in np.linspace(-0.9, 0.9, 7):  # mm
        smeared += map_coordinates(grain, start + along * direction, order=1)
    return smeared / smeared.std()


def _nerve_fibres(retina: np.ndarray, eye: Eye) -> np.ndarray:
    """Reflex of the nerve fibre bundles, brightest at the disc and below."""
    reach = np.exp(-squared_distance(retina, (0, 0)) / (2 * 2.2**2))
    angle = np.arctan2(retina[0], retina[1])
    below, above = (np.exp(-((angle - at) ** 2) / (2 * 0.4**2)) for at in (1.1, -1.1))
    return reach * (below + 0.6 * above)


def _paint_disc(rng: np.random.Generator, image: np.ndarray, eye: Eye, retina: np.ndarray) -> None:
    """Paints crescent, rim and cup. The rim is broadest below, so the cup lies above the middle."""
    width = max(0.12, eye.pixel)
    temporal_below = rng.uniform((0.10, 0.04), (0.28, 0.2))
    crescent = ellipsoid(retina, temporal_below, eye.disc * 1.03)
    paint(image, rng.uniform(0.3, 0.8) * soft(crescent, 1.5 * width), CRESCENT)
    paint(image, soft(ellipsoid(retina, (0, 0), eye.disc), 1.5 * width), RIM)
    cup = ellipsoid(retina, (-0.1, 0.08), eye.disc * rng.uniform(0.3, 0.6))
    paint(image, rng.uniform(0.6, 1) * soft(cup, 2.5 * width), CUP)


# --- camera ---------------------------------------------------------------------------------------


def _expose(rng: np.random.Generator, image: np.ndarray, eye: Eye) -> np.ndarray:
    """The photograph [H, W, 3] in 0..1: flash, haze, optics, colours, noise, round field."""
    frame = coordinates(eye.shape, (eye.pixel, eye.pixel)) / eye.radius
    # The flash falls off from a random side, differently for each colour.
    angle = rng.uniform(0, 2 * np.pi)
    slope = rng.uniform(0, 0.2) + rng.uniform(-0.06, 0.06, 3)
    slope = column(slope) * (np.sin(angle) * frame[0] + np.cos(angle) * frame[1])
    vignette = rng.uniform(0, 0.3) * squared_distance(frame, rng.uniform(-0.4, 0.4, 2))
    uneven = 0.05 * smooth_noise(rng, eye.shape, 0.4 * min(eye.shape))
    image = image * np.exp(slope - vignette + uneven)
    haze = rng.uniform(0, 0.12)
    image = (1 - haze) * image + haze * column((0.6, 0.5, 0.4))
    image = image * rng.uniform(0.8, 1.05) * column(rng.uniform(0.88, 1.12, 3))
    blur = rng.uniform(0.02, 0.07) / eye.pixel
    image = gaussian_filter(image, (0, blur, blur))
    image = np.clip(image, 0, 1) ** rng.uniform(0.9, 1.15)
    image += rng.uniform(0.004, 0.018) * rng.standard_normal(image.shape, dtype=np.float32)
    rim = np.sqrt(squared_distance(frame, rng.uniform(-0.02, 0.02, 2))) - 1
    image *= soft(rim * eye.radius, 1.5 * eye.pixel)
    return np.ascontiguousarray(np.clip(np.moveaxis(image, 0, -1), 0, 1), np.float32)
