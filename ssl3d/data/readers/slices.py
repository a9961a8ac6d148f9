"""Distances between the slices of a series: regular, rounded, of two slabs, or incomplete."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from ssl3d.errors import UserError

# Relative to the slice distance; positions are written with two or three decimals.
POSITION_TOLERANCE = 0.05
# Decimals beyond which a position counts as exact.
MOST_DECIMALS = 6
# Slices of a slab of its own: fewer with another distance are gaps.
LEAST_SLAB = 4


class Slice(Protocol):
    """What is needed of a `dicom.Frame`."""

    @property
    def path(self) -> Path: ...
    @property
    def position(self) -> np.ndarray: ...
    @property
    def digits(self) -> np.ndarray: ...
    @property
    def directions(self) -> np.ndarray: ...


def last_digits(numbers: Iterable[object]) -> np.ndarray:
    """The last digit of each number as it is written: [0.1, 1] for ["3.5", "4.0"]."""
    found = []
    for number in numbers:
        text = str(getattr(number, "original_string", number)).strip().lower()
        decimals = len(text.partition(".")[2].rstrip("0"))
        found.append(0.0 if "e" in text or decimals > MOST_DECIMALS else 10.0**-decimals)
    return np.array(found)


def heights(frames: Sequence[Slice]) -> np.ndarray:
    """Positions along the normal of the first slice, mm [slices]."""
    normal = np.cross(*frames[0].directions)
    return np.array([frame.position @ normal for frame in frames])


def rounding(frames: Sequence[Slice]) -> float:
    """mm by which the positions of a series may be rounded along its normal."""
    normal = np.abs(np.cross(*frames[0].directions))
    # Trailing zeros are often not written: the finest digit of a coordinate counts.
    digits = np.min([frame.digits for frame in frames], axis=0)
    return float(digits @ normal) / 2


def regular(places: np.ndarray, rounded: float) -> bool:
    """Whether slices are evenly spaced, apart from the rounding of their positions, in mm."""
    if len(places) < 3:
        return True
    distances = np.diff(places)
    usual = float(np.median(distances))
    if np.abs(distances - usual).max() <= POSITION_TOLERANCE * usual:
        return True
    numbers = np.arange(len(places))
    rest = places - np.polyval(np.polyfit(numbers, places, 1), numbers)
    # The best line has its largest deviations on both sides; this one is near it. With a slice
    # missing they are a quarter of a step at least.
    step = float(places[-1] - places[0]) / (len(places) - 1)
    return bool(np.ptp(rest) / 2 <= min(1.1 * rounded, 0.24 * step))


def steps(places: np.ndarray) -> list[float]:
    """The distances of slabs of `LEAST_SLAB` slices or more, from first to last; [] if none fit.

    Where two slabs meet, one distance may lie between theirs.
    """
    distances = np.diff(places)
    found: list[float] = []
    start = 0
    between = []
    while start < len(distances):
        step = distances[start]
        stop = start
        while stop < len(distances) and abs(distances[stop] - step) <= POSITION_TOLERANCE * step:
            stop += 1
        if stop - start >= LEAST_SLAB - 1:
            found.append(float(np.median(distances[start:stop])))
        else:
            between += list(distances[start:stop])
            if not found or stop == len(distances) or stop - start > 1:
                return []
        start = stop
    if len(found) < 2 or any(not min(found) <= x * 1.001 <= max(found) * 1.002 for x in between):
        return []
    return found


def check(folder: Path, frames: Sequence[Slice]) -> None:
    """Raises `UserError` for slices at one position, missing ones, and irregular distances."""
    places = heights(frames)
    if len(places) < 2:
        return
    distances = np.diff(places)
    usual = float(np.median(distances))
    closest = int(np.argmin(distances))
    if distances[closest] <= POSITION_TOLERANCE * max(usual, 0.1):
        a, b = frames[closest], frames[closest + 1]
        raise UserError(
            f"{folder}: two slices at one position ({a.path.name} and {b.path.name}: several "
            "times, echoes or reconstructions in one series?); keep one of each"
        )
    if regular(places, rounding(frames)) or steps(places):
        return
    wrong = int(np.flatnonzero(np.abs(distances - usual) > POSITION_TOLERANCE * usual)[0])
    a, b = frames[wrong], frames[wrong + 1]
    ratio = float(distances[wrong]) / usual
    missing = round(ratio) - 1
    if missing > 0 and abs(ratio - round(ratio)) <= POSITION_TOLERANCE * ratio:
        what, remedy = f"{missing} missing", "complete the series"
    else:
        what, remedy = "not evenly spaced", "convert it, e.g. with dcm2niix, which resamples"
    raise UserError(
        f"{folder}: slices are {usual:.4g} mm apart, but {distances[wrong]:.4g} mm between "
        f"{a.path.name} and {b.path.name} ({what}); {remedy}"
    )


def resampled_count(places: np.ndarray) -> int:
    """Slices of the regular grid that slabs of different steps are brought to."""
    return round(float(places[-1] - places[0]) / min(steps(places))) + 1


def resampled(array: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Slices [X, Y, Z] at `places` -> linearly interpolated at even distances, float32."""
    wanted = np.linspace(places[0], places[-1], resampled_count(places))
    last = np.clip(np.searchsorted(places, wanted), 1, len(places) - 1)
    share = (wanted - places[last - 1]) / (places[last] - places[last - 1])
    result = np.empty((*array.shape[:2], len(wanted)), np.float32)
    for k, (stop, weight) in enumerate(zip(last, share.astype(np.float32), strict=True)):
        result[:, :, k] = (1 - weight) * array[:, :, stop - 1] + weight * array[:, :, stop]
    return result
