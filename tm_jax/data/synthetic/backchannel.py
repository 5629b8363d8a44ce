"""A listener's reactions to another voice, and how often: nods, gaze, brows, smiles.

A phrase is a stretch of speech without a pause of more than a quarter of a second. Answers
come after its end. That they follow at least 0.7 s of speech, and one another not sooner
than 0.8 s, is the rule of Ward and Tsukahara (2000) for spoken "mm-hm"; the other rates and
sizes are our own choice. Everything that is drawn comes from one numpy Generator, and what
it depends on lies in the past of its frame, so that a live listener can do the same.
"""

from typing import NamedTuple

import numpy as np

_GAP_S = 0.25  # Shorter pauses belong to the phrase.
_SHORT_S = 0.2  # Shorter sounds are no phrase.
_PHRASE_S = 0.7  # Least speech that is answered.
_APART_S = 0.8  # Least time between two answers.
_DELAY_S = (0.27, 0.5)  # From the end of a phrase to the onset of a nod.
_NODS = 0.65  # Part of the phrases that get a nod.
_LIFTS, _SMILES = 0.3, 0.25  # Part of the phrases after which brows rise, the face smiles.
_WITHIN_EVERY_S = 14.0  # Seldom a nod comes while the other one talks.
_LINGER_S = 1.6  # Attention that is left when the other one has stopped.

NOD_S = 0.5  # Duration of one nod.
_NOD = 0.15  # Smallest dip that `nods` counts.


class Answers(NamedTuple):
    """Gestures of a listener: seconds of their middle, and sizes.

    Attributes:
      nods: Nods, seconds [N].
      nod_sizes: [N].
      lifts: Raised brows, seconds [N].
      lift_sizes: [N].
      smiles: Smiles, seconds [N].
      smile_sizes: [N].
    """

    nods: np.ndarray
    nod_sizes: np.ndarray
    lifts: np.ndarray
    lift_sizes: np.ndarray
    smiles: np.ndarray
    smile_sizes: np.ndarray


def phrases(other: np.ndarray, fps: int = 25) -> np.ndarray:
    """Phrases of a voice.

    Args:
      other: Whether somebody speaks in each frame, [T] in 0..1.
      fps: Frames per second.

    Returns:
      First frame and first frame after it, of every phrase, int [P, 2].
    """
    spoken = np.concatenate([[0], np.asarray(other) > 0.5, [0]]).astype(np.int8)
    edges = np.diff(spoken)
    runs = np.stack([np.flatnonzero(edges > 0), np.flatnonzero(edges < 0)], 1)
    joined = []
    for start, end in runs:
        if joined and start - joined[-1][1] < _GAP_S * fps:
            joined[-1][1] = end
        else:
            joined.append([start, end])
    found = np.array(joined, int).reshape(-1, 2)
    return found[found[:, 1] - found[:, 0] >= _SHORT_S * fps]


def ends(other: np.ndarray, fps: int = 25) -> np.ndarray:
    """Ends of the phrases that may be answered: long enough, and followed by a pause.

    Args:
      other: [T] in 0..1.
      fps: Frames per second.

    Returns:
      First frames of the pauses, int [N].
    """
    found = phrases(other, fps)
    found = found[found[:, 1] - found[:, 0] >= _PHRASE_S * fps]
    return found[found[:, 1] + _GAP_S * fps < len(other), 1]


def attention(other: np.ndarray, fps: int = 25) -> np.ndarray:
    """Where a listener attends: during phrases and a little after them, bool [T]."""
    attends = np.zeros(len(other), bool)
    for start, end in phrases(other, fps):
        attends[start : end + int(_LINGER_S * fps)] = True
    return attends


