"""Festival's segments become our phones; a stand-in program speaks."""

import os

import numpy as np
import pytest

from tm_jax.data.corpus import festival
from tm_jax.data.corpus import phones as phones_lib
from tm_jax.data.corpus import speech

_PROGRAM = """#!/usr/bin/env python3
import os, re, sys, wave
script = open(sys.argv[2], "rb").read().decode("latin-1")
folder = os.environ["FESTIVAL_TEST"]
open(os.path.join(folder, "script"), "w").write(script)
segments = open(os.path.join(folder, "segments")).read()
if segments:
    open(re.search(r'save.segs said "([^"]+)"', script)[1], "w").write(segments)
    with wave.open(re.search(r'save.wave said "([^"]+)"', script)[1], "wb") as file:
        file.setnchannels(1); file.setsampwidth(2); file.setframerate(16000)
        file.writeframes(bytes(2 * 16000))
else:
    sys.exit("SIOD ERROR: no voice")
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Function (segments) that sets what the stand-in says, and its folder."""
    path = tmp_path / "festival"
    path.write_text(_PROGRAM)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("FESTIVAL_TEST", str(tmp_path))

    def says(*rows):
        lines = "".join(f"{end} 100 {name}\n" for name, end in rows)
        (tmp_path / "segments").write_text(f"#\n{lines}" if rows else "")

    return says, tmp_path


def _names(phones):
    return [speech.PHONES[int(phone)] for _, _, phone in phones]


def test_long_consonants_and_stressed_vowels_are_italian_phones(program):
    says, folder = program
    says(("#", 0.1), ("m", 0.2), ("a1", 0.3), ("mm", 0.4), ("dZ", 0.5), ("ts", 0.7), ("#", 1.2))
    audio, phones = festival.speak('perch\u00e9 "no"', "it_pc", stretch=1.5)
    assert audio.shape == (16000,)
    assert _names(phones) == ["SIL", "M", "AA", "M", "JH", "T", "S", "SIL"]
    rows = np.asarray(phones)
    np.testing.assert_allclose(rows[1:, 0], rows[:-1, 1])  # No gaps,
    np.testing.assert_allclose([rows[0, 0], rows[-1, 1]], [0, 1.0])  # and not past the sound.
    script = (folder / "script").read_text()
    assert "(voice_pc_diphone)" in script and "1.500" in script
    assert '"perch\u00e9  no "' in script  # Latin-1, and no quote that ends the text.


def test_doubled_letters_are_soft_russian_consonants(program):
    says, _ = program
    says(("pau", 0.1), ("mm", 0.2), ("ii", 0.4), ("rr", 0.6), ("pau", 1.0))
    assert _names(festival.speak("\u043c\u0438\u0440", "ru_msu")[1]) == [
        "SIL", "M", "IY", "RR", "SIL"
    ]


def test_a_colon_marks_length_and_the_stop_of_the_throat_has_no_lips(program):
    says, folder = program
    says(("#", 0.1), ("k", 0.2), ("u:", 0.3), ("n~", 0.4), ("_", 0.42), ("r~*", 0.6), ("#", 1.0))
    assert _names(festival.speak("k\u016f\u0148 \u0159", "cs_ph")[1]) == [
        "SIL", "K", "UW", "N", "RR", "SIL"
    ]  # fmt: skip
    written = (folder / "script").read_text().encode("latin-1")
    assert '"k\u016f\u0148 \u0159"'.encode("iso-8859-2") in written
    says(("#", 0.1), ("p", 0.2), ("7", 0.3), ("t:", 0.6), ("@:", 0.8), ("#", 1.0))
    assert _names(festival.speak("p\u00f6tt\u00e4\u00e4", "fi_lj")[1]) == [
        "SIL", "P", "OE", "T", "AE", "SIL"
    ]  # fmt: skip


def test_what_festival_cannot_say_is_unalignable(program):
    says, _ = program
    says()
    with pytest.raises(phones_lib.Unalignable, match="no voice"):
        festival.speak("Bob", "en_ked")


def test_a_machine_without_festival_has_no_voices(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    festival.installed.cache_clear()
    try:
        assert festival.installed() == ()
    finally:
        festival.installed.cache_clear()
