"""The registry of encoders: [B, *S, C] -> features at every resolution, for any rank and size.

Each level halves the size and rounds odd sizes up: level i of an axis of n voxels has
ceil(n / 2^i), and the first level has exactly the input's size. A kind with the setting `strides`
may leave some axes of a level as they are.
"""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import flax.linen as nn
from jax import Array
from ml_collections import ConfigDict

from ssl3d import extensions
from ssl3d.errors import UserError
from ssl3d.models import densenet, layers, resenc, unet
from ssl3d.models.features import DTYPES, Features

__all__ = ["KINDS", "Features", "Kind", "build", "kind_of", "smallest_norm"]


class Kind(NamedTuple):
    """What the project needs to know about a kind of encoder.

    Attributes:
      build: keywords `width`, `depth`, `norm`, `dropout`, `dtype` and those of `settings` -> a
        Linen module, called as (x [B, *S, C], train) -> `Features`; may raise `UserError`.
      settings: what it accepts besides.
      full_resolution: whether it computes features at the input's resolution, as segmentation
        needs them; `decoders.build` continues it.
      stem_halvings: how often the size is halved before the first of its `depth` levels.
      in_torch: whether `exchange/torch_network.py` builds the same network in PyTorch.
      nnunet_plan: the module and a rank -> keywords of nnU-Net's `ResidualEncoderUNet` for the
        same network; may raise `UserError`. None: nnU-Net has no such network.
    """

    build: Callable[..., nn.Module]
    settings: tuple[str, ...] = ()
    full_resolution: bool = False
    stem_halvings: int = 0
    in_torch: bool = False
    nnunet_plan: Callable[..., dict[str, Any]] | None = None


# The only place that knows encoders by name. Any other name is a module that defines `ENCODER`.
KINDS = {
    # Plain levels, as in the paper's released code.
    "unet": Kind(
        unet.plain,
        ("activation_first", "final_pool", "remat"),
        full_resolution=True,
        in_torch=True,
    ),
    # Residual levels with learned downsampling, the paper's in 3D.
    "resunet": Kind(unet.residual, ("final_pool", "remat"), full_resolution=True, in_torch=True),
    # nnU-Net's.
    "resenc": Kind(
        resenc.build,
        ("max_width", "blocks", "strides", "kernels", "remat"),
        full_resolution=True,
        in_torch=True,
        nnunet_plan=resenc.nnunet_plan,
    ),
    # The paper's for 2D pictures.
    "densenet121": Kind(densenet.build, ("remat",), stem_halvings=1),
}

# A level halves the image, so that none has more; a kernel of so many channels takes 100 GB.
MOST_LEVELS, MOST_CHANNELS = 16, 1 << 15

# Settings without influence on the parameters and, but for rounding, on what they give.
COMPUTATION = ("dtype", "remat")

# Settings of every kind, and the value that a config holds for kinds without the setting.
_DEFAULTS = {"norm": "group", "dropout": 0.0, "dtype": "float32"}
_NEUTRAL: dict[str, Any] = {
    "activation_first": False,
    "final_pool": "none",
    "remat": False,
    "max_width": 0,
    "blocks": (),
    "strides": (),
    "kernels": (),
}
OWN_SETTINGS = tuple(_NEUTRAL)


def kind_of(config: Mapping[str, Any] | ConfigDict) -> Kind:
    """The entry of `config`'s kind: one of `KINDS`, or `ENCODER` of any module by dotted name.

    Raises:
      UserError: no such kind.
    """
    name = config.get("kind", "resunet")
    if name in KINDS:
        return KINDS[name]
    module = extensions.module("encoder.kind", name, choices=KINDS)
    return extensions.attribute("encoder.kind", module, "ENCODER")


