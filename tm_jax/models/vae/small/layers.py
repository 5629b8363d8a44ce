"""Layers of the small autoencoder: cells of pixels, residual blocks, the warp of a picture.

All products are matrix products over channels, which CPUs do best; places are mixed by depthwise
3 x 3 sums. Nothing is normalised: amplitudes carry the picture.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from tm_jax.nn import linear
from tm_jax.nn import parameters


def to_cells(x: jax.Array, side: int) -> jax.Array:
    """Space to depth: [..., H, W, C] to [..., H / side, W / side, side * side * C]."""
    *lead, h, w, c = x.shape
    x = x.reshape(*lead, h // side, side, w // side, side, c)
    return jnp.swapaxes(x, -4, -3).reshape(*lead, h // side, w // side, side * side * c)


def from_cells(x: jax.Array, side: int) -> jax.Array:
    """Depth to space, the inverse of `to_cells`."""
    *lead, h, w, c = x.shape
    x = jnp.swapaxes(x.reshape(*lead, h, w, side, side, c // side**2), -4, -3)
    return x.reshape(*lead, h * side, w * side, c // side**2)


def dense(features: int, name: str, dtype: jnp.dtype, zero: bool = False) -> linear.Dense:
    """A matrix over channels; `zero` starts it silent."""
    return linear.Dense(features, logical=(None, None), dtype=dtype, zero=zero, name=name)


class Block(nn.Module):
    """Residual block: 3 x 3 depthwise sum, expansion, SiLU, projection.

    Attributes:
      expansion: Hidden width over the width.
      dtype: Dtype of the products.
    """

    expansion: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, H, W, C] to the same shape."""
        n, h, w, c = x.shape
        # A block starts as a function of its own place.
        centred = parameters.named(_centred, (None, None, None))
        taps = self.param("taps", centred, (3, 3, c)).astype(self.dtype)
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        zeros = parameters.named(nn.initializers.zeros, (None,))
        y = self.param("taps_bias", zeros, (c,)).astype(self.dtype)
        for i in range(3):
            for j in range(3):
                y = y + padded[:, i : i + h, j : j + w] * taps[i, j]
        y = nn.silu(dense(self.expansion * c, "expand", self.dtype)(y))
        return x + dense(c, "project", self.dtype, zero=True)(y)


def _centred(key, shape, dtype=jnp.float32):
    """Depthwise taps: one at the centre and a little noise."""
    taps = 0.1 * jax.random.normal(key, shape, dtype)
    return taps.at[1, 1].add(1.0)


class Blocks(nn.Module):
    """Several residual blocks.

    Attributes:
      depth: How many.
      expansion: Hidden width over the width.
      dtype: Dtype of the products.
    """

    depth: int
    expansion: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, H, W, C] to the same shape."""
        for i in range(self.depth):
            x = Block(self.expansion, self.dtype, name=f"block_{i}")(x)
        return x


def resize(x: jax.Array, side: int) -> jax.Array:
    """Enlarges [..., H, W, C] by `side`, linear between the places' centres."""
    *_, h, w, _ = x.shape
    rows, columns = _interpolation(h, side), _interpolation(w, side)
    return jnp.einsum("yh,...hwc,xw->...yxc", rows, x, columns)


def _interpolation(count: int, side: int) -> jax.Array:
    """Weights [count * side, count] of linear interpolation, constant beyond the last centres."""
    at = (jnp.arange(count * side) + 0.5) / side - 0.5
    at = jnp.clip(at, 0, count - 1)[:, None]
    return jnp.maximum(1 - jnp.abs(at - jnp.arange(count)), 0)


def warp(picture: jax.Array, flow: jax.Array) -> jax.Array:
    """Moves a picture: every pixel shows what lies `flow` pixels away from it in the picture.

    Args:
      picture: [B, H, W, 3].
      flow: Displacements down and right in pixels, [B, F, H, W, 2]. Beyond the border the border
        is repeated.

    Returns:
      [B, F, H, W, 3], linear between pixels. Differentiable in `flow` only.
    """
    return jax.vmap(_warp)(jax.lax.stop_gradient(picture), flow)


@jax.custom_vjp
def _warp(picture, flow):
    return _corners(picture, flow)[0]


def _corners(picture, flow):
    """The moved picture and its slopes along both axes, each [F, H, W, 3]."""
    h, w, c = picture.shape
    y = jnp.clip(flow[..., 0] + jnp.arange(h, dtype=flow.dtype)[:, None], 0, h - 1)
    x = jnp.clip(flow[..., 1] + jnp.arange(w, dtype=flow.dtype), 0, w - 1)
    top = jnp.clip(jnp.floor(y), 0, h - 2)
    left = jnp.clip(jnp.floor(x), 0, w - 2)
    at = (top * w + left).astype(jnp.int32)
    y, x = (y - top)[..., None], (x - left)[..., None]
    flat = picture.reshape(h * w, c)
    get = lambda shift: flat.at[at + shift].get(mode="promise_in_bounds")
    a, b, d, e = get(0), get(1), get(w), get(w + 1)
    upper, lower = a + (b - a) * x, d + (e - d) * x
    right = (b - a) + ((e - d) - (b - a)) * y
    return upper + (lower - upper) * y, lower - upper, right


def _warp_forward(picture, flow):
    moved, down, right = jax.lax.optimization_barrier(_corners(picture, flow))
    return moved, (down, right, picture)


def _warp_backward(saved, gradient):
    down, right, picture = saved
    slopes = [jnp.sum(gradient * slope, -1) for slope in (down, right)]
    return jnp.zeros_like(picture), jnp.stack(slopes, -1)


_warp.defvjp(_warp_forward, _warp_backward)
