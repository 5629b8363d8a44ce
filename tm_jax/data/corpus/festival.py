"""Speech of the Festival voices, with the exact times of its phones.

Most are built from recorded diphones of one speaker, the Russian one from whole recorded
segments, so that they sound more like people than what espeak-ng computes.
"""

import functools
import os
import shutil
import subprocess
import tempfile

import numpy as np

from tm_jax.data.corpus import phones as phones_lib
from tm_jax.data.corpus import speech
from tm_jax.data.corpus import synthesis

# Voice of Festival, and the Debian package that brings it, by our name of the speaker.
VOICES = {
    "en_ked": ("voice_ked_diphone", "festvox-kdlpc16k"),
    "it_pc": ("voice_pc_diphone", "festvox-itapc16k"),
    "it_lp": ("voice_lp_diphone", "festvox-italp16k"),
    "ru_msu": ("voice_msu_ru_nsh_clunits", "festvox-ru"),
    "cs_dita": ("voice_czech_dita", "festvox-czech-dita"),
    "cs_krb": ("voice_czech_krb", "festvox-czech-krb"),
    "cs_machac": ("voice_czech_machac", "festvox-czech-machac"),
    "cs_ph": ("voice_czech_ph", "festvox-czech-ph"),
    "fi_lj": ("voice_suo_fi_lj_diphone", "festvox-suopuhe-lj"),
    "fi_mv": ("voice_hy_fi_mv_diphone", "festvox-suopuhe-mv"),
}
LICENCES = {
    "en_ked": "University of Edinburgh (BSD-like)",
    "it_pc": "GPL-2 or later (ISTC-CNR)",
    "it_lp": "GPL-2 or later (ISTC-CNR)",
    "ru_msu": "BSD-like",
    "cs_dita": "GPL-3 or later (Brailcom)",
    "cs_krb": "GPL-3 or later (Brailcom)",
    "cs_machac": "GPL-3 or later (Brailcom)",
    "cs_ph": "GPL-2 or later (Brailcom)",
    "fi_lj": "LGPL-2 or later (Universities of Helsinki and Joensuu)",
    "fi_mv": "LGPL-2 or later (Universities of Helsinki and Joensuu)",
}
# What the rules of a language read.
_ENCODING = {
    "en": "ascii", "it": "latin-1", "ru": "utf-8", "cs": "iso-8859-2", "fi": "latin-1",
}  # fmt: skip

_ITALIAN = {
    "#": "SIL", "##": "SIL", "a": "AA", "e": "EH", "E": "EH", "i": "IY", "o": "AO", "O": "AO",
    "u": "UW", "j": "Y", "w": "W", "p": "P", "b": "B", "t": "T", "d": "D", "k": "K", "g": "G",
    "f": "F", "v": "V", "s": "S", "z": "Z", "S": "SH", "tS": "CH", "dZ": "JH", "ts": "T S",
    "dz": "D Z", "m": "M", "n": "N", "ng": "NG", "nf": "N", "J": "N", "l": "L", "L": "L",
    "r": "RR",
}  # fmt: skip
_RUSSIAN = {
    "pau": "SIL", "ii": "IY", "yy": "IH", "uu": "UW", "ee": "EH", "oo": "AO", "aa": "AA",
    "a": "AH", "e": "EH", "i": "IY", "y": "IH", "u": "UW", "ae": "AX", "ay": "AX", "ur": "UH",
    "p": "P", "b": "B", "t": "T", "d": "D", "k": "K", "g": "G", "c": "T S", "ch": "CH", "f": "F",
    "v": "V", "s": "S", "z": "Z", "sh": "SH", "sch": "SH", "zh": "ZH", "h": "KH", "m": "M",
    "n": "N", "l": "L", "r": "RR", "j": "Y",
}  # fmt: skip
# A doubled letter is the soft consonant.
_SOFT = {2 * name: _RUSSIAN[name] for name in "p b t d k g f v s z h m n l r".split()}
# A colon marks the long vowel, or the doubled consonant; "_" is the stop of the throat.
_CZECH = {
    "#": "SIL", "_": "", "a": "AA", "e": "EH", "i": "IY", "o": "AO", "u": "UW", "p": "P", "b": "B",
    "t": "T", "t~": "T", "d": "D", "d~": "D", "k": "K", "g": "G", "c": "T S", "c~": "CH",
    "dz": "D Z", "dz~": "JH", "f": "F", "v": "V", "s": "S", "s~": "SH", "z": "Z", "z~": "ZH",
    "ch": "KH", "h": "HH", "m": "M", "n": "N", "n~": "N", "n*": "NG", "l": "L", "r": "RR",
    "r~": "RR", "r~*": "RR", "j": "Y",
}  # fmt: skip
_FINNISH = {
    "#": "SIL", "a": "AA", "e": "EH", "i": "IY", "o": "AO", "u": "UW", "y": "UE", "@": "AE",
    "7": "OE", "&": "AX", "p": "P", "b": "B", "t": "T", "d": "D", "k": "K", "g": "G", "f": "F",
    "T": "TH", "s": "S", "S": "SH", "h": "HH", "v": "V", "w": "W", "m": "M", "n": "N", "N": "NG",
    "l": "L", "L": "L", "r": "RR", "j": "Y",
}  # fmt: skip
_TABLES = {
    "en": synthesis.FLITE, "it": _ITALIAN, "ru": _RUSSIAN | _SOFT, "cs": _CZECH, "fi": _FINNISH,
}  # fmt: skip


