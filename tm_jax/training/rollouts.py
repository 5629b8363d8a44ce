"""Running teacher and student on batches: the pieces that stages and evaluation share."""

from collections.abc import Callable
import typing
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp

from tm_jax.configs import presets
from tm_jax.diffusion import flow_matching
from tm_jax.diffusion import guidance as guidance_lib
from tm_jax.diffusion import samplers
from tm_jax.models.dit import attention_patterns
from tm_jax.models.dit import causal as student_lib
from tm_jax.models.dit import conditioning as conditioning_lib
from tm_jax.models.dit import transformer
from tm_jax.training import batches


class Models(Protocol):
    """A transformer and its sizes: `networks.Models` and `components.Components` have them."""

    @property
    def preset(self) -> presets.Preset:
        """Sizes."""
        ...

    @property
    def dit(self) -> transformer.DiT:
        """Video transformer."""
        ...


def _grid(models: Models, latents: jax.Array) -> attention_patterns.Grid:
    """Token grid of latents [*, H, W, C], whose size need not be the preset's."""
    preset, (height, width) = models.preset, latents.shape[-3:-1]
    return attention_patterns.Grid.of(
        preset.dit, height, width, preset.timing.latents_per_chunk
    )


def pinned(models: Models) -> bool:
    """Whether the picture's latent stays clean, at noise level 0, in a clip of the teacher.

    Wan's image-to-video model has the picture in its conditioning channels and denoises all
    latents together; without such channels the clean latent is what shows the picture.
    """
    return models.preset.conditioning != "first_frame"


def draw_noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Unit normal for a clip and its sink: [B, 1 + T, ...] for `shape` [B, T, ...]."""
    first = jax.random.normal(jax.random.fold_in(key, 1), (shape[0], 1, *shape[2:]))
    return jnp.concatenate([first, jax.random.normal(key, shape)], 1)


def corrupt(models: Models, clip: jax.Array, noise: jax.Array, sigma: jax.Array) -> jax.Array:
    """Noisy clip for the teacher, [B, 1 + T, H, W, C], at the noise levels `sigma` [B]."""
    x = flow_matching.corrupt(clip, noise, sigma)
    return x.at[:, 0].set(clip[:, 0]) if pinned(models) else x


def score(
    models: Models, params: dict, batch: batches.Batch,
    guidance: guidance_lib.Guidance = guidance_lib.Guidance(),
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The bidirectional transformer as a velocity function; conditions are embedded once.

    Args:
      models: Networks.
      params: Parameters of the transformer.
      batch: Clips; their latents are not read.
      guidance: Factors of text and audio.

    Returns:
      Function (noisy clip [B, 1 + T, H, W, C], noise level of each sample [B]) -> velocity
      [B, 1 + T, H, W, C], float32. A pinned sink has velocity 0.

    Raises:
      ValueError: Guidance over a text that the preset does not have.
    """
    if guidance.text != 1.0 and batch.conditioning.text is None:
        raise ValueError(
            f"preset {models.preset.name} has no text: guidance.text must be 1, got "
            f"{guidance.text}."
        )
    variables = {"params": params}

    def embed(dropped):
        given = batch if dropped is None else batch.without({dropped: True})
        return models.dit.apply(variables, given.conditioning, method=models.dit.embed)

    embedded = {name: embed(name) for name in (None, *guidance.dropped)}

    def velocity(x, sigma):
        level = jnp.repeat(sigma[:, None], x.shape[1], 1)
        level = level.at[:, 0].set(0.0) if pinned(models) else level

        def run(dropped):
            return models.dit.apply(
                variables, x, level, embedded[dropped],
                lambda layer: attention_patterns.bidirectional(_grid(models, x)),
            )[0]

        result = guidance_lib.guided(run, guidance)
        return result.at[:, 0].set(0.0) if pinned(models) else result

    return velocity


def teacher_velocity(
    models: Models, params: dict, batch: batches.Batch, x: jax.Array, sigma: jax.Array,
    guidance: guidance_lib.Guidance = guidance_lib.Guidance(),
) -> jax.Array:
    """One evaluation of `score` at a noisy clip x [B, 1 + T, H, W, C]."""
    return score(models, params, batch, guidance)(x, sigma)


def teacher_sample(
    models: Models, params: dict, batch: batches.Batch, key: jax.Array,
    sigmas: tuple[float, ...], guidance: guidance_lib.Guidance = guidance_lib.Guidance(),
    temperature: float = 1.0,
) -> jax.Array:
    """Many-step samples of the teacher.

    Args:
      models: Networks.
      params: Parameters of the transformer.
      batch: Clips; only the sink is read of their latents.
      key: Random key.
      sigmas: Decreasing noise levels, the first is 1.
      guidance: Factors of text and audio.
      temperature: Factor of the noise that the trajectory starts from.

    Returns:
      Trajectory of the frames after the sink, [steps + 1, B, T, H, W, C]; the last entry is
      the sample.
    """
    noise = temperature * draw_noise(key, batch.x0.shape)
    if pinned(models):
        noise = noise.at[:, 0].set(batch.sink)
    run = score(models, params, batch, guidance)
    path = samplers.euler(lambda x, sigma: run(x, jnp.full((batch.size,), sigma)), noise, sigmas)
    return path[:, :, 1:]


