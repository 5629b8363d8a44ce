"""Whole clips in bounded memory: a few latents at a time, carried on by the state.

`WanVAE.encode` and `.decode` hold the activations of all frames at once, which suits small
pictures and training. At 832 x 480 one activation of 81 frames takes 12 GB; these functions
take the memory of one step, whatever the length of the clip, and with tiles that of one tile.
"""

import functools

import jax
import jax.numpy as jnp

from tm_jax.models.vae.wan import autoencoder
from tm_jax.models.vae.wan import tiling as tiling_lib


def decode(
    model: autoencoder.WanVAE, params: dict, z: jax.Array, latents_per_step: int = 1,
    tiling: tiling_lib.Tiling | None = None
) -> jax.Array:
    """Decodes a clip step by step; without tiles equal to `model.decode`.

    Args:
      model: `WanVAE`.
      params: Its parameters.
      z: Latents [B, T, h, w, C].
      latents_per_step: Latents decoded at once; the last step takes what is left.
      tiling: Size of tiles; None decodes whole frames.

    Returns:
      Frames [B, 1 + 4 (T - 1), H, W, 3] in -1..1.
    """
    first, chunk = _functions(model, params, "decode", tiling)
    return _run(first, chunk, z, latents_per_step, latents_per_step)


def encode(
    model: autoencoder.WanVAE, params: dict, frames: jax.Array, latents_per_step: int = 1,
    tiling: tiling_lib.Tiling | None = None
) -> jax.Array:
    """Encodes a clip step by step; without tiles equal to `model.encode`.

    Args:
      model: `WanVAE`.
      params: Its parameters.
      frames: Clip [B, 1 + 4 (T - 1), H, W, 3] in -1..1.
      latents_per_step: Latents made at once; the last step makes what is left.
      tiling: Size of tiles; None encodes whole frames.

    Returns:
      Latents [B, T, h, w, C].
    """
    first, chunk = _functions(model, params, "encode", tiling)
    step = latents_per_step * model.config.frames_per_latent
    return _run(first, chunk, frames, latents_per_step, step)


def _functions(model, params, direction, tiling):
    """The two functions of a stream."""
    names = (f"{direction}_first", f"{direction}_chunk")
    if tiling is None:
        return [functools.partial(model.apply, {"params": params}, method=n) for n in names]
    return [
        functools.partial(getattr(tiling_lib, n), model, params, tiling=tiling) for n in names
    ]


def _run(first, chunk, x, latents_per_step, step):
    """Begins with one entry of axis 1 and carries on with `step` entries at a time."""
    if latents_per_step < 1:
        raise ValueError(f"latents_per_step must be at least 1, got {latents_per_step}.")
    y, state = first(x[:, :1])
    outputs, rest = [y], x[:, 1:]
    steps, left = divmod(rest.shape[1], step)
    if steps:
        whole = rest[:, : steps * step]
        whole = whole.reshape(rest.shape[0], steps, step, *rest.shape[2:])

        def body(state, x):
            y, state = chunk(x, state)
            return state, y

        state, y = jax.lax.scan(body, state, jnp.moveaxis(whole, 1, 0))
        y = jnp.moveaxis(y, 0, 1)  # [B, steps, frames or latents of a step, H, W, C]
        outputs.append(y.reshape(y.shape[0], -1, *y.shape[3:]))
    if left:
        outputs.append(chunk(rest[:, steps * step :], state)[0])
    return jnp.concatenate(outputs, 1)
