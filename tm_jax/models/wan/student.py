"""The sparse causal student: one chunk after another, state in, state out.

Every chunk attends to itself, to the chunk before it and to the sink (the reference picture).
Rotary positions are relative to that window and the cache keeps keys before rotation, so
chunk one million computes exactly what chunk two does, in the same static shapes.
"""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from tm_jax.core import axes
from tm_jax.diffusion import flow
from tm_jax.diffusion import samplers
from tm_jax.models.wan import blocks
from tm_jax.models.wan import patterns
from tm_jax.models.wan import transformer

POLICIES = ("clean", "per_step")
_SLOTS = (axes.BATCH, axes.CACHE, axes.HEADS, None)


@flax.struct.dataclass
class StreamState:
    """Everything that one chunk hands to the next.

    Attributes:
      sink: Per layer, keys and values of the reference picture, [B, P, N, K].
      previous: Per noise level kept by the cache policy (one for `clean`, one per step for
        `per_step`), per layer: keys and values of the previous chunk, [B, S, N, K] with
        S = latents_per_chunk * P. Zeros before the first chunk.
      chunk: Index of the next chunk of each stream, [B] int32.
      key: Random key of each stream, [B]; the noise of chunk i is drawn from
        fold_in(key, i), so a stream can be replayed.
    """

    sink: list
    previous: tuple
    chunk: jax.Array
    key: jax.Array


def _slots(state: blocks.KeyValue) -> blocks.KeyValue:
    """[B, T, P, N, K] -> [B, T * P, N, K], placed like a cache."""

    def one(x):
        x = x.reshape(x.shape[0], -1, *x.shape[3:])
        return nn.with_logical_constraint(x, _SLOTS)

    return jax.tree.map(one, state)


def begin(
    model: transformer.DiT, params, reference, condition, context, keys,
    latents_per_chunk: int, num_steps: int, policy: str,
) -> StreamState:
    """Starts streams from reference pictures.

    Args:
      model: Transformer.
      params: Its parameters.
      reference: Latent of the reference picture, [B, H, W, C].
      condition: Conditioning channels of the sink, [B, H, W, Cc].
      context: `transformer.Context`.
      keys: Random keys, [B].
      latents_per_chunk: Latent frames per chunk.
      num_steps: Steps of the student's sampler.
      policy: "clean" or "per_step".

    Returns:
      State before the first chunk.

    Raises:
      ValueError: Unknown policy.
    """
    if policy not in POLICIES:
        raise ValueError(f"policy must be one of {POLICIES}, got {policy!r}.")
    c = model.config
    batch, height, width = reference.shape[:3]
    grid = patterns.Grid(height // c.patch, width // c.patch, latents_per_chunk)
    silence = jnp.zeros((batch, 1, c.audio_window, c.audio_feature_width))
    audio = model.apply({"params": params}, silence, method=model.audio)
    zeros = jnp.zeros((batch, 1))
    _, states = model.apply(
        {"params": params}, reference[:, None], condition[:, None], zeros,
        zeros.astype(jnp.int32), context, audio, lambda layer: patterns.bidirectional(grid),
    )
    sink = [_slots(s) for s in states]

    def empty():
        return [
            jax.tree.map(
                lambda x: jnp.zeros(
                    (batch, x.shape[1] * latents_per_chunk, *x.shape[2:]), x.dtype
                ),
                layer,
            )
            for layer in sink
        ]

    levels = 1 if policy == "clean" else num_steps
    return StreamState(
        sink=sink, previous=tuple(empty() for _ in range(levels)),
        chunk=jnp.zeros((batch,), jnp.int32), key=keys,
    )


def next_chunk(
    model: transformer.DiT, params, state: StreamState, condition, windows, mode, context,
    sigmas: tuple[float, ...], policy: str,
):
    """Makes the next chunk of every stream.

    Args:
      model: Transformer.
      params: Its parameters.
      state: State of the streams.
      condition: Conditioning channels of the chunk, [B, T, H, W, Cc].
      windows: Audio windows of the chunk, [B, T, R, U].
      mode: 0 listening, 1 speaking, [B, T] int32.
      context: `transformer.Context`.
      sigmas: Noise levels of the few-step sampler, the first is 1.
      policy: "clean": one more pass at noise level 0 writes the cache, N + 1 passes;
        "per_step": every step keeps its own cache, N passes.

    Returns:
      Latents [B, T, H, W, C] and the next state.
    """
    c = model.config
    batch, frames, height, width, _ = condition.shape
    grid = patterns.Grid(height // c.patch, width // c.patch, frames)
    filled = (state.chunk > 0)[:, None, None, None]
    variables = {"params": params}
    audio = model.apply(variables, windows, method=model.audio)

    def run(x, sigma, level):
        def pattern(layer):
            sink, previous = state.sink[layer], state.previous[level][layer]
            return patterns.windowed(
                grid, sink.k, sink.v, previous.k, previous.v, filled
            )

        velocity, states = model.apply(
            variables, x, condition, jnp.full((batch, frames), sigma), mode, context, audio,
            pattern,
        )
        return velocity, [_slots(s) for s in states]

    def predict(step, x, sigma):
        velocity, states = run(x, sigma, 0 if policy == "clean" else step)
        return flow.to_x0(x, velocity, jnp.full((batch,), sigma)), states

    shape = (frames, height, width, c.latent_channels)
    keys = jax.vmap(jax.random.fold_in)(state.key, state.chunk)

    def draw(step):
        return jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, step), shape))(keys)

    x0, kept = samplers.few_step(predict, draw, sigmas)
    if policy == "clean":
        _, clean = run(x0, 0.0, 0)
        kept = [clean]
    return x0, state.replace(previous=tuple(kept), chunk=state.chunk + 1)
