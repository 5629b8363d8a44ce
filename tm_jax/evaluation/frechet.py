"""Fréchet distance between generated and true clips, in an untrained feature space.

A window of a face's crop is described by how strong its edges, its movements and its colours
are: gradients and differences in time in three octaves, their magnitudes averaged over 4 x 4
cells, as in histograms of gradients and of motion. Why such a space is valid: the distance is
a pseudometric of distributions in any fixed map of clips, zero for equal distributions; a map
that was made before and without the models cannot favour one of them; and these magnitudes
move with what goes wrong in video (blur lowers the finest gradients, flicker and a wrong pace
change the differences in time, a wrong mouth those of its cells). It does not measure what
moves none of them, such as a mouth that fits other words: lip sync measures that.

Magnitudes are taken as logarithms relative to the clip's own reference picture, so that the
variety of characters, which all arms share, does not hide what an arm adds.
"""

import dataclasses

import numpy as np
from PIL import Image

_SIDE = 64  # Crops in pixels.
_CELLS = 4  # Cells across a crop.
_OCTAVES = 3
_LAGS = (1, 4)  # Frames between which movement is measured.
_FLOOR = 0.004  # One grey level: smaller changes are noise.
_MARGIN = 0.1  # Of the face's box.
_WIDTH = 48  # Of the space.
_SEED = 3103  # Of its projection.


def _crops(frames: np.ndarray, box: np.ndarray, shift=(0.0, 0.0)) -> np.ndarray:
    """The face in 0..1, `shift` pixels down and to the right of its box, [T, side, side, 3]."""
    height, width = frames.shape[1:3]
    y0, x0, y1, x1 = np.asarray(box, float)
    dy, dx = _MARGIN * (y1 - y0), _MARGIN * (x1 - x0)
    down, right = float(shift[0]), float(shift[1])
    area = (
        max(0.0, (x0 - dx) * width + right), max(0.0, (y0 - dy) * height + down),
        min(width, (x1 + dx) * width + right), min(height, (y1 + dy) * height + down),
    )  # fmt: skip
    size, box_filter = (_SIDE, _SIDE), Image.Resampling.BOX
    small = [Image.fromarray(f).resize(size, box_filter, box=area) for f in frames]
    return np.stack([np.asarray(s) for s in small]).astype(np.float32) / 255


