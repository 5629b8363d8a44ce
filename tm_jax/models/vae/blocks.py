"""Overlapping blocks of pixels, and how they join without borders.

Blocks lie at strides of 16 pixels and reach 4 pixels further on every side, so each lies over
its neighbours in stripes of 8. In a stripe the weight passes from one block to the other.
"""

import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.core import shapes
from tm_jax.models.vae import config as config_lib


def patches(frames: jax.Array, config: config_lib.VAEConfig) -> jax.Array:
    """Frames [B, F, H, W, 3] to patches [B, F, h, w, side * side * 3], edges repeated.

    Raises:
      ValueError: The picture size does not divide.
    """
    sizes = shapes.check(frames, "B F H W C", "frames", C=3)
    stride, overlap = config.spatial_stride, config.overlap
    if sizes["H"] % stride or sizes["W"] % stride:
        raise ValueError(
            f"frames: height and width must be multiples of {stride}, "
            f"got {sizes['H']}x{sizes['W']}."
        )
    edge = (overlap, overlap)
    x = jnp.pad(frames, ((0, 0), (0, 0), edge, edge, (0, 0)), mode="edge")
    rows = np.arange(sizes["H"] // stride)[:, None] * stride + np.arange(config.side)
    columns = np.arange(sizes["W"] // stride)[:, None] * stride + np.arange(config.side)
    x = x[:, :, rows][:, :, :, :, columns]  # [B, F, h, side, w, side, 3]
    x = x.transpose(0, 1, 2, 4, 3, 5, 6)
    return x.reshape(*x.shape[:4], config.patch_pixels)


def join(patches: jax.Array, config: config_lib.VAEConfig) -> jax.Array:
    """Adds patches [B, F, h, w, side * side * 3] that carry their `window`: [B, F, H, W, 3]."""
    b, f, h, w, _ = patches.shape
    x = patches.reshape(b, f, h, w, config.side, config.side, 3)
    x = _overlap_add(x.transpose(0, 1, 3, 5, 2, 4, 6), config)  # [B, F, w, side, H, 3]
    x = _overlap_add(x.transpose(0, 1, 4, 2, 3, 5), config)  # [B, F, H, W, 3]
    return x


def _overlap_add(x, config):
    """[..., n, side, *rest] of 3 axes before and 1 behind to [..., n * stride, rest]."""
    # Thirds of a block: a stripe, its middle, a stripe.
    third = config.side // 3
    x = x.reshape(*x.shape[:-3], x.shape[-3], 3, third, x.shape[-1])
    first, middle, last = x[..., 0, :, :], x[..., 1, :, :], x[..., 2, :, :]
    empty = jnp.zeros_like(first[..., :1, :, :])
    shared = jnp.concatenate([first, empty], -3) + jnp.concatenate([empty, last], -3)
    both = jnp.stack([shared[..., :-1, :, :], middle], -3)  # [..., n, 2, third, C]
    line = both.reshape(*both.shape[:-4], -1, both.shape[-1])
    line = jnp.concatenate([line, shared[..., -1, :, :]], -2)
    return line[..., config.overlap : -config.overlap, :]


def window(config: config_lib.VAEConfig) -> np.ndarray:
    """Weight of every pixel of a block, [side * side * 3]; over neighbours they sum to 1."""
    third = config.side // 3
    rise = (np.arange(third) + 0.5) / third
    line = np.concatenate([rise, np.ones(third), rise[::-1]])
    square = np.outer(line, line)[..., None] * np.ones(3)
    return square.reshape(-1).astype(np.float32)
