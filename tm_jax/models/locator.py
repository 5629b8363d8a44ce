"""Finds the face in a reference latent: the region that listens to the audio."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from tm_jax.nn import linear


class FaceLocator(nn.Module):
    """Three convolutions from a latent to one logit per token.

    Attributes:
      patch: Latents per token along each side.
      width: Hidden channels.
    """

    patch: int
    width: int = 32

    @nn.compact
    def __call__(self, reference: jax.Array) -> jax.Array:
        """Maps reference latents [B, H, W, C] to face logits [B, P]."""
        x = nn.silu(linear.Conv(self.width, name="in")(reference))
        x = nn.silu(linear.Conv(self.width, name="middle")(x))
        # Rows and columns tell a centred portrait's face from its surroundings.
        rows = jnp.linspace(-1, 1, x.shape[1])[None, :, None, None]
        columns = jnp.linspace(-1, 1, x.shape[2])[None, None, :, None]
        where = [jnp.broadcast_to(p, (*x.shape[:3], 1)) for p in (rows, columns, rows**2, columns**2)]
        x = jnp.concatenate([x, *where], -1)
        x = linear.Conv(1, name="out")(x)[..., 0]
        b, h, w = x.shape
        p = self.patch
        return x.reshape(b, h // p, p, w // p, p).mean((2, 4)).reshape(b, -1)
