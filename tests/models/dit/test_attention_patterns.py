"""Attention patterns, frame by frame in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tm_jax.models.dit import attention_patterns
from tm_jax.models.dit import config

_ROWS, _COLUMNS, _HEADS, _WIDTH, _CHUNK = 1, 2, 2, 12, 3
_P = _ROWS * _COLUMNS
_GRID = attention_patterns.Grid(_ROWS, _COLUMNS, _CHUNK)
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
    actual = attention_patterns.bidirectional(_GRID)(q, k, v)
    for b in range(2):
        seen = [(k[b, t], v[b, t], t) for t in range(4)]
        expected = np.stack([_attend(q[b, t], t, seen) for t in range(4)])
        np.testing.assert_allclose(actual[b], expected, rtol=0, atol=_ATOL)


def _window(k, v, sink, before, here):
    """What a chunk sees: frames of the sink, of the chunk before and of itself."""
    seen = [] if sink is None else [(k[sink], v[sink], 0)]
    seen += [(k[f], v[f], 1 + i) for i, f in enumerate(before)]
    return seen + [(k[f], v[f], 1 + _CHUNK + i) for i, f in enumerate(here)]


@pytest.mark.parametrize("filled", [True, False])
def test_windowed(filled):
    q, k, v = _qkv(1 + 2 * _CHUNK)
    before, here = [1, 2, 3], [4, 5, 6]

    def slots(x):
        return x.reshape(2, -1, _HEADS, _WIDTH)

    pattern = attention_patterns.windowed(
        _GRID, k[:, 0], v[:, 0], slots(k[:, before]), slots(v[:, before]),
        np.full(2, filled, np.int32),
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
    actual = attention_patterns.teacher_forcing(_GRID, chunks)(q, k, v)

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


def _forced(q, k, v, chunks, window):
    """Teacher forcing in NumPy; `window` gives time and sights of a chunk's frames."""
    def clean(c):
        return range(1 + (c - 1) * _CHUNK, 1 + c * _CHUNK) if c else []

    first = 1 + (chunks - 1) * _CHUNK
    own = [(clean(c), c) for c in range(1, chunks)]
    own += [(range(first + c * _CHUNK, first + (c + 1) * _CHUNK), c + 1) for c in range(chunks)]
    expected = np.zeros(q.shape)
    expected[0] = _attend(q[0], 0, [(k[0], v[0], 0)])
    for here, c in own:
        start, seen = window(k, v, clean(c - 1), here, c)
        for i, frame in enumerate(here):
            expected[frame] = _attend(q[frame], start + i, seen)
    return expected


def test_without_the_sink_a_chunk_sees_only_chunks():
    q, k, v = _qkv(1 + 5 * _CHUNK)
    view = config.View(sink=False)
    actual = attention_patterns.teacher_forcing(_GRID, 3, view)(q, k, v)

    def window(k, v, before, here, c):
        return 1 + _CHUNK, _window(k, v, None, before, here)

    for b in range(2):
        expected = _forced(q[b], k[b], v[b], 3, window)
        np.testing.assert_allclose(actual[b], expected, rtol=0, atol=_ATOL)
    seen = attention_patterns.teacher_forcing(_GRID, 3)(q, k, v)
    assert np.abs(seen - actual)[:, 1:].max() > 0.1


def test_absolute_positions_count_from_the_begin_of_the_stream():
    """Chunk c = 1, 2, ... stands at the latents (c - 1) * 3 + 1 ... c * 3, the sink at 0."""
    chunks = 4
    q, k, v = _qkv(1 + (2 * chunks - 1) * _CHUNK)
    view = config.View(positions="absolute")
    actual = attention_patterns.teacher_forcing(_GRID, chunks, view)(q, k, v)

    def window(k, v, before, here, c):
        start = 1 + (c - 1) * _CHUNK
        seen = [(k[0], v[0], 0)]
        seen += [(k[f], v[f], start - _CHUNK + i) for i, f in enumerate(before)]
        return start, seen + [(k[f], v[f], start + i) for i, f in enumerate(here)]

    for b in range(2):
        expected = _forced(q[b], k[b], v[b], chunks, window)
        np.testing.assert_allclose(actual[b], expected, rtol=0, atol=_ATOL)
    relative = attention_patterns.teacher_forcing(_GRID, chunks)(q, k, v)
    second = slice(1 + chunks * _CHUNK, 1 + (chunks + 1) * _CHUNK)  # Where both views agree.
    np.testing.assert_allclose(relative[:, second], actual[:, second], rtol=0, atol=_ATOL)
    assert np.abs(relative - actual)[:, 1 + (chunks - 1) * _CHUNK :][:, :_CHUNK].max() > 0.01
    assert np.abs(relative - actual)[:, -_CHUNK:].max() > 0.01


def test_streams_at_different_chunks_have_sinks_at_different_times():
    q, k, v = _qkv(1 + 2 * _CHUNK)
    slots = lambda x: x.reshape(2, -1, _HEADS, _WIDTH)
    time = config.View(positions="absolute").sink_time(np.array([1, 7]), _CHUNK)
    assert time.tolist() == [0, -18]
    actual = attention_patterns.windowed(
        _GRID, k[:, 0], v[:, 0], slots(k[:, 1:4]), slots(v[:, 1:4]), np.array([1, 7]),
        time,
    )(q[:, 4:], k[:, 4:], v[:, 4:])
    for b in range(2):
        seen = _window(k[b], v[b], None, [1, 2, 3], [4, 5, 6]) + [(k[b, 0], v[b, 0], time[b])]
        expected = np.stack([_attend(q[b, 4 + i], 4 + i, seen) for i in range(_CHUNK)])
        np.testing.assert_allclose(actual[b], expected, rtol=0, atol=_ATOL)


def test_unknown_positions_are_refused():
    with pytest.raises(ValueError, match="positions must be one of window, rollout, absolute, got 'far'"):
        config.View(positions="far")


def _wide(frames, tokens, seed=0):
    shape = (2, frames, tokens, 2, 128)
    keys = jax.random.split(jax.random.key(seed), 3)
    return [jax.random.normal(key, shape, jnp.bfloat16) for key in keys]


@pytest.mark.parametrize("pattern", ["bidirectional", "windowed", "teacher forcing"])
def test_splash_computes_the_same_patterns(pattern):
    """Of heads of 128, with two chunks of history of which one is missing."""
    view = config.View(history=2, positions="rollout")
    grids = [attention_patterns.Grid(2, 2, 2, attention) for attention in ("xla", "splash")]

    def mixed(grid):
        if pattern == "bidirectional":
            return attention_patterns.bidirectional(grid)(*_wide(3, 4))
        if pattern == "teacher forcing":
            return attention_patterns.teacher_forcing(grid, 3, view)(*_wide(11, 4))
        _, sink_k, sink_v = (x[:, 0] for x in _wide(1, 4, 1))
        _, previous_k, previous_v = (x.reshape(2, 16, 2, 128) for x in _wide(4, 4, 2))
        filled = jnp.asarray([1, 2])
        return attention_patterns.windowed(
            grid, sink_k, sink_v, previous_k, previous_v, filled, view.sink_time(filled, 2)
        )(*_wide(2, 4))

    wanted, found = (np.asarray(mixed(grid), np.float32) for grid in grids)
    assert np.abs(wanted).max() > 1
    np.testing.assert_allclose(found, wanted, rtol=0, atol=0.03)  # bfloat16; measured 0.016.
