"""What the lips must do for given phones."""

import numpy as np
import pytest

from tm_jax.data.corpus import speech
from tm_jax.data.synthetic import visemes

_OPEN, _WIDTH, _ROUND, _TEETH, _TONGUE, _SMILE = range(6)


def _say(text, each_s=0.12, start_s=0.4, silence_s=0.6):
    """Phones of equal length between two silences."""
    sil = speech.PHONE_ID["SIL"]
    phones, clock = [(0.0, start_s, sil)], start_s
    for name in text.split():
        phones.append((clock, clock + each_s, speech.PHONE_ID[name]))
        clock += each_s
    return phones + [(clock, clock + silence_s, sil)]


def _frame(phones, index, fps=25):
    """The frame whose centre is nearest to the centre of a phone."""
    return int(np.round((phones[index][0] + phones[index][1]) / 2 * fps - 0.5))


def test_every_phone_has_targets():
    named = set(visemes.TARGETS) | set(visemes.DIPHTHONGS)
    assert named == set(speech.PHONES)
    table = np.array(list(visemes.TARGETS.values()))
    assert np.all(table[:, [0, 2, 3, 4]] >= 0) and np.all(np.abs(table[:, :5]) <= 1)


@pytest.mark.parametrize("name", ["M", "B", "P"])
@pytest.mark.parametrize("each_s", [0.05, 0.08, 0.15])
@pytest.mark.parametrize("offset_s", [0.0, 0.013, 0.027])
def test_lips_really_meet(name, each_s, offset_s):
    # 0.05 s is the shortest closure of connected speech; offsets move it against the
    # frames, so no closure may fall between two of them.
    phones = _say(f"AA {name} AA", each_s, 0.4 + offset_s)
    curves = visemes.mouth_curves(phones, 40)
    shut = visemes.closures(phones, 40)
    first, last = _frame(phones, 1), _frame(phones, 3)
    assert curves[first : last + 1, _OPEN].min() < 1e-3
    assert shut[first : last + 1].any() and not shut[:first].any()
    assert curves[shut, _OPEN].max() < 2e-3
    if each_s > 0.06:
        assert min(curves[first, _OPEN], curves[last, _OPEN]) > 0.35


def test_shapes_of_vowels_and_consonants():
    def shape(text):
        phones = _say(text)
        return visemes.mouth_curves(phones, 60)[_frame(phones, 2)]

    aa, iy, uw = shape("D AA D"), shape("D IY D"), shape("D UW D")
    assert aa[_OPEN] > 0.7 > 0.5 > iy[_OPEN] and uw[_OPEN] < 0.5
    assert uw[_ROUND] > 0.7 and uw[_WIDTH] < -0.5
    assert iy[_WIDTH] > 0.5 and iy[_ROUND] < 0.1
    assert shape("AA W AA")[_ROUND] > 0.6
    f, s, th = shape("AA F AA"), shape("AA S AA"), shape("AA TH AA")
    assert f[_TEETH] > 0.7 and f[_OPEN] < 0.3
    assert s[_TEETH] > 0.7 and s[_OPEN] < 0.45
    assert th[_TONGUE] > 0.6 and max(s[_TONGUE], aa[_TONGUE]) < 0.3


def test_rounding_comes_before_its_vowel():
    phones = _say("S T UW T S", 0.1)
    rounding = visemes.mouth_curves(phones, 400, fps=200)[:, _ROUND]
    peak_s = (np.argmax(rounding) + 0.5) / 200
    assert 0.02 < (phones[3][0] + phones[3][1]) / 2 - peak_s < 0.08
    # Half way there while the consonant still sounds.
    assert rounding[int(phones[3][0] * 200)] > 0.3


def test_silence_shuts_the_mouth_within_150_ms():
    phones = _say("AA AA AA", 0.15)
    curves = visemes.mouth_curves(phones, 300, fps=100)
    end = phones[3][1]
    assert curves[int((end + 0.15) * 100) :, _OPEN].max() < 1e-3
    assert curves[: int((phones[1][0] - 0.12) * 100), _OPEN].max() < 1e-3
    # Frames after the last phone are silence too.
    assert visemes.mouth_curves(phones[1:4], 60)[-20:].max() < 1e-2


def test_bounds_and_smoothness():
    rng = np.random.default_rng(0)
    names = rng.choice(speech.PHONES, 200)
    phones = _say(" ".join(names), 0.08)
    curves = visemes.mouth_curves(phones, 1700, fps=100)
    assert curves.dtype == np.float32 and np.isfinite(curves).all()
    assert curves.min(axis=0)[[0, 2, 3, 4, 5]].min() >= 0 and np.abs(curves).max() <= 1
    # The lips may meet within 50 ms, so within 10 ms they may move by 0.3.
    assert np.abs(np.diff(curves, axis=0)).max() < 0.32
    assert not curves[:, _SMILE].any()


def test_one_frame_later_is_one_frame_later():
    phones = np.array(_say("M AY B OW T W IH L F L OW T"))
    later = phones + np.array([0.04, 0.04, 0])
    audio = np.random.default_rng(0).standard_normal(30000) * 0.1
    delayed = np.concatenate([np.zeros(640), audio])
    a = visemes.mouth_curves(phones, 60, audio=audio)
    b = visemes.mouth_curves(later, 61, audio=delayed)
    np.testing.assert_allclose(b[1:], a, rtol=0, atol=1e-5)  # Measured 6e-7.


def test_loud_vowels_open_wider_at_any_recording_level():
    phones = _say("T AA T AA T AA T", 0.15)
    rate = speech.SAMPLE_RATE
    audio = 0.1 * np.random.default_rng(0).standard_normal(int(phones[-1][1] * rate))
    soft = slice(int(phones[4][0] * rate), int(phones[4][1] * rate))
    audio[soft] *= 0.1
    curves = visemes.mouth_curves(phones, 55, audio=audio)
    loud, quiet = curves[_frame(phones, 2), _OPEN], curves[_frame(phones, 4), _OPEN]
    assert quiet < 0.8 * loud
    scaled = visemes.mouth_curves(phones, 55, audio=0.01 * audio)
    np.testing.assert_allclose(scaled, curves, rtol=0, atol=1e-6)


def test_nothing_said_is_a_shut_mouth():
    assert not visemes.mouth_curves([], 5).any()
    assert not visemes.closures([], 5).any()
    assert visemes.mouth_curves(_say("AA"), 0).shape == (0, 6)
