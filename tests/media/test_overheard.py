"""What a listener hears of the other party: decibels, order, lateness, bounds."""

import numpy as np

from tm_jax.media import overheard


def test_loudness_is_decibels():
    # A sine of full scale has 3 dB less than full scale; 80 dB are the whole range.
    tone = np.sin(2 * np.pi * 100 * np.arange(6400) / 16000)
    levels = overheard.loudness(np.stack([tone, tone / 10, tone / 1e5, 0 * tone]), 640)
    assert levels.shape == (4, 10)
    expected = [1 - 3.0103 / 80, 1 - 23.0103 / 80, 0, 0]
    np.testing.assert_allclose(levels, np.tile(np.array(expected)[:, None], 10), atol=1e-5)


def _levels(parts):
    """Sound with one level per frame of 10 samples, in 1/8 of the range."""
    levels = 10 ** ((np.asarray(parts, np.float64) / 8 - 1) * 80 / 20) * (np.asarray(parts) > 0)
    return np.repeat(levels, 10).astype(np.float32)


def _taken(queue, frames):
    return np.round(8 * queue.take(frames)).astype(int).tolist()


def test_sound_ahead_is_heard_in_order_whatever_its_pieces():
    queue = overheard.Overheard(10)
    sound = _levels([1, 2, 3, 4, 5, 6])
    for start in range(0, 60, 7):
        queue.push(sound[start : start + 7])
    assert [_taken(queue, 2) for _ in range(4)] == [[1, 2], [3, 4], [5, 6], [0, 0]]


def test_late_sound_is_heard_late_and_whole():
    queue = overheard.Overheard(10)
    assert _taken(queue, 3) == [0, 0, 0]
    queue.push(_levels([1]))
    assert _taken(queue, 3) == [0, 0, 1]  # What follows joins without a gap.
    queue.push(_levels([2, 3, 4, 5]))
    assert _taken(queue, 3) == [2, 3, 4]
    assert len(queue) == 10
    queue.clear()
    assert _taken(queue, 1) == [0]


def test_live_sound_does_not_pile_up():
    queue = overheard.Overheard(10, most_frames=1)
    queue.push(_levels([1, 2, 3, 4, 5, 6]))
    assert _taken(queue, 2) == [4, 5]
    assert _taken(queue, 2) == [0, 6]
