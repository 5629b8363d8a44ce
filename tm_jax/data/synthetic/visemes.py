"""Mouth curves from phones: what the lips do while a sentence is spoken.

Coarticulation follows Cohen and Massaro (1993), "Modeling coarticulation in synthetic
visual speech": every phone has a target for every parameter and a dominance that rises
before it and falls after it, and a curve is the average of all targets weighted by
dominance (their eq. 4):

    F(t) = sum_s D_s(t) T_s / sum_s D_s(t),    D_s(t) = alpha_s exp(-(|tau_s| / w_s)^c).

Differs from the paper: tau is the distance from the core of the phone rather than from
its centre, so that long phones hold their target; c is 1.5, so that the peaks are
rounded; and two gates follow the average, because no weighted average reaches its
extremes: lips meet on m, b, p, and the mouth is shut in a pause.
"""

import numpy as np
import numpy.typing as npt

from tm_jax.data.corpus import speech

COLUMNS = ("mouth_open", "mouth_width", "mouth_round", "teeth", "tongue", "smile")

# Targets and dominances: open 0..1, width -1 (narrow)..1 (spread), round 0..1,
# teeth 0..1, tongue 0..1 | dominance of the opening, of the shape (width and round),
# of teeth and tongue.
TARGETS = {
    # Silence: lips rest together.
    "SIL": (0.00, 0.00, 0.00, 0.00, 0.00, 0.8, 0.5, 0.8),
    # Open vowels: the jaw drops.
    "AA": (1.00, 0.15, 0.00, 0.15, 0.05, 1.0, 0.8, 0.6),
    "AE": (0.92, 0.45, 0.00, 0.25, 0.05, 1.0, 0.8, 0.6),
    "AH": (0.68, 0.10, 0.00, 0.15, 0.05, 0.9, 0.6, 0.6),
    "AO": (0.82, -0.35, 0.55, 0.05, 0.05, 1.0, 0.9, 0.6),
    "AX": (0.42, 0.05, 0.00, 0.15, 0.05, 0.6, 0.3, 0.4),
    # Spread vowels.
    "EH": (0.68, 0.45, 0.00, 0.30, 0.05, 0.9, 0.8, 0.6),
    "IH": (0.42, 0.50, 0.00, 0.35, 0.05, 0.8, 0.7, 0.6),
    "IY": (0.34, 0.85, 0.00, 0.45, 0.05, 0.9, 1.0, 0.6),
    # Round vowels: lips come forward and together.
    "UH": (0.40, -0.45, 0.60, 0.05, 0.05, 0.8, 0.9, 0.6),
    "UW": (0.28, -0.85, 1.00, 0.00, 0.00, 0.9, 1.8, 0.6),
    "UE": (0.28, -0.75, 0.95, 0.00, 0.05, 0.9, 1.8, 0.6),
    "OE": (0.48, -0.55, 0.75, 0.05, 0.05, 0.9, 1.1, 0.6),
    "ER": (0.40, -0.25, 0.35, 0.15, 0.10, 0.8, 0.8, 0.6),
    # Lips shut.
    "M": (0.00, 0.00, 0.00, 0.00, 0.00, 1.0, 0.3, 0.8),
    "B": (0.00, 0.00, 0.00, 0.00, 0.00, 1.0, 0.3, 0.8),
    "P": (0.00, 0.00, 0.05, 0.00, 0.00, 1.0, 0.3, 0.8),
    # The lower lip on the upper teeth.
    "F": (0.05, 0.10, 0.00, 1.00, 0.00, 2.4, 0.4, 1.6),
    "V": (0.05, 0.10, 0.00, 0.95, 0.00, 2.4, 0.4, 1.6),
    # The tongue between or behind the teeth.
    "TH": (0.22, 0.20, 0.00, 0.60, 1.00, 1.0, 0.4, 1.4),
    "DH": (0.22, 0.20, 0.00, 0.50, 0.85, 0.8, 0.3, 1.2),
    "L": (0.38, 0.15, 0.00, 0.25, 0.80, 0.6, 0.3, 1.1),
    "RR": (0.32, 0.05, 0.05, 0.30, 0.60, 0.6, 0.3, 1.0),
    "N": (0.24, 0.15, 0.00, 0.35, 0.45, 0.7, 0.2, 0.8),
    "T": (0.20, 0.15, 0.00, 0.55, 0.35, 0.9, 0.2, 0.9),
    "D": (0.22, 0.15, 0.00, 0.50, 0.40, 0.8, 0.2, 0.9),
    # Sibilants: teeth nearly together.
    "S": (0.13, 0.40, 0.00, 0.95, 0.00, 1.3, 0.5, 1.3),
    "Z": (0.15, 0.40, 0.00, 0.90, 0.00, 1.2, 0.5, 1.3),
    "SH": (0.18, -0.45, 0.65, 0.85, 0.00, 1.2, 1.0, 1.3),
    "ZH": (0.18, -0.45, 0.65, 0.80, 0.00, 1.2, 1.0, 1.3),
    "CH": (0.17, -0.35, 0.55, 0.85, 0.05, 1.2, 0.9, 1.3),
    "JH": (0.17, -0.35, 0.55, 0.80, 0.05, 1.2, 0.9, 1.3),
    # The back of the tongue: lips are free and take their shape from the vowels.
    "K": (0.30, 0.10, 0.00, 0.20, 0.05, 0.6, 0.1, 0.5),
    "G": (0.30, 0.10, 0.00, 0.20, 0.05, 0.6, 0.1, 0.5),
    "NG": (0.30, 0.10, 0.00, 0.20, 0.05, 0.6, 0.1, 0.5),
    "KH": (0.35, 0.10, 0.00, 0.20, 0.00, 0.5, 0.1, 0.4),
    "HH": (0.45, 0.05, 0.00, 0.10, 0.00, 0.3, 0.05, 0.3),
    # Glides.
    "W": (0.12, -0.95, 1.00, 0.00, 0.00, 1.5, 2.4, 1.0),
    "R": (0.27, -0.40, 0.50, 0.15, 0.10, 0.9, 0.8, 0.8),
    "Y": (0.26, 0.65, 0.00, 0.45, 0.05, 0.8, 0.8, 0.6),
}
# A diphthong is its two vowels; the first takes the given share of its time.
DIPHTHONGS = {
    "AY": ("AA", "IH", 0.6),
    "AW": ("AA", "UH", 0.55),
    "EY": ("EH", "IY", 0.5),
    "OW": ("AO", "UW", 0.5),
    "OY": ("AO", "IY", 0.55),
}

