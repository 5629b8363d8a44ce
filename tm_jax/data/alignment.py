"""Phone times for speech: read off a synthesiser, or found by aligning a recording.

Four sources, one result, a list of (start_s, end_s, phone id) that tiles the audio:

  flite      prints the end time of every segment it speaks;
  espeak-ng  reports every phoneme through its callback;
  hmm        forced alignment of a recording by pocketsphinx's English acoustic model.
             English words take their pronunciation from its dictionary. Words of
             another language are spelt in ARPAbet from what espeak-ng says, which the
             English model then aligns as the nearest sounds it knows;
  dtw        dynamic time warping of the recording onto the espeak-ng rendering of the
             same text. It knows nothing of the hmm, so where the two disagree the
             transcript or the alignment is wrong: `disagreement` measures that.
"""

import ctypes
import functools
import os
import re
import subprocess
import tempfile

import av
import numpy as np
import scipy.signal

from tm_jax.data import speech


class Unalignable(ValueError):
    """A text or a recording from which no alignment can be made."""


_VOWELS = {
    "AA", "AE", "AH", "AO", "AW", "AX", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY",
    "UH", "UW", "UE", "OE",
}  # fmt: skip
VOWEL_IDS = frozenset(speech.PHONE_ID[name] for name in _VOWELS)
_VOICELESS_STOPS = frozenset(speech.PHONE_ID[name] for name in "P T K CH".split())
_SIL = speech.PHONE_ID["SIL"]

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

# Phones that the English acoustic model lacks, by the nearest that it has.
_TO_ENGLISH_MODEL = {"AX": "AH", "KH": "HH", "RR": "R", "UE": "UW", "OE": "ER"}


def ids(name, table, source):
    """Returns the phone ids of one source name; an unknown name is an error."""
    if name not in table:
        raise ValueError(f"{source}: unknown phone {name!r}; add it to its table.")
    return [speech.PHONE_ID[part] for part in table[name].split()]


# --- flite ---------------------------------------------------------------------------


def flite(text, voice, stretch=1.0, pitch_hz=None):
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
        audio = read_audio(path)
    ends = [(name, float(end)) for name, end in re.findall(r"(\S+):([\d.]+)", printed.stdout)]
    if np.any(np.diff([end for _, end in ends]) < 0):
        raise Unalignable(f"flite split {text!r}.")
    seconds = len(audio) / speech.SAMPLE_RATE
    return audio, segments(ends, seconds, lambda name: ids(name, FLITE, "flite"))


def segments(ends, seconds, phones_of):
    """Phones that follow one another without a gap.

    Args:
      ends: (name, end in seconds) of every segment, in order.
      seconds: Length of the sound.
      phones_of: Function (name) -> ids, of which one segment may be several phones.

    Returns:
      Rows (start, end, id) that cover the sound.
    """
    phones, start = [], 0.0
    for name, end in ends:
        end = min(end, seconds)
        if end > start:
            phones += _divide(start, end, phones_of(name))
            start = end
    return _tile(phones, seconds)


# --- espeak-ng -----------------------------------------------------------------------

_ESPEAK_SYNCHRONOUS, _ESPEAK_PHONEMES_IN_IPA, _ESPEAK_UTF8 = 2, 3, 1
_WORD, _PHONEME = 1, 7
_RATE, _PITCH, _PITCH_RANGE = 1, 3, 4
_SHORT_GAP_S = 0.03


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
            raise Unalignable(f"espeak-ng said nothing for {text!r}.")
        return np.concatenate(self.pcm) / 32768.0, list(self.events)


@functools.cache
def _engine():
    return _Engine()


def espeak_available():
    """Whether the espeak-ng library is installed."""
    try:
        _engine()
    except OSError:
        return False
    return True


def espeak(text, voice, rate=165, pitch=50, pitch_range=50):
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
            found = ids(name, table, f"espeak-ng {voice}") if name else []
            marks.append((sample / engine.rate, found, word))
    audio = scipy.signal.resample_poly(wave, 320, 441).astype(np.float32)
    duration = len(audio) / speech.SAMPLE_RATE
    phones, words = [], {}
    ends = [mark[0] for mark in marks[1:]] + [duration]
    for (start, found, word), end in zip(marks, ends):
        # An unnamed stretch is a pause if it lasts, else the tail of the last phone.
        if found and end > start + 2e-3 * len(found):
            phones += _divide(start, end, found)
            words.setdefault(word, []).extend(found)
        elif not found and end - start >= _SHORT_GAP_S:
            phones.append((start, end, _SIL))
    phones = _with_closures(_tile(phones, duration), audio)
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
        if stop[2] not in _VOICELESS_STOPS or before[2] == _SIL:
            continue
        frame = int(stop[0] * 200)
        limit = int((before[0] + 0.4 * (before[1] - before[0])) * 200) + 1
        while frame > limit and quiet[frame - 1]:
            frame -= 1
        before[1] = stop[0] = min(stop[0], max(frame / 200, before[0] + 0.01))
    return [tuple(phone) for phone in phones]


