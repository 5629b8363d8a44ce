"""Measures from pixels how a head moves and when its eyes blink.

The head is found by matching the upper face of the reference picture in every frame. The lids
are read off the strip of the eyes there: where it lies on the way from the picture with open
eyes to the same picture with shut eyes.
"""

from typing import NamedTuple

import numpy as np
import scipy.signal
import scipy.stats

_GREY = np.array([0.299, 0.587, 0.114], np.float32)
_SHUT, _OPEN = 0.5, 0.3  # A blink begins above the first and ends below the second.


class Gestures(NamedTuple):
    """How a face moves beside its speech.

    Attributes:
      head_spread: Standard deviation of the head's place, in heights of the picture.
      head_speed: Mean speed of the head in heights of the picture per second.
      blinks_per_minute: Blinks.
      blink_s: Mean duration of a blink; nan without one.
    """

    head_spread: float
    head_speed: float
    blinks_per_minute: float
    blink_s: float


def _grey(frames: np.ndarray) -> np.ndarray:
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"frames must be uint8 [T, H, W, 3], got {frames.dtype} {frames.shape}.")
    return frames.astype(np.float32) @ _GREY


def _reduced(grey: np.ndarray, step: int) -> np.ndarray:
    """Means over step x step pixels, [T, H / step, W / step]; what does not fit is cut off."""
    count, height, width = grey.shape
    rows, columns = height // step, width // step
    cut = grey[:, : rows * step, : columns * step]
    return cut.reshape(count, rows, step, columns, step).mean((2, 4))


def _peak(scores: np.ndarray) -> tuple[float, float]:
    """Row and column of the maximum, between points by a parabola through its neighbours."""
    at = np.unravel_index(np.argmax(scores), scores.shape)
    found = []
    for axis, index in enumerate(at):
        line = scores[:, at[1]] if axis == 0 else scores[at[0]]
        shift = 0.0
        if 0 < index < len(line) - 1:
            low, top, high = line[index - 1 : index + 2]
            curve = low - 2 * top + high
            shift = 0.0 if curve > -1e-9 else float(0.5 * (low - high) / curve)
        found.append(index + shift)
    return found[0], found[1]


