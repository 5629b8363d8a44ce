"""Sinusoidal time features and the split of latents into patches."""

import jax
import jax.numpy as jnp

from tm_jax.core import shapes


def sinusoid(position: jax.Array, width: int) -> jax.Array:
    """Cosines then sines of a position, as in Wan: [...] -> [..., width], float32."""
    half = width // 2
    frequency = 10000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = position.astype(jnp.float32)[..., None] * frequency
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)


def patchify(x: jax.Array, patch: int) -> jax.Array:
    """Cuts latents into square patches.

    Args:
      x: Latents [B, T, H, W, C]; H and W are multiples of `patch`.
      patch: Side of a patch. (Wan's patches are one latent frame deep.)

    Returns:
      [B, T, P, C * patch * patch]; inside a token the channel varies slowest, the order of
      a flattened Wan patch-embedding kernel.

    Raises:
      ValueError: H or W is not a multiple of `patch`.
    """
    sizes = shapes.check(x, "B T H W C", "latents")
    batch, frames, height, width, channels = sizes.values()
    if height % patch or width % patch:
        raise ValueError(
            f"latents of {height}x{width} do not divide into {patch}x{patch} patches."
        )
    rows, columns = height // patch, width // patch
    x = x.reshape(batch, frames, rows, patch, columns, patch, channels)
    x = x.transpose(0, 1, 2, 4, 6, 3, 5)  # [B, T, rows, columns, C, patch, patch]
    return x.reshape(batch, frames, rows * columns, channels * patch * patch)


def unpatchify(x: jax.Array, patch: int, rows: int, channels: int) -> jax.Array:
    """Joins tokens [B, T, P, patch * patch * C] into latents [B, T, H, W, C].

    Inside a token the channel varies fastest, the order of Wan's output head.
    """
    batch, frames, tokens, _ = x.shape
    columns = tokens // rows
    x = x.reshape(batch, frames, rows, columns, patch, patch, channels)
    x = x.transpose(0, 1, 2, 4, 3, 5, 6)  # [B, T, rows, patch, columns, patch, C]
    return x.reshape(batch, frames, rows * patch, columns * patch, channels)
