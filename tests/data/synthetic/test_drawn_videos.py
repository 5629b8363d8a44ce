"""What drawn videos show and say: turns, the voice of the right one, lips with the sound."""

import dataclasses

import numpy as np
import pytest

from tm_jax.data.corpus import speech
from tm_jax.data.synthetic import drawn_videos
from tm_jax.data.synthetic import motion as motion_lib

_OPEN = motion_lib.COLUMNS.index("mouth_open")


@pytest.fixture(scope="module")
def voices():
    return drawn_videos.voices(None)


def _scene(voices, kind, seed=0, seconds=12.0):
    config = drawn_videos.Config(seconds=seconds, kind=kind, partner=True)
    return drawn_videos._scene(np.random.default_rng(seed), voices, config, 0)


def _level(sound):
    return np.sqrt(np.square(sound.reshape(-1, 640)).mean(1))


def test_the_recordings_of_the_package_are_cut_at_pauses(voices):
    assert [voice.name for voice in voices] == ["dashwood_amiable", "dashwood_leisure"]
    assert all(voice.split == "held_out" for voice in voices)
    for voice in voices:
        assert len(voice) >= 2
        for index in range(len(voice)):
            sound, phones = voice.utterance(index)
            assert 0.5 < len(sound) / 16000 < 16 and np.abs(sound).max() > 0.05
            starts, ends, ids = phones.T
            assert starts[0] == 0 and ends[-1] == pytest.approx(len(sound) / 16000, abs=0.02)
            np.testing.assert_allclose(starts[1:], ends[:-1], atol=1e-5)
            assert (ids != speech.PHONE_ID["SIL"]).any()
    total = sum(len(voice.audio) for voice in voices) / 16000
    assert 24 < total < 25.5


def test_who_talks_is_heard_and_moves_its_lips(voices):
    motion, own, other = _scene(voices, "talking")
    assert motion.shape == (300, len(motion_lib.COLUMNS)) and own.shape == (300 * 640,)
    assert _level(own).max() > 0.05 and _level(other).max() < 0.01
    loud = np.convolve(_level(own), np.ones(3) / 3, "same")
    assert np.corrcoef(loud, motion[:, _OPEN])[0, 1] > 0.4
    for column in ("yaw", "pitch", "head_x", "blink_left", "gaze_x", "brow", "breath"):
        assert np.ptp(motion[:, motion_lib.COLUMNS.index(column)]) > 0.1, column


def test_who_listens_is_silent_and_keeps_its_mouth_shut(voices):
    motion, own, other = _scene(voices, "listening")
    assert _level(own).max() < 0.01 and _level(other).max() > 0.05
    assert motion[:, _OPEN].max() == 0


def test_a_conversation_goes_by_turns(voices):
    motion, own, other = _scene(voices, "conversing")
    mine, theirs = _level(own) > 0.015, _level(other) > 0.015
    assert mine.mean() > 0.1 and theirs.mean() > 0.1
    assert (mine & theirs).mean() < 0.05
    assert motion[~mine & theirs, _OPEN].max() < 0.05 < motion[mine, _OPEN].max()


def test_a_seed_is_a_scene(voices):
    first, again, other = (_scene(voices, "conversing", seed, 2.0) for seed in (1, 1, 2))
    for a, b, c in zip(first, again, other):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)


@pytest.mark.parametrize("wrong", [dict(kind="singing"), dict(seconds=0.1), dict(seconds=1e9)])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        dataclasses.replace(drawn_videos.Config(), **wrong)
