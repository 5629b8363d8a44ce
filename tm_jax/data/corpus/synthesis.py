"""Speech of flite and espeak-ng, with the times of its phones.

flite prints the end time of every segment it speaks; espeak-ng reports every phoneme through
its callback.
"""

import ctypes
import functools
import os
import re
import subprocess
import tempfile

import numpy as np
import scipy.signal

from tm_jax.data.corpus import phones as phones_lib
from tm_jax.data.corpus import speech

# Name in the source -> our phone(s). A name that is missing here is an error.
FLITE = {name.lower(): name for name in speech.PHONES[1:41]}
FLITE |= {"pau": "SIL", "sil": "SIL", "ssil": "SIL", "h#": "SIL", "brth": "SIL"}
FLITE |= {"axr": "ER", "ix": "IH", "el": "AX L", "en": "AX N", "em": "AX M"}
FLITE |= {"dx": "D", "nx": "N", "hv": "HH"}

# espeak-ng 1.5x in IPA, after length marks and diacritics are removed. Nasal vowels
# take the lips of their oral partners.
_ESPEAK = {
    "m": "M", "n": "N", "ŋ": "NG", "ɲ": "N", "ɳ": "N", "p": "P", "b": "B", "t": "T",
    "d": "D", "ʈ": "T", "ɖ": "D", "k": "K", "ɡ": "G", "g": "G", "q": "K", "c": "K",
    "ɟ": "G", "f": "F", "v": "V", "ʋ": "V", "θ": "TH", "ð": "DH", "s": "S", "z": "Z",
    "ʃ": "SH", "ʒ": "ZH", "ɕ": "SH", "ʑ": "ZH", "ʂ": "SH", "ʐ": "ZH", "ç": "KH",
    "x": "KH", "χ": "KH", "ɣ": "G", "ʁ": "KH", "ʀ": "RR", "h": "HH", "ɦ": "HH",
    "β": "B", "l": "L", "ɫ": "L", "ɭ": "L", "ʎ": "L", "ɹ": "R", "r": "RR", "ɾ": "D",
    "ɽ": "D", "j": "Y", "ʝ": "Y", "w": "W", "ɥ": "W", "ʍ": "W", "tʃ": "CH",
    "dʒ": "JH", "ts": "T S", "dz": "D Z", "pf": "P F", "tɕ": "CH", "dʑ": "JH",
    "ss": "S", "ʔ": "",
    "i": "IY", "ɪ": "IH", "ᵻ": "IH", "ɨ": "IH", "e": "EY", "ɛ": "EH", "æ": "AE",
    "a": "AA", "ɑ": "AA", "ɒ": "AO", "ɔ": "AO", "o": "OW", "ʊ": "UH", "u": "UW",
    "ʉ": "UW", "ʌ": "AH", "ɐ": "AX", "ə": "AX", "ɵ": "AX", "ɜ": "ER", "ɚ": "ER",
    "ɝ": "ER", "y": "UE", "ʏ": "UE", "ø": "OE", "œ": "OE", "ɤ": "AH", "ɯ": "UH",
    "aɪ": "AY", "aʊ": "AW", "eɪ": "EY", "oʊ": "OW", "əʊ": "OW", "ɔɪ": "OY",
    "oɪ": "OY", "ɔø": "OY", "aɪə": "AY AX", "aɪɚ": "AY ER", "aʊɚ": "AW ER", "aʊə": "AW AX", "iə": "IY AX",
    "ɪə": "IY AX", "eə": "EH AX", "ʊə": "UH AX", "əl": "AX L", "ɑɹ": "AA R",
    "ɔɹ": "AO R", "oɹ": "AO R", "ɪɹ": "IY R", "ʊɹ": "UH R", "ɛɹ": "EH R",
    "ju": "Y UW", "ja": "Y AA", "jo": "Y OW", "je": "Y EH", "eʊ": "EH UW",
    "ɛʊ": "EH UW", "ui": "UW IY", "ai": "AY", "au": "AW", "ei": "EY", "oi": "OY",
    "eu": "EH UW", "r̝": "RR", "ɛɪ": "EY", "œy": "OE UE", "ʌʊ": "AW", "yʊ": "UE UH",
}  # fmt: skip
# What espeak-ng writes differently in one language: Spanish and Italian e and o are
# pure vowels; the Russian y stands for an unrounded vowel, and its r is trilled.
_ESPEAK_BY_LANGUAGE = {
    "es": {"e": "EH", "o": "AO", "ɾ": "D"},
    "it": {"e": "EH", "o": "AO", "ɾ": "D"},
    "fr": {"e": "EH", "o": "AO"},
    "ru": {"y": "IH", "o": "AO", "e": "EH"},
    "cs": {"o": "AO", "e": "EH"},
}
_DIACRITICS = str.maketrans("", "", "ː̪̩̃̊ˑˈˌʲˠʰ-^\"̯͡ʼ̬")
_VOICELESS_STOPS = frozenset(speech.PHONE_ID[name] for name in "P T K CH".split())

