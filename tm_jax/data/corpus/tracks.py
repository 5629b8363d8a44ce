"""Speech tracks of any length, cut from a corpus, with exact mouth labels; and their damage.

A track is utterances of one voice with pauses between them. Augmentation changes voice
(speed and pitch together), level, spectrum and noise, never the labels' timing against it.
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

    def draw(self, rng: np.random.Generator, num_frames: int, vary: float = 0.12) -> Track:
        """A track of one random voice.

        Args:
          rng: Random generator.
          num_frames: Length in video frames.
          vary: Largest relative change of speed and pitch.
        """
        return track(self.speaker(rng), rng, num_frames, vary)

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
    for at, sound, phones in utterances(speaker, rng, samples, vary):
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
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Utterances of one speaker in random order, as they lie in a track.

    Args:
      speaker: Whose.
      rng: Random generator.
      samples: Length of the track.
      vary: Largest relative change of speed and pitch.

    Yields:
      First sample in the track, on the grid of video frames and perhaps before its start;
      sound, float32 [n]; phones in seconds of that sound, [N, 3].
    """
    rate = _TIMING.sample_rate
    at = -int(rng.integers(0, 2 * rate)) if rng.random() < 0.7 else int(0.3 * rate)
    while at < samples:
        sound, phones = speaker.utterance(int(rng.integers(len(speaker.bounds))))
        factor = 1.0 + rng.uniform(-vary, vary)
        sound = _resample(np.asarray(sound, np.float32), factor)
        phones = np.asarray(phones, np.float64).reshape(-1, 3) / [factor, factor, 1.0]
        at -= at % _TIMING.samples_per_frame  # labels are evaluated on the frame grid
        yield at, sound, phones
        at += len(sound) + int(rng.uniform(0.15, 0.9) * rate)


def put(audio: np.ndarray, at: int, sound: np.ndarray) -> bool:
    """Writes a sound into a track [n] at the usual level; whether any of it lies there."""
    lo, hi = max(at, 0), min(at + len(sound), len(audio))
    if hi > lo:
        rms = np.sqrt(np.mean(np.square(sound)) + 1e-9)
        audio[lo:hi] = sound[lo - at : hi - at] * (_LEVEL / rms)
    return hi > lo


def _resample(sound, factor):
    """Plays a sound `factor` times faster; good enough for augmentation."""
    if abs(factor - 1) < 1e-3:
        return sound
    index = np.arange(int(len(sound) / factor)) * factor
    return np.interp(index, np.arange(len(sound)), sound).astype(np.float32)


def noise(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Coloured noise of unit level, now and then with hum or clicks: a microphone's room."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    frequency = np.fft.rfftfreq(samples, 1 / _TIMING.sample_rate)
    tilt = rng.uniform(0.0, 1.2)
    spectrum *= np.maximum(frequency, 40.0) ** -tilt
    sound = np.fft.irfft(spectrum, samples)
    sound /= np.std(sound) + 1e-9
    if rng.random() < 0.3:
        time = np.arange(samples) / _TIMING.sample_rate
        hum = rng.choice([50.0, 60.0])
        sound += sum(np.sin(2 * np.pi * hum * k * time) / k for k in (1, 2, 3))
    if rng.random() < 0.3:
        clicks = rng.integers(0, samples, 3 * samples // _TIMING.sample_rate)
        sound[clicks] += rng.uniform(5, 20, len(clicks))
    return (sound / (np.std(sound) + 1e-9)).astype(np.float32)


def damage(rng: np.random.Generator, audio: np.ndarray) -> np.ndarray:
    """Level, spectrum, telephone band and noise of other microphones, at random."""
    spectrum = np.fft.rfft(audio)
    frequency = np.fft.rfftfreq(len(audio), 1 / _TIMING.sample_rate)
    octave = np.log2(np.maximum(frequency, 30.0) / 1000.0)
    gain_db = rng.uniform(-2.5, 2.5) * octave
    gain_db += 3 * rng.standard_normal() * np.cos(octave * rng.uniform(0.5, 2) + rng.uniform(0, 6))
    spectrum *= 10 ** (np.clip(gain_db, -15, 12) / 20)
    if rng.random() < 0.2:
        spectrum *= (frequency > rng.uniform(60, 300)) * (frequency < rng.uniform(3300, 4000))
    sound = np.fft.irfft(spectrum, len(audio))
    level = np.sqrt(np.mean(np.square(sound)) + 1e-9)
    if rng.random() < 0.7:
        ratio_db = rng.uniform(8, 45)
        sound = sound + noise(rng, len(audio)) * level * 10 ** (-ratio_db / 20)
    target_db = rng.uniform(-18, 8)
    sound = sound * 10 ** (target_db / 20)
    return np.clip(sound, -1, 1).astype(np.float32)