_BILABIALS = tuple(speech.PHONE_ID[name] for name in "MBP")
_SIL = speech.PHONE_ID["SIL"]
_NAMES = tuple(TARGETS)
_TABLE = np.array([TARGETS[name] for name in _NAMES])  # [phones, 8]
_ROW = {name: row for row, name in enumerate(_NAMES)}

_GROUP = np.array([0, 1, 1, 2, 2])  # Dominance group of each of the five columns.
# Reach of a dominance before and after its phone, in seconds, per group. Rounding and
# spreading are anticipated further than the jaw.
_REACH_BEFORE_S = np.array([0.042, 0.080, 0.040])
_REACH_AFTER_S = np.array([0.045, 0.055, 0.040])
_LEAD_S = np.array([0.015, 0.045, 0.015])  # Lips lead the sound.
_EXPONENT = 1.5
_PRIOR = 1e-4  # Weight of the rest position; keeps the average finite in long pauses.

_SHUT_MIN_S = 0.024  # Half a closure: longer than half a frame at 25 fps.
_SHUT_RAMP_S = 0.050  # Time of the lips to meet or to part.
_PAUSE_MIN_S = 0.14  # A shorter pause shuts the mouth only in part.
_PAUSE_FALL_S = 0.12
_PAUSE_RISE_S = 0.10

_LEVEL_HOP_S = 0.01
# Opening factor at a level in dB below the loud vowels of the utterance.
_LOUDNESS = ((-45, -30, -18, -8, 0, 4), (0.10, 0.40, 0.70, 0.92, 1.10, 1.18))


def mouth_curves(
    phones: npt.ArrayLike, num_frames: int, fps: float = 25, audio: np.ndarray | None = None
) -> np.ndarray:
    """Returns the mouth of every video frame.

    Frame j shows the interval [j / fps, (j + 1) / fps) and is evaluated at its centre.

    Args:
      phones: Rows (start_s, end_s, id), [N, 3], in order of time. Time before the
        first and after the last phone is silence.
      num_frames: Frames to return.
      fps: Frames per second.
      audio: Optional float [samples] at 16 kHz. A vowel louder than the others of
        its utterance opens wider, a softer one less; the scale of the audio does not
        matter.

    Returns:
      Curves [num_frames, 6], float32, in the order of `COLUMNS`. mouth_width lies in
      [-1, 1], the others in [0, 1]; smile is 0.
    """
    times = (np.arange(num_frames) + 0.5) / fps  # [T]
    curves = np.zeros((num_frames, len(COLUMNS)), np.float32)
    phones = np.asarray(phones, np.float64).reshape(-1, 3)
    if not len(phones) or not num_frames:
        return curves
    blended = _blend(times, *_segments(phones))  # [T, 5]
    if audio is not None:
        blended[:, 0] *= _loudness_gain(np.asarray(audio), phones, times)
    shut, rest = _shut(times, phones), _rest(times, phones)
    blended[:, 0] *= (1 - shut) * (1 - rest)
    blended[:, 1:] *= (1 - 0.5 * rest)[:, None]
    blended[:, 3:] *= (1 - shut)[:, None]
    curves[:, :5] = np.clip(blended, (0, -1, 0, 0, 0), 1)
    return curves