def student_forward(
    models: Models, params: dict, batch: batches.Batch, context: jax.Array,
    context_sigmas: jax.Array, x: jax.Array, sigmas: jax.Array,
) -> jax.Array:
    """x0 estimates of every chunk of a clip at once, with known context.

    Computes what the cached rollout does when the cache holds `context`.

    Args:
      models: Networks.
      params: Parameters of the transformer.
      batch: Clips; only the sink is read of their latents.
      context: All chunks but the last as the next chunk attends to them, [B, T - c, H, W, C].
      context_sigmas: Noise level of each of them, [B, T / c - 1]: 0 with the policy `clean`.
      x: Noisy latents of all chunks, [B, T, H, W, C].
      sigmas: Noise level of each chunk, [B, T / c].

    Returns:
      [B, T, H, W, C].
    """
    c = models.preset.timing.latents_per_chunk
    frames = x.shape[1]
    order = jnp.asarray([0, *range(1, 1 + frames - c), *range(1, 1 + frames)])
    variables = {"params": params}
    level = jnp.repeat(sigmas, c, 1)  # [B, T]
    clean = jnp.zeros((x.shape[0], 1))
    velocity, _ = models.dit.apply(
        variables, jnp.concatenate([batch.sink[:, None], context, x], 1),
        jnp.concatenate([clean, jnp.repeat(context_sigmas, c, 1), level], 1),
        models.dit.apply(variables, batch.streamed.at(order), method=models.dit.embed),
        lambda layer: attention_patterns.teacher_forcing(
            _grid(models, x), frames // c, models.preset.student.view
        ),
    )
    return flow_matching.to_x0(x, velocity[:, -frames:], level)


def student_sample(
    models: Models, params: dict, batch: batches.Batch, key: jax.Array
) -> jax.Array:
    """Cached rollout of the student over all chunks of a batch, [B, T, H, W, C]."""
    state, pieces, context = _begin(models, params, batch, key)

    def step(state, piece):
        _, estimates, state = _make(models, params, context, state, piece)
        return state, estimates[-1]

    _, x0 = jax.lax.scan(step, state, pieces)
    return jnp.moveaxis(x0, 0, 1).reshape(batch.x0.shape)


@flax.struct.dataclass
class RolloutWindow:
    """A window of the student's rollout, ready for the one pass that has a gradient.

    Attributes:
      sink: Keys and values of the reference picture, as in `StreamState`.
      previous: Per layer, keys and values of the chunk before each, which that pass reads,
        [B, W, S, N, K]; W chunks make the window.
      chunk: Index of each chunk in its stream, [B, W].
      points: What goes into the pass, [B, W, c, H, W, C].
      sigma: Its noise level, [B].
      estimates: What came out of it in the rollout, [B, W, c, H, W, C].
      conditioning: Inputs of each chunk, [B, W, c, ...].
    """

    sink: list
    previous: list
    chunk: jax.Array
    points: jax.Array
    sigma: jax.Array
    estimates: jax.Array
    conditioning: conditioning_lib.Conditioning

    @property
    def x0(self) -> jax.Array:
        """The estimates as frames, [B, W * c, H, W, C]."""
        return self.estimates.reshape(self.estimates.shape[0], -1, *self.estimates.shape[3:])


