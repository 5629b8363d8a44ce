"""Phone times of a recording, found with its transcript in two ways.

  hmm   forced alignment by pocketsphinx's English acoustic model. English words take their
        pronunciation from its dictionary. Words of another language are spelt in ARPAbet from
        phones of espeak-ng, which the English model then aligns as its nearest sounds;
  dtw   dynamic time warping of the recording onto the espeak-ng rendering of the same text. It
        knows nothing of the hmm, so where the two disagree the transcript or the alignment is
        wrong: `disagreement` measures that.
"""

from collections.abc import Sequence
import os
import re

import numpy as np

from tm_jax.data.corpus import phones as phones_lib
from tm_jax.data.corpus import speech

_VOWELS = {
    "AA", "AE", "AH", "AO", "AW", "AX", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY",
    "UH", "UW", "UE", "OE",
}  # fmt: skip
_VOWEL_IDS = frozenset(speech.PHONE_ID[name] for name in _VOWELS)

# Phones that the English acoustic model lacks, by the nearest that it has.
_TO_ENGLISH_MODEL = {"AX": "AH", "KH": "HH", "RR": "R", "UE": "UW", "OE": "ER"}
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

    def english(self, audio: np.ndarray, text: str) -> list[phones_lib.Phone] | None:
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

    def spelt(
        self, audio: np.ndarray, words: Sequence[Sequence[int]]
    ) -> list[phones_lib.Phone] | None:
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
        return [(s, e, p if p == phones_lib.SIL else next(spoken)) for s, e, p in phones]

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
        return phones_lib.tile(phones, len(audio) / speech.SAMPLE_RATE)

    def _decode(self, data):
        self._decoder.start_utt()
        self._decoder.process_raw(data, full_utt=True)
        self._decoder.end_utt()


def _cepstra(audio):
    import librosa  # Slow to import; only a corpus build needs it.

    mel = librosa.feature.melspectrogram(
        y=audio.astype(np.float32), sr=speech.SAMPLE_RATE, n_fft=512,
        win_length=400, hop_length=160, n_mels=40, fmin=60, fmax=7600,
    )  # fmt: skip
    floor = 1e-4 * np.percentile(mel.sum(axis=0), 90) / 40
    if mel.shape[1] < 10 or floor <= 0:
        raise phones_lib.Unalignable("the audio is too short or silent.")
    log = np.log(np.maximum(mel, floor))
    cepstra = librosa.feature.mfcc(S=log, n_mfcc=13)
    cepstra = np.concatenate([cepstra, librosa.feature.delta(cepstra, width=5)])
    mean, std = cepstra.mean(axis=1, keepdims=True), cepstra.std(axis=1, keepdims=True)
    return (cepstra - mean) / (std + 1e-6)


def dtw(
    audio: np.ndarray, synthetic: np.ndarray, phones: Sequence[phones_lib.Phone]
) -> list[phones_lib.Phone]:
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


def disagreement(first: Sequence[phones_lib.Phone], second: Sequence[phones_lib.Phone]) -> float:
    """Returns the median distance in seconds between two alignments of one text.

    Only the sounds are compared, in their order. Infinite if they differ in number.
    """
    a = np.array([p[0] for p in first if p[2] != phones_lib.SIL])
    b = np.array([p[0] for p in second if p[2] != phones_lib.SIL])
    if len(a) != len(b) or not len(a):
        return float("inf")
    return float(np.median(np.abs(a - b)))


def levels_db(audio: np.ndarray, phones: Sequence[phones_lib.Phone]) -> np.ndarray:
    """Returns the level of every phone in dB, [N]."""
    energy = np.concatenate([[0.0], np.cumsum(np.square(np.float64(audio)))])
    edges = np.clip(
        np.round(np.array(phones)[:, :2] * speech.SAMPLE_RATE), 0, len(audio)
    ).astype(int)
    spans = np.maximum(edges[:, 1] - edges[:, 0], 1)
    mean = (energy[edges[:, 1]] - energy[edges[:, 0]]) / spans
    return 10 * np.log10(mean + 1e-10)


def plausible(audio: np.ndarray, phones: Sequence[phones_lib.Phone]) -> bool:
    """Whether an alignment can be true: speed, phone lengths, loud vowels."""
    table = np.array(phones)
    sound = table[:, 2] != phones_lib.SIL
    spans = table[:, 1] - table[:, 0]
    if not sound.any() or spans[sound].max() > 0.7:
        return False
    speed = sound.sum() / spans[sound].sum()
    if not 4 < speed < 22:
        return False
    db = levels_db(audio, phones)
    vowels = np.isin(table[:, 2], list(_VOWEL_IDS))
    if not vowels.any():
        return False
    long_pause = ~sound & (spans > 0.1)
    loud = np.median(db[vowels])
    quiet_vowels = np.mean(db[vowels] < loud - 20)
    return quiet_vowels < 0.15 and not np.any(db[long_pause] > loud - 6)