def answers(rng: np.random.Generator, other: np.ndarray, fps: int = 25) -> Answers:
    """Draws what a listener does.

    Args:
      rng: numpy Generator.
      other: Whether the other party speaks in each frame, [T] in 0..1.
      fps: Frames per second.
    """
    at = ends(other, fps) / fps
    if len(at):
        far = np.concatenate([[True], np.diff(at) >= _APART_S])
        at = at[far]
    nodded = at[rng.random(len(at)) < _NODS]
    first = nodded + rng.uniform(*_DELAY_S, len(nodded)) + NOD_S / 2
    count = rng.integers(1, 4, len(nodded))  # One to three, each smaller than the last.
    largest = rng.uniform(0.3, 0.5, len(nodded))
    nods = [a + NOD_S * i for a, n in zip(first, count) for i in range(n)]
    sizes = [s * 0.75**i for s, n in zip(largest, count) for i in range(n)]
    within = _within(rng, other, fps)
    lifted = at[rng.random(len(at)) < _LIFTS]
    smiled = at[rng.random(len(at)) < _SMILES]
    return Answers(
        nods=np.concatenate([nods, within]),
        nod_sizes=np.concatenate([sizes, rng.uniform(0.2, 0.3, len(within))]),
        lifts=lifted + rng.uniform(0.4, 0.9, len(lifted)),
        lift_sizes=rng.uniform(0.2, 0.55, len(lifted)),
        smiles=smiled + rng.uniform(0.9, 1.3, len(smiled)),
        smile_sizes=rng.uniform(0.15, 0.3, len(smiled)),
    )


def _within(rng, other, fps):
    """Seconds of the nods in the middle of phrases, [N]."""
    times = []
    for start, end in phrases(other, fps) / fps:
        room = end - start - 2 * _PHRASE_S
        if room > 0:
            count = rng.poisson(room / _WITHIN_EVERY_S)
            times.append(start + _PHRASE_S + rng.uniform(0, room, count))
    return np.concatenate([np.zeros(0), *times])


def nods(pitch: np.ndarray, fps: int = 25) -> np.ndarray:
    """Finds nods in the motion of a head, without knowing why they were made.

    Args:
      pitch: Column `pitch` of `data/synthetic/motion.py`, [T].
      fps: Frames per second.

    Returns:
      Frames at which nods begin, the first of each row of nods, int [N].
    """
    half = round(NOD_S / 2 * fps)
    pitch = np.asarray(pitch, np.float64)
    if len(pitch) < 2 * half + 1:
        return np.zeros(0, int)
    # How far a frame lies below the line between the frames half a nod away; slow motion
    # of the head is nearly straight over that time.
    dip = np.zeros(len(pitch))
    dip[half:-half] = pitch[half:-half] - 0.5 * (pitch[: -2 * half] + pitch[2 * half :])
    lowest = np.lib.stride_tricks.sliding_window_view(np.pad(dip, 3), 7).max(1)
    onsets = np.flatnonzero((dip >= lowest) & (dip > _NOD)) - half
    apart = np.concatenate([[True], np.diff(onsets) > 1.6 * NOD_S * fps])
    return onsets[apart[: len(onsets)]]


def answered(
    starts: np.ndarray, phrase_ends: np.ndarray, num_frames: int, fps: int = 25,
    within_s: tuple[float, float] = (0.1, 0.9),
) -> tuple[float, float]:
    """How many phrases are answered by a nod, and how many would be by chance.

    Args:
      starts: Frames at which nods begin, [N].
      phrase_ends: From `ends`, [P].
      num_frames: Length of both.
      fps: Frames per second.
      within_s: Delay that counts as an answer.

    Returns:
      The part of the phrases with a nod at that delay, and its mean over all shifts of the
      nods in time by more than 2 s (round the end); two nan without phrases.
    """
    if not len(phrase_ends):
        return float("nan"), float("nan")
    low, high = round(within_s[0] * fps), round(within_s[1] * fps)
    begins = np.zeros(num_frames, bool)
    begins[np.asarray(starts, int)] = True
    delays = np.asarray(phrase_ends)[:, None] + np.arange(low, high + 1)

    def part(shift):
        # A phrase near the end wraps around it, which is one of many.
        return begins[(delays - shift) % num_frames].any(1).mean()

    shifts = range(2 * fps, max(2 * fps + 1, num_frames - 2 * fps))
    return float(part(0)), float(np.mean([part(shift) for shift in shifts]))
