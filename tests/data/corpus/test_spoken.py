"""What is said in every frame of a track, against phones laid by hand."""

import types

import numpy as np

from tm_jax.data.corpus import speech
from tm_jax.data.corpus import spoken
from tm_jax.data.corpus import tracks

_ID = speech.PHONE_ID


def _speaker(rows, seconds, name="allison"):
    """One utterance: a tone that is loud while a vowel is said."""
    time = np.arange(int(seconds * 16000)) / 16000
    sound = 0.01 * np.sin(2 * np.pi * 200 * time)
    for start, end, phone in rows:
        if phone == _ID["AA"]:
            sound[int(start * 16000) : int(end * 16000)] *= 30
    pcm = np.float32(sound)
    return types.SimpleNamespace(
        name=name, audio=pcm, bounds=np.zeros((1, 2)),
        utterance=lambda index: (pcm, np.array(rows, np.float64)),
    )


def test_phones_are_those_at_the_centres_and_gaps_are_unknown():
    rows = [(0.0, 0.05, _ID["SIL"]), (0.05, 0.11, _ID["M"]), (0.16, 0.2, _ID["AA"])]
    found = spoken.sampled(rows, 11, 50)
    u, s, m, a = spoken.UNKNOWN, _ID["SIL"], _ID["M"], _ID["AA"]
    # Centres at 10, 30, ... 210 ms.
    np.testing.assert_array_equal(found, [s, s, m, m, m, u, u, u, a, a, u])
    np.testing.assert_array_equal(spoken.sampled([], 3, 50), [u] * 3)


def test_voice_activity_is_speech_silence_or_unknown():
    u, s, m = spoken.UNKNOWN, _ID["SIL"], _ID["M"]
    phones = np.array([[m, s], [s, m], [m, u]])
    np.testing.assert_array_equal(spoken.voice(phones), [0, 1, u])


def test_a_track_says_what_lies_under_its_sound():
    rows = [(0.0, 0.2, _ID["SIL"]), (0.2, 0.6, _ID["AA"]), (0.6, 0.8, _ID["SIL"])]
    track = spoken.track(_speaker(rows, 0.8), np.random.default_rng(3), 200)
    power = np.square(track.audio.reshape(400, 320)).mean(1)
    loud = power > 0.5 * np.percentile(power, 95)
    np.testing.assert_array_equal(track.phones.ravel() == _ID["AA"], loud)
    assert 0.2 < loud.mean() < 0.6 and set(np.unique(track.active)) == {0, 1}
    # Loud frames away from the edges of the vowel, which are smoothed.
    inside = np.convolve(track.active, np.ones(5), "same") == 5
    assert inside.any()
    np.testing.assert_allclose(track.level[inside], 1, atol=0.01)
    assert track.level[track.active == 0].min() < -0.3


def test_the_layout_is_that_of_other_tracks():
    rows = [(0.0, 0.2, _ID["SIL"]), (0.2, 0.6, _ID["AA"]), (0.6, 0.8, _ID["SIL"])]
    one = spoken.track(_speaker(rows, 0.8), np.random.default_rng(7), 100, 0.1)
    other = tracks.track(_speaker(rows, 0.8), np.random.default_rng(7), 100, 0.1)
    np.testing.assert_array_equal(one.audio, other.audio)


def test_level_does_not_depend_on_gain():
    rng = np.random.default_rng(0)
    sound = rng.standard_normal(6400).astype(np.float32) * np.repeat([0.01, 0.1, 1, 1, 0.1], 1280)
    phones = np.full((10, 2), _ID["AA"])
    level = spoken.loudness(sound, phones)
    np.testing.assert_allclose(spoken.loudness(0.01 * sound, phones), level, atol=1e-4)
    # The first frames lie 40 dB below the loud ones; those between fall 20 dB below.
    np.testing.assert_allclose(level[[0, 2, 5, 9]], [-1, 0, 1, 0], atol=0.25)
    assert spoken.loudness(sound, np.full((10, 2), _ID["SIL"])).max() == -1


def test_silence_is_known_to_be_silent():
    track = spoken.silence(np.zeros(6400, np.float32))
    assert track.phones.shape == (10, spoken.PARTS) and not track.phones.any()
    assert not track.active.any() and np.all(track.level == -1)
