"""Normalisations; all of them compute in float32."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from tm_jax.nn import parameters


def layer_norm(x: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """Layer norm over the last axis without affine part, float32 result."""
    x = x.astype(jnp.float32)
    mean = jnp.mean(x, -1, keepdims=True)
    variance = jnp.mean(jnp.square(x - mean), -1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + epsilon)


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """Layer norm of `x`, then `x * (1 + scale) + shift`; float32 result."""
    return layer_norm(x) * (1 + scale) + shift


class LayerNorm(nn.Module):
    """Layer norm with affine part.

    Attributes:
      epsilon: Added to the variance.
      logical: Logical axis of scale and bias.
    """

    epsilon: float = 1e-6
    logical: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the last axis; returns the dtype of `x`."""
        width = x.shape[-1]
        ones = parameters.named(nn.initializers.ones, (self.logical,))
        zeros = parameters.named(nn.initializers.zeros, (self.logical,))
        scale = self.param("scale", ones, (width,))
        bias = self.param("bias", zeros, (width,))
        y = layer_norm(x, self.epsilon) * scale + bias
        return y.astype(x.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the full last axis.

    Wan normalises queries and keys over all heads together, before the split.

    Attributes:
      epsilon: Added to the mean square.
      logical: Logical axis of the scale.
    """

    epsilon: float = 1e-6
    logical: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the last axis; returns the dtype of `x`."""
        ones = parameters.named(nn.initializers.ones, (self.logical,))
        scale = self.param("scale", ones, (x.shape[-1],))
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + self.epsilon)
        return (y * scale).astype(x.dtype)
