"""Motion between a reference picture and frames, estimated from pixels in closed form.

Lucas and Kanade (1981), "An iterative image registration technique", over a pyramid: around every
place the displacement that explains the difference of colours to first order. The encoder reads
the result as features, so that it need not learn to measure motion before it can describe it.
"""

import functools

import jax
import jax.numpy as jnp

from tm_jax.models.vae.small import layers

# Pixels a place, window, iterations.
_LEVELS = ((16, 5, 2), (8, 5, 2), (4, 5, 2), (2, 5, 1), (1, 5, 1))
PLACE = 4  # Pixels a place of the result.
_LIMIT = 32.0  # Largest displacement in pixels.
_PRIOR = 2e-2  # Squared slope of noise: flat places keep the coarser level's motion.


@jax.jit
def estimate(picture: jax.Array, frames: jax.Array) -> jax.Array:
    """Where in the picture every place of a frame is found.

    Args:
      picture: [B, H, W, 3] in -1..1; H and W multiples of 16.
      frames: [B, F, H, W, 3].

    Returns:
      Displacements down and right in pixels, on places of 4 pixels, [B, F, H/4, W/4, 2];
      no gradient passes through.
    """
    picture, frames = jax.lax.stop_gradient((picture, frames))
    b, f, h, w, _ = frames.shape
    flow = jnp.zeros((b, f, h // _LEVELS[0][0], w // _LEVELS[0][0], 2))
    for side, window, iterations in _LEVELS:
        still, moved = _shrink(picture, side), _shrink(frames, side)
        if flow.shape[2] != still.shape[1]:
            flow = layers.resize(flow, still.shape[1] // flow.shape[2])
        for _ in range(iterations):
            flow = flow + side * _update(still, moved, flow / side, window)
            flow = jnp.clip(flow, -_LIMIT, _LIMIT)
    return _shrink(flow, PLACE // _LEVELS[-1][0])


def _shrink(x, side):
    *lead, h, w, c = x.shape
    return x.reshape(*lead, h // side, side, w // side, side, c).mean((-4, -2))


def _update(still, moved, flow, window):
    """One step of least squares; everything on one grid, displacements in its places."""
    found = layers.warp(still, flow)
    down = _slope(found, -3)
    right = _slope(found, -2)
    error = moved - found
    pairs = [(down, down), (down, right), (right, right), (down, error), (right, error)]
    a, c, d, p, q = _sums(jnp.stack([_product(x, y) for x, y in pairs], -1), window)
    a, d = a + _PRIOR, d + _PRIOR
    scale = 1 / (a * d - c * c)
    step = jnp.stack([(d * p - c * q) * scale, (a * q - c * p) * scale], -1)
    return jnp.clip(step, -1.5, 1.5)


def _product(x, y):
    """Sum over colours; spelled out, since so short a reduction is slow."""
    return functools.reduce(jnp.add, [x[..., i] * y[..., i] for i in range(x.shape[-1])])


def _slope(x, axis):
    """Central differences along an axis, one-sided at the borders."""
    cut = functools.partial(jax.lax.slice_in_dim, axis=axis)
    later = jnp.concatenate([cut(x, 1, None), cut(x, -1, None)], axis)
    earlier = jnp.concatenate([cut(x, 0, 1), cut(x, 0, -1)], axis)
    return (later - earlier) / 2


def _sums(x, window):
    """Mean over windows of [B, F, h, w, 5], as five arrays [B, F, h, w]."""
    half = window // 2
    for axis in (2, 3):
        size = x.shape[axis]
        pads = [(0, 0)] * x.ndim
        pads[axis] = (half, half)
        padded = jnp.pad(x, pads, mode="edge")
        parts = (jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(window))
        x = functools.reduce(jnp.add, parts)
    return jnp.moveaxis(x / window**2, -1, 0)
