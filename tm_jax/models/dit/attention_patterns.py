"""Who attends to whom: the attention patterns of teacher and student.

A pattern is a function of one layer's unrotated queries, keys and values, each
[B, T, P, N, K], that returns the mixed values in the same shape. Rotary positions belong to
the pattern, because the student's are relative to its window: the sink at time 0, the
previous chunk at 1 ... c and the current chunk at c + 1 ... 2c, for every chunk of a stream
(with h chunks of history: 1 ... hc, then hc + 1 ... (h + 1)c).
"""

from collections.abc import Callable, Sequence
import dataclasses

import jax
import jax.numpy as jnp

from tm_jax.models.dit import config
from tm_jax.nn import attention
from tm_jax.nn import rope

Pattern = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Grid:
    """Token grid of one latent frame and the chunk length.

    Attributes:
      rows: Token rows.
      columns: Token columns.
      chunk: Latent frames of a chunk.
      attention: Name in `attention.BACKENDS`.
    """

    rows: int
    columns: int
    chunk: int
    attention: str = attention.AUTO

    @classmethod
    def of(cls, c: config.DiTConfig, height: int, width: int, chunk: int) -> "Grid":
        """The grid of a transformer for latents of a size."""
        return cls(height // c.patch, width // c.patch, chunk, c.attention)

    def angles(self, times: Sequence[float], head_width: int) -> jax.Array:
        """Rotary angles of frames at `times`, [len(times) * P, K / 2]."""
        return jnp.asarray(rope.angles(times, self.rows, self.columns, head_width))

    def angles_at(self, time: jax.Array, head_width: int) -> jax.Array:
        """Rotary angles of a frame at a time that may be traced, [*] -> [*, P, K / 2]."""
        start, later = self.angles([0], head_width), self.angles([1], head_width)
        return start + jnp.asarray(time, jnp.float32)[..., None, None] * (later - start)

    def history_times(self, history: int) -> range:
        """Window positions of the chunks before the current one."""
        return range(1, 1 + history * self.chunk)

    def current_times(self, history: int) -> range:
        """Window positions of the current chunk."""
        return range(1 + history * self.chunk, 1 + (history + 1) * self.chunk)


def _flat(x):
    """[*, T, P, N, K] -> [*, T * P, N, K]."""
    return x.reshape(*x.shape[:-4], x.shape[-4] * x.shape[-3], *x.shape[-2:])


def _rotate(x, angle):
    """Rotates frames [*, T, P, N, K] by angles [T * P, K / 2]."""
    return rope.apply(x, angle.reshape(*x.shape[-4:-2], -1))


def _mix(grid: Grid, q, k, v, lengths=None):
    """Attention of frames that share their keys.

    Args:
      grid: Token grid.
      q: Rotated queries [*, T, P, N, K].
      k: Rotated keys [*, S, N, K].
      v: Values [*, S, N, K].
      lengths: How many keys are valid, from the first; int, broadcasts to [*].

    Returns:
      [*, T, P, N, K].
    """
    backend = grid.attention
    if attention.spreads(q.shape[-2]):
        mixed = attention.attend(_flat(q), k, v, lengths=lengths, backend=backend)
        return mixed.reshape(q.shape)
    # Tokens of a frame are split over devices: frames that became one sequence would not be.
    if lengths is not None and jnp.ndim(lengths):
        lengths = jnp.asarray(lengths)[..., None]
    k, v = k[..., None, :, :, :], v[..., None, :, :, :]
    return attention.attend(q, k, v, lengths=lengths, backend=backend)


def bidirectional(grid: Grid) -> Pattern:
    """Every token attends to every token; frame t has time t. The teacher's pattern."""

    def attend(q, k, v):
        angle = grid.angles(range(q.shape[1]), q.shape[-1])
        return _mix(grid, _rotate(q, angle), rope.apply(_flat(k), angle), _flat(v))

    return attend


def _newest_first(x, history: int):
    """Slots of `history` chunks [*, h * chunk * P, N, K], their chunks in reverse."""
    if history == 1:
        return x
    chunks = x.reshape(*x.shape[:-3], history, -1, *x.shape[-2:])
    return jnp.flip(chunks, -4).reshape(x.shape)


def windowed(
    grid: Grid, sink_k: jax.Array, sink_v: jax.Array, previous_k: jax.Array, previous_v: jax.Array,
    filled: jax.Array | int, sink_time: jax.Array | int | None = 0
) -> Pattern:
    """The current chunk attends to itself, the chunks before it in its window and the sink.

    Args:
      grid: Token grid.
      sink_k: Unrotated keys of the sink, [*, P, N, K].
      sink_v: Its values.
      previous_k: Unrotated keys of the h chunks before, oldest first, [*, h * chunk * P, N, K].
      previous_v: Their values.
      filled: How many of them there are, int, broadcasts to [*]; those that are missing are
        the oldest.
      sink_time: Result of `config.View.sink_time`, a number or broadcasts to [*]; None hides
        the sink.

    Returns:
      Pattern for q, k, v of the current chunk, [*, chunk, P, N, K].
    """

    def sink_angles(head):
        assert sink_time is not None  # Not asked for where the sink is hidden.
        if isinstance(sink_time, int):
            return grid.angles([sink_time], head)
        return grid.angles_at(sink_time, head)

    def attend(q, k, v):
        head, slots = q.shape[-1], previous_k.shape[-3]
        per_chunk = grid.chunk * grid.rows * grid.columns
        history = slots // per_chunk
        here = grid.angles(grid.current_times(history), head)
        before = grid.angles(grid.history_times(history), head)
        keys = [rope.apply(_flat(k), here)]
        values = [_flat(v)]
        if sink_time is not None:
            keys.append(rope.apply(sink_k, sink_angles(head)))
            values.append(sink_v)
        # The newest chunk first, so that those that are missing come last.
        keys.append(_newest_first(rope.apply(previous_k, before), history))
        values.append(_newest_first(previous_v, history))
        keys, values = jnp.concatenate(keys, -3), jnp.concatenate(values, -3)  # [*, S, N, K]
        missing = history - jnp.minimum(jnp.asarray(filled), history)
        lengths = keys.shape[-3] - missing * per_chunk
        return _mix(grid, _rotate(q, here), keys, values, lengths)

    return attend


def teacher_forcing(grid: Grid, chunks: int, view: config.View = config.View()) -> Pattern:
    """The whole clip at once, with clean context: what a cached rollout computes.

    Frames stand in the order [sink, clean chunks 1 ... n-1, noisy chunks 1 ... n]. Each chunk,
    clean or noisy, attends to itself, to the clean chunks before it in its window and to the
    sink.

    Args:
      grid: Token grid.
      chunks: Number n of noisy chunks.
      view: The student's window.

    Returns:
      Pattern for q, k, v of 1 + (2n - 1) * chunk frames.
    """
    c = grid.chunk

    def split(x):
        batch, _, tokens, heads, width = x.shape
        sink = x[:, :1]
        rest = x[:, 1:].reshape(batch, 2 * chunks - 1, c, tokens, heads, width)
        return sink, rest

    def attend(q, k, v):
        (sink_q, q), (sink_k, k), (sink_v, v) = split(q), split(k), split(v)
        here = bidirectional(grid)(sink_q, sink_k, sink_v)  # [B, 1, P, N, K]

        order = jnp.asarray([*range(chunks - 1), *range(chunks)])
        places = _history(order, view)  # [2n - 1, h]

        def previous(x):
            empty = jnp.zeros_like(x[:, :1])
            clean = jnp.concatenate([empty, x[:, : chunks - 1]], 1)[:, places]
            return clean.reshape(*clean.shape[:2], -1, *clean.shape[-2:])

        def sink(x):
            return jnp.repeat(_flat(x)[:, None], 2 * chunks - 1, 1)

        pattern = windowed(
            grid, sink(sink_k), sink(sink_v), previous(k), previous(v),
            view.filled(order), view.sink_time(order, c),
        )
        rest = pattern(q, k, v)  # [B, 2n - 1, c, P, N, K]
        rest = rest.reshape(rest.shape[0], -1, *rest.shape[3:])
        return jnp.concatenate([here, rest], 1)

    return attend


def _history(order: jax.Array, view: config.View) -> jax.Array:
    """Which clean chunk, counted from 1, is in each slot of each chunk's history; 0 for none.

    Args:
      order: Index of each chunk in its stream, [M].
      view: The student's window.

    Returns:
      [M, history], oldest first.
    """
    slot = jnp.arange(view.history)
    rolling = order[:, None] - view.history + slot + 1
    kept = jnp.where(slot < view.keep, slot + 1, rolling)
    return jnp.maximum(jnp.where(order[:, None] >= view.history, kept, rolling), 0)
