"""Large frames in overlapping tiles, for clips and for streams.

All tiles have one size, so one compiled program serves them; they are run one after another
and blended by linear ramps over their overlap. The result is not that of the whole frame:
convolutions near the inner border of a tile meet zeros, and the attention in the middle of
encoder and decoder covers one tile only. The ramps give such pixels little weight; what remains
is the tolerance of blending, smaller with more overlap. Frames that fit into one tile are
computed as without tiling.

Differs from the reference, which starts tiles at fixed distances and leaves smaller ones at
the right and lower border: here they are spread evenly, so that none is small.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.models.vae.wan import autoencoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tiling:
    """Size of tiles in pixels; both numbers are multiples of the spatial stride.

    Attributes:
      size: Height and width of a tile (less where the frame is smaller).
      overlap: Least overlap of neighbours.
    """

    size: int = 256
    overlap: int = 64

    def __post_init__(self):
        if not 0 <= self.overlap <= self.size // 2:
            raise ValueError(
                f"overlap must be between 0 and half of size={self.size}, got {self.overlap}."
            )


def starts(length: int, size: int, overlap: int) -> list[int]:
    """First positions of tiles that cover `length`, spread evenly."""
    if length <= size:
        return [0]
    count = math.ceil((length - size) / max(1, size - overlap)) + 1
    return [round(i * (length - size) / (count - 1)) for i in range(count)]


def weights(length: int, size: int, first: list[int]) -> np.ndarray:
    """Share of every tile in every position of one axis, [tiles, size].

    Ramps rise linearly over the overlap with the neighbour; shares of a position sum to one.

    Args:
      length: Positions of the axis.
      size: Positions of a tile.
      first: First position of every tile, as `starts` gives them.
    """
    shares = np.ones((len(first), size))
    positions = np.arange(size)
    for i, (left, right) in enumerate(zip(first[:-1], first[1:])):
        overlap = left + size - right
        ramp = np.clip((positions + 0.5) / overlap, 0, 1) if overlap else np.ones(size)
        shares[i + 1] = np.minimum(shares[i + 1], ramp)
        shares[i] = np.minimum(shares[i], ramp[::-1])
    total = np.zeros(length)
    for start, share in zip(first, shares):
        total[start : start + size] += share
    return np.stack([s / total[a : a + size] for a, s in zip(first, shares)])


@dataclasses.dataclass(frozen=True)
class _Axis:
    """Tiles along one axis, in units of latents.

    Attributes:
      length: Size of the frame.
      size: Size of a tile.
      first: First position of every tile.
    """

    length: int
    size: int
    first: list[int]

    @classmethod
    def of(cls, length, tiling, stride):
        size = min(length, tiling.size // stride)
        return cls(length, size, starts(length, size, tiling.overlap // stride))


def _grid(model, tiling, height, width):
    """Tiles along height and width of `height` x `width` latents."""
    stride = model.config.spatial_stride
    if tiling.size % stride or tiling.overlap % stride or not tiling.size:
        raise ValueError(
            f"tiles: size and overlap must be multiples of {stride} pixels, got "
            f"{tiling.size} and {tiling.overlap}."
        )
    return _Axis.of(height, tiling, stride), _Axis.of(width, tiling, stride)


def _cut(x, rows: _Axis, columns: _Axis, scale):
    """[B, T, H, W, C] to tiles [tiles, B, T, h, w, C]; `scale` entries stand for a latent."""
    h, w = rows.size * scale, columns.size * scale
    return jnp.stack([
        x[:, :, r * scale : r * scale + h, c * scale : c * scale + w]
        for r in rows.first for c in columns.first
    ])


def _blend(tiles, rows: _Axis, columns: _Axis, scale):
    """Inverse of `_cut` for tiles that agree; a weighted mean where they differ."""
    h, w = rows.size * scale, columns.size * scale
    row_first = [r * scale for r in rows.first]
    column_first = [c * scale for c in columns.first]
    row_weights = weights(rows.length * scale, h, row_first)
    column_weights = weights(columns.length * scale, w, column_first)
    shape = (*tiles.shape[1:3], rows.length * scale, columns.length * scale, tiles.shape[-1])
    out = jnp.zeros(shape, jnp.float32)
    index = 0
    for i, r in enumerate(row_first):
        for j, c in enumerate(column_first):
            share = np.outer(row_weights[i], column_weights[j])[..., None]
            part = tiles[index].astype(jnp.float32) * share.astype(np.float32)
            out = out.at[:, :, r : r + h, c : c + w].add(part)
            index += 1
    return out.astype(tiles.dtype)


def _run(model, params, method, x, state, tiling, scale_in, scale_out):
    """Calls `method` on every tile, one after another."""
    sizes = (x.shape[2], x.shape[3])
    if sizes[0] % scale_in or sizes[1] % scale_in:
        raise ValueError(
            f"frames: height and width must be multiples of {scale_in}, "
            f"got {sizes[0]}x{sizes[1]}."
        )
    rows, columns = _grid(model, tiling, sizes[0] // scale_in, sizes[1] // scale_in)
    tiles = _cut(x, rows, columns, scale_in)

    def one(inputs):
        return model.apply({"params": params}, *inputs, method=method)

    y, state = jax.lax.map(one, (tiles,) if state is None else (tiles, state))
    return _blend(y, rows, columns, scale_out), state


def decode_first(
    model: autoencoder.WanVAE, params: dict, z: jax.Array, tiling: Tiling
) -> tuple[jax.Array, Any]:
    """`WanVAE.decode_first` in tiles; every leaf of the state has a leading axis of tiles."""
    stride = model.config.spatial_stride
    return _run(model, params, "decode_first", z, None, tiling, 1, stride)


def decode_chunk(
    model: autoencoder.WanVAE, params: dict, z: jax.Array, state: Any, tiling: Tiling
) -> tuple[jax.Array, Any]:
    """`WanVAE.decode_chunk` in tiles."""
    stride = model.config.spatial_stride
    return _run(model, params, "decode_chunk", z, state, tiling, 1, stride)


def encode_first(
    model: autoencoder.WanVAE, params: dict, frames: jax.Array, tiling: Tiling
) -> tuple[jax.Array, Any]:
    """`WanVAE.encode_first` in tiles; every leaf of the state has a leading axis of tiles."""
    stride = model.config.spatial_stride
    return _run(model, params, "encode_first", frames, None, tiling, stride, 1)


def encode_chunk(
    model: autoencoder.WanVAE, params: dict, frames: jax.Array, state: Any, tiling: Tiling
) -> tuple[jax.Array, Any]:
    """`WanVAE.encode_chunk` in tiles."""
    stride = model.config.spatial_stride
    return _run(model, params, "encode_chunk", frames, state, tiling, stride, 1)