def rollout_window(
    models: Models, params: dict, batch: batches.Batch, key: jax.Array, chunks: int,
    start: jax.Array, teacher_forced: jax.Array, exit_step: jax.Array,
) -> RolloutWindow:
    """Rolls the student out with its own cache, without gradient, to a window and through it.

    Each sample has its own window; all of them are rolled out to the end of the last one, and
    what a sample makes after its own window is not used.

    Differs from Self-Forcing (arXiv 2506.08009, algorithm 1): a chunk hands on what its last
    step made, as it will in a stream, not what its exit step made; and each sample has its
    own exit step, the same for all chunks of the window.

    Args:
      models: Networks.
      params: Parameters of the student.
      batch: Clips as long as the longest rollout.
      key: Random key.
      chunks: Chunks W of a window.
      start: First chunk of each sample's window, int32 [B].
      teacher_forced: Whether the chunks before a sample's window are the true ones, bool [B].
      exit_step: The step of the sampler whose estimate is wanted, int32 [B].

    Returns:
      The windows. Nothing in them has a gradient.
    """
    params, batch = jax.lax.stop_gradient((params, batch))
    preset = models.preset
    c = preset.timing.latents_per_chunk
    per_step = preset.student.policy == "per_step"
    state, pieces, context = _begin(models, params, batch, key)
    true = _by_chunk(batch.x0, c)

    def step(index, state):
        piece, known = jax.tree.map(
            lambda a: jax.lax.dynamic_index_in_dim(a, index, 0, keepdims=False), (pieces, true)
        )
        forced = (teacher_forced & (index < start), known)
        points, estimates, after = _make(models, params, context, state, piece, forced)
        previous = _pick(state.previous, exit_step) if per_step else state.previous[0]
        found = (previous, _pick(points, exit_step), _pick(estimates, exit_step))
        return after, found

    def keep(kept, index, found):
        here = (index - start)[:, None] == jnp.arange(chunks)  # [B, W]

        def one(many, new):
            mask = here.reshape(*here.shape, *(1,) * (many.ndim - 2))
            return jnp.where(mask, new[:, None], many)

        return jax.tree.map(one, kept, found)

    def body(index, carry):
        state, kept = carry
        state, found = step(index, state)
        return state, keep(kept, index, found)

    def room(a):
        return jnp.zeros((a.shape[0], chunks, *a.shape[1:]), a.dtype)

    latents = room(jnp.zeros((batch.size, c, *batch.sink.shape[1:])))
    kept = (jax.tree.map(room, state.previous[0]), latents, latents)
    last = jnp.max(start) + chunks - 1
    state, kept = jax.lax.fori_loop(0, last, body, (state, kept))
    _, found = step(last, state)  # Out of the loop: its cache is never written.
    previous, points, estimates = keep(kept, last, found)
    given = batches.take_frames(batch.streamed, 1 + start * c, chunks * c)
    return RolloutWindow(
        sink=state.sink, previous=previous, chunk=start[:, None] + jnp.arange(chunks),
        points=points, sigma=jnp.asarray(preset.sigmas)[exit_step], estimates=estimates,
        conditioning=jax.tree.map(
            lambda a: a.reshape(a.shape[0], chunks, c, *a.shape[2:]), given
        ),
    )


def exit_pass(
    models: Models, params: dict, batch: batches.Batch, window: RolloutWindow
) -> jax.Array:
    """The x0 of a window by one pass at its exit step, with gradient to `params` alone.

    All chunks are computed at once, as if each were a sample: what ties them together is in
    the caches of the window, and those are constants.

    Args:
      models: Networks.
      params: Parameters of the student.
      batch: The clips; text, image and face mask are read.
      window: Result of `rollout_window`.

    Returns:
      [B, W * c, H, W, C], equal to `window.x0`.
    """
    size, chunks = window.chunk.shape

    def fold(tree):
        return jax.tree.map(lambda a: a.reshape(a.shape[0] * a.shape[1], *a.shape[2:]), tree)

    def spread(tree):
        return jax.tree.map(lambda a: jnp.repeat(a, chunks, 0), tree)

    context = spread(_context(models, params, batch))
    state = student_lib.StreamState(
        sink=spread(window.sink), previous=(fold(window.previous),), chunk=fold(window.chunk),
        key=None, view=models.preset.student.view,
    )
    given = student_lib.embed(models.dit, params, fold(window.conditioning), context)
    x0, _ = student_lib.chunk_pass(
        models.dit, params, state, 0, fold(window.points), spread(window.sigma), given
    )
    return x0.reshape(size, -1, *x0.shape[2:])


def _pick(options: list | tuple, exit_step: jax.Array) -> Any:
    """Of one tree per step, each sample's at its exit step."""
    picked = options[0]
    for step, option in enumerate(options[1:], 1):
        there = exit_step == step

        def one(old, new, there=there):
            return jnp.where(there.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

        picked = jax.tree.map(one, picked, option)
    return picked


def _by_chunk(x: jax.Array, c: int) -> jax.Array:
    """[B, T, ...] -> [T / c, B, c, ...]."""
    # The size is spelled out, because conditioning channels may be none.
    return jnp.moveaxis(x.reshape(x.shape[0], x.shape[1] // c, c, *x.shape[2:]), 1, 0)


def _context(models: Models, params: dict, batch: batches.Batch) -> transformer.Context:
    """Keys and values of what is constant in a stream."""
    given = batch.conditioning
    context = models.dit.apply(
        {"params": params}, given.text, given.image, given.face_mask, method=models.dit.context
    )
    return typing.cast(transformer.Context, context)


def _begin(models: Models, params: dict, batch: batches.Batch, key: jax.Array):
    """State before the first chunk, the inputs of all chunks in turn, and the context."""
    preset, given = models.preset, batch.streamed
    c = preset.timing.latents_per_chunk
    context = _context(models, params, batch)
    state = student_lib.begin(
        models.dit, params, batch.sink, given.channels[:, 0], context,
        jax.random.split(key, batch.size), c, preset.student.num_steps, preset.student.policy,
        preset.student.view,
    )
    pieces = batches.take_frames(given, 1, batch.frames)
    return state, jax.tree.map(lambda a: _by_chunk(a, c), pieces), context


def _make(models: Models, params: dict, context, state, piece, teacher_forced=None):
    """`student_lib.sample_chunk` with the preset's sampler."""
    preset = models.preset
    return student_lib.sample_chunk(
        models.dit, params, state, piece, context, preset.sigmas, preset.student.policy,
        preset.student.temperature, teacher_forced,
    )
