"""Attention patterns, frame by frame in NumPy."""

import numpy as np
import pytest

from tm_jax.models.wan import patterns

_ROWS, _COLUMNS, _HEADS, _WIDTH, _CHUNK = 1, 2, 2, 12, 3
_P = _ROWS * _COLUMNS
_GRID = patterns.Grid(_ROWS, _COLUMNS, _CHUNK)
_ATOL = 5e-6  # Measured 3e-7.


def _rotate(x, time):
    """Rotates one frame [P, N, K] with complex numbers in float64."""
    side = 2 * (_WIDTH // 6)
    widths = (_WIDTH - 2 * side, side, side)
    out = np.float64(x).copy()
    for token in range(_P):
        first = 0
        for width, position in zip(widths, (time, token // _COLUMNS, token % _COLUMNS)):
            part = out[token, :, first : first + width]
            z = part[:, 0::2] + 1j * part[:, 1::2]
            z = z * np.exp(1j * position * 10000.0 ** (-np.arange(0, width, 2) / width))
            part[:, 0::2], part[:, 1::2] = z.real, z.imag
            first += width
    return out


def _attend(q, query_time, seen):
    """One frame attends to a list of (k, v, time), each [P, N, K]."""
    q = _rotate(q, query_time)
    k = np.concatenate([_rotate(k, time) for k, _, time in seen])
    v = np.concatenate([np.float64(v) for _, v, _ in seen])
    logits = np.einsum("lnk,snk->nls", q, k) / np.sqrt(_WIDTH)
    weights = np.exp(logits)
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("nls,snk->lnk", weights, v)


def _qkv(frames, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((3, 2, frames, _P, _HEADS, _WIDTH), dtype=np.float32)


def test_bidirectional():
    q, k, v = _qkv(4)
    actual = patterns.bidirectional(_GRID)(q, k, v)
    for b in range(2):
        seen = [(k[b, t], v[b, t], t) for t in range(4)]
        expected = np.stack([_attend(q[b, t], t, seen) for t in range(4)])
        np.testing.assert_allclose(actual[b], expected, rtol=0, atol=_ATOL)


def _window(k, v, sink, before, here):
    """What a chunk sees: frames of the sink, of the chunk before and of itself."""
    seen = [(k[sink], v[sink], 0)]
    seen += [(k[f], v[f], 1 + i) for i, f in enumerate(before)]
    return seen + [(k[f], v[f], 1 + _CHUNK + i) for i, f in enumerate(here)]


@pytest.mark.parametrize("filled", [True, False])
def test_windowed(filled):
    q, k, v = _qkv(1 + 2 * _CHUNK)
    before, here = [1, 2, 3], [4, 5, 6]

    def slots(x):
        return x.reshape(2, -1, _HEADS, _WIDTH)

    pattern = patterns.windowed(
        _GRID, k[:, 0], v[:, 0], slots(k[:, before]), slots(v[:, before]),
        np.full((2, 1, 1, 1), filled),
    )
    actual = pattern(q[:, here], k[:, here], v[:, here])
    for b in range(2):
        seen = _window(k[b], v[b], 0, before if filled else [], here)
        expected = np.stack(
            [_attend(q[b, f], 1 + _CHUNK + i, seen) for i, f in enumerate(here)]
        )
        np.testing.assert_allclose(actual[b], expected, rtol=0, atol=_ATOL)


def test_teacher_forcing():
    chunks = 3
    q, k, v = _qkv(1 + (2 * chunks - 1) * _CHUNK)
    actual = patterns.teacher_forcing(_GRID, chunks)(q, k, v)

    def clean(c):  # Frames of clean chunk c = 1 ... n - 1; nothing before the first.
        return range(1 + (c - 1) * _CHUNK, 1 + c * _CHUNK) if c else []

    def noisy(c):
        first = 1 + (chunks - 1 + c - 1) * _CHUNK
        return range(first, first + _CHUNK)

    for b in range(2):
        expected = np.zeros(q.shape[1:])
        expected[0] = _attend(q[b, 0], 0, [(k[b, 0], v[b, 0], 0)])
        own = [(clean(c), c) for c in range(1, chunks)]
        own += [(noisy(c), c) for c in range(1, chunks + 1)]
        for here, c in own:
            seen = _window(k[b], v[b], 0, clean(c - 1), here)
            for i, frame in enumerate(here):
                expected[frame] = _attend(q[b, frame], 1 + _CHUNK + i, seen)
        np.testing.assert_allclose(actual[b], expected, rtol=0, atol=_ATOL)