# --- forced alignment ----------------------------------------------------------------

_SPOKEN_SYMBOLS = {"*": " star ", "#": " pound ", "&": " and ", "%": " percent "}
_DIGITS = "zero one two three four five six seven eight nine".split()
_HMM_RATE = 100  # Frames per second of the acoustic model.
# Frame k of the model is a window of 25.6 ms that begins at 10 k ms, so a border before it
# lies half a hop before the middle of that window.
_HMM_BORDER_S = 0.0256 / 2 - 0.5 / _HMM_RATE
_PAD_S = 0.2


class Aligner:
    """Forced alignment by pocketsphinx with its English acoustic model."""

    def __init__(self):
        import pocketsphinx  # Needed to build a corpus, not to read one.

        root = pocketsphinx.get_model_path()
        self._decoder = pocketsphinx.Decoder(
            hmm=os.path.join(root, "en-us/en-us"),
            dict=os.path.join(root, "en-us/cmudict-en-us.dict"),
            lm=None,
            loglevel="FATAL",
        )

    def english(self, audio, text):
        """Aligns a recording with English text.

        Args:
          audio: Float [samples] at 16 kHz.
          text: The transcript.

        Returns:
          Phones, or None if a word is not in the dictionary or nothing fits.
        """
        for symbol, word in _SPOKEN_SYMBOLS.items():
            text = text.replace(symbol, word)
        text = re.sub(r"\d", lambda match: f" {_DIGITS[int(match[0])]} ", text)
        words = [w.strip("'") for w in re.findall(r"[a-z']+", text.lower())]
        words = [w for w in words if w]
        if not words or any(self._decoder.lookup_word(w) is None for w in words):
            return None
        return self._align(audio, words)

    def spelt(self, audio, words):
        """Aligns a recording with words given as phones.

        Args:
          audio: Float [samples] at 16 kHz.
          words: Lists of phone ids, in the order spoken.

        Returns:
          Phones with the ids of `words`, or None if nothing fits.
        """
        names = []
        for word in words:
            spelling = [speech.PHONES[phone] for phone in word]
            spelling = [_TO_ENGLISH_MODEL.get(phone, phone) for phone in spelling]
            names.append("x_" + "_".join(spelling).lower())
            if self._decoder.lookup_word(names[-1]) is None:
                self._decoder.add_word(names[-1], " ".join(spelling), True)
        phones = self._align(audio, names) if names else None
        if phones is None:
            return None
        spoken = iter([phone for word in words for phone in word])
        return [(s, e, p if p == _SIL else next(spoken)) for s, e, p in phones]

    def _align(self, audio, words):
        decoder = self._decoder
        # The model wants silence at both ends and would take it from the speech.
        pad = np.random.default_rng(0).normal(0, 1e-4, int(_PAD_S * speech.SAMPLE_RATE))
        data = np.clip(np.concatenate([pad, audio, pad]), -1, 1)
        data = np.round(data * 32767).astype(np.int16).tobytes()
        try:
            decoder.set_align_text(" ".join(words))
            self._decode(data)
            if decoder.hyp() is None:
                return None
            decoder.set_alignment()
            self._decode(data)
            alignment = decoder.get_alignment()
        except RuntimeError:  # pocketsphinx: no path through the words.
            return None
        if alignment is None:
            return None
        phones = []
        for word in alignment:
            for phone in word:
                known = phone.name if phone.name in speech.PHONE_ID else "SIL"
                start = phone.start / _HMM_RATE + _HMM_BORDER_S - _PAD_S
                end = start + phone.duration / _HMM_RATE
                phones.append((start, end, speech.PHONE_ID[known]))
        return _tile(phones, len(audio) / speech.SAMPLE_RATE)

    def _decode(self, data):
        self._decoder.start_utt()
        self._decoder.process_raw(data, full_utt=True)
        self._decoder.end_utt()


# --- dynamic time warping ------------------------------------------------------------


def _cepstra(audio):
    import librosa  # Slow to import; only a corpus build needs it.

    mel = librosa.feature.melspectrogram(
        y=audio.astype(np.float32), sr=speech.SAMPLE_RATE, n_fft=512,
        win_length=400, hop_length=160, n_mels=40, fmin=60, fmax=7600,
    )  # fmt: skip
    floor = 1e-4 * np.percentile(mel.sum(axis=0), 90) / 40
    if mel.shape[1] < 10 or floor <= 0:
        raise Unalignable("the audio is too short or silent.")
    log = np.log(np.maximum(mel, floor))
    cepstra = librosa.feature.mfcc(S=log, n_mfcc=13)
    cepstra = np.concatenate([cepstra, librosa.feature.delta(cepstra, width=5)])
    mean, std = cepstra.mean(axis=1, keepdims=True), cepstra.std(axis=1, keepdims=True)
    return (cepstra - mean) / (std + 1e-6)


