"""Running teacher and student on batches: the pieces that stages and evaluation share."""

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
    """Sink latents [B, 1, ...], and windows and modes with a silent frame 0 in front."""
    sink = rest(models, len(windows))[:, None]
    windows = jnp.concatenate([jnp.zeros_like(windows[:, :1]), windows], 1)
    return sink, windows, jnp.repeat(mode[:, None].astype(jnp.int32), windows.shape[1], 1)


def teacher_sample(models, params, batch, key, sigmas, guidance: float = 1.0):
    """Many-step samples of the teacher.

    Args:
      models: Networks.
      params: Parameters of the transformer.
      batch: As in `teacher_velocity`, with `windows` [B, T, R, U].
      key: Random key.
      sigmas: Decreasing noise levels, the first is 1.
      guidance: g in uncond + g * (cond - uncond) over the audio; 1 is without guidance.
        (Another common form, cond + g * (cond - uncond), means g + 1 here.)

    Returns:
      Trajectory [steps + 1, B, T, H, W, C]; the last entry is the sample.
    """
    batch_size, frames = batch["windows"].shape[:2]
    shape = (batch_size, frames, *models.preset.latent_shape)

    def velocity(x, sigma):
        level = jnp.full((batch_size,), sigma)
        run = lambda w: teacher_velocity(models, params, batch, x, level, w)
        conditional = run(batch["windows"])
        if guidance == 1.0:
            return conditional
        plain = run(jnp.zeros_like(batch["windows"]))
        return plain + guidance * (conditional - plain)

    return samplers.euler(velocity, jax.random.normal(key, shape), sigmas)


def student_forward(models, params, batch, context_x0, x, sigmas):
    """x0 estimates of every chunk of a clip at once, with clean context.

    Computes what the cached rollout does when the cache holds `context_x0`.

    Args:
      models: Networks.
      params: Parameters of the transformer.
      batch: As in `teacher_velocity`, with `windows` [B, T, R, U].
      context_x0: Clean latents of all chunks but the last, [B, T - c, H, W, C].
      x: Noisy latents of all chunks, [B, T, H, W, C].
      sigmas: Noise level of each chunk, [B, T / c].

    Returns:
      [B, T, H, W, C].
    """
    c = models.preset.timing.latents_per_chunk
    chunks = x.shape[1] // c
    variables = {"params": params}
    context = models.dit.apply(variables, face_mask=batch["face"], method=models.dit.context)
    clean = batch["windows"][:, : (chunks - 1) * c]
    expression = batch["expression"]
    expression = jnp.concatenate([expression[:, : (chunks - 1) * c], expression], 1)
    sink, windows, mode = with_sink(
        models, jnp.concatenate([clean, batch["windows"]], 1), batch["mode"]
    )
    level = jnp.repeat(sigmas, c, 1)  # [B, T]
    quiet = jnp.zeros((x.shape[0], 1 + (chunks - 1) * c))
    velocity, _ = models.dit.apply(
        variables, jnp.concatenate([sink, context_x0, x], 1),
        conditioning.condition(batch["reference"], expression, sink=True),
        jnp.concatenate([quiet, level], 1), mode,
        context, models.dit.apply(variables, windows, method=models.dit.audio),
        lambda layer: patterns.teacher_forcing(models.grid, chunks),
    )
    return flow.to_x0(x, velocity[:, -x.shape[1] :], level)


def student_sample(models, params, batch, key):
    """Cached rollout of the student over all chunks of a batch, [B, T, H, W, C]."""
    preset = models.preset
    c, policy = preset.timing.latents_per_chunk, preset.student.policy
    size, frames = batch["windows"].shape[:2]
    context = models.dit.apply(
        {"params": params}, face_mask=batch["face"], method=models.dit.context
    )
    conditions = conditioning.condition(batch["reference"], batch["expression"], sink=True)
    state = student_lib.begin(
        models.dit, params, rest(models, size), conditions[:, 0], context,
        jax.random.split(key, size), c, preset.student.num_steps, policy,
    )
    mode = jnp.repeat(batch["mode"][:, None].astype(jnp.int32), c, 1)

    def step(state, inputs):
        windows, chunk = inputs
        x0, state = student_lib.next_chunk(
            models.dit, params, state, chunk, windows, mode, context, preset.sigmas,
            policy,
        )
        return state, x0

    inputs = jax.tree.map(
        lambda a: jnp.moveaxis(a.reshape(size, frames // c, c, *a.shape[2:]), 1, 0),
        (batch["windows"], conditions[:, 1:]),
    )
    _, x0 = jax.lax.scan(step, state, inputs)
    return jnp.moveaxis(x0, 0, 1).reshape(size, frames, *x0.shape[3:])
