"""What an encoder returns, and the types it may compute in."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class Features(NamedTuple):
    """An encoder's features; heads pool the last level, decoders use all of them.

    Attributes:
      levels: [B, *S, C] each, full resolution first, bottleneck last.
    """

    levels: tuple[jax.Array, ...]
