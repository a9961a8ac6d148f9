"""The U-Net decoder: an encoder's features at every resolution -> logits, for any rank and size.

Ronneberger et al. 2015; Taleb et al. 2020, section 4.1. From the bottleneck up, a transposed
convolution doubles the size, the encoder's level of that size is concatenated (skip connection),
and a level like the encoder's, plain or residual, follows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Float32

from ssl3d.models import layers, remat, unet
from ssl3d.models.features import DTYPES, Features

# Name of the last 1x1 projection at each resolution; its outputs are the task's own.
PROJECTION = "logits_"


class Decoder(nn.Module):
    """Features -> logits at 1 + `deep` resolutions, finest first.

    `residual`, `norm`, `activation_first`, `dropout`, `dtype` and `remat` are the encoder's.
    """

    outputs: int
    residual: bool
    deep: int = 0
    norm: str = "group"
    activation_first: bool = False
    dropout: float = 0.0
    dtype: str = "float32"
    remat: bool = False

    @nn.compact
    def __call__(
        self, features: Features, train: bool = False
    ) -> tuple[Float32[Array, "B ... {self.outputs}"], ...]:
        *skips, x = features.levels
        logits = []
        for i, skip in reversed(list(enumerate(skips))):
            x = remat.level(_level(i), self.remat)(self, (x, skip), train)
            if i <= self.deep:
                # Not initialised near zero: with all classes equally likely at first, neighbouring
                # ones (parts of an organ) are learned as one and separated only 200 steps later.
                logits.append(Projection(self.outputs, name=f"{PROJECTION}{i}")(x))
        return tuple(reversed(logits))


def _level(number: int) -> Callable[..., Float[Array, "B *S C"]]:
    """A level of a decoder: the function (decoder, (features below, skip connection), train)."""

    def call(
        decoder: Decoder,
        inputs: tuple[Float[Array, "B *half D"], Float[Array, "B *S C"]],
        train: bool,
    ) -> Float[Array, "B *S C"]:
        x, skip = inputs
        channels, dtype, name = skip.shape[-1], DTYPES[decoder.dtype], f"level_{number}"
        if any(2 * a < b for a, b in zip(x.shape[1:-1], skip.shape[1:-1], strict=True)):
            # The encoder has pooled once more after its last level (`final_pool`).
            x = layers.upsample_nearest(x)
        order = decoder.activation_first
        # With a bias in the released code's network, which is told by its order of norms.
        x = layers.Upsample(channels, order, dtype, name=f"up_{number}")(x)
        # An odd side was rounded up on the way down.
        x = x[:, *(slice(0, side) for side in skip.shape[1:-1])]
        level: unet.PlainLevel | unet.ResidualLevel
        if decoder.residual:
            level = unet.ResidualLevel(channels, decoder.norm, decoder.dropout, dtype, name=name)
        else:
            level = unet.PlainLevel(
                channels, decoder.norm, order, decoder.dropout, dtype, name=name
            )
        return level(jnp.concatenate([skip, x], axis=-1), train)

    return call


class Projection(nn.Module):
    """A 1x1 convolution to float32, with the parameters of `nn.Dense`.

    The factors keep the type of the features: in float32, a copy of the finest level would be twice
    as large as the level.
    """

    outputs: int

    @nn.compact
    def __call__(self, x: Float[Array, "B *S C"]) -> Float32[Array, "B *S {self.outputs}"]:
        shape = x.shape[-1], self.outputs
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        return _project(x, jnp.asarray(kernel)) + self.param(
            "bias", nn.initializers.zeros, (self.outputs,)
        )


# jax's gradient for the kernel would convert the features after all: it multiplies them with the
# gradient of the result, which is float32.
@jax.custom_vjp
def _project(x: Float[Array, "B *S C"], kernel: Float32[Array, "C K"]) -> Float32[Array, "B *S K"]:
    return jnp.einsum(
        "...c,ck->...k", x, kernel.astype(x.dtype), preferred_element_type=jnp.float32
    )


def _project_and_factors(
    x: Float[Array, "B *S C"], kernel: Float32[Array, "C K"]
) -> tuple[Float32[Array, "B *S K"], tuple[Array, Array]]:
    return _project(x, kernel), (x, kernel)


def _project_gradient(
    factors: tuple[Array, Array], gradient: Float32[Array, "B *S K"]
) -> tuple[Float[Array, "B *S C"], Float32[Array, "C K"]]:
    x, kernel = factors
    given = gradient.astype(x.dtype)
    by_x = jnp.einsum("...k,ck->...c", given, kernel.astype(x.dtype))
    by_kernel = jnp.einsum("...c,...k->ck", x, given, preferred_element_type=jnp.float32)
    return by_x, by_kernel


_project.defvjp(_project_and_factors, _project_gradient)


def build(encoder: Any, outputs: int, deep: int = 0, name: str | None = None) -> nn.Module:
    """The decoder that continues `encoder` with levels of the same kind.

    Args:
      encoder: a `UNetEncoder`, a module with its attributes (`remat` may be missing), or one with a
        method `decoder(outputs, deep, name)` that returns a module called as `Decoder` is.
      name: of the submodule, where a module builds it in its `__call__`.
    """
    if hasattr(encoder, "decoder"):
        return encoder.decoder(outputs, deep, name)
    return Decoder(
        outputs=outputs,
        residual=encoder.residual,
        deep=deep,
        norm=encoder.norm,
        activation_first=encoder.activation_first,
        dropout=encoder.dropout,
        dtype=encoder.dtype,
        remat=getattr(encoder, "remat", False),
        name=name,
    )
