"""Answers to another voice: when they come, how they are found again, and against chance."""

import numpy as np
import pytest

from tm_jax.data.synthetic import backchannel
from tm_jax.data.synthetic import motion

_PITCH = motion.COLUMNS.index("pitch")
_GAZE = [motion.COLUMNS.index(name) for name in ("gaze_x", "gaze_y")]


def _voice(rng, num_frames):
    """Phrases of 1 to 3.5 s with pauses of 0.4 to 1.5 s, and short breaks within them."""
    voice = np.zeros(num_frames)
    at = 0
    while at < num_frames:
        length = int(25 * rng.uniform(1, 3.5))
        voice[at : at + length] = 1
        voice[at + length // 2 : at + length // 2 + 4] = 0
        at += length + int(25 * rng.uniform(0.4, 1.5))
    return voice


def test_phrases_close_short_breaks_and_drop_short_sounds():
    voice = np.zeros(100)
    voice[10:30] = voice[34:50] = voice[70:72] = voice[80:100] = 1
    np.testing.assert_array_equal(backchannel.phrases(voice), [[10, 50], [80, 100]])
    # The last one is not over, so it is not answered; 0.6 s would be too short.
    np.testing.assert_array_equal(backchannel.ends(voice), [50])
    assert not len(backchannel.ends(np.repeat([0.0, 1.0, 0.0], [20, 15, 40])))
    assert backchannel.phrases(np.zeros(50)).shape == (0, 2)


def test_nods_follow_phrases_far_more_often_than_by_chance():
    found = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        voice = _voice(rng, 1500)
        curves = motion.listening(rng, 1500, other=voice)
        starts = backchannel.nods(curves[:, _PITCH])
        found.append(backchannel.answered(starts, backchannel.ends(voice), 1500))
    answered, chance = np.mean(found, axis=0)
    assert 0.5 < answered < 0.8  # Drawn with 0.65; a few are hidden by a moving head.
    assert chance < 0.3
    # Nods that know nothing of the voice are no answers: the measure itself is fair.
    idle = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        voice = _voice(rng, 1500)
        starts = backchannel.nods(motion.listening(rng, 1500)[:, _PITCH])
        idle.append(backchannel.answered(starts, backchannel.ends(voice), 1500))
    answered, chance = np.mean(idle, axis=0)
    assert abs(answered - chance) < 0.06


def test_nods_begin_a_quarter_to_half_a_second_after_the_phrase():
    rng = np.random.default_rng(0)
    voice = np.repeat(np.tile([1.0, 0.0], 30), 40)  # 1.6 s of speech, 1.6 s of pause.
    delays = []
    for _ in range(20):
        drawn = backchannel.answers(rng, voice)
        starts = drawn.nods - backchannel.NOD_S / 2
        paused = voice[np.minimum((starts * 25).astype(int), len(voice) - 1)] == 0
        phase = (starts[paused] - 1.6) % 3.2
        delays += list(phase[phase < 0.6])
    assert len(delays) > 200
    assert 0.25 < min(delays) and max(delays) <= 0.5


def test_nods_are_found_and_slow_motion_is_not_taken_for_them():
    frames = 2000
    slow = 0.3 * np.sin(2 * np.pi * 0.3 * np.arange(frames) / 25)
    assert not len(backchannel.nods(slow))
    at = np.arange(60, frames - 60, 75)
    bumps = motion._bumps(frames, 25, (at + 6) / 25, np.full(len(at), 0.35), 0.5)
    again = motion._bumps(frames, 25, (at + 18) / 25, np.full(len(at), 0.3), 0.5)
    found = backchannel.nods(slow + bumps + again)
    assert len(found) == len(at)  # A second nod in a row is not counted again.
    assert np.abs(found - at).max() <= 2
    assert not len(backchannel.nods(np.zeros(3)))


def test_chance_is_what_shifted_nods_give():
    starts = np.arange(0, 1000, 50)
    ends = starts + 40  # A nod 10 frames after every phrase, at regular times.
    answered, chance = backchannel.answered(starts, ends, 1000, within_s=(0.3, 0.5))
    assert answered == 1
    np.testing.assert_allclose(chance, 6 / 50, atol=0.02)  # 6 of 50 delays count.
    assert np.isnan(backchannel.answered(starts, np.zeros(0, int), 1000)).all()


def test_the_mouth_stays_shut_and_the_eyes_on_the_speaker():
    looked, quiet = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        voice = np.zeros(1500)
        voice[300:1200] = _voice(rng, 900)
        curves = motion.listening(rng, 1500, other=voice)
        assert not curves[:, :5].any()
        away = np.abs(curves[:, _GAZE]).max(1) > 0.1
        looked.append(away[voice > 0.5].mean())
        quiet.append(np.concatenate([away[:300], away[1240:]]).mean())
    assert np.mean(looked) < 0.4 * np.mean(quiet)


def test_turns_of_a_conversation():
    rng = np.random.default_rng(0)
    mouth = np.tile(np.abs(np.sin(np.arange(600) / 3))[:, None], (1, 6)).astype(np.float32)
    speaks = np.repeat([1.0, 0.0, 1.0, 0.0], 150)
    other = np.repeat([0.0, 1.0, 0.0, 1.0], 150)
    other[200:240] = 0
    curves = motion.conversing(rng, mouth, speaks, other)
    listens = speaks == 0
    assert not curves[listens, :5].any()
    np.testing.assert_array_equal(curves[~listens, :5], mouth[~listens, :5])
    # Nothing but the lips changes faster at a change of turns than elsewhere.
    steps = np.abs(np.diff(curves[:, motion.BODY + [motion.COLUMNS.index("brow")]], axis=0))
    for change in (150, 300, 450):
        assert np.all(steps[change - 2 : change + 2] <= steps.max(axis=0) * 0.999)


@pytest.mark.parametrize("shape", [(10,), (20, 2)])
def test_a_voice_of_another_length_is_refused(shape):
    with pytest.raises(ValueError, match=r"other: expected \[20\]"):
        motion.listening(np.random.default_rng(0), 20, other=np.zeros(shape))
