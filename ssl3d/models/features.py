"""What an encoder returns, and the types it may compute in."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class Features(NamedTuple):
    """An encoder's features; heads pool the last level, decoders use all of them.

    Attributes:
      levels: full resolution first, bottleneck last.
    """

    levels: tuple[Float[Array, "B ... C"], ...]