def closures(phones: npt.ArrayLike, num_frames: int, fps: float = 25) -> np.ndarray:
    """Returns which frames show the lips shut for m, b or p.

    Args:
      phones: Rows (start_s, end_s, id), [N, 3].
      num_frames: Frames to return.
      fps: Frames per second.

    Returns:
      Bool [num_frames]: true where the frame's centre lies in a closure.
    """
    times = (np.arange(num_frames) + 0.5) / fps
    phones = np.asarray(phones, np.float64).reshape(-1, 3)
    if not len(phones):
        return np.zeros(num_frames, bool)
    return _shut(times, phones) > 0.999


def _segments(phones):
    """Splits diphthongs; returns starts [S], ends [S] and table rows [S]."""
    segments = [(-10.0, phones[0, 0], _ROW["SIL"])]
    for start, end, phone in phones:
        name = speech.PHONES[int(phone)]
        first, second, share = DIPHTHONGS.get(name, (name, name, 1.0))
        middle = start + share * (end - start)
        segments.append((start, middle, _ROW[first]))
        if second != first:
            segments.append((middle, end, _ROW[second]))
    segments.append((phones[-1, 1], 1e4, _ROW["SIL"]))
    starts, ends, rows = zip(*segments)
    return np.array(starts), np.array(ends), np.array(rows)


def _blend(times, starts, ends, rows):
    """Returns the dominance-weighted targets, [T, 5]."""
    centre, half = (starts + ends) / 2, (ends - starts) / 2
    core = np.maximum(0.5 * half, half - 0.04)  # Long phones are held.
    targets, strengths = _TABLE[rows, :5], _TABLE[rows, 5:]
    strengths = strengths * np.minimum(1, 0.35 + half / 0.05)[:, None]
    result = np.empty((len(times), 5))
    for group in range(3):
        offset = times[:, None] + _LEAD_S[group] - centre  # [T, S]
        distance = np.maximum(np.abs(offset) - core, 0)
        reach = np.where(offset < 0, _REACH_BEFORE_S[group], _REACH_AFTER_S[group])
        weight = strengths[:, group] * np.exp(-((distance / reach) ** _EXPONENT))
        columns = np.flatnonzero(_GROUP == group)
        total = weight.sum(axis=1, keepdims=True) + _PRIOR
        result[:, columns] = weight @ targets[:, columns] / total
    return result


def _ramp(x):
    """Smooth step from 0 at x <= 0 to 1 at x >= 1."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _shut(times, phones):
    """Returns how far lips are shut by m, b and p, [T] in [0, 1]."""
    lips = phones[np.isin(phones[:, 2], _BILABIALS)]
    if not len(lips):
        return np.zeros(len(times))
    centre, span = (lips[:, 0] + lips[:, 1]) / 2, lips[:, 1] - lips[:, 0]
    half = np.maximum(0.35 * span, _SHUT_MIN_S)
    distance = np.abs(times[:, None] - centre) - half  # [T, closures]
    return np.max(1 - _ramp(distance / _SHUT_RAMP_S), axis=1)


def _rest(times, phones):
    """Returns how far the mouth is shut by pauses, [T] in [0, 1]."""
    pauses = phones[phones[:, 2] == _SIL][:, :2]
    edges = [[-10.0, phones[0, 0]], [phones[-1, 1], 1e4]]
    pauses = np.concatenate([pauses, edges])
    pauses[pauses[:, 0] <= phones[0, 0], 0] = -10.0
    pauses[pauses[:, 1] >= phones[-1, 1], 1] = 1e4
    start, end = pauses.T
    depth = _ramp((end - start) / _PAUSE_MIN_S)
    fall = _ramp((times[:, None] - start) / _PAUSE_FALL_S)
    rise = _ramp((end - times[:, None]) / _PAUSE_RISE_S)
    return np.max(depth * np.minimum(fall, rise), axis=1)


def _loudness_gain(audio, phones, times):
    """Returns the opening factor of every frame from the level of the sound, [T]."""
    hop = int(_LEVEL_HOP_S * speech.SAMPLE_RATE)
    count = max(len(audio) // hop, 1)
    padded = np.zeros(count * hop)
    padded[: min(len(audio), count * hop)] = audio[: count * hop]
    power = np.mean(np.square(padded.reshape(count, hop)), axis=1)
    window = np.hanning(11)  # 0.1 s: one syllable, several pitch periods.
    power = np.convolve(power, window / window.sum(), "same")
    clock = (np.arange(count) + 0.5) * _LEVEL_HOP_S
    spoken = np.zeros(count, bool)
    for start, end, phone in phones:
        spoken |= (clock >= start) & (clock < end) & (phone != _SIL)
    if not spoken.any() or power[spoken].max() <= 0:
        return np.ones(len(times))
    reference = np.percentile(power[spoken], 85)
    level_db = 10 * np.log10(np.maximum(power / max(reference, 1e-20), 1e-6))
    return np.interp(np.interp(times, clock, level_db), *_LOUDNESS)