def head(
    frames: np.ndarray, reference: np.ndarray, box: np.ndarray, *, reach: int = 24,
    step: int | None = None,
) -> np.ndarray:
    """Finds a region of the reference in every frame.

    Args:
      frames: Video, uint8 [T, H, W, 3].
      reference: Picture, uint8 [H, W, 3].
      box: Region (y0, x0, y1, x1) in 0..1 of the reference that moves as a whole, [4]: the
        upper face.
      reach: Largest shift in pixels.
      step: Side of the blocks by whose means the pictures are reduced before; by default so
        that about 128 rows are left.

    Returns:
      Shift down and to the right in pixels, float32 [T, 2]: the maximum of the normalised
      cross-correlation, finer than a pixel.
    """
    step = step or max(1, len(reference) // 128)
    reach = -(-reach // step)
    model = _reduced(_grey(np.asarray(reference)[None]), step)[0]
    limits = np.array([*model.shape, *model.shape])
    y0, x0, y1, x1 = np.round(np.asarray(box) * limits).astype(int)
    if y1 - y0 < 4 or x1 - x0 < 4:
        raise ValueError(f"box {np.asarray(box).tolist()} covers less than 4x4 pixels.")
    template = model[y0:y1, x0:x1] - model[y0:y1, x0:x1].mean()
    ones = np.ones_like(template)
    shifts = []
    for frame in _reduced(_grey(frames), step):
        area = np.pad(frame, reach, mode="edge")[y0 : y1 + 2 * reach, x0 : x1 + 2 * reach]
        area = area - area.mean()
        match = scipy.signal.fftconvolve(area, template[::-1, ::-1], "valid")
        total = scipy.signal.fftconvolve(area, ones, "valid")
        power = scipy.signal.fftconvolve(area * area, ones, "valid") - total**2 / ones.size
        scores = match / np.sqrt(np.maximum(power, 1.0))
        row, column = _peak(scores)
        shifts.append((row - reach, column - reach))
    return step * np.array(shifts, np.float32)


def lids(
    frames: np.ndarray, shifts: np.ndarray, open_eyes: np.ndarray, shut_eyes: np.ndarray,
    box: np.ndarray,
) -> np.ndarray:
    """How far the eyes are shut.

    Args:
      frames: Video, uint8 [T, H, W, 3].
      shifts: Result of `head`, [T, 2].
      open_eyes: Reference picture, uint8 [H, W, 3].
      shut_eyes: The same face with shut eyes, uint8 [H, W, 3].
      box: Box (y0, x0, y1, x1) in 0..1 of the eyes in the reference, [4].

    Returns:
      About 0 for open and 1 for shut eyes, float32 [T].
    """
    pair = _grey(np.stack([open_eyes, shut_eyes]))
    limits = np.array([*pair.shape[1:], *pair.shape[1:]])
    y0, x0, y1, x1 = np.round(np.asarray(box) * limits).astype(int)
    begin = pair[0, y0:y1, x0:x1]
    way = pair[1, y0:y1, x0:x1] - begin
    length = float(np.square(way).sum())
    if length < 1.0:
        raise ValueError("shut_eyes: the eyes look as in open_eyes.")
    grey = _grey(frames)
    margin = int(np.ceil(np.abs(shifts).max())) + 1
    result = []
    for frame, (down, right) in zip(np.pad(grey, ((0, 0), (margin,) * 2, (margin,) * 2),
                                           mode="edge"), shifts):
        top, left = y0 + margin + round(float(down)), x0 + margin + round(float(right))
        found = frame[top : top + y1 - y0, left : left + x1 - x0]
        result.append(float(((found - begin) * way).sum()) / length)
    return np.array(result, np.float32)


def blinks(shut: np.ndarray) -> list[tuple[int, int]]:
    """First frame and end of every blink of a curve of `lids`, [T]."""
    found, start = [], None
    for at, value in enumerate(np.asarray(shut)):
        if start is None and value > _SHUT:
            start = at
        elif start is not None and value < _OPEN:
            found.append((start, at))
            start = None
    if start is not None:
        found.append((start, len(shut)))
    return found


def summarise(
    shifts: list[np.ndarray], shut: list[np.ndarray], fps: float, height: int
) -> Gestures:
    """Statistics over clips.

    Args:
      shifts: Results of `head`, one of every clip.
      shut: Results of `lids`, one of every clip.
      fps: Frames per second.
      height: Height of the picture in pixels.

    Returns:
      `Gestures`.
    """
    found = [blinks(curve) for curve in shut]
    lengths = [end - start for clip in found for start, end in clip]
    minutes = sum(len(curve) for curve in shut) / fps / 60
    return Gestures(
        head_spread=float(np.mean([np.sqrt(s.var(0).sum()) for s in shifts])) / height,
        head_speed=float(np.mean(speeds(shifts, fps, height))),
        blinks_per_minute=len(lengths) / minutes,
        blink_s=float(np.mean(lengths)) / fps if lengths else float("nan"),
    )


def speeds(shifts: list[np.ndarray], fps: float, height: int) -> np.ndarray:
    """Speed of the head between all neighbouring frames, in heights of the picture a second."""
    steps = [np.linalg.norm(np.diff(s, axis=0), axis=1) for s in shifts]
    return np.concatenate(steps) * fps / height


def speed_distance(
    shifts: list[np.ndarray], truth: list[np.ndarray], fps: float, height: int
) -> float:
    """Wasserstein distance of two distributions of the head's speed over the true mean."""
    true = speeds(truth, fps, height)
    distance = scipy.stats.wasserstein_distance(speeds(shifts, fps, height), true)
    return float(distance / max(true.mean(), 1e-6))
