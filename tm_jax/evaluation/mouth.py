"""Measures a mouth from pixels alone, by classical means: no network, no motion labels.

What opens when a mouth opens is a dark hollow, partly hidden by white teeth and a tongue. In
every column of the mouth's box the hollow reaches from the first to the last pixel that is
dark or tooth-white; what lies between them (a tongue, say) counts as well.
"""

import numpy as np

_DARK = (0.10, 0.26)  # luminance: certainly hollow, certainly not
_WHITE = (0.06, 0.20)  # least channel above the skin's: perhaps a tooth, certainly one
_LEAST = 0.45  # least channel below which nothing is a tooth
_GREY = (0.07, 0.17)  # colourfulness: certainly a tooth, certainly not


def _ramp(values: np.ndarray, ends: tuple[float, float]) -> np.ndarray:
    """Rises linearly from 0 at the first end to 1 at the second."""
    return np.clip((values - ends[0]) / (ends[1] - ends[0]), 0.0, 1.0)


def _crops(frames: np.ndarray, boxes: np.ndarray) -> list[np.ndarray]:
    """The box of each frame as float32 in 0..1, [h, w, 3] each."""
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"frames must be uint8 [T, H, W, 3], got {frames.dtype} {frames.shape}.")
    count, height, width, _ = frames.shape
    boxes = np.broadcast_to(np.asarray(boxes, np.float64), (count, 4))
    limits = np.array([height, width, height, width])
    corners = np.clip(np.round(boxes * limits), 0, limits).astype(int)
    crops = [f[y0:y1, x0:x1] for f, (y0, x0, y1, x1) in zip(frames, corners)]
    if any(crop.size == 0 for crop in crops):
        raise ValueError("mouth_box must cover at least one pixel of every frame.")
    return [crop.astype(np.float32) / 255.0 for crop in crops]


def _skin_level(crops: list[np.ndarray]) -> float:
    """The least colour channel of the skin: its median on the boxes' left and right edges."""
    edges = [np.concatenate([c[:, :2], c[:, -2:]], axis=1).min(-1).ravel() for c in crops]
    return float(np.median(np.concatenate(edges)))


def _height(crop: np.ndarray, skin: float) -> float:
    """Height of the hollow in pixels: the mean over the tallest tenth of the columns."""
    luminance = crop @ np.array([0.299, 0.587, 0.114], np.float32)
    least, greatest = crop.min(-1), crop.max(-1)
    dark = 1.0 - _ramp(luminance, _DARK)
    bright = least - max(_LEAST, skin)
    tooth = _ramp(bright, _WHITE) * (1.0 - _ramp(greatest - least, _GREY))
    hollow = np.maximum(dark, tooth)
    above = np.maximum.accumulate(hollow, axis=0)
    below = np.maximum.accumulate(hollow[::-1], axis=0)[::-1]
    columns = np.sort(np.minimum(above, below).sum(0))
    return float(columns[-max(1, len(columns) // 10) :].mean())


def opening(frames: np.ndarray, mouth_box: np.ndarray) -> np.ndarray:
    """Measures how far the mouth is open.

    Args:
      frames: Video, uint8 [T, H, W, 3].
      mouth_box: Box (y0, x0, y1, x1) in 0..1 that holds the mouth at any opening: [4] for the
        whole clip or [T, 4], one for each frame.

    Returns:
      Height of the mouth's hollow relative to the height of its box, float32 [T].
    """
    crops = _crops(frames, mouth_box)
    skin = _skin_level(crops)
    return np.array([_height(crop, skin) / crop.shape[0] for crop in crops], np.float32)


def movement(frames: np.ndarray, mouth_box: np.ndarray) -> np.ndarray:
    """Measures how much the mouth's pixels change from frame to frame.

    Pixels and not differences of `opening`: shut lips that flicker, slide or round have the
    opening 0 throughout, yet move. A head that moves counts too inside a fixed box, so compare
    silence with speech of the same clip.

    Args:
      frames: Video, uint8 [T, H, W, 3].
      mouth_box: Box (y0, x0, y1, x1) in 0..1, one for the whole clip, [4].

    Returns:
      Mean absolute change in 0..1 of the box between frames t and t + 1, float32 [T - 1].
    """
    mouth_box = np.asarray(mouth_box)
    if mouth_box.shape != (4,):
        raise ValueError(f"mouth_box must be [4], got {mouth_box.shape}.")
    crops = np.stack(_crops(frames, mouth_box))
    return np.abs(np.diff(crops, axis=0)).mean((1, 2, 3)).astype(np.float32)
