"""Measures and contact sheets of the small video autoencoder on clips."""

import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.core import pixels as pixels_lib
from tm_jax.evaluation import reconstruction
from tm_jax.models.vae.small import network


def measure(model: network.SmallVAE, params: dict, clips: np.ndarray, batch: int = 4) -> dict:
    """Reconstruction of clips, without noise.

    Args:
      model: The autoencoder.
      params: Its parameters.
      clips: uint8 [N, 1 + F, H, W, 3].
      batch: Clips at once.

    Returns:
      psnr and psnr_moving in dB, the same of the still picture and of the moved picture alone
      (see `evaluation.reconstruction`), and ssim.
    """
    run = jax.jit(lambda params, clips: _errors(model, params, pixels_lib.to_float(clips)))
    parts = [
        jax.device_get(run(params, clips[at : at + batch])) for at in range(0, len(clips), batch)
    ]
    sums = jax.tree.map(lambda *x: np.concatenate(x).sum(0), *parts)
    values = {}
    for name in ("", "_warped", "_still"):
        for where in ("", "_moving"):
            square = sums[f"square{name}{where}"]
            values[f"psnr{name}{where}"] = float(
                reconstruction.psnr(square, sums[f"count{where}"])
            )
    values["ssim"] = float(sums["ssim"] / len(clips))
    return values


def _errors(model, params, clips):
    """Squared errors of a batch by name, and the numbers of pixels, each [B]."""
    picture, frames = clips[:, 0], clips[:, 1:]
    variables = {"params": params}
    state = model.apply(variables, picture, method=model.look)
    z = model.apply(variables, frames, state, method=model.encode_raw)
    warped, residual, _ = model.apply(variables, z, state, method=model.decode_raw)
    still = jnp.broadcast_to(picture[:, None], frames.shape)
    made = {"": jnp.clip(warped + residual, -1, 1), "_warped": warped, "_still": still}
    mask = reconstruction.moving(frames, picture)
    values = {}
    for name, video in made.items():
        values[f"square{name}"], values["count"] = reconstruction.squared_error(video, frames)
        both = reconstruction.squared_error(video, frames, mask)
        values[f"square{name}_moving"], values["count_moving"] = both
    flat = lambda x: x.reshape(-1, *x.shape[2:])
    similar = reconstruction.ssim(flat(made[""]), flat(frames))
    values["ssim"] = similar.reshape(frames.shape[:2]).mean(1)
    return values


def preview(model: network.SmallVAE, params: dict, clips: np.ndarray) -> np.ndarray:
    """A contact sheet: every clip as two rows, truth above reconstruction; reference first.

    Args:
      model: The autoencoder.
      params: Its parameters.
      clips: uint8 [N, 1 + F, H, W, 3].

    Returns:
      uint8 [2 N H, 4 W, 3].
    """
    shown = np.linspace(1, clips.shape[1] - 1, 3).astype(int)
    made = jax.jit(lambda params, x: pixels_lib.to_uint8(
        model.apply({"params": params}, pixels_lib.to_float(x))
    ))
    rows = []
    for clip in clips:
        again = np.asarray(made(params, clip[None]))[0]
        for video in (clip, again):
            rows.append(np.concatenate([video[0], *video[shown]], 1))
    return np.concatenate(rows)