@functools.cache
def installed() -> tuple[str, ...]:
    """Names in `VOICES` that this machine can speak with."""
    if not shutil.which("festival"):
        return ()
    listed = subprocess.run(
        ["festival", "-b", "(mapcar (lambda (v) (format t \"%s\\n\" v)) (voice.list))"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    known = {f"voice_{name}" for name in listed.stdout.split()}
    return tuple(name for name, (voice, _) in VOICES.items() if voice in known)


def speak(text: str, name: str, stretch: float = 1.0) -> tuple[np.ndarray, list[phones_lib.Phone]]:
    """Speaks a text.

    Args:
      text: Text in the voice's language.
      name: Name in `VOICES`.
      stretch: Duration factor; above 1 is slower.

    Returns:
      Audio float32 [samples] at 16 kHz and its phones, as `synthesis.flite` gives them.

    Raises:
      Unalignable: Festival could not speak it.
    """
    language = name[:2]
    voice, _ = VOICES[name]
    said = text.replace("\\", " ").replace('"', " ")
    with tempfile.TemporaryDirectory() as folder:
        wave, segments = (os.path.join(folder, part) for part in ("s.wav", "s.seg"))
        script = os.path.join(folder, "s.scm")
        with open(script, "w", encoding=_ENCODING[language], errors="ignore") as file:
            file.write(
                f"({voice})\n(Parameter.set 'Duration_Stretch {stretch:.3f})\n"
                f'(set! said (Utterance Text "{said}"))\n(utt.synth said)\n'
                f'(utt.save.segs said "{segments}")\n(utt.save.wave said "{wave}" \'riff)\n'
            )
        done = subprocess.run(
            ["festival", "-b", script], capture_output=True, text=True, errors="replace"
        )
        if done.returncode or not (os.path.exists(wave) and os.path.exists(segments)):
            raise phones_lib.Unalignable(f"festival could not say {text!r}: {done.stderr[-200:]}")
        audio = speech.read_audio(wave)
        with open(segments, encoding="ascii") as file:
            rows = [line.split() for line in file.read().partition("#\n")[2].splitlines()]
    ends = [(row[2], float(row[0])) for row in rows if len(row) == 3]
    seconds = len(audio) / speech.SAMPLE_RATE
    return audio, phones_lib.segments(ends, seconds, _phones(language))


def _phones(language: str):
    """Function (name of a phone) -> our ids."""
    table = _TABLES[language]

    def ids(name):
        if language == "it":  # A digit marks the stressed vowel, a doubled letter a long one.
            name = name.rstrip("01")
            half = len(name) // 2
            name = name[:half] if name not in table and name[:half] == name[half:] else name
        if language in ("cs", "fi"):
            name = name.rstrip(":")
        return phones_lib.ids(name, table, "festival")

    return ids
