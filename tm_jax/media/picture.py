"""Reads the character's picture from a file and fits it to the size of a preset."""

import io
import os
import pathlib
import struct
import warnings
import zlib

from absl import logging
import numpy as np
import PIL.Image
import PIL.ImageOps

_BACKGROUND = (232, 232, 232)  # Shows through where a picture is transparent.
_ABOVE_CENTRE = 0.4  # Share of a tall picture's surplus cut off at the top.
_MAX_PIXELS = 100_000_000
_SMALL = 64
# Only pure picture decoders: some other plug-ins of Pillow start programs.
_FORMATS = (
    "PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "TGA", "ICO",
    "JPEG2000", "AVIF",
)  # fmt: skip
# What Pillow's decoders raise on damaged data.
_DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError,
    OverflowError, struct.error, zlib.error,
)  # fmt: skip


def load(path: str | os.PathLike, height: int, width: int) -> np.ndarray:
    """Reads a picture, crops it to the aspect ratio and resizes it.

    Of an animation the first frame counts. Transparent parts show a light grey.

    Args:
      path: A PNG, JPEG, WebP, GIF, BMP, TIFF, PPM or AVIF file.
      height: Height of the result in pixels.
      width: Width of the result in pixels.

    Returns:
      The picture as uint8 RGB, [height, width, 3].

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: The file cannot be used; the text gives the reason in one line.
    """
    path = check_path(path)
    image = _decode(path, str(path), _MAX_PIXELS)
    if min(image.size) < _SMALL:
        logging.warning("image: %s is only %dx%d pixels; it is enlarged.", path, *image.size)
    return _fit(image, height, width)


def from_bytes(
    data: bytes, height: int, width: int, max_pixels: int = _MAX_PIXELS
) -> np.ndarray:
    """Reads a picture from memory; otherwise as `load`.

    Args:
      data: Content of a picture file.
      height: Height of the result in pixels.
      width: Width of the result in pixels.
      max_pixels: Pixels that the picture may have; checked before it is decoded.

    Returns:
      The picture as uint8 RGB, [height, width, 3].

    Raises:
      ValueError: The data cannot be used; the text gives the reason in one line.
    """
    if not data:
        raise ValueError("image: the picture is empty (0 bytes).")
    return _fit(_decode(io.BytesIO(data), "the picture", max_pixels), height, width)


def _fit(image: PIL.Image.Image, height: int, width: int) -> np.ndarray:
    box = _crop(image.width, image.height, width / height)
    return np.asarray(image.resize((width, height), PIL.Image.Resampling.LANCZOS, box=box))


def check_path(path: str | os.PathLike) -> pathlib.Path:
    """Returns the path of a file that is there and not empty; raises as `load`."""
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"image: there is no file {path}.")
    if not path.is_file():
        raise ValueError(f"image: expected a picture file, {path} is a folder or a device.")
    if not path.stat().st_size:
        raise ValueError(f"image: {path} is empty (0 bytes).")
    return path


def _decode(source, name: str, max_pixels: int) -> PIL.Image.Image:
    """Returns the first frame of a path or a binary file, upright, in RGB."""
    PIL.Image.init()
    formats = [name for name in _FORMATS if name in PIL.Image.OPEN]  # As Pillow was built.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # The size is checked below.
            with PIL.Image.open(source, formats=formats) as image:
                if image.width * image.height > max_pixels:
                    raise PIL.Image.DecompressionBombError
                image.load()
                return _rgb(PIL.ImageOps.exif_transpose(image))
    except PIL.Image.DecompressionBombError as error:
        raise ValueError(
            f"image: {name} has more than {max_pixels // 10**6} million pixels; "
            "make it smaller first."
        ) from error
    except PIL.UnidentifiedImageError as error:
        raise ValueError(
            f"image: {name} is not a picture that can be read; "
            "expected for example PNG, JPEG or WebP."
        ) from error
    except _DAMAGE as error:
        raise ValueError(f"image: {name} is damaged or cut short ({error}).") from error


def _rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_gray(image).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    background = PIL.Image.new("RGBA", image.size, (*_BACKGROUND, 255))
    return PIL.Image.alpha_composite(background, image).convert("RGB")


def _deep_gray(image: PIL.Image.Image) -> PIL.Image.Image:
    """Scales grey levels of 16 bits, integers or floats to 8 bits."""
    values = np.nan_to_num(np.asarray(image, np.float32), posinf=0.0, neginf=0.0)  # [H, W]
    if image.mode == "F":
        top = 1.0 if values.max() <= 1 else 255.0
    else:
        top = 255.0 if image.mode == "I" and values.max() <= 255 else 65535.0
    return PIL.Image.fromarray((np.clip(values / top, 0, 1) * 255 + 0.5).astype(np.uint8))


def _crop(width: int, height: int, aspect: float) -> tuple[float, float, float, float]:
    """Returns the largest box (left, top, right, bottom) of that aspect ratio."""
    if width > height * aspect:
        left = (width - height * aspect) / 2
        return left, 0.0, left + height * aspect, float(height)
    top = (height - width / aspect) * _ABOVE_CENTRE
    return 0.0, top, float(width), top + width / aspect
