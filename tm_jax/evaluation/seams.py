"""Measures jumps where chunks of a video meet.

A stream that is made in chunks may jump at their borders. A jump there is measured against
the change between frames of the same chunk, so a lively video is not blamed for moving.
"""

from typing import NamedTuple

import numpy as np

_FLOOR = 1e-4  # Change of a still picture, in 0..1; keeps a ratio finite.


class Seams(NamedTuple):
    """Change at the borders of chunks relative to the change inside the chunks beside them.

    Attributes:
      median: Median over borders; 1 if borders do not differ from other frames.
      p95: 95th percentile over borders.
      borders: Number of borders.
    """

    median: float
    p95: float
    borders: int


def changes(frames: np.ndarray, before: np.ndarray | None = None) -> np.ndarray:
    """Mean absolute change from each frame to the next.

    Args:
      frames: Video, uint8 [T, H, W, 3].
      before: The frame just before, uint8 [H, W, 3], for videos measured part by part.

    Returns:
      Changes in 0..1, float32 [T - 1], or [T] with `before`.
    """
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.dtype != np.uint8:
        raise ValueError(f"frames must be uint8 [T, H, W, 3], got {frames.dtype} {frames.shape}.")
    if before is not None:
        frames = np.concatenate([np.asarray(before)[None], frames])
    pairs = zip(frames[:-1].astype(np.int16), frames[1:].astype(np.int16))
    return np.array([np.abs(b - a).mean() / 255 for a, b in pairs], np.float32)


def measure(
    change: np.ndarray, chunk_frames: int, first: int = 0, among: int = 1
) -> Seams:
    """Compares borders with what lies inside chunks.

    Args:
      change: Result of `changes` for a whole video, [T - 1]: element t is the step from
        frame t to t + 1.
      chunk_frames: Frames per chunk.
      first: Frame at which a chunk begins.
      among: Of the steps inside a chunk, compare with those that lead to its frames `among`,
        2 `among`, ... only. Separates borders of chunks from those of shorter blocks.

    Returns:
      The ratio at all borders that have a whole chunk on both sides.
    """
    change = np.asarray(change, np.float64)
    if change.ndim != 1 or not 1 <= among < chunk_frames:
        raise ValueError(
            "change must be [T - 1] and chunk_frames greater than among, got "
            f"{change.shape}, {chunk_frames} and {among}."
        )
    inside = chunk_frames - 1
    steps = np.arange(among - 1, inside, among)  # Inside one chunk, from its first frame.
    ratios = []
    for border in range(first + chunk_frames - 1, len(change) - inside, chunk_frames):
        beside = change[np.concatenate([border - inside + steps, border + 1 + steps])]
        ratios.append((change[border] + _FLOOR) / (beside.mean() + _FLOOR))
    if not ratios:
        raise ValueError(f"{len(change) + 1} frames hold no border of {chunk_frames} frames.")
    return Seams(float(np.median(ratios)), float(np.percentile(ratios, 95)), len(ratios))
