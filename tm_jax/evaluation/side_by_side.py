"""Videos of several arms beside one another, each under its name."""

import os

import numpy as np
from PIL import Image
from PIL import ImageDraw
from PIL import ImageFont

from tm_jax.media import video

_BAR = 28
_PAPER, _INK = (250, 249, 246), (60, 58, 54)


def join(videos: dict[str, np.ndarray]) -> np.ndarray:
    """Puts videos side by side.

    Args:
      videos: uint8 [T, H, W, 3] by label, all of one shape.

    Returns:
      uint8 [T, H + bar, sum of W, 3]; both sides even, as video files need.
    """
    shapes = {v.shape for v in videos.values()}
    if len(shapes) != 1:
        raise ValueError(f"videos must have one shape, got {sorted(shapes)}.")
    count, height, width, _ = next(iter(videos.values())).shape
    bar = Image.new("RGB", (width * len(videos), _BAR + height % 2), _PAPER)
    pen, font = ImageDraw.Draw(bar), ImageFont.load_default(size=15)
    for i, label in enumerate(videos):
        pen.text((i * width + 8, 5), label, _INK, font)
    rows = np.concatenate(list(videos.values()), 2)
    if rows.shape[2] % 2:
        rows, bar = rows[:, :, :-1], bar.crop((0, 0, rows.shape[2] - 1, bar.height))
    top = np.repeat(np.asarray(bar)[None], count, 0)
    return np.concatenate([top, rows], 1)


def write(
    path: str | os.PathLike, videos: dict[str, np.ndarray], sound: np.ndarray, fps: int,
    sample_rate: int = 16000,
) -> None:
    """Writes an MP4 of videos side by side with their sound.

    Args:
      path: The .mp4 file.
      videos: As for `join`.
      sound: Mono sound, float32 [n].
      fps: Frames per second.
      sample_rate: Samples per second of the sound.
    """
    frames = join(videos)
    height, width = frames.shape[1:3]
    with video.Writer(path, fps, height, width, sample_rate, 1) as writer:
        writer.write_sound(np.asarray(sound, np.float32)[:, None])
        writer.write_frames(frames)
