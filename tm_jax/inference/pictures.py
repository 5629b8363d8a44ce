"""The face box as weights of tokens."""

import numpy as np

from tm_jax.data import faces
from tm_jax.models.dit import attention_patterns


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
