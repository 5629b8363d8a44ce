"""Drawn clips as the inputs of a small preset's networks: the square around the face."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.configs import presets
from tm_jax.core import pixels as pixels_lib
from tm_jax.data.synthetic import characters
from tm_jax.data.synthetic import motion as motion_lib
from tm_jax.models.puppet import face as face_lib
from tm_jax.models.puppet.vae import autoencoder
from tm_jax.models.puppet.vae import config as vae_config

# Root mean square of how far columns of motion are from a portrait's, over speech; blinks, which
# are rare, over twice their mean.
_SPREAD = {
    "mouth_open": 0.37, "mouth_width": 0.31, "mouth_round": 0.29, "teeth": 0.37, "tongue": 0.21,
    "smile": 0.14, "blink_left": 0.35, "blink_right": 0.35, "gaze_x": 0.15, "gaze_y": 0.10,
    "brow": 0.17,
}  # fmt: skip


def squares(preset: presets.Preset, batch: dict[str, Any], still: bool = False) -> dict:
    """Draws clips and cuts out their aligned faces. Works inside `jax.jit`.

    Args:
      preset: Sizes.
      batch: `character`, `motion` [B, 1 + F, M] (the portrait first) and `jitter` [B, 3].
      still: Draw the portrait alone: `frames` are [B, 1, S, S, 3].

    Returns:
      Dictionary of `frames` [B, 1 + F, S, S, 3] in -1..1, of the boxes `mouth` and `eyes`
      [B, 1 + F, 4] in coordinates of the square, of `face` [B, P], how much of each token
      is face, and of `latents` [B, F / 4, h, w, C] from the labels of the frames.
    """
    vae = preset.vae
    if not isinstance(vae, vae_config.VAEConfig):
        raise ValueError(
            f"preset {preset.name} has no autoencoder of aligned faces; expected one such as nano."
        )
    drawn_motion = batch["motion"][:, :1] if still else batch["motion"]
    whole = characters.render(batch["character"], drawn_motion, preset.height)
    regions = characters.regions(batch["character"], batch["motion"])
    face = regions["face"][:, 0]
    box = _shaken(face_lib.square(face), batch["jitter"])
    rows = preset.latent_shape[0] // preset.dit.patch
    return {
        "frames": face_lib.cut(pixels_lib.to_float(whole), box, vae.side),
        "mouth": face_lib.within(regions["mouth"], box[:, None]),
        "eyes": face_lib.within(regions["eyes"], box[:, None]),
        "face": face_lib.tokens(face, box, rows, rows),
        "latents": _latents(preset, batch["motion"]),
    }


def _latents(preset, motion):
    height, width, _ = preset.latent_shape

    def change(names):
        at = np.array([motion_lib.COLUMNS.index(name) for name in names])
        spread = jnp.asarray([_SPREAD[name] for name in names])
        return (motion[:, 1:, at] - motion[:, :1, at]) / spread

    upper, lower = change(vae_config.UPPER), change(vae_config.LOWER)
    group = preset.vae.frames_per_latent
    return autoencoder.labels(upper, lower, height, width, group)


def _shaken(box: jax.Array, jitter: jax.Array) -> jax.Array:
    """Boxes [B, 4] moved and resized by `drawn.jitter` [B, 3]."""
    side = box[:, 2:] - box[:, :2]
    centre = 0.5 * (box[:, :2] + box[:, 2:]) + jitter[:, :2] * side
    half = 0.5 * side * jnp.exp(jitter[:, 2:])
    return jnp.concatenate([centre - half, centre + half], -1)