def _cells(x: np.ndarray) -> np.ndarray:
    """Means over cells, [T, h, w] to [T, cells ** 2]."""
    count, height, width = x.shape
    size = height // _CELLS
    return x.reshape(count, _CELLS, size, _CELLS, width // _CELLS).mean((2, 4)).reshape(count, -1)


def _maps(crops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean strength of edges and colours [n], and of movement [m], over the frames of a window.

    Movement is measured in the frames that have all of their past in the window.
    """
    light = crops @ np.array([0.299, 0.587, 0.114], np.float32)
    still, moving = [], []
    for octave in range(_OCTAVES):
        if octave:
            count, side, _ = light.shape
            light = light.reshape(count, side // 2, 2, side // 2, 2).mean((2, 4))
        edges = np.pad(light, ((0, 0), (1, 1), (1, 1)), mode="edge")
        still.append(_cells(np.abs(edges[:, 2:, 1:-1] - edges[:, :-2, 1:-1]) / 2))
        still.append(_cells(np.abs(edges[:, 1:-1, 2:] - edges[:, 1:-1, :-2]) / 2))
        for lag in _LAGS if len(light) > 1 else ():
            now = light[max(_LAGS) :]
            moving.append(_cells(np.abs(now - light[max(_LAGS) - lag : -lag])))
    colour = [_cells(crops[..., i] - crops[..., 1]) + 1 for i in (0, 2)]
    means = [m.mean(0) for m in (*still, *colour)], [m.mean(0) for m in moving]
    return np.concatenate(means[0]), np.concatenate(means[1]) if moving else np.zeros(0)


def features(
    frames: np.ndarray, reference: np.ndarray, face_box: np.ndarray,
    shifts: np.ndarray | None = None, window: int = 12,
) -> np.ndarray:
    """Describes a clip, window after window.

    Args:
      frames: Video, uint8 [T, H, W, 3].
      reference: The picture it was made from, uint8 [H, W, 3].
      face_box: Box (y0, x0, y1, x1) in 0..1 of the face in the reference, [4].
      shifts: Place of the head in pixels (`gestures.head`), [T, 2]: a window's crop lies where
        the head is on average, so that slow wandering, of which a few clips hold too little
        for a statistic, does not count. None for crops that stay.
      window: Frames of a window, more than 4; what remains at the end is left out.

    Returns:
      [windows, n], float32.
    """
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.dtype != np.uint8 or not max(_LAGS) < window <= len(frames):
        raise ValueError(
            f"frames must be uint8 [T, H, W, 3] with T of {window} or more and window above "
            f"{max(_LAGS)}, got {frames.dtype} {frames.shape}."
        )
    shifts = np.zeros((len(frames), 2)) if shifts is None else np.asarray(shifts)
    model, _ = _maps(_crops(np.asarray(reference)[None], face_box))
    rows = []
    for start in range(0, len(frames) - window + 1, window):
        part = slice(start, start + window)
        still, moving = _maps(_crops(frames[part], face_box, shifts[part].mean(0)))
        edges = np.log(still + _FLOOR) - np.log(model + _FLOOR)
        rows.append(np.concatenate([edges, np.log(moving + _FLOOR)]))
    return np.array(rows, np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Space:
    """A fixed projection of features, in units of the spread of true clips.

    Attributes:
      mean: Mean of the true features, [n].
      scale: Their standard deviation, [n].
      projection: Orthonormal columns of a seeded random matrix, [n, width].
    """

    mean: np.ndarray
    scale: np.ndarray
    projection: np.ndarray

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Features [N, n] to points [N, width]."""
        return (values - self.mean) / self.scale @ self.projection


def space(truth: np.ndarray) -> Space:
    """The space for true features [N, n]; only their scale is taken from them."""
    truth = np.asarray(truth, np.float64)
    if truth.ndim != 2 or len(truth) < 2:
        raise ValueError(f"truth must be [N, n] with N of 2 or more, got {truth.shape}.")
    count = truth.shape[1]
    random = np.random.default_rng(_SEED).standard_normal((count, min(_WIDTH, count)))
    projection, _ = np.linalg.qr(random)
    return Space(truth.mean(0), np.maximum(truth.std(0), 1e-2), projection)


def shrunk_covariance(points: np.ndarray) -> np.ndarray:
    """Covariance of points [N, d], shrunk towards a multiple of the identity.

    Ledoit and Wolf (2004), "A well-conditioned estimator for large-dimensional covariance
    matrices", lemma 3.2 to 3.5: the weight is the estimated error of the sample covariance
    over its distance from the target.
    """
    x = points - points.mean(0)
    count, width = x.shape
    sample = x.T @ x / count
    target = np.trace(sample) / width * np.eye(width)
    distance = np.square(sample - target).sum()
    # Mean squared distance of the single outer products from their mean.
    error = np.square(np.square(x).sum(1)).sum() / count - np.square(sample).sum()
    weight = min(max(error / count, 0.0) / max(distance, 1e-12), 1.0)
    return weight * target + (1 - weight) * sample


def distance(generated: np.ndarray, truth: np.ndarray) -> float:
    """Squared Fréchet distance of the normal distributions that fit two sets of points.

    Dowson and Landau (1982): |m - n|^2 + tr(S + T - 2 (S T)^(1/2)).

    Args:
      generated: Points [N, d].
      truth: Points [M, d].
    """
    generated, truth = np.asarray(generated, np.float64), np.asarray(truth, np.float64)
    if generated.ndim != 2 or truth.ndim != 2 or generated.shape[1] != truth.shape[1]:
        raise ValueError(
            f"generated and truth must be [N, d] and [M, d], got {generated.shape} and "
            f"{truth.shape}."
        )
    if min(len(generated), len(truth)) < 2:
        raise ValueError("generated and truth need two points or more.")
    first, second = shrunk_covariance(generated), shrunk_covariance(truth)
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    mixed = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0)).sum()
    apart = np.square(generated.mean(0) - truth.mean(0)).sum()
    return float(max(apart + np.trace(first) + np.trace(second) - 2 * mixed, 0.0))
