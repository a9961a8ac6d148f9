"""Notes on what can be prepared but may be wrong: values like labels, what crop and grid lose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Share of the foreground outside the crop that is worth a note; a table or specks of noise are
# smaller.
NOTED_LOSS = 0.05
# An image of at most so many whole numbers may be a label map. Voxels looked at to tell.
FEW_VALUES, SAMPLED = 8, 2**16


def of_values(image: np.ndarray) -> list[str]:
    """A note on a volume [*S, C] whose values look like those of a label map."""
    if image.ndim < 4 or image.shape[-1] > 1:
        return []
    sample = image.reshape(-1)[:: max(1, image.size // SAMPLED)]
    values = np.unique(sample)
    if len(values) > FEW_VALUES or values[0] < 0 or (values != np.rint(values)).any():
        return []
    if len(np.unique(image)) > FEW_VALUES:
        return []
    numbers = ", ".join(f"{value:g}" for value in values)
    return [f"the image holds the numbers {numbers} alone: is it a label map? Leave it out then"]


def of_losses(
    foreground: Sequence[int], counts: Sequence[list[int] | None], values: dict[int, int]
) -> list[str]:
    """Notes on what the crop cuts away, and on classes that are gone on the new grid.

    Args:
      foreground: voxels before and after the crop.
      counts: voxels per class in the source, after the crop, and after resampling.
      values: label value -> class index.
    """
    before, after = foreground
    notes = []
    if before - after > NOTED_LOSS * before:
        share = 100 * (before - after) / before
        notes.append(f"the crop cuts away {share:.0f} % of the foreground")
    whole, cropped, resampled = counts
    if whole is None or cropped is None or resampled is None:
        return notes
    for value, index in sorted(values.items()):
        if value == 0 or index >= len(whole):
            continue
        if cropped[index] < whole[index]:
            lost = whole[index] - cropped[index]
            notes.append(
                f"the crop cuts away {lost} of {whole[index]} voxels with the label {value}; "
                "--crop=no keeps them"
            )
        if cropped[index] and not resampled[index]:
            notes.append(f"no voxel with the label {value} is left on the new, coarser grid")
    return notes
