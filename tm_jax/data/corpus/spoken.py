"""Labels of every frame of a speech track: phones, voice and level, of sound alone.

Nothing here depends on a face. Phones are sampled finer than video frames, because a lip
closure may be shorter than one; a stretch of a recording that no phone covers is unknown,
and a loss leaves it out.
"""

import dataclasses

import numpy as np

from tm_jax.core import timing as timing_lib
from tm_jax.data.corpus import recogniser
from tm_jax.data.corpus import speech
from tm_jax.data.corpus import tracks

PARTS = 2  # Phones of a video frame: one for each 20 ms.
UNKNOWN = -1
_TIMING = timing_lib.Timing()
_SILENCE = speech.PHONE_ID["SIL"]
_SMOOTH = (0.25, 0.5, 0.25)  # Over frames: a syllable's level, not a pitch period's.
_LOUD = 85  # Percentile of the spoken frames of an utterance that counts as its loud ones.
_RANGE_DB = (-40.0, 6.0)


@dataclasses.dataclass(frozen=True)
class Spoken:
    """Speech with its labels.

    Attributes:
      audio: float32 [640 n] at 16 kHz.
      phones: Index into `speech.PHONES` of every part of a frame, or UNKNOWN, int32
        [n, PARTS].
      active: 1 where a phone is spoken at the frame's centre, 0 where none is, UNKNOWN
        where it is unknown, float32 [n].
      level: Level against the loud frames of the same utterance, float32 [n]: 1 for these,
        -1 from 40 dB below.
      taught: Features of a recogniser, float32 [n, D], nan where there are none; None without.
    """

    audio: np.ndarray
    phones: np.ndarray
    active: np.ndarray
    level: np.ndarray
    taught: np.ndarray | None = None


def track(
    speaker: speech.Speaker, rng: np.random.Generator, num_frames: int, vary: float = 0.0,
    recognised: np.ndarray | None = None,
) -> Spoken:
    """A track of one speaker, laid out as in `tracks.track`.

    Args:
      speaker: A `speech.Speaker`.
      rng: Random generator.
      num_frames: Length in video frames.
      vary: Largest relative change of speed and pitch.
      recognised: Features of all its utterances, [frames, D] (`recogniser.taught`), or None.
    """
    samples = num_frames * _TIMING.samples_per_frame
    audio = np.zeros(samples, np.float32)
    phones = np.full(num_frames * PARTS, _SILENCE, np.int32)
    quiet = np.float32(_scaled(_RANGE_DB[0]))
    level = np.full(num_frames, quiet, np.float32)
    taught, begin = None, None
    if recognised is not None:
        taught = np.full((num_frames, recognised.shape[1]), np.nan, np.float32)
        begin = recogniser.rows(speaker)
    for at, sound, rows, index, factor in tracks.utterances(speaker, rng, samples, vary):
        if not tracks.put(audio, at, sound):
            continue
        first = at // _TIMING.samples_per_frame
        length = len(sound) // _TIMING.samples_per_frame
        a, b = max(first, 0), min(first + length, num_frames)
        said = sampled(rows, length * PARTS, _TIMING.fps * PARTS)
        phones[a * PARTS : b * PARTS] = said[(a - first) * PARTS : (b - first) * PARTS]
        level[a:b] = loudness(sound, said.reshape(-1, PARTS))[a - first : b - first]
        if taught is not None and recognised is not None and begin is not None and b > a:
            # The recogniser heard the utterance as it was recorded.
            heard = recognised[begin[index] : begin[index + 1]]
            here = np.floor((np.arange(a - first, b - first) + 0.5) * factor).astype(int)
            # What is left of a frame at its end may have become a whole one.
            taught[a:b] = heard[np.minimum(here, len(heard) - 1)] if len(heard) else np.nan
    phones = phones.reshape(-1, PARTS)
    return Spoken(audio, phones, voice(phones), level, taught)


def silence(audio: np.ndarray) -> Spoken:
    """A track [640 n] without speech."""
    frames = len(audio) // _TIMING.samples_per_frame
    phones = np.full((frames, PARTS), _SILENCE, np.int32)
    level = np.full(frames, _scaled(_RANGE_DB[0]), np.float32)
    return Spoken(audio, phones, voice(phones), level)


def sampled(rows: np.ndarray, count: int, rate: float) -> np.ndarray:
    """Phone ids at the centres of `count` intervals, `rate` of them a second, int32 [count].

    Args:
      rows: Phones (start_s, end_s, id), [N, 3], in order of time.
      count: Intervals.
      rate: Intervals per second.

    Returns:
      UNKNOWN where no phone covers the centre.
    """
    rows = np.asarray(rows, np.float64).reshape(-1, 3)
    centres = (np.arange(count) + 0.5) / rate
    if not len(rows):
        return np.full(count, UNKNOWN, np.int32)
    at = np.searchsorted(rows[:, 0], centres, side="right") - 1
    inside = (at >= 0) & (centres < rows[at, 1])
    return np.where(inside, rows[at, 2], UNKNOWN).astype(np.int32)


def voice(phones: np.ndarray) -> np.ndarray:
    """Voice activity [..., n] of phones [..., n, PARTS]: of the part that follows the centre."""
    middle = phones[..., phones.shape[-1] // 2]
    active = (middle != _SILENCE).astype(np.float32)
    return np.where(middle == UNKNOWN, np.float32(UNKNOWN), active)


def loudness(sound: np.ndarray, phones: np.ndarray) -> np.ndarray:
    """Level of every frame against the loud frames of the same utterance.

    Args:
      sound: One utterance, undamaged, [640 n or a little more].
      phones: Phones in it, [n, PARTS].

    Returns:
      float32 [n]: 1 for the loud frames, -1 from 40 dB below them.
    """
    frames = len(phones)
    blocks = np.asarray(sound[: frames * _TIMING.samples_per_frame]).reshape(frames, -1)
    power = np.mean(np.square(blocks), axis=1)
    power = np.convolve(np.pad(power, 1, mode="edge"), _SMOOTH, "valid") if frames else power
    spoken = voice(phones) == 1
    if not spoken.any():
        return np.full(frames, _scaled(_RANGE_DB[0]), np.float32)
    loud = max(float(np.percentile(power[spoken], _LOUD)), 1e-12)
    return _scaled(10 * np.log10(np.maximum(power / loud, 1e-6))).astype(np.float32)


def _scaled(level_db):
    """-40 ... 0 dB to -1 ... 1."""
    return 1 + np.clip(level_db, *_RANGE_DB) / 20
