"""Pictures as the image encoder expects them: their size and the published statistics.

The two published pipelines fit a picture differently, so both ways are here:

- "crop" (diffusers, transformers' `CLIPImageProcessor`): the short side becomes 224 with a
  filter that avoids aliasing, in 8 bits; the middle square is kept.
- "stretch" (the original Wan2.1 code): the whole picture becomes a square, whatever its
  aspect ratio, with the plain cubic filter and without rounding.
"""

import numpy as np
import PIL.Image

# Published with CLIP (https://arxiv.org/abs/2103.00020); red, green, blue in 0..1.
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
FITS = ("crop", "stretch")

_CUBIC = -0.75  # The parameter of PyTorch's cubic convolution.


def prepare(picture: np.ndarray, size: int = 224, fit: str = "crop") -> np.ndarray:
    """Fits and normalises one picture.

    Args:
      picture: uint8 RGB [H, W, 3].
      size: Side of the result in pixels.
      fit: "crop" or "stretch", see above.

    Returns:
      float32 [size, size, 3] of about zero mean and unit variance.

    Raises:
      ValueError: Another kind of array, or an unknown `fit`.
    """
    if picture.ndim != 3 or picture.shape[-1] != 3 or picture.dtype != np.uint8:
        raise ValueError(
            f"picture: expected uint8 RGB [H, W, 3], got {picture.dtype} {picture.shape}."
        )
    if fit not in FITS:
        raise ValueError(f"fit must be one of {FITS}, got {fit!r}.")
    if fit == "crop":
        fitted = _crop(picture, size).astype(np.float32) / 255
    else:
        fitted = _stretch(picture.astype(np.float32) / 255, size)
    return (fitted - MEAN) / STD


def _crop(picture, size):
    """Short side to `size`, then the middle square; uint8."""
    height, width = picture.shape[:2]
    short = min(height, width)
    height, width = size * height // short, size * width // short
    image = PIL.Image.fromarray(picture).resize(
        (width, height), PIL.Image.Resampling.BICUBIC
    )
    top, left = (height - size) // 2, (width - size) // 2
    return np.asarray(image)[top : top + size, left : left + size]


def _stretch(picture, size):
    """Both sides to `size`; float32."""
    rows, columns = (_cubic(n, size) for n in picture.shape[:2])
    return np.einsum("hH,wW,HWc->hwc", rows, columns, picture, optimize=True)


def _cubic(source: int, target: int) -> np.ndarray:
    """Cubic convolution between pixel centres as a matrix [target, source]; edges repeat."""
    centre = (np.arange(target) + 0.5) * source / target - 0.5
    base = np.floor(centre).astype(int)
    matrix = np.zeros((target, source), np.float32)
    for offset in range(-1, 3):
        distance = np.abs(centre - (base + offset))
        a, t = _CUBIC, distance
        near = (a + 2) * t**3 - (a + 3) * t**2 + 1
        far = a * (t**3 - 5 * t**2 + 8 * t - 4)
        weight = np.where(t <= 1, near, np.where(t < 2, far, 0.0))
        index = np.clip(base + offset, 0, source - 1)
        np.add.at(matrix, (np.arange(target), index), weight)
    return matrix
