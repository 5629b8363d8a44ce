"""Seams on videos with a jump of known size at known frames."""

import numpy as np
import pytest

from tm_jax.evaluation import seams

_CHUNK = 6


def _ramp(frames: int, jump: int = 0) -> np.ndarray:
    """Grey frames that brighten by 1 level a frame, and by `jump` more at every border."""
    levels = np.arange(frames) + jump * (np.arange(frames) // _CHUNK)
    return np.broadcast_to(levels[:, None, None, None], (frames, 4, 4, 3)).astype(np.uint8)


def test_changes_are_mean_absolute_differences():
    frames = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    values = np.float64(frames) / 255
    expected = [np.mean(np.abs(values[t + 1] - values[t])) for t in range(4)]
    # Measured 2e-8: the result is float32.
    np.testing.assert_allclose(seams.changes(frames), expected, rtol=0, atol=2e-7)
    parts = np.concatenate([seams.changes(frames[:3]), seams.changes(frames[3:], frames[2])])
    np.testing.assert_array_equal(parts, seams.changes(frames))


def test_an_even_video_has_no_seam():
    found = seams.measure(seams.changes(_ramp(60)), _CHUNK)
    np.testing.assert_allclose((found.median, found.p95), 1, rtol=0, atol=1e-5)
    assert found.borders == 9


def test_a_known_seam_is_found():
    found = seams.measure(seams.changes(_ramp(60, jump=3)), _CHUNK)
    expected = (4 / 255 + 1e-4) / (1 / 255 + 1e-4)
    np.testing.assert_allclose(found.median, expected, rtol=0, atol=1e-4)


def test_a_seam_elsewhere_is_not_taken_for_a_border():
    change = seams.changes(_ramp(60, jump=3))
    assert seams.measure(change, _CHUNK, first=2).median < 1
    late = seams.measure(change[4:], _CHUNK, first=2)
    np.testing.assert_allclose(late.median, 3.92, rtol=0, atol=0.02)


def test_shorter_blocks_are_told_from_chunks():
    change = np.full(59, 0.01)
    change[1::2] = 0.02  # Blocks of two frames,
    change[_CHUNK - 1 :: _CHUNK] = 0.03  # three in a chunk.
    assert seams.measure(change, _CHUNK).median == pytest.approx(3.01 / 1.41)
    assert seams.measure(change, _CHUNK, among=2).median == pytest.approx(3.01 / 2.01)


def test_one_bad_border_shows_in_the_tail_alone():
    change = np.full(239, 0.01)
    change[[_CHUNK * 10 - 1, _CHUNK * 20 - 1, _CHUNK * 30 - 1]] = 0.1
    found = seams.measure(change, _CHUNK)
    assert found.median == pytest.approx(1)
    assert found.p95 > 5


def test_a_still_video_has_finite_seams():
    assert seams.measure(np.zeros(59), _CHUNK) == (1.0, 1.0, 9)


def test_wrong_input_is_explained():
    with pytest.raises(ValueError, match="uint8"):
        seams.changes(np.zeros((3, 4, 4, 3), np.float32))
    with pytest.raises(ValueError, match="greater than among"):
        seams.measure(np.zeros(50), _CHUNK, among=_CHUNK)
    with pytest.raises(ValueError, match="no border"):
        seams.measure(np.zeros(5), _CHUNK)
