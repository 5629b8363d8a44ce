"""Running teacher and student on batches: the pieces that stages and evaluation share."""

import flax.struct
import jax
import jax.numpy as jnp

from tm_jax.diffusion import flow
from tm_jax.diffusion import samplers
from tm_jax.models import networks
from tm_jax.models.wan import conditioning
from tm_jax.models.wan import patterns
from tm_jax.models.wan import student as student_lib


def teacher_velocity(models: networks.Models, params, batch, x, sigma, windows, context=None):
    """Velocity of the frames after the sink, with every frame seeing every other.

    Args:
      models: Networks.
      params: Parameters of the transformer.
      batch: `reference` [B, H, W, A], `expression` [B, T, X], `mode` [B], `face` [B, P].
      x: Noisy latents [B, T, H, W, C].
      sigma: Noise level of each sample, [B].
      windows: Audio windows [B, T, R, U].
      context: Context of the transformer; by default of the face mask alone.

    Returns:
      [B, T, H, W, C], float32.
    """
    frames = x.shape[1]
    sink, windows, mode = with_sink(models, windows, batch["mode"])
    variables = {"params": params}
    conditions = conditioning.condition(batch["reference"], batch["expression"], sink=True)
    if context is None:
        context = models.dit.apply(
            variables, face_mask=batch["face"], method=models.dit.context
        )
    level = jnp.concatenate(
        [jnp.zeros_like(sigma)[:, None], jnp.repeat(sigma[:, None], frames, 1)], 1
    )
    velocity, _ = models.dit.apply(
        variables, jnp.concatenate([sink, x], 1), conditions, level, mode,
        context, models.dit.apply(variables, windows, method=models.dit.audio),
        lambda layer: patterns.bidirectional(models.grid),
    )
    return velocity[:, 1:]


def rest(models: networks.Models, batch: int) -> jax.Array:
    """Latents of the reference picture, which are changes from it: zeros [B, H, W, C]."""
    return jnp.zeros((batch, *models.preset.latent_shape))


def with_sink(models: networks.Models, windows, mode):
    """Puts the sink in front, as a stream computes it once: silent, and listening.

    Args:
      models: Networks.
      windows: Audio windows of the frames after it, [B, T, R, U].
      mode: 0 listening, 1 speaking, [B].

    Returns:
      Sink latents [B, 1, H, W, C]; windows [B, 1 + T, R, U] and modes [B, 1 + T] int32.
    """
    silent = jnp.concatenate([jnp.zeros_like(windows[:, :1]), windows], 1)
    modes = jnp.repeat(mode[:, None].astype(jnp.int32), silent.shape[1], 1)
    return rest(models, len(windows))[:, None], silent, modes.at[:, 0].set(0)


def guided_velocity(models, params, batch, x, sigma, guidance: float = 1.0):
    """Velocity of the teacher with guidance over the audio.

    Args:
      models: Networks.
      params: Parameters of the transformer.
      batch: As in `teacher_velocity`, with `windows` [B, T, R, U].
      x: Noisy latents [B, T, H, W, C].
      sigma: Noise level of each sample, [B].
      guidance: g in uncond + g * (cond - uncond), where uncond hears silent features, as the
        teacher did when its audio was dropped; 1 is without guidance. (Another common form,
        cond + g * (cond - uncond), means g + 1 here.)

    Returns:
      [B, T, H, W, C], float32.
    """
    run = lambda windows: teacher_velocity(models, params, batch, x, sigma, windows)
    conditional = run(batch["windows"])
    if guidance == 1.0:
        return conditional
    plain = run(jnp.zeros_like(batch["windows"]))
    return plain + guidance * (conditional - plain)


def teacher_sample(
    models, params, batch, key, sigmas, guidance: float = 1.0, temperature: float = 1.0
):
    """Many-step samples of the teacher.

    Args:
      models: Networks.
      params: Parameters of the transformer.
      batch: As in `teacher_velocity`, with `windows` [B, T, R, U].
      key: Random key.
      sigmas: Decreasing noise levels, the first is 1.
      guidance: As in `guided_velocity`.
      temperature: Factor of the noise that the trajectory starts from.

    Returns:
      Trajectory [steps + 1, B, T, H, W, C]; the last entry is the sample.
    """
    batch_size, frames = batch["windows"].shape[:2]
    shape = (batch_size, frames, *models.preset.latent_shape)

    def velocity(x, sigma):
        level = jnp.full((batch_size,), sigma)
        return guided_velocity(models, params, batch, x, level, guidance)

    return samplers.euler(velocity, temperature * jax.random.normal(key, shape), sigmas)


