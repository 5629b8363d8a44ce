"""Every synthesiser that is installed speaks; recognition hears what synthesis said."""

import shutil

import numpy as np
import pytest

from tm_jax.integrations.agents import synthesizer

_TEXT = "Good morning, how are you today?"


def _installed(name):
    if name != "nanotts":
        return shutil.which(name)
    try:
        import py_nanotts  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


@pytest.mark.parametrize("name", ["nanotts", "flite", "espeak-ng"])
def test_a_sentence_lasts_as_long_as_speech_does_at_any_rate(name):
    if not _installed(name):
        pytest.skip(f"{name} is not installed")
    voice = synthesizer.Synthesizer(name)
    low, high = voice.speak(_TEXT, 16000), voice.speak(_TEXT, 24000)
    assert voice.name == name and low.dtype == np.float32
    assert 1.0 < len(low) / 16000 < 4.0
    assert len(high) / len(low) == pytest.approx(1.5, rel=1e-3)
    assert 0.1 < np.abs(high).max() <= 1.0
    assert len(voice.speak("...", 16000)) == 0
    assert len(voice.speak("-o /dev/null $(true)", 16000)) > 1000  # Text, and nothing else.


def test_recognition_hears_what_synthesis_says():
    pytest.importorskip("moonshine_voice")
    pytest.importorskip("py_nanotts")
    from tm_jax.integrations.agents import recognizer

    hearing = recognizer.Recognizer()
    said = synthesizer.Synthesizer("nanotts").speak(_TEXT, 16000)
    assert "how are you today" in hearing.transcribe(np.pad(said, 4000)).lower()
    assert isinstance(hearing.transcribe(np.zeros(100, np.float32)), str)
    hearing.close()


def test_sentences():
    text = "One. Two, and a half? Three!  Without an end"
    assert synthesizer.sentences(text) == ["One.", "Two, and a half?", "Three!", "Without an end"]
    assert synthesizer.sentences("") == []


def test_unknown_and_missing_ones_are_explained(monkeypatch):
    with pytest.raises(ValueError, match="one of auto, nanotts, flite, espeak-ng, got 'x'"):
        synthesizer.Synthesizer("x")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="looked for flite.*extra agent"):
        synthesizer.Synthesizer("flite")