# Constants of espeak-ng's speak_lib.h.
_ESPEAK_SYNCHRONOUS, _ESPEAK_PHONEMES_IN_IPA, _ESPEAK_UTF8 = 2, 3, 1
_WORD, _PHONEME = 1, 7
_RATE, _PITCH, _PITCH_RANGE = 1, 3, 4


def flite(
    text: str, voice: str, stretch: float = 1.0, pitch_hz: float | None = None
) -> tuple[np.ndarray, list[phones_lib.Phone]]:
    """Speaks a sentence with flite.

    Args:
      text: English text.
      voice: "slt", "rms", "awb" or "kal16".
      stretch: Duration factor; above 1 is slower.
      pitch_hz: Mean pitch, or None for the voice's own.

    Returns:
      Audio float32 [samples] at 16 kHz and its phones.
    """
    # One sentence only: flite starts its clock anew with every sentence.
    text = re.sub(r"[.!?;:]+", ",", text).strip(" ,") + "."
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "speech.wav")
        command = ["flite", "-voice", voice, "-psdur"]
        command += ["--setf", f"duration_stretch={stretch:.3f}"]
        if pitch_hz:
            command += ["--setf", f"int_f0_target_mean={pitch_hz:.1f}"]
        command += ["-t", text + " ", "-o", path]
        printed = subprocess.run(command, check=True, capture_output=True, text=True)
        audio = speech.read_audio(path)
    ends = [(name, float(end)) for name, end in re.findall(r"(\S+):([\d.]+)", printed.stdout)]
    if np.any(np.diff([end for _, end in ends]) < 0):
        raise phones_lib.Unalignable(f"flite split {text!r}.")
    seconds = len(audio) / speech.SAMPLE_RATE
    phones = phones_lib.segments(ends, seconds, lambda name: phones_lib.ids(name, FLITE, "flite"))
    return audio, phones


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


class _Engine:
    """The espeak-ng library, which exists once per process."""

    def __init__(self):
        self.library = ctypes.CDLL("libespeak-ng.so.1")
        self.rate = self.library.espeak_Initialize(
            _ESPEAK_SYNCHRONOUS, 200, None, _ESPEAK_PHONEMES_IN_IPA
        )
        if self.rate <= 0:
            raise OSError("espeak_Initialize failed")
        self.pcm, self.events = [], []
        self.callback = _CALLBACK(self._receive)  # Kept alive: C holds the pointer.
        self.library.espeak_SetSynthCallback(self.callback)

    def _receive(self, wave, count, events):
        if wave and count > 0:
            self.pcm.append(np.ctypeslib.as_array(wave, (count,)).copy())
        index = 0
        while events[index].type:
            event = events[index]
            if event.type in (_WORD, _PHONEME):
                name = event.id.string if event.type == _PHONEME else b""
                self.events.append((event.type, event.sample, name.decode("utf-8", "ignore")))
            index += 1
        return 0

    def speak(self, text, voice, rate, pitch, pitch_range):
        self.pcm, self.events = [], []
        if self.library.espeak_SetVoiceByName(voice.encode()):
            raise ValueError(f"espeak-ng: unknown voice {voice!r}.")
        for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_PITCH_RANGE, pitch_range)):
            self.library.espeak_SetParameter(parameter, int(value), 0)
        data = text.encode() + b"\0"
        self.library.espeak_Synth(data, len(data), 0, 0, 0, _ESPEAK_UTF8, None, None)
        if not self.pcm:
            raise phones_lib.Unalignable(f"espeak-ng said nothing for {text!r}.")
        return np.concatenate(self.pcm) / 32768.0, list(self.events)


