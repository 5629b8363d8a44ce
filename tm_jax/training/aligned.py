"""Drawn clips as the networks of a small preset see them: the square around the face."""

import jax
import jax.numpy as jnp

from tm_jax.data import characters
from tm_jax.data import drawn
from tm_jax.models import face as face_lib


def squares(preset, batch) -> dict:
    """Draws clips and cuts out their aligned faces. Works inside `jax.jit`.

    Args:
      preset: Sizes.
      batch: `character`, `motion` [B, 1 + F, M] (the portrait first) and `jitter` [B, 3].

    Returns:
      Dictionary of `frames` [B, 1 + F, S, S, 3] in -1..1, of the boxes `mouth` and `eyes`
      [B, 1 + F, 4] in coordinates of the square, and of `face` [B, P], how much of each
      token is face.
    """
    whole = characters.render(batch["character"], batch["motion"], preset.height)
    regions = characters.regions(batch["character"], batch["motion"])
    face = regions["face"][:, 0]
    box = _shaken(face_lib.square(face), batch["jitter"])
    rows = preset.latent_shape[0] // preset.dit.patch
    return {
        "frames": face_lib.cut(drawn.to_float(whole), box, preset.crop),
        "mouth": face_lib.within(regions["mouth"], box[:, None]),
        "eyes": face_lib.within(regions["eyes"], box[:, None]),
        "face": face_lib.tokens(face, box, rows, rows),
    }


def _shaken(box: jax.Array, jitter: jax.Array) -> jax.Array:
    """Boxes [B, 4] moved and resized by `drawn.jitter` [B, 3]."""
    side = box[:, 2:] - box[:, :2]
    centre = 0.5 * (box[:, :2] + box[:, 2:]) + jitter[:, :2] * side
    half = 0.5 * side * jnp.exp(jitter[:, 2:])
    return jnp.concatenate([centre - half, centre + half], -1)
