"""Rotary positions over (time, height, width), in Wan's split of a head.

A head of width K has K/2 rotated pairs; 2 * (K // 6) of the widths belong to height, as many
to width, the rest to time: 22/21/21 pairs of a 128-wide head. Angles are float32 always.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

_BASE = 10000.0


def axis_widths(head_width: int) -> tuple[int, int, int]:
    """Widths of the (time, height, width) parts of a head; each is even."""
    side = 2 * (head_width // 6)
    return head_width - 2 * side, side, side


def angles(times: Sequence[float], rows: int, columns: int, head_width: int) -> np.ndarray:
    """Angles of every token of a few latent frames.

    Args:
      times: Time position of each latent frame, sequence of T numbers.
      rows: Token rows of a frame.
      columns: Token columns of a frame.
      head_width: Width K of a head.

    Returns:
      float32 [T * rows * columns, K / 2], tokens in (time, row, column) order.
    """
    grid = np.meshgrid(
        np.asarray(times, np.float64), np.arange(rows), np.arange(columns), indexing="ij"
    )
    parts = []
    for position, width in zip(grid, axis_widths(head_width)):
        frequency = _BASE ** (-np.arange(0, width, 2, dtype=np.float64) / width)
        parts.append(position.reshape(-1, 1) * frequency)
    return np.concatenate(parts, -1).astype(np.float32)


def apply(x: jax.Array, angle: jax.Array) -> jax.Array:
    """Rotates neighbouring pairs of a head.

    Args:
      x: Queries or keys [..., L, N, K].
      angle: [L, K / 2], or with leading axes that broadcast to those of `x`.

    Returns:
      Rotated array in the shape and dtype of `x`.
    """
    cosine = jnp.cos(angle)[..., None, :]
    sine = jnp.sin(angle)[..., None, :]
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    rotated = jnp.stack([even * cosine - odd * sine, even * sine + odd * cosine], -1)
    return rotated.reshape(x.shape).astype(x.dtype)
