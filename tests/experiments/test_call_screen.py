"""The measurement of a call on a screen, on appearances whose faults are known."""

import numpy as np
import pytest

from experiments.call import marks
from experiments.call import screen
from tm_jax.serving.runtime import fake


def _speech(seconds):
    """Loudness of something like words, every 10 ms, with pauses."""
    rng = np.random.default_rng(0)
    words = np.repeat(rng.uniform(0, 0.1, int(seconds * 4)), 25)
    return words * (np.repeat(rng.random(len(words) // 25), 25) > 0.3)


def _call(seconds, behind_ms):
    """Appearances of a call whose picture is that far behind its sound, and the sound."""
    loudness = _speech(seconds)
    sounds = [{"ms": 10.0 * index, "level": level} for index, level in enumerate(loudness)]
    numbers = np.arange(len(loudness) // 4)
    levels = loudness.reshape(-1, 4).mean(1)  # Of the 40 ms that belong to a frame.
    jitter = np.random.default_rng(1).uniform(0, 16, len(numbers))  # Of a screen with 60 Hz.
    return numbers, 40.0 * numbers + behind_ms + jitter - 8, levels, sounds


@pytest.mark.parametrize("behind_ms", [-120.0, 0.0, 45.0])
def test_the_shift_of_the_picture_is_found(behind_ms):
    _, frame_ms, levels, sounds = _call(30, behind_ms)
    found = screen.offsets(frame_ms, levels, sounds)
    assert len(found) >= 4
    np.testing.assert_allclose(found, behind_ms, atol=12)


def test_silence_says_nothing_about_the_shift():
    _, frame_ms, levels, sounds = _call(12, 0.0)
    assert not screen.offsets(frame_ms, 0 * levels, [{**s, "level": 0.0} for s in sounds])


def test_late_and_missing_frames_are_counted():
    numbers, ms, *_ = _call(20, 0.0)
    assert [part.sum() for part in screen.lateness(numbers, ms)] == [0, 0]
    ms[200] += 60
    kept = np.delete(np.arange(len(numbers)), [100, 101, 300])
    assert [part.sum() for part in screen.lateness(numbers[kept], ms[kept])] == [1, 3]


def test_seconds_in_which_the_host_took_processors_are_known():
    samples = [(0, 0, 0), (1000, 200, 1), (2000, 400, 40), (3000, 600, 42)]
    ms = np.array([-5.0, 5, 995, 1005, 1995, 2005, 3005])
    found = screen.undisturbed(ms, samples)
    np.testing.assert_array_equal(found, [False, True, True, False, False, True, False])


def test_the_way_from_the_voice_to_the_picture_is_measured():
    """What is heard again is 800 ms old."""
    numbers, ms, levels, sounds = _call(30, 15.0)
    frames = [{"number": int(n), "level": v, "ms": at} for n, at, v in zip(numbers, ms, levels)]
    voice = [{**s, "ms": s["ms"] - 800} for s in sounds]
    found = screen.summary(frames, sounds, voice, 0.5)
    assert found["picture_after_sound_ms"]["median"] == pytest.approx(15, abs=12)
    assert found["voice_to_picture_ms"]["windows"] >= 4
    assert found["voice_to_picture_ms"]["median"] == pytest.approx(815, abs=15)
    assert found["voice_to_picture_ms"]["p95"] == pytest.approx(815, abs=25)


def test_frames_missing_in_disturbed_seconds_count_apart():
    numbers, ms, levels, sounds = _call(20, 0.0)
    frames = [
        {"number": int(n), "level": level, "ms": at}
        for n, at, level in zip(numbers, ms, levels) if n not in (200, 201, 400)
    ]  # fmt: skip
    samples = [(0, 0, 0), (7000, 1400, 0), (9000, 1800, 300), (20000, 4000, 300)]
    found = screen.summary(frames, sounds, sounds, 0.5, samples)
    assert (found["late"], found["missing"]) == (0, 3)
    assert found["undisturbed_seconds"] == pytest.approx(15, abs=0.2)
    assert found["undisturbed_late_share"] == pytest.approx(1 / 375, rel=0.02)


def test_numbers_that_begin_again_go_on():
    numbers = np.arange(4000, 4200)
    seen = numbers % (1 << marks.BITS)
    np.testing.assert_array_equal(screen.unwrap(seen), numbers - 4000)


def test_marks_say_number_and_loudness_of_a_frame():
    motor = marks.Marked(fake.FakeBackend(64, chunk_frames=3))
    lane = motor.lane(2)
    sounds = np.zeros((2, motor.before + 3 * 640 + motor.after), np.float32)
    sounds[1, motor.before + 640 : motor.before + 1280] = 0.075  # The second frame of one stream.
    no, others = np.zeros(2, bool), np.zeros((2, 3), np.float32)
    for first in (0, 3):
        frames = motor.step(lane, sounds, np.full(2, -1, np.int32), no, others).wait().frames
        row = frames[:, :, 9, 11::2, 0]  # The middle of the squares.
        bits = row[..., : marks.BITS] > 127
        numbers = (bits << np.arange(marks.BITS)).sum(-1)
        np.testing.assert_array_equal(numbers, [[first, first + 1, first + 2]] * 2)
        levels = frames[:, :, 8, 8, 0]
        np.testing.assert_allclose(levels, [[0, 0, 0], [0, 128, 0]], atol=1)