def student_forward(models, params, batch, seen, seen_sigmas, x, sigmas):
    """x0 estimates of every chunk of a clip at once, with known context.

    Computes what the cached rollout does when the cache holds `seen`.

    Args:
      models: Networks.
      params: Parameters of the transformer.
      batch: As in `teacher_velocity`, with `windows` [B, T, R, U].
      seen: What the next chunk sees of all chunks but the last, [B, T - c, H, W, C].
      seen_sigmas: Noise level of each of them, [B, T / c - 1]: 0 with the policy `clean`.
      x: Noisy latents of all chunks, [B, T, H, W, C].
      sigmas: Noise level of each chunk, [B, T / c].

    Returns:
      [B, T, H, W, C].
    """
    c = models.preset.timing.latents_per_chunk
    chunks = x.shape[1] // c
    variables = {"params": params}
    context = models.dit.apply(variables, face_mask=batch["face"], method=models.dit.context)
    before = batch["windows"][:, : (chunks - 1) * c]
    expression = batch["expression"]
    expression = jnp.concatenate([expression[:, : (chunks - 1) * c], expression], 1)
    sink, windows, mode = with_sink(
        models, jnp.concatenate([before, batch["windows"]], 1), batch["mode"]
    )
    level = jnp.repeat(sigmas, c, 1)  # [B, T]
    quiet = jnp.zeros((x.shape[0], 1))
    velocity, _ = models.dit.apply(
        variables, jnp.concatenate([sink, seen, x], 1),
        conditioning.condition(batch["reference"], expression, sink=True),
        jnp.concatenate([quiet, jnp.repeat(seen_sigmas, c, 1), level], 1), mode,
        context, models.dit.apply(variables, windows, method=models.dit.audio),
        lambda layer: patterns.teacher_forcing(
            models.grid, chunks, models.preset.student.view
        ),
    )
    return flow.to_x0(x, velocity[:, -x.shape[1] :], level)


def student_sample(models, params, batch, key):
    """Cached rollout of the student over all chunks of a batch, [B, T, H, W, C]."""
    size, frames = batch["windows"].shape[:2]
    state, pieces, context = _begin(models, params, batch, key)

    def step(state, piece):
        _, estimates, state = _make(models, params, context, state, piece)
        return state, estimates[-1]

    _, x0 = jax.lax.scan(step, state, pieces)
    return jnp.moveaxis(x0, 0, 1).reshape(size, frames, *x0.shape[3:])


@flax.struct.dataclass
class Visit:
    """A window of the student's rollout, ready for the one pass that has a gradient.

    Attributes:
      sink: Keys and values of the reference picture, as in `StreamState`.
      previous: Per layer, keys and values of the chunk before each, which that pass sees,
        [B, W, S, N, K]; W chunks make the window.
      chunk: Index of each chunk in its stream, [B, W].
      points: What goes into the pass, [B, W, c, H, W, C].
      sigma: Its noise level, [B].
      estimates: What came out of it in the rollout, [B, W, c, H, W, C].
      pieces: Conditions, windows and modes of each chunk, [B, W, c, ...].
    """

    sink: list
    previous: list
    chunk: jax.Array
    points: jax.Array
    sigma: jax.Array
    estimates: jax.Array
    pieces: dict


