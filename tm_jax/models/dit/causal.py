"""The sparse causal student: one chunk after another, state in, state out.

Every chunk attends to itself, to the chunk before it and to the sink (the reference picture);
weights that others trained may have longer windows (`config.View`).
Rotary positions are relative to that window and the cache keeps keys before rotation, so
chunk one million computes exactly what chunk two does, in the same static shapes.
"""

import dataclasses
import typing

import flax.struct
import jax
import jax.numpy as jnp

from tm_jax.diffusion import flow_matching
from tm_jax.diffusion import samplers
from tm_jax.models.dit import attention_patterns
from tm_jax.models.dit import blocks
from tm_jax.models.dit import conditioning as conditioning_lib
from tm_jax.models.dit import config
from tm_jax.models.dit import transformer
from tm_jax.nn import attention

POLICIES = ("clean", "per_step")


@flax.struct.dataclass
class StreamState:
    """Everything that one chunk hands to the next.

    Attributes:
      sink: Per layer, keys and values of the reference picture, [B, P, N, K].
      previous: Per noise level kept by the cache policy (one for `clean`, one per step for
        `per_step`), per layer: keys and values of the chunks before, oldest first,
        [B, S, N, K] with S = history * latents_per_chunk * P. Zeros where there is none.
      chunk: Index of the next chunk of each stream, [B] int32.
      key: Random key of each stream, [B]; the noise of chunk i is drawn from
        fold_in(key, i), so a stream can be replayed. None where no chunk is drawn.
      view: The window; no array.
    """

    sink: list
    previous: tuple
    chunk: jax.Array
    key: jax.Array | None
    view: config.View = flax.struct.field(pytree_node=False, default=config.View())


def _slots(state: blocks.KeyValue) -> blocks.KeyValue:
    """[B, T, P, N, K] -> [B, T * P, N, K], placed like a cache."""

    def one(x):
        return attention.place_keys(x.reshape(x.shape[0], -1, *x.shape[3:]))

    return jax.tree.map(one, state)


def begin(
    model: transformer.DiT, params: dict, reference: jax.Array, channels: jax.Array,
    context: transformer.Context, keys: jax.Array, latents_per_chunk: int, num_steps: int,
    policy: str, view: config.View = config.View()
) -> StreamState:
    """Starts streams from reference pictures.

    Args:
      model: Transformer.
      params: Its parameters.
      reference: Latent of the reference picture, [B, H, W, C].
      channels: Conditioning channels of the sink, [B, H, W, Cc].
      context: `transformer.Context`.
      keys: Random keys, [B].
      latents_per_chunk: Latent frames per chunk.
      num_steps: Steps of the student's sampler.
      policy: "clean" or "per_step".
      view: The window.

    Returns:
      State before the first chunk.

    Raises:
      ValueError: Unknown policy.
    """
    if policy not in POLICIES:
        raise ValueError(f"policy must be one of {POLICIES}, got {policy!r}.")
    c = model.config
    batch, height, width = reference.shape[:3]
    grid = attention_patterns.Grid.of(c, height, width, latents_per_chunk)
    variables = {"params": params}
    silent = transformer.silent(c, channels[:, None])
    output = model.apply(
        variables, reference[:, None], jnp.zeros((batch, 1)),
        model.apply(variables, silent, context, method=model.embed),
        lambda layer: attention_patterns.bidirectional(grid),
    )
    _, states = typing.cast(transformer.Output, output)
    sink = [_slots(s) for s in states]

    slots = latents_per_chunk * view.history

    def empty():
        return [
            jax.tree.map(
                lambda x: attention.place_keys(
                    jnp.zeros((batch, x.shape[1] * slots, *x.shape[2:]), x.dtype)
                ),
                layer,
            )
            for layer in sink
        ]

    levels = 1 if policy == "clean" else num_steps
    return StreamState(
        sink=sink, previous=tuple(empty() for _ in range(levels)),
        chunk=jnp.zeros((batch,), jnp.int32), key=keys, view=view,
    )


def embed(
    model: transformer.DiT, params: dict, conditioning: conditioning_lib.Conditioning,
    context: transformer.Context,
) -> transformer.Embedded:
    """Keys and values of the conditioning of a chunk.

    Args:
      model: Transformer.
      params: Its parameters.
      conditioning: Inputs of the chunk's T frames.
      context: The constant inputs of the streams.

    Returns:
      What the transformer reads beside the latents, of T frames.
    """
    given = model.apply({"params": params}, conditioning, context, method=model.embed)
    return typing.cast(transformer.Embedded, given)


def chunk_pass(
    model: transformer.DiT, params: dict, state: StreamState, level: int, x: jax.Array,
    sigma: jax.Array, given: transformer.Embedded
) -> tuple[jax.Array, list[blocks.KeyValue]]:
    """One pass over the current chunk, which attends to itself, the chunk before and the sink.

    Args:
      model: Transformer.
      params: Its parameters.
      state: State of the streams; its key is not read.
      level: Which of the caches in `state.previous` the pass reads.
      x: Noisy latents [B, T, H, W, C].
      sigma: Noise level of each stream, [B].
      given: Embedded conditioning of the chunk.

    Returns:
      Estimate of x0 [B, T, H, W, C] and, per layer, the keys and values of the chunk.
    """
    frames, height, width = x.shape[1:4]
    grid = attention_patterns.Grid.of(model.config, height, width, frames)
    filled = state.view.filled(state.chunk)
    sink_time = state.view.sink_time(state.chunk, frames)

    def pattern(layer):
        sink, previous = state.sink[layer], state.previous[level][layer]
        return attention_patterns.windowed(
            grid, sink.k, sink.v, previous.k, previous.v, filled, sink_time
        )

    output = model.apply(
        {"params": params}, x, jnp.repeat(sigma[:, None], frames, 1), given, pattern
    )
    velocity, states = typing.cast(transformer.Output, output)
    return flow_matching.to_x0(x, velocity, sigma), [_slots(s) for s in states]


