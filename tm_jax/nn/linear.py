"""Matrix layers whose parameters carry logical axis names."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from tm_jax.core import axes
from tm_jax.nn import parameters
from tm_jax.nn import quantization


class Dense(nn.Module):
    """Affine map of the last axis.

    Attributes:
      features: Output width.
      logical: Logical axis names of the kernel, (input, output).
      dtype: Dtype of the product.
      bias: Whether to add a bias.
      zero: Start at zero, so that the layer's output is zero until trained.
      stored: How the kernel is stored, a name in `quantization.KINDS`.
    """

    features: int
    logical: tuple[str | None, str | None] = (axes.EMBED, axes.MLP)
    dtype: jnp.dtype = jnp.float32
    bias: bool = True
    zero: bool = False
    stored: str = quantization.FULL

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., in] to [..., features]."""
        init = nn.initializers.zeros if self.zero else nn.initializers.xavier_uniform()
        shape = (x.shape[-1], self.features)
        if self.stored == quantization.FULL:
            kernel = self.param("kernel", parameters.named(init, self.logical), shape)
            y = jnp.dot(x.astype(self.dtype), kernel.astype(self.dtype))
        else:
            def rounded(key, shape):
                return quantization.quantise(init(key, shape), self.stored)[0]

            kernel = self.param("kernel", parameters.named(rounded, self.logical), shape)
            ones = parameters.named(nn.initializers.ones, (self.logical[1],))
            scale = self.param(quantization.SCALE, ones, (self.features,))
            y = quantization.dot(x.astype(self.dtype), kernel, scale, self.stored)
        if self.bias:
            zeros = parameters.named(nn.initializers.zeros, (self.logical[1],))
            y = y + self.param("bias", zeros, (self.features,)).astype(self.dtype)
        return y


class Conv(nn.Module):
    """Convolution over trailing space (or time) axes, channels last.

    Attributes:
      features: Output channels.
      window: Size of the kernel along each convolved axis.
      padding: "SAME", "VALID" or explicit pairs.
      dtype: Dtype of the product.
      zero: Start at zero.
    """

    features: int
    window: Sequence[int] = (3, 3)
    padding: str | Sequence[tuple[int, int]] = "SAME"
    dtype: jnp.dtype = jnp.float32
    zero: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, *space, in] to [B, *space', features]."""
        rank = len(self.window)
        init = nn.initializers.zeros if self.zero else nn.initializers.he_normal()
        names = (None,) * rank + (axes.CHANNELS_IN, axes.CHANNELS_OUT)
        kernel = self.param(
            "kernel",
            parameters.named(init, names),
            (*self.window, x.shape[-1], self.features),
        )
        bias = self.param(
            "bias",
            parameters.named(nn.initializers.zeros, (axes.CHANNELS_OUT,)),
            (self.features,),
        )
        letters = "DHW"[3 - rank :] if rank < 4 else None
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (1,) * rank,
            self.padding,
            dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
        )
        return y + bias.astype(self.dtype)