def build(config: Mapping[str, Any] | ConfigDict, size: Sequence[int] = ()) -> nn.Module:
    """The encoder that `config` describes.

    Args:
      config: `kind`; `width`, `depth`; `norm` "group" | "instance" | "batch"; `dropout`; `dtype`
        "float32" | "bfloat16"; `activation_first`, `final_pool` "none" | "max" and `remat` where
        the kind has them.
      size: *S of the inputs in voxels, to check the depth against.

    Raises:
      UserError: an unknown key, an invalid value, or a combination that cannot learn.
    """
    kind = kind_of(config)
    given = {key: config[key] for key in config if key != "kind"}
    known = dict.fromkeys(["kind", "width", "depth", *_DEFAULTS, *_NEUTRAL, *kind.settings])
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean encoder.{near[0]}?" if near else f"choose of {', '.join(known)}"
            raise UserError(f"encoder.{key} is not a setting of the encoder; {hint}")
    fields = _DEFAULTS | _NEUTRAL | given
    for key, most in (("width", MOST_CHANNELS), ("depth", MOST_LEVELS)):
        value = fields.get(key)
        if not isinstance(value, int) or not 1 <= value <= most:
            raise UserError(f"encoder.{key} is {value!r}; it must be a whole number, 1 to {most}")
    if fields["width"] << (fields["depth"] - 1) > MOST_CHANNELS:
        raise UserError(
            f"encoder.width={fields['width']}, encoder.depth={fields['depth']}: the width doubles "
            f"from level to level, to more than {MOST_CHANNELS} channels; use fewer levels"
        )
    _one_of("norm", fields["norm"], layers.NORMS)
    _one_of("dtype", fields["dtype"], tuple(DTYPES))
    if not isinstance(fields["dropout"], (int, float)) or not 0 <= fields["dropout"] < 1:
        raise UserError(f"encoder.dropout is {fields['dropout']!r}; it must be in [0, 1)")
    for key, neutral in _NEUTRAL.items():
        if key in kind.settings:
            continue
        value = fields.pop(key)
        # A JSON has lists for tuples.
        if (tuple(value) if isinstance(value, list) else value) != neutral:
            having = " or ".join(name for name, other in KINDS.items() if key in other.settings)
            raise UserError(
                f"encoder.kind={config.get('kind')} has no encoder.{key}, set it to {neutral}; "
                f"encoder.kind={having} has it"
            )
    if "final_pool" in kind.settings:
        _one_of("final_pool", fields["final_pool"], ("none", "max"))
    encoder = kind.build(**fields)
    if size and smallest_norm(config, size) < 2:
        raise UserError(
            f"encoder.depth is {fields['depth']}: of {tuple(size)} voxels one is left, and a "
            "norm over one voxel answers the same to everything; use fewer levels or larger inputs"
        )
    return encoder


def every_setting(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an encoder with those that an earlier version did not have."""
    return {"kind": "resunet"} | _DEFAULTS | _NEUTRAL | dict(config)


def check_full_resolution(config: Mapping[str, Any] | ConfigDict, purpose: str) -> None:
    """Raises `UserError` if the encoder has no level that a decoder needs, e.g. to "segment"."""
    if not kind_of(config).full_resolution:
        suited = " or ".join(name for name, kind in KINDS.items() if kind.full_resolution)
        raise UserError(
            f"config.encoder.kind={config['kind']!r}: has no level at full resolution to "
            f"{purpose} with; use {suited}"
        )


def _one_of(key: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UserError(f"encoder.{key} is {value!r}; choose one of {', '.join(choices)}")


def smallest_norm(config: Mapping[str, Any] | ConfigDict, size: Sequence[int]) -> int:
    """Voxels per channel that the deepest norm sees for an input of `size` (*S).

    A norm over one voxel outputs a constant; presets keep this at 8 or more.
    """
    return math.prod(
        -(-n // s) for n, s in zip(size, total_strides(config, len(size)), strict=True)
    )


def total_strides(config: Mapping[str, Any] | ConfigDict, rank: int) -> tuple[int, ...]:
    """Voxels of the input per voxel of the bottleneck, along each axis.

    Raises:
      UserError: the config's strides are not of that rank.
    """
    halvings = config["depth"] - 1 + kind_of(config).stem_halvings
    by_level = config.get("strides") or ((2,) * rank,) * halvings
    if not all(isinstance(level, (list, tuple)) and len(level) == rank for level in by_level):
        raise UserError(
            f"encoder.strides is {by_level!r}; these are {rank}D images: give {rank} for each level"
        )
    return tuple(math.prod(level[axis] for level in by_level) for axis in range(rank))


def on_inputs(function: Callable[[Array], Array]) -> AbstractContextManager[None]:
    """Gives the encoder of a network `function` of its inputs [B, *S, C], in the block."""

    def change(call: Callable, arguments: Any, options: Any, context: Any) -> Any:
        if context.module.path == ("encoder",) and context.method_name == "__call__":
            inputs, *rest = arguments
            arguments = (function(inputs), *rest)
        return call(*arguments, **options)

    return nn.intercept_methods(change)