def visit(models, params, batch, key, chunks: int, start, given, exit_step) -> Visit:
    """Rolls the student out with its own cache, without gradient, to a window and through it.

    Differs from Self-Forcing (arXiv 2506.08009, algorithm 1): a chunk hands on what its last
    step made, as it will in a stream, not what its exit step made; and each sample has its
    own exit step, the same for all chunks of the window.

    Args:
      models: Networks.
      params: Parameters of the student.
      batch: `reference`, `expression`, `mode`, `face`, `windows` and, for given chunks, the
        true latents `x0`, as long as the longest rollout.
      key: Random key.
      chunks: Chunks of the window.
      start: First chunk of the window, int32 scalar.
      given: Whether the chunks before the window are the true ones, bool scalar.
      exit_step: The step of the sampler whose estimate is wanted, [B] int32.

    Returns:
      The window. Nothing in it has a gradient.
    """
    params, batch = jax.lax.stop_gradient((params, batch))
    preset = models.preset
    per_step = preset.student.policy == "per_step"
    state, pieces, context = _begin(models, params, batch, key)
    true = _by_chunk(batch["x0"], preset.timing.latents_per_chunk)

    def at(tree, index):
        take = lambda a: jax.lax.dynamic_index_in_dim(a, index, 0, keepdims=False)
        return jax.tree.map(take, tree)

    def before(index, state):
        piece = at(pieces, index)
        return jax.lax.cond(
            given,
            lambda: student_lib.given_chunk(
                models.dit, params, state, at(true, index), piece["condition"],
                piece["windows"], piece["mode"], context, preset.sigmas, preset.student.policy,
                preset.student.temperature,
            ),
            lambda: _make(models, params, context, state, piece)[2],
        )

    def pick(options):
        """Of one tree per step, each sample's at its exit step."""
        picked = options[0]
        for step, option in enumerate(options[1:], 1):
            there = lambda a: (exit_step == step).reshape(-1, *(1,) * (a.ndim - 1))
            picked = jax.tree.map(lambda p, o: jnp.where(there(o), o, p), picked, option)
        return picked

    def through(state, index):
        piece = at(pieces, start + index)
        points, estimates, after = _make(models, params, context, state, piece)
        previous = pick(state.previous) if per_step else state.previous[0]
        return after, (previous, state.chunk, pick(points), pick(estimates), piece)

    state = jax.lax.fori_loop(0, start, before, state)
    state, kept = jax.lax.scan(through, state, jnp.arange(chunks - 1))
    _, last = through(state, chunks - 1)  # Out of the scan: its cache is never written.
    kept = jax.tree.map(
        lambda a, b: jnp.moveaxis(jnp.concatenate([a, b[None]]), 0, 1), kept, last
    )
    previous, chunk, points, estimates, pieces = kept
    return Visit(
        sink=state.sink, previous=previous, chunk=chunk, points=points,
        sigma=jnp.asarray(preset.sigmas)[exit_step], estimates=estimates, pieces=pieces,
    )


def exit_pass(models, params, batch, visit: Visit):
    """The x0 of a window by one pass at its exit step, with gradient to `params` alone.

    All chunks are computed at once, as if each were a sample: what ties them together is in
    the caches of the visit, and those are constants.

    Returns:
      [B, T, H, W, C], equal to the estimates of the visit.
    """
    size, chunks = visit.chunk.shape
    fold = lambda tree: jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), tree)
    spread = lambda tree: jax.tree.map(lambda a: jnp.repeat(a, chunks, 0), tree)
    variables = {"params": params}
    context = models.dit.apply(variables, face_mask=batch["face"], method=models.dit.context)
    pieces = fold(visit.pieces)
    state = student_lib.StreamState(
        sink=spread(visit.sink), previous=(fold(visit.previous),), chunk=fold(visit.chunk),
        key=None, view=models.preset.student.view,
    )
    x0, _ = student_lib.chunk_pass(
        models.dit, params, state, 0, fold(visit.points), spread(visit.sigma),
        pieces["condition"], pieces["mode"], spread(context),
        models.dit.apply(variables, pieces["windows"], method=models.dit.audio),
    )
    return x0.reshape(size, -1, *x0.shape[2:])


def cut(batch, first, frames: int) -> dict:
    """The `frames` latent frames of a batch from frame `first`, which may be traced."""

    def one(name, value):
        if name not in ("x0", "windows", "expression"):
            return value
        return jax.lax.dynamic_slice_in_dim(value, first, frames, 1)

    return {name: one(name, value) for name, value in batch.items()}


def _by_chunk(x, c: int):
    """[B, T, ...] -> [T / c, B, c, ...]."""
    return jnp.moveaxis(x.reshape(x.shape[0], -1, c, *x.shape[2:]), 1, 0)


def _begin(models, params, batch, key):
    """State before the first chunk, the inputs of all chunks in turn, and the context."""
    preset = models.preset
    c, size = preset.timing.latents_per_chunk, batch["reference"].shape[0]
    context = models.dit.apply(
        {"params": params}, face_mask=batch["face"], method=models.dit.context
    )
    conditions = conditioning.condition(batch["reference"], batch["expression"], sink=True)
    state = student_lib.begin(
        models.dit, params, rest(models, size), conditions[:, 0], context,
        jax.random.split(key, size), c, preset.student.num_steps, preset.student.policy,
        preset.student.view,
    )
    frames = batch["windows"].shape[1]
    pieces = {
        "condition": conditions[:, 1:], "windows": batch["windows"],
        "mode": jnp.repeat(batch["mode"][:, None].astype(jnp.int32), frames, 1),
    }
    return state, jax.tree.map(lambda a: _by_chunk(a, c), pieces), context


def _make(models, params, context, state, piece):
    """`student_lib.make_chunk` with the preset's sampler."""
    preset = models.preset
    return student_lib.make_chunk(
        models.dit, params, state, piece["condition"], piece["windows"], piece["mode"],
        context, preset.sigmas, preset.student.policy, preset.student.temperature,
    )
