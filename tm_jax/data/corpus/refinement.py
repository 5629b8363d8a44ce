"""Phone times of one speaker found anew with a model of that speaker's own sounds.

An alignment with another language's acoustic model puts the sounds in the right order and
nearly in place. From that start a hidden Markov model of the speaker alone is trained by
Viterbi passes (Juang and Rabiner 1990, "The segmental K-means algorithm"): every phone has
three states in a row, every state one Gaussian over cepstra and their slopes, and each pass
finds the best path through the phones of every utterance and then the Gaussians along it.
The phones and their order stay; only their times move.
"""

import librosa
import numpy as np

from tm_jax.data.corpus import speech

_HOP = 80  # Samples between frames: 5 ms, since a stop's burst lasts 10.
_STATES = 3
_PASSES = 6
_LEAST_VARIANCE = 0.05
# Frames that a state is taken to have seen besides its own, and their variance.
_PRIOR_FRAMES, _PRIOR_VARIANCE = 5.0, 0.3
_STEPS = np.array([[1, 1], [0, 1]])  # To the next state, or to stay, with every frame.


def refine(utterances: list, passes: int = _PASSES) -> list:
    """Finds the phone times of a speaker anew.

    Args:
      utterances: All of one speaker, (audio float [samples] at 16 kHz, phones [(start_s,
        end_s, id)] that tile it). A few minutes are needed: every phone has to occur
        dozens of times.
      passes: Viterbi passes.

    Returns:
      The same with other times. An utterance too short for its phones stays as it is.
    """
    features = _normalised([_cepstra(audio) for audio, _ in utterances])
    phones = [np.array([phone for *_, phone in rows], int) for _, rows in utterances]
    paths = [_spread(rows, len(x)) for (_, rows), x in zip(utterances, features)]
    for _ in range(passes):
        mean, precision = _gaussians(features, phones, paths)
        paths = [
            _best_path(x, mean[states], precision[states], path)
            for x, path, states in zip(features, paths, map(_states, phones))
        ]
    return [
        (audio, _times(path, ids, len(audio) / speech.SAMPLE_RATE))
        if len(path) >= _STATES * len(ids) else (audio, rows)
        for (audio, rows), path, ids in zip(utterances, paths, phones)
    ]  # fmt: skip


def _cepstra(audio):
    """Thirteen cepstra with first and second slopes, [T, 39]."""
    mel = librosa.feature.melspectrogram(
        y=np.asarray(audio, np.float32), sr=speech.SAMPLE_RATE, n_fft=512, win_length=256,
        hop_length=_HOP, n_mels=40, fmin=60, fmax=7600,
    )  # fmt: skip
    floor = 1e-4 * np.percentile(mel.sum(axis=0), 90) / 40 + 1e-12
    cepstra = librosa.feature.mfcc(S=np.log(np.maximum(mel, floor)), n_mfcc=13)
    slopes = [
        librosa.feature.delta(cepstra, width=5, order=order, mode="nearest") for order in (1, 2)
    ]
    return np.concatenate([cepstra, *slopes]).T


def _normalised(features):
    every = np.concatenate(features)
    mean, std = every.mean(0), every.std(0) + 1e-6
    return [(x - mean) / std for x in features]


def _states(ids):
    """Rows of the model's states for the states of an utterance, [3 N]."""
    return (_STATES * ids[:, None] + np.arange(_STATES)).ravel()


def _spread(rows, frames):
    """State of the utterance in each frame, [T]: thirds of the phones as they are given."""
    table = np.array(rows)
    time = np.arange(frames) * _HOP / speech.SAMPLE_RATE
    index = np.clip(np.searchsorted(table[:, 1], time, side="right"), 0, len(table) - 1)
    part = (time - table[index, 0]) / (table[index, 1] - table[index, 0])
    return _STATES * index + (np.clip(part, 0, 0.999) * _STATES).astype(int)


def _gaussians(features, phones, paths):
    """Mean and inverse variance of every state, [states, 39] each."""
    states = np.concatenate([_states(ids)[path] for path, ids in zip(paths, phones)])
    x = np.concatenate(features)
    shape = (_STATES * len(speech.PHONES), x.shape[1])
    count, total, square = np.zeros((shape[0], 1)), np.zeros(shape), np.zeros(shape)
    np.add.at(count, states, 1)
    np.add.at(total, states, x)
    np.add.at(square, states, x * x)
    mean = total / np.maximum(count, 1)
    spread = square - count * mean**2 + _PRIOR_FRAMES * _PRIOR_VARIANCE
    return mean, 1 / np.maximum(spread / (count + _PRIOR_FRAMES), _LEAST_VARIANCE)


def _best_path(x, mean, precision, path):
    """The likeliest state of each frame, [T]; `path` if there are fewer frames than states."""
    if len(x) < len(mean):
        return path
    cost = (x**2) @ precision.T - 2 * x @ (mean * precision).T
    cost += (mean**2 * precision).sum(1) - np.log(precision).sum(1)  # [T, states]
    _, pairs = librosa.sequence.dtw(
        C=cost.T.astype(np.float64), step_sizes_sigma=_STEPS,
        weights_add=np.zeros(2), weights_mul=np.ones(2),
    )  # fmt: skip
    found = np.empty(len(x), int)
    found[pairs[:, 1]] = pairs[:, 0]
    return found


def _times(path, ids, duration):
    """Phones (start_s, end_s, id): a border lies between the centres of two frames."""
    first = np.searchsorted(path // _STATES, np.arange(len(ids)))
    starts = np.maximum(first - 0.5, 0) * _HOP / speech.SAMPLE_RATE
    ends = np.append(starts[1:], duration)
    return [(float(s), float(e), int(p)) for s, e, p in zip(starts, ends, ids)]