@functools.cache
def _engine():
    return _Engine()


def espeak_available() -> bool:
    """Whether the espeak-ng library is installed."""
    try:
        _engine()
    except OSError:
        return False
    return True


def espeak(
    text: str, voice: str, rate: int = 165, pitch: int = 50, pitch_range: int = 50
) -> tuple[np.ndarray, list[phones_lib.Phone], list[list[int]]]:
    """Speaks a sentence with espeak-ng.

    Args:
      text: Text in the language of the voice.
      voice: Language with an optional variant, as in "fr+f2".
      rate: Words per minute.
      pitch: 0 to 99.
      pitch_range: 0 (monotonous) to 99.

    Returns:
      Audio float32 [samples] at 16 kHz, its phones, and the phones' words as lists of
      phone ids (no silences), in the order spoken.
    """
    language = voice.split("+")[0].split("-")[0]
    table = _ESPEAK | _ESPEAK_BY_LANGUAGE.get(language, {})
    engine = _engine()
    wave, events = engine.speak(text, voice, rate, pitch, pitch_range)
    marks, word = [], 0
    for kind, sample, name in events:
        if kind == _WORD:
            word += 1
        elif not name.startswith("("):  # "(en)": a word from another language follows.
            name = name.translate(_DIACRITICS)
            found = phones_lib.ids(name, table, f"espeak-ng {voice}") if name else []
            marks.append((sample / engine.rate, found, word))
    audio = scipy.signal.resample_poly(wave, 320, 441).astype(np.float32)
    duration = len(audio) / speech.SAMPLE_RATE
    phones, words = [], {}
    ends = [mark[0] for mark in marks[1:]] + [duration]
    for (start, found, word), end in zip(marks, ends):
        # An unnamed stretch is a pause if it lasts, else the tail of the last phone.
        if found and end > start + 2e-3 * len(found):
            phones += phones_lib.divide(start, end, found)
            words.setdefault(word, []).extend(found)
        elif not found and end - start >= phones_lib.SHORT_GAP_S:
            phones.append((start, end, phones_lib.SIL))
    phones = _with_closures(phones_lib.tile(phones, duration), audio)
    return audio, phones, list(words.values())


def _with_closures(phones, audio):
    """Moves the start of voiceless stops back to where the sound stops.

    espeak-ng reports a stop at its burst and counts the silent closure to the phone
    before it.
    """
    hop = speech.SAMPLE_RATE // 200
    frames = audio[: len(audio) // hop * hop].reshape(-1, hop)
    level = np.sqrt(np.mean(np.square(frames), axis=1))
    quiet = level < 0.05 * np.percentile(level, 95)
    phones = [list(phone) for phone in phones]
    for before, stop in zip(phones, phones[1:]):
        if stop[2] not in _VOICELESS_STOPS or before[2] == phones_lib.SIL:
            continue
        frame = int(stop[0] * 200)
        limit = int((before[0] + 0.4 * (before[1] - before[0])) * 200) + 1
        while frame > limit and quiet[frame - 1]:
            frame -= 1
        before[1] = stop[0] = min(stop[0], max(frame / 200, before[0] + 0.01))
    return [tuple(phone) for phone in phones]
