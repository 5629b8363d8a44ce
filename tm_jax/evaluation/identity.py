"""Measures how far a video has moved away from its reference picture, by classical means.

Three distances with different blind spots: a colour histogram ignores where colours are, a
low-frequency picture ignores detail, and the correlation of a region, searched over small
shifts, ignores brightness and small movements of the head.
"""

from typing import NamedTuple

import numpy as np

_GREY = np.array([0.299, 0.587, 0.114], np.float32)


class Drift(NamedTuple):
    """A measure at the end of a video against the same measure at its beginning.

    Attributes:
      first: Mean over the first seconds.
      last: Mean over the last seconds.
      spread: Standard deviation inside windows of that length: what the measure does
        anyway, without any drift.
      change: last - first in units of `spread`.
    """

    first: float
    last: float
    spread: float
    change: float


def _video(frames: np.ndarray) -> np.ndarray:
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"frames must be uint8 [T, H, W, 3], got {frames.dtype} {frames.shape}.")
    return frames


def _histogram(frame: np.ndarray, bins: int) -> np.ndarray:
    """Soft histogram over RGB, [bins ** 3]: a colour is shared by the bins around it.

    Hard bins would call a change by one grey level near an edge a change of colour.
    """
    at = frame.reshape(-1, 3).astype(np.float32) * ((bins - 1) / 255)  # [P, 3]
    low = np.minimum(at.astype(np.int32), bins - 2)
    part = at - low
    total = np.zeros(bins**3)
    for corner in np.ndindex(2, 2, 2):
        weight = np.prod(np.where(corner, part, 1 - part), axis=1)
        index = (low + corner) @ [bins * bins, bins, 1]
        total += np.bincount(index, weight, bins**3)
    return total / total.sum()


def colour_distance(frames: np.ndarray, reference: np.ndarray, bins: int = 8) -> np.ndarray:
    """Total variation distance of colour histograms.

    Args:
      frames: Video, uint8 [T, H, W, 3].
      reference: Picture, uint8 [H, W, 3].
      bins: Bins per colour channel.

    Returns:
      Distances in 0 (the same colours) to 1 (no colour in common), float32 [T].
    """
    expected = _histogram(_video(np.asarray(reference)[None])[0], bins)
    found = [_histogram(frame, bins) for frame in _video(frames)]
    return np.array([np.abs(f - expected).sum() / 2 for f in found], np.float32)


