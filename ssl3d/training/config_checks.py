"""Refuses the values of a config that no run could use, before data are read or code is compiled.

The bounds of single keys are declared in `configs/`, beside the keys; the conditions that involve
several keys stand here.
"""

from __future__ import annotations

from ssl3d import bounds
from ssl3d.errors import UserError


def check(config: bounds.Config) -> None:
    """Raises `UserError` for the first value that no run could use, with its key."""
    bounds.check(config)
    crop, rank = config.data.crop, config.rank
    side = crop[0] if bounds.whole_numbers(crop[:1]) and crop else 64
    _require(
        bounds.whole_numbers(crop) and len(crop) == rank,
        f"config.data.crop={crop!r}: must be {rank} whole numbers of voxels, e.g. "
        f"--config.data.crop='{(side,) * rank}' (pictures need the task's 2D config)",
    )
    if "augment" in config:
        axes = config.augment.flip_axes
        _require(
            len(set(axes)) == len(axes) > 0 and set(axes) <= set(range(rank)),
            f"config.augment.flip_axes={axes!r}: must be different axes of 0 to {rank - 1}",
        )
    if "transfer" in config:
        warmup, margin = config.transfer.warmup_steps, config.data.margin
        _require(
            config.transfer.mode != "finetune" or warmup < config.steps,
            f"config.transfer.warmup_steps={warmup!r}: must be fewer than config.steps, or the "
            "encoder never learns",
        )
        # Predictions cover the whole image.
        _require(margin == 0, f"config.data.margin={margin!r}: must be 0 for downstream tasks")
    micro = config.optimizer.accumulate
    _require(
        config.batch_size % micro == 0,
        f"config.optimizer.accumulate={micro}: must divide config.batch_size",
    )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise UserError(message)