def sample_chunk(
    model: transformer.DiT, params: dict, state: StreamState,
    conditioning: conditioning_lib.Conditioning, context: transformer.Context,
    sigmas: tuple[float, ...], policy: str, temperature: float = 1.0,
    teacher_forced: tuple[jax.Array, jax.Array] | None = None
) -> tuple[list[jax.Array], list[jax.Array], StreamState]:
    """Makes the next chunk of every stream and shows how it came about.

    Args:
      model: Transformer.
      params: Its parameters.
      state: State of the streams.
      conditioning: Inputs of the chunk's T frames.
      context: `transformer.Context`, the constant inputs of the streams.
      sigmas: Noise levels of the few-step sampler, the first is 1.
      policy: "clean": one more pass at noise level 0 writes the cache, N + 1 passes;
        "per_step": every step keeps its own cache, N passes.
      temperature: Factor of the noise; below 1 samples stay closer to what is likeliest.
      teacher_forced: Which streams have a chunk that is known, bool [B], and the known chunks
        [B, T, H, W, C]: they replace every estimate of those streams, whose next state is then
        that of `prefill_chunk`.

    Returns:
      What went into each step and the x0 that came out of it, two lists of [B, T, H, W, C];
      and the next state.
    """
    given = embed(model, params, conditioning, context)
    batch = given.mode.shape[0]
    points = []

    def predict(step, x, sigma):
        points.append(x)
        x0, states = chunk_pass(
            model, params, state, 0 if policy == "clean" else step, x,
            jnp.full((batch,), sigma), given,
        )
        if teacher_forced is not None:
            mask, known = teacher_forced
            x0 = jnp.where(mask.reshape(-1, 1, 1, 1, 1), known, x0)
        return x0, (x0, states)

    draw = _noise(model, state, given.channels.shape, temperature)
    x0, made = samplers.few_step(predict, draw, sigmas)
    estimates, kept = [e for e, _ in made], [s for _, s in made]
    if policy == "clean":
        state = _update_kv_cache(model, params, state, x0, given)
    else:
        state = _advanced(state, kept)
    return points, estimates, state


def next_chunk(
    model: transformer.DiT, params: dict, state: StreamState,
    conditioning: conditioning_lib.Conditioning, context: transformer.Context,
    sigmas: tuple[float, ...], policy: str, temperature: float = 1.0
) -> tuple[jax.Array, StreamState]:
    """Makes the next chunk of every stream; the arguments are those of `sample_chunk`.

    Returns:
      Latents [B, T, H, W, C] and the next state.
    """
    _, estimates, state = sample_chunk(
        model, params, state, conditioning, context, sigmas, policy, temperature
    )
    return estimates[-1], state


def prefill_chunk(
    model: transformer.DiT, params: dict, state: StreamState, x0: jax.Array,
    conditioning: conditioning_lib.Conditioning, context: transformer.Context,
    sigmas: tuple[float, ...], policy: str, temperature: float = 1.0
) -> StreamState:
    """The next state after a chunk that is known, [B, T, H, W, C], and need not be made.

    The other arguments are those of `sample_chunk`. With `per_step` each cache is written from
    the known chunk at that step's noise level, as if every step had predicted it.
    """
    given = embed(model, params, conditioning, context)
    if policy == "clean":
        return _update_kv_cache(model, params, state, x0, given)
    draw, kept = _noise(model, state, given.channels.shape, temperature), []
    for step, sigma in enumerate(sigmas):
        x = flow_matching.corrupt(x0, draw(step), jnp.float32(sigma))
        level = jnp.full((x0.shape[0],), sigma)
        _, states = chunk_pass(model, params, state, step, x, level, given)
        kept.append(states)
    return _advanced(state, kept)


def _noise(model, state, shape, temperature):
    """Function (step) -> the noise of the current chunk of every stream, [B, T, H, W, C]."""
    keys = jax.vmap(jax.random.fold_in)(state.key, state.chunk)
    shape = (*shape[1:4], model.config.latent_channels)

    def draw(step):
        one = lambda k: jax.random.normal(jax.random.fold_in(k, step), shape)
        return temperature * jax.vmap(one)(keys)

    return draw


def _update_kv_cache(model, params, state, x0, given) -> StreamState:
    """One pass at noise level 0 writes the cache."""
    level = jnp.zeros((x0.shape[0],))
    _, states = chunk_pass(model, params, state, 0, x0, level, given)
    return _advanced(state, [states])


def _advanced(state: StreamState, levels: list) -> StreamState:
    """The state after a chunk: its keys and values enter the window of every level."""
    view, chunk = state.view, state.chunk
    full = (chunk >= view.history)[:, None, None, None]

    def update(old, new):
        if view.history == 1:
            return new
        size = new.shape[1]  # Slots of one chunk.
        rolled = jnp.concatenate([old[:, size:], new], 1)
        if not view.keep:
            return rolled
        first = jnp.concatenate([old[:, : view.keep * size], rolled[:, view.keep * size :]], 1)
        return jnp.where(full, first, rolled)

    previous = tuple(
        jax.tree.map(update, old, new) for old, new in zip(state.previous, levels, strict=True)
    )
    return dataclasses.replace(state, previous=previous, chunk=chunk + 1)
