"""Who is heard how often, and that speech in a track keeps its labels."""

import types

import numpy as np
import pytest

from tm_jax.data.corpus import speech
from tm_jax.data.corpus import tracks


def _speaker(name, minutes):
    return types.SimpleNamespace(name=name, audio=np.zeros(minutes * 100, np.int16))


def test_people_are_heard_as_often_as_all_programs_and_these_as_often_as_each_other(monkeypatch):
    minutes = {
        "asterisk_en_allison": 16, "asterisk_fr_june": 4, "espeak_en": 1, "espeak_fr": 1,
        "flite_slt": 9, "festival_it_pc": 25,
    }  # fmt: skip
    speakers = [_speaker(*pair) for pair in minutes.items()]
    monkeypatch.setattr(speech, "load", lambda folder, split: speakers)
    voices = tracks.Voices("corpus", "train")
    drawn = np.zeros(len(speakers))
    rng = np.random.default_rng(0)
    for _ in range(6000):
        drawn[speakers.index(voices.speaker(rng))] += 1
    expected = [1 / 3, 1 / 6, 1 / 12, 1 / 12, 1 / 6, 1 / 6]
    np.testing.assert_allclose(drawn / drawn.sum(), expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("names", [["librivox_austen"], ["flite_awb", "espeak_de+m1"]])
def test_one_kind_alone_is_heard_all_the_time(monkeypatch, names):
    speakers = [_speaker(name, 4) for name in names]
    monkeypatch.setattr(speech, "load", lambda folder, split: speakers)
    voices, rng = tracks.Voices("corpus", "held_out"), np.random.default_rng(1)
    assert {voices.speaker(rng).name for _ in range(50)} == set(names)