def _blocks(frames: np.ndarray, side: int) -> np.ndarray:
    """Means of side x side areas, [T, side, side, 3] in 0..1."""
    count, height, width, _ = frames.shape
    if height % side or width % side:
        raise ValueError(f"{height}x{width} pixels cannot be cut into {side}x{side} blocks.")
    cut = frames.reshape(count, side, height // side, side, width // side, 3)
    return cut.mean((2, 4), dtype=np.float32) / 255


def picture_distance(frames: np.ndarray, reference: np.ndarray, side: int = 16) -> np.ndarray:
    """Mean absolute difference of low-frequency pictures, side x side pixels.

    Args:
      frames: Video, uint8 [T, H, W, 3].
      reference: Picture, uint8 [H, W, 3].
      side: Side of the small pictures.

    Returns:
      Distances in 0..1, float32 [T].
    """
    expected = _blocks(_video(np.asarray(reference)[None]), side)
    found = _blocks(_video(frames), side)
    return np.abs(found - expected).mean((1, 2, 3))


def likeness(
    frames: np.ndarray, reference: np.ndarray, box: np.ndarray, *,
    reach: int = 16, step: int = 2,
) -> np.ndarray:
    """Correlation of a region with the reference, at the best of many small shifts.

    Args:
      frames: Video, uint8 [T, H, W, 3].
      reference: Picture, uint8 [H, W, 3].
      box: Box (y0, x0, y1, x1) in 0..1 of the reference, [4].
      reach: Largest shift in pixels, down and across.
      step: Pixels between neighbouring shifts; pictures are reduced by as much.

    Returns:
      Correlation of grey values, at most 1, float32 [T]; 0 where a region is of one colour.
    """
    small = _reduced(_video(frames), step)  # [T, h, w]
    model = _reduced(_video(np.asarray(reference)[None]), step)[0]
    height, width = model.shape
    limits = np.array([height, width, height, width])
    y0, x0, y1, x1 = np.round(np.asarray(box) * limits).astype(int)
    if y1 - y0 < 2 or x1 - x0 < 2:
        raise ValueError(f"box {np.asarray(box).tolist()} covers less than 2x2 points.")
    template = _normal(model[y0:y1, x0:x1])
    most = reach // step
    shifts = [
        (dy, dx) for dy in range(max(-most, -y0), min(most, height - y1) + 1)
        for dx in range(max(-most, -x0), min(most, width - x1) + 1)
    ]
    return np.array(
        [
            max(
                float((_normal(f[y0 + dy : y1 + dy, x0 + dx : x1 + dx]) * template).sum())
                for dy, dx in shifts
            )
            for f in small
        ],
        np.float32,
    )


def _reduced(frames: np.ndarray, step: int) -> np.ndarray:
    """Grey pictures of means over step x step pixels, [T, H / step, W / step]."""
    count, height, width, _ = frames.shape
    frames = frames[:, : height - height % step, : width - width % step]
    cut = frames.reshape(count, height // step, step, width // step, step, 3)
    return cut.mean((2, 4), dtype=np.float32) @ _GREY


def _normal(region: np.ndarray) -> np.ndarray:
    """The region with mean 0 and norm 1; zeros if it is of one colour."""
    centred = region - region.mean()
    norm = np.sqrt(np.square(centred).sum())
    return centred / norm if norm > 1e-3 else np.zeros_like(centred)


def sharpness(frames: np.ndarray, reference: np.ndarray, box: np.ndarray) -> np.ndarray:
    """How sharp a region is against the reference's, wherever its details have moved.

    Args:
      frames: Video, uint8 [T, H, W, 3].
      reference: Picture, uint8 [H, W, 3].
      box: Box (y0, x0, y1, x1) in 0..1 of the region, [4].

    Returns:
      Standard deviation of the Laplacian of grey values over that of the reference,
      float32 [T]: 1 for the same detail, 0 for none.
    """
    model = _laplacian(_video(np.asarray(reference)[None]), box)[0]
    if model < 1e-3:
        raise ValueError("reference: the box is of one colour and has no sharpness.")
    return (_laplacian(_video(frames), box) / model).astype(np.float32)


def _laplacian(frames: np.ndarray, box: np.ndarray) -> np.ndarray:
    height, width = frames.shape[1:3]
    limits = np.array([height, width, height, width])
    y0, x0, y1, x1 = np.round(np.asarray(box) * limits).astype(int)
    if y1 - y0 < 3 or x1 - x0 < 3:
        raise ValueError(f"box {np.asarray(box).tolist()} covers less than 3x3 pixels.")
    result = []
    for frame in frames:
        grey = frame[y0:y1, x0:x1].astype(np.float32) @ _GREY
        around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
        result.append((around - 4 * grey[1:-1, 1:-1]).std())
    return np.array(result)


def per_minute(values: np.ndarray, rate: float) -> float:
    """Slope of a measure [N] by least squares, in its units per minute.

    Args:
      values: A measure over time, [N], `rate` times per second.
      rate: Values per second.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"values must be [N] with 2 or more, got {values.shape}.")
    minutes = np.arange(len(values)) / rate / 60
    return float(np.polyfit(minutes, values, 1)[0])


def drift(values: np.ndarray, rate: float, window_s: float = 10.0) -> Drift:
    """Compares the end of a video with its beginning.

    Args:
      values: A measure over time, [N], `rate` times per second.
      rate: Values per second.
      window_s: Seconds at the beginning and at the end; at most half of the video.
    """
    values = np.asarray(values, np.float64)
    size = min(round(window_s * rate), len(values) // 2)
    if values.ndim != 1 or size < 2:
        raise ValueError(f"values must be [N] with 2 or more per window, got {values.shape}.")
    windows = values[: len(values) - len(values) % size].reshape(-1, size)
    spread = float(np.sqrt(np.mean(windows.var(axis=1))))
    first, last = float(values[:size].mean()), float(values[-size:].mean())
    return Drift(first, last, spread, (last - first) / max(spread, 1e-6))
