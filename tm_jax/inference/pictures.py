"""Aspect ratio of the video, and the face box as weights of tokens."""

import dataclasses
import math

import numpy as np

from tm_jax.configs import presets
from tm_jax.data import faces
from tm_jax.models.dit import attention_patterns


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


def face_mask(box: tuple[float, float, float, float], grid: attention_patterns.Grid) -> np.ndarray:
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

    return faces.mask(faces.Box(*box), grid.rows, grid.columns)[None]
