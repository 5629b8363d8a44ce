"""Arithmetic of what goes into presets of full size: picture sizes, face boxes, pixels."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.models import presets
from tm_jax.models.wan import patterns
from tm_jax.models.wan_vae import config as vae_config


def with_aspect(preset: presets.Preset, aspect: float) -> presets.Preset:
    """A preset with another aspect ratio and at most its area.

    Raises:
      ValueError: The aspect ratio is not between 1:4 and 4:1.
    """
    if not 0.25 <= aspect <= 4:
        raise ValueError(f"aspect must be between 1:4 and 4:1, got {aspect:g}.")
    step, area = preset.spatial_stride * preset.dit.patch, preset.height * preset.width
    widths = range(step, area // step + 1, step)
    pairs = [(width, area // (width * step) * step) for width in widths]
    fitting = [(width, height) for width, height in pairs if height]
    width, height = min(fitting, key=lambda size: abs(math.log(size[0] / size[1] / aspect)))
    return dataclasses.replace(preset, height=height, width=width)


def settled_latents(config: vae_config.WanVAEConfig) -> int:
    """Latents after which the encoder has forgotten the first frame of a clip."""
    past, frames = 2, 1  # The entry sees 2 frames before its own.
    for level in range(len(config.multipliers)):
        past += 4 * config.num_res_blocks * frames  # Two convolutions of three taps each.
        if level < len(config.temporal_strides) and config.temporal_strides[level]:
            past, frames = past + 2 * frames, 2 * frames
    past += (2 * 4 + 2) * frames  # Two blocks in the middle, and the exit.
    return 1 + -(-past // config.frames_per_latent)


def face_mask(box: tuple[float, float, float, float], grid: patterns.Grid) -> np.ndarray:
    """Share of every token that lies in a box, [1, P].

    Args:
      box: Top, left, bottom, right in 0..1 of the picture.
      grid: Token grid.

    Raises:
      ValueError: Not a box inside the picture.
    """
    top, left, bottom, right = box
    if not (0 <= top < bottom <= 1 and 0 <= left < right <= 1):
        raise ValueError(
            f"face: expected top, left, bottom, right in 0..1 of the picture, got {box}."
        )

    def cover(count, low, high):
        cell = np.arange(count)
        inside = np.minimum(cell + 1, high * count) - np.maximum(cell, low * count)
        return np.clip(inside, 0, 1)

    rows, columns = cover(grid.rows, top, bottom), cover(grid.columns, left, right)
    return np.outer(rows, columns).reshape(1, -1).astype(np.float32)


def to_float(pixels: jax.Array) -> jax.Array:
    """uint8 pixels to -1..1."""
    return pixels.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(pixels: jax.Array) -> jax.Array:
    """Pixels in -1..1 to uint8."""
    pixels = pixels.astype(jnp.float32)
    return jnp.round(jnp.clip(pixels * 127.5 + 127.5, 0, 255)).astype(jnp.uint8)
