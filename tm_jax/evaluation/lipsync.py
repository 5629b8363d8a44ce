"""Compares a measured mouth with the true one: correlation, lag, closures.

Curves of an opening come from `mouth.opening` or from labels. Nothing here depends on where a
video comes from; a curve is an array with one value per frame.
"""

from typing import NamedTuple

import numpy as np

_STILL = 1e-6  # A standard deviation below which a curve does not move.


class Lag(NamedTuple):
    """The shift at which two curves agree best.

    Attributes:
      frames: Frames by which the measured curve comes later than the true one.
      correlation: Pearson correlation at that shift.
    """

    frames: int
    correlation: float


class Closures(NamedTuple):
    """How many closures of the lips can be seen.

    Attributes:
      kept: Share of the closures in which the mouth is shut; nan without a closure.
      chance: The same share for intervals of the same length anywhere else in speech;
        nan where speech has no room for one.
      count: Number of closures.
    """

    kept: float
    chance: float
    count: int


def _curves(measured, truth) -> tuple[np.ndarray, np.ndarray]:
    measured, truth = np.asarray(measured, np.float64), np.asarray(truth, np.float64)
    if measured.ndim != 1 or measured.shape != truth.shape or len(measured) < 2:
        raise ValueError(
            "measured and truth must be [T] of the same length, at least 2, "
            f"got {measured.shape} and {truth.shape}."
        )
    return measured, truth


def correlation(measured: np.ndarray, truth: np.ndarray) -> float:
    """Pearson correlation of two curves [T]; 0 if one of them does not move."""
    measured, truth = _curves(measured, truth)
    if min(measured.std(), truth.std()) < _STILL:
        return 0.0
    return float(np.corrcoef(measured, truth)[0, 1])


def best_lag(measured: np.ndarray, truth: np.ndarray, reach: int = 5) -> Lag:
    """Finds the shift of -reach to +reach frames at which the curves agree best.

    Every shift is judged on the same frames of the truth, so that none has an advantage.

    Args:
      measured: Measured curve, [T].
      truth: True curve, [T].
      reach: Largest shift in frames.

    Raises:
      ValueError: Curves that are not longer than twice the reach.
    """
    measured, truth = _curves(measured, truth)
    inner = len(truth) - 2 * reach
    if inner < 2:
        raise ValueError(f"curves of {len(truth)} frames are too short for reach={reach}.")
    fixed = truth[reach : reach + inner]
    shifts = sorted(range(-reach, reach + 1), key=abs)  # The smallest shift wins a tie.
    scores = [correlation(measured[reach + s : reach + s + inner], fixed) for s in shifts]
    best = int(np.argmax(scores))
    return Lag(shifts[best], scores[best])


def runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """First frame and end of every stretch of true values of a mask [T]."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2])]


def closures(
    measured: np.ndarray, closed: np.ndarray, spoken: np.ndarray, *,
    share: float = 0.15, tolerance: int = 1, least: float = 0.02,
) -> Closures:
    """Counts the closures in which the mouth is seen shut.

    Args:
      measured: Measured opening, [T], 0 or more.
      closed: Frames in which the lips must be shut, bool [T]; every stretch counts once.
      spoken: Frames of speech, bool [T].
      share: A mouth below this share of the clip's 95th percentile is shut.
      tolerance: Frames by which a closure may be early or late.
      least: 95th percentile below which a mouth never opens; it then keeps no closure.
    """
    measured = np.asarray(measured, np.float64)
    closed, spoken = np.asarray(closed, bool), np.asarray(spoken, bool)
    if measured.ndim != 1 or not measured.shape == closed.shape == spoken.shape:
        raise ValueError(
            "measured, closed and spoken must be [T] of the same length, got "
            f"{measured.shape}, {closed.shape} and {spoken.shape}."
        )
    stretches = runs(closed)
    if not stretches:
        return Closures(float("nan"), float("nan"), 0)
    top = np.percentile(measured, 95)
    shut = measured < share * top if top >= least else np.zeros(len(measured), bool)

    def seen(first, end):
        return shut[max(0, first - tolerance) : end + tolerance].any()

    length = max(1, round(np.mean([b - a for a, b in stretches])))
    near = np.zeros(len(closed), bool)
    for a, b in stretches:
        near[max(0, a - 2 * tolerance) : b + 2 * tolerance] = True
    free = [
        seen(at, at + length) for at in range(len(closed) - length + 1)
        if spoken[at : at + length].all() and not near[at : at + length].any()
    ]
    chance = float(np.mean(free)) if free else float("nan")
    return Closures(float(np.mean([seen(a, b) for a, b in stretches])), chance, len(stretches))
