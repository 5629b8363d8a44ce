"""Speech tracks of any length, cut from a corpus, with the mouth that says them.

A track is utterances of one voice with pauses between them. Augmentation changes the voice
(speed and pitch together), never the labels' timing against it.
"""

from collections.abc import Iterator
import dataclasses

import numpy as np

from tm_jax.core import timing as timing_lib
from tm_jax.data.corpus import speech
from tm_jax.data.synthetic import visemes

_TIMING = timing_lib.Timing()
_SILENCE = speech.PHONE_ID["SIL"]
_LEVEL = 0.06  # root mean square of speech before augmentation


@dataclasses.dataclass(frozen=True)
class Track:
    """Speech with the labels of every video frame.

    Attributes:
      audio: float32 [640 n] at 16 kHz.
      mouth: [n, 6] mouth curves.
      active: [n] 1 where a phone is spoken.
    """

    audio: np.ndarray
    mouth: np.ndarray
    active: np.ndarray


class Voices:
    """Draws tracks from the speakers of one split of a corpus.

    Recorded people are drawn as often as all synthesisers together, however few they are, and
    every synthesiser as often as any other.
    """

    def __init__(self, folder: str, split: str):
        """Loads the corpus.

        Raises:
          ValueError: The folder holds no speaker of this split.
        """
        self.speakers = speech.load(folder, split)
        if not self.speakers:
            raise ValueError(
                f"{folder}: no {split} speakers; build a corpus with launch/corpus.py."
            )
        self._weights = _shares(self.speakers)

    @classmethod
    def of(cls, speakers: list) -> "Voices":
        """Voices of speakers that are already there."""
        voices = cls.__new__(cls)
        voices.speakers, voices._weights = speakers, _shares(speakers)
        return voices

    def speaker(self, rng: np.random.Generator) -> speech.Speaker:
        """A random voice."""
        return self.speakers[rng.choice(len(self.speakers), p=self._weights)]


def _shares(speakers) -> np.ndarray:
    """Probability of every speaker: within a kind by the square root of its minutes."""
    kinds = [speech.synthesiser(s.name) for s in speakers]
    programs = len(set(kinds) - {None})
    length = np.sqrt([len(s.audio) for s in speakers])
    total = {k: sum(n for n, kind in zip(length, kinds) if kind == k) for k in kinds}
    shares = [n / total[k] * (1 if k else max(programs, 1)) for n, k in zip(length, kinds)]
    return np.array(shares) / sum(shares)


def track(
    speaker: speech.Speaker, rng: np.random.Generator, num_frames: int, vary: float = 0.0
) -> Track:
    """A track of one speaker: utterances in random order, pauses of 0.15 to 0.9 s."""
    rate, fps = _TIMING.sample_rate, _TIMING.fps
    samples = num_frames * _TIMING.samples_per_frame
    audio = np.zeros(samples, np.float32)
    mouth = np.zeros((num_frames, 6), np.float32)
    active = np.zeros(num_frames, np.float32)
    centres = (np.arange(num_frames) + 0.5) / fps
    for at, sound, phones, *_ in utterances(speaker, rng, samples, vary):
        first = at // _TIMING.samples_per_frame
        length = -(-len(sound) // _TIMING.samples_per_frame)
        curve = visemes.mouth_curves(phones, length, fps, sound)
        if put(audio, at, sound):
            a, b = max(first, 0), min(first + length, num_frames)
            mouth[a:b] = curve[a - first : b - first]
            spoken = phones[phones[:, 2] != _SILENCE]
            for start, end, _ in spoken:
                offset = at / rate
                active[(centres >= start + offset) & (centres < end + offset)] = 1
    return Track(audio, mouth, active)


def utterances(
    speaker: speech.Speaker, rng: np.random.Generator, samples: int, vary: float
) -> Iterator[tuple[int, np.ndarray, np.ndarray, int, float]]:
    """Utterances of one speaker in random order, as they lie in a track.

    Args:
      speaker: Whose.
      rng: Random generator.
      samples: Length of the track.
      vary: Largest relative change of speed and pitch.

    Yields:
      First sample in the track, on the grid of video frames and perhaps before its start;
      sound, float32 [n]; phones in seconds of that sound, [N, 3]; number of the utterance, and
      how much faster than recorded it is.
    """
    rate = _TIMING.sample_rate
    at = -int(rng.integers(0, 2 * rate)) if rng.random() < 0.7 else int(0.3 * rate)
    while at < samples:
        index = int(rng.integers(len(speaker.bounds)))
        sound, phones = speaker.utterance(index)
        factor = 1.0 + rng.uniform(-vary, vary)
        sound = _resample(np.asarray(sound, np.float32), factor)
        phones = np.asarray(phones, np.float64).reshape(-1, 3) / [factor, factor, 1.0]
        at -= at % _TIMING.samples_per_frame  # labels are evaluated on the frame grid
        yield at, sound, phones, index, factor
        at += len(sound) + int(rng.uniform(0.15, 0.9) * rate)


def put(audio: np.ndarray, at: int, sound: np.ndarray) -> bool:
    """Writes a sound into a track [n] at the usual level; whether any of it lies there."""
    lo, hi = max(at, 0), min(at + len(sound), len(audio))
    if hi > lo:
        audio[lo:hi] = levelled(sound)[lo - at : hi - at]
    return hi > lo


def levelled(sound: np.ndarray) -> np.ndarray:
    """A sound [n] at the usual level of speech."""
    return sound * (_LEVEL / np.sqrt(np.mean(np.square(sound)) + 1e-9))


def _resample(sound, factor):
    """Plays a sound `factor` times faster; good enough for augmentation."""
    if abs(factor - 1) < 1e-3:
        return sound
    index = np.arange(int(len(sound) / factor)) * factor
    return np.interp(index, np.arange(len(sound)), sound).astype(np.float32)
