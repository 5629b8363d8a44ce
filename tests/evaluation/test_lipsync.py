"""Lip-sync measures on curves whose lag and closures are known."""

import numpy as np
import pytest

from tm_jax.evaluation import lipsync


def _curve(frames: int = 240, seed: int = 0) -> np.ndarray:
    """Something like an opening: smooth, never negative, without a period."""
    rng = np.random.default_rng(seed)
    window = np.hanning(7)
    values = np.convolve(rng.standard_normal(frames + 6), window / window.sum(), "valid")
    return np.maximum(values, 0)


@pytest.mark.parametrize("lag", [-5, -2, 0, 1, 4])
def test_a_known_lag_is_found(lag):
    truth = _curve(260)
    rng = np.random.default_rng(1)
    measured = 0.3 + 0.5 * truth + 0.02 * rng.standard_normal(len(truth))
    late = measured[10 - lag : 250 - lag]
    found = lipsync.best_lag(late, truth[10:250])
    assert found.frames == lag
    assert found.correlation > 0.95


def test_correlation_is_pearsons():
    a, b = _curve(seed=2), _curve(seed=3)
    expected = np.mean((a - a.mean()) * (b - b.mean())) / (a.std() * b.std())
    np.testing.assert_allclose(lipsync.correlation(a, b), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(lipsync.correlation(a, 1 - 2 * a), -1, rtol=0, atol=1e-12)


def test_a_still_mouth_has_neither_correlation_nor_lag():
    still = np.full(100, 0.2)
    assert lipsync.correlation(still, _curve(100)) == 0
    assert lipsync.best_lag(still, _curve(100)) == (0, 0.0)


def _speech(shut: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An open mouth that is shut at the given closures out of those at 20, 40, 60 and 80."""
    measured, closed = np.ones(100), np.zeros(100, bool)
    for at in (20, 40, 60, 80):
        closed[at : at + 2] = True
    for at in shut:
        measured[at] = 0.05
    return measured, closed, np.ones(100, bool)


@pytest.mark.parametrize(
    "shut, kept", [([], 0), ([20, 40], 0.5), ([19, 42, 60, 81], 1), ([18, 43], 0)]
)
def test_closures_are_counted_within_a_frame(shut, kept):
    found = lipsync.closures(*_speech(shut))
    assert (found.kept, found.count) == (kept, 4)
    assert found.chance < 0.05  # Only what is shut just outside the tolerance counts.


def test_chance_counts_a_mouth_that_is_shut_anywhere():
    measured, closed, spoken = _speech([])
    measured[:50] = 0.0
    found = lipsync.closures(measured, closed, spoken)
    assert found.kept == 0.5
    assert 0.4 < found.chance < 0.6


def test_a_mouth_that_never_opens_keeps_no_closure():
    _, closed, spoken = _speech([])
    assert lipsync.closures(np.zeros(100), closed, spoken).kept == 0
    none = lipsync.closures(np.ones(100), np.zeros(100, bool), spoken)
    assert np.isnan(none.kept) and none.count == 0


def test_wrong_input_is_explained():
    with pytest.raises(ValueError, match="same length"):
        lipsync.correlation(np.zeros(5), np.zeros(6))
    with pytest.raises(ValueError, match="too short"):
        lipsync.best_lag(np.zeros(8), np.zeros(8))
    with pytest.raises(ValueError, match="same length"):
        lipsync.closures(np.zeros(5), np.zeros(5, bool), np.zeros(4, bool))
