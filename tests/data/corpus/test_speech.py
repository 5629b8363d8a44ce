"""The corpus format and the split by speaker."""

import numpy as np
import pytest

from tm_jax.data.corpus import alignment
from tm_jax.data.corpus import phones as phones_lib
from tm_jax.data.corpus import speech


def _utterances(rng, count=3):
    result = []
    for index in range(count):
        audio = rng.uniform(-0.5, 0.5, 4000 + 800 * index)
        phones = [(0.0, 0.05, 0), (0.05, 0.125, 1 + index), (0.125, 0.25, 5)]
        result.append((audio, phones))
    return result


def test_utterances_survive_the_disk(tmp_path):
    utterances = _utterances(np.random.default_rng(0))
    speech.save(str(tmp_path), "flite_slt", utterances, language="en", source="test")
    (speaker,) = speech.load(str(tmp_path), "train")
    assert len(speaker) == 3 and speaker.name == "flite_slt"
    for index, (audio, phones) in enumerate(utterances):
        read_audio, read_phones = speaker.utterance(index)
        assert read_audio.dtype == np.float32
        # Half a step of 16 bits.
        np.testing.assert_allclose(read_audio, audio, rtol=0, atol=0.51 / 32768)
        np.testing.assert_allclose(read_phones, phones, rtol=0, atol=1e-6)


def test_the_split_is_a_rule_on_the_name(tmp_path):
    rng = np.random.default_rng(0)
    held_out = {
        "librivox_austen", "testdata_cards", "asterisk_it_carlo",
        "asterisk_ru_ivrvoice", "flite_awb",
    }  # fmt: skip
    train = {
        "asterisk_en_allison", "asterisk_es_allison", "asterisk_fr_june", "flite_slt",
        "flite_rms", "flite_kal16", "espeak_en-us+m1",
    }  # fmt: skip
    for name in held_out | train:
        speech.save(str(tmp_path), name, _utterances(rng, 1), language="en")
    assert {s.name for s in speech.load(str(tmp_path), "held_out")} == held_out
    assert {s.name for s in speech.load(str(tmp_path), "train")} == train
    assert {e["split"] for e in speech.read_index(str(tmp_path)).values()} == {
        "train",
        "held_out",
    }


def test_bad_input_is_explained(tmp_path):
    audio = np.zeros(1600)
    with pytest.raises(ValueError, match="not increasing"):
        speech.save(str(tmp_path), "a", [(audio, [(0.0, 0.1, 1), (0.05, 0.05, 2)])])
    with pytest.raises(ValueError, match="phone ids"):
        speech.save(str(tmp_path), "a", [(audio, [(0.0, 0.1, 99)])])
    with pytest.raises(ValueError, match="launch.corpus"):
        speech.load(str(tmp_path / "absent"), "train")
    with pytest.raises(ValueError, match="split"):
        speech.load(str(tmp_path), "test")


def test_a_speaker_whose_file_is_gone_is_named_and_not_done(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        speech.save(str(tmp_path), name, _utterances(rng))
    assert speech.lost(str(tmp_path)) == []
    (tmp_path / "a.npz").unlink()
    assert speech.lost(str(tmp_path)) == ["a"]
    with pytest.raises(ValueError, match="no a.npz; .*launch.corpus"):
        speech.load(str(tmp_path), "train")


def test_unknown_phone_names_are_errors():
    assert phones_lib.ids("el", {"el": "AX L"}, "x") == [
        speech.PHONE_ID["AX"],
        speech.PHONE_ID["L"],
    ]
    with pytest.raises(ValueError, match="unknown phone"):
        phones_lib.ids("qq", {"el": "AX L"}, "flite")


def test_disagreement_is_the_median_shift():
    phones = [(0.0, 0.1, 0), (0.1, 0.2, 1), (0.2, 0.4, 2), (0.4, 0.5, 3)]
    later = [(0.0, 0.13, 0)] + [(s + 0.03, e + 0.03, p) for s, e, p in phones[1:]]
    assert alignment.disagreement(phones, later) == pytest.approx(0.03)
    assert alignment.disagreement(phones, phones[:-1]) == float("inf")


def test_plausible_wants_loud_vowels_and_quiet_pauses():
    rate = speech.SAMPLE_RATE
    phones = [(0.0, 0.3, speech.PHONE_ID["SIL"])]
    clock = 0.3
    for _ in range(4):
        for name in ("M", "AA"):
            phones.append((clock, clock + 0.1, speech.PHONE_ID[name]))
            clock += 0.1
    audio = 0.001 * np.random.default_rng(0).standard_normal(int(clock * rate))
    spoken = audio.copy()
    spoken[int(0.3 * rate) :] *= 100
    assert alignment.plausible(spoken, phones)
    # The same phones on a recording that speaks where they are silent.
    assert not alignment.plausible(spoken[::-1], phones)