def dtw(audio, synthetic, phones):
    """Aligns a recording with the espeak-ng rendering of its transcript.

    Args:
      audio: Float [samples] at 16 kHz.
      synthetic: The rendering, float [samples] at 16 kHz.
      phones: Phones of the rendering.

    Returns:
      The same phones with their times in the recording. Some may have no length.
    """
    import librosa

    a, b = _cepstra(synthetic), _cepstra(audio)
    steps = np.array([[1, 1], [0, 1], [1, 0]])  # Free: readers pause, espeak does not.
    _, path = librosa.sequence.dtw(a, b, step_sizes_sigma=steps)
    path = path[::-1] / _HMM_RATE
    clock, first = np.unique(path[:, 0], return_index=True)
    last = np.searchsorted(path[:, 0], clock, side="right") - 1
    middle = (path[first, 1] + path[last, 1]) / 2
    times = np.interp([p[0] for p in phones] + [phones[-1][1]], clock, middle)
    return [(float(s), float(e), p[2]) for s, e, p in zip(times, times[1:], phones)]


def disagreement(first, second):
    """Returns the median distance in seconds between two alignments of one text.

    Only the sounds are compared, in their order. Infinite if they differ in number.
    """
    a = np.array([p[0] for p in first if p[2] != _SIL])
    b = np.array([p[0] for p in second if p[2] != _SIL])
    if len(a) != len(b) or not len(a):
        return float("inf")
    return float(np.median(np.abs(a - b)))


# --- common --------------------------------------------------------------------------


def read_audio(path):
    """Decodes a sound file to float32 [samples] at 16 kHz."""
    kind = "g722" if path.endswith(".g722") else None
    resampler = av.AudioResampler(format="s16", layout="mono", rate=speech.SAMPLE_RATE)
    chunks = [np.zeros(0, np.int16)]  # Some recordings are empty.
    with av.open(path, format=kind) as container:
        for frame in container.decode(audio=0):
            chunks += [f.to_ndarray()[0] for f in resampler.resample(frame)]
        chunks += [f.to_ndarray()[0] for f in resampler.resample(None)]
    return np.concatenate(chunks).astype(np.float32) / 32768


def levels_db(audio, phones):
    """Returns the level of every phone in dB, [N]."""
    energy = np.concatenate([[0.0], np.cumsum(np.square(np.float64(audio)))])
    edges = np.clip(
        np.round(np.array(phones)[:, :2] * speech.SAMPLE_RATE), 0, len(audio)
    ).astype(int)
    spans = np.maximum(edges[:, 1] - edges[:, 0], 1)
    mean = (energy[edges[:, 1]] - energy[edges[:, 0]]) / spans
    return 10 * np.log10(mean + 1e-10)


def plausible(audio, phones):
    """Whether an alignment can be true: speed, phone lengths, loud vowels."""
    table = np.array(phones)
    sound = table[:, 2] != _SIL
    spans = table[:, 1] - table[:, 0]
    if not sound.any() or spans[sound].max() > 0.7:
        return False
    speed = sound.sum() / spans[sound].sum()
    if not 4 < speed < 22:
        return False
    db = levels_db(audio, phones)
    vowels = np.isin(table[:, 2], list(VOWEL_IDS))
    if not vowels.any():
        return False
    long_pause = ~sound & (spans > 0.1)
    loud = np.median(db[vowels])
    quiet_vowels = np.mean(db[vowels] < loud - 20)
    return quiet_vowels < 0.15 and not np.any(db[long_pause] > loud - 6)


def _divide(start, end, found):
    edges = np.linspace(start, end, len(found) + 1)
    return [(float(s), float(e), p) for s, e, p in zip(edges, edges[1:], found)]


def _tile(phones, duration):
    """Makes phones cover [0, duration] without gaps: small gaps close, others are SIL."""
    result, clock = [], 0.0
    for start, end, phone in phones:
        start, end = max(start, clock), min(end, duration)
        if end - start < 1e-3:
            continue
        if start - clock >= _SHORT_GAP_S or (not result and start > clock):
            result.append((clock, start, _SIL))
        elif result:
            result[-1] = (result[-1][0], start, result[-1][2])
        if result and result[-1][2] == _SIL == phone:
            result[-1] = (result[-1][0], end, _SIL)
        else:
            result.append((start, end, phone))
        clock = end
    if duration - clock > 1e-3:
        if result and result[-1][2] == _SIL:
            result[-1] = (result[-1][0], duration, _SIL)
        else:
            result.append((clock, duration, _SIL))
    return result
