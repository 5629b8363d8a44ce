"""What a listener hears of the other party: order, lateness, bounds, what was before."""

import numpy as np

from tm_jax.media import partner


def _sound(frames):
    """Sound of frames of 10 samples that hold their number."""
    return np.repeat(np.asarray(frames, np.float32), 10)


def _taken(queue, frames):
    window = queue.take(frames).reshape(-1, 10)
    assert (window == window[:, :1]).all()  # No frame is broken.
    return window[:, 0].astype(int).tolist()


def test_sound_ahead_is_heard_in_order_whatever_its_pieces():
    queue = partner.PartnerQueue(10)
    sound = _sound([1, 2, 3, 4, 5, 6])
    for start in range(0, 60, 7):
        queue.push(sound[start : start + 7])
    assert [_taken(queue, 2) for _ in range(4)] == [[1, 2], [3, 4], [5, 6], [0, 0]]


def test_late_sound_is_heard_late_and_whole():
    queue = partner.PartnerQueue(10)
    assert _taken(queue, 3) == [0, 0, 0]
    queue.push(_sound([1]))
    assert _taken(queue, 3) == [0, 0, 1]  # What follows joins without a gap.
    queue.push(_sound([2, 3, 4, 5]))
    assert _taken(queue, 3) == [2, 3, 4]
    assert len(queue) == 10
    queue.clear()
    assert _taken(queue, 1) == [0]


def test_live_sound_does_not_pile_up():
    queue = partner.PartnerQueue(10, most_frames=1)
    queue.push(_sound([1, 2, 3, 4, 5, 6]))
    assert _taken(queue, 2) == [4, 5]
    assert _taken(queue, 2) == [0, 6]


def test_what_was_before_comes_with_a_chunk():
    queue = partner.PartnerQueue(10, before=30)
    queue.push(_sound([1, 2, 3, 4]))
    assert _taken(queue, 2) == [0, 0, 0, 1, 2]
    assert _taken(queue, 2) == [0, 1, 2, 3, 4]
    assert _taken(queue, 1) == [2, 3, 4, 0]
    queue.clear()
    assert _taken(queue, 1) == [0, 0, 0, 0]
