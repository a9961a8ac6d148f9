"""Rematerialisation: what the backward pass computes again instead of keeping it in memory.

Of a rematerialised level its input, the outputs of its convolutions and the moments of its norms
are kept. Normalised, rectified and concatenated features, and convolutions with a kernel of one
voxel, are computed again: much memory for few flops (Chen et al. 2016, arXiv:1604.06174).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jax import Array
from jax.ad_checkpoint import checkpoint_name

_KEPT = "kept"


def kept(x: Array) -> Array:
    """Marks what the backward pass of a rematerialised level does not compute again."""
    return checkpoint_name(x, _KEPT)


def level(call: Callable[..., Any], remat: bool) -> Callable[..., Any]:
    """A level that is rematerialised if `remat`, with the same parameters and values.

    Args:
      call: a module class, called with (inputs, train), or a function (module, inputs, train).
    """
    if not remat:
        return call
    policy = jax.checkpoint_policies.save_only_these_names(_KEPT)
    wrapped: Callable[..., Any] = nn.remat(call, policy=policy, static_argnums=(2,))
    return wrapped
