"""Conditioning channels of a preset that repeats the code of its picture on every frame."""

import jax
import jax.numpy as jnp


def condition(reference: jax.Array, expression: jax.Array, sink: bool = False) -> jax.Array:
    """The code of the picture, then the expression of the frame at every place.

    Args:
      reference: Code of the reference picture, [B, H, W, A].
      expression: Eyes, brows and smile of every pixel frame of a latent, [B, T, X]; X may
        be 0.
      sink: Whether a frame of neutral expression, the sink's, comes first.

    Returns:
      [B, T, H, W, A + X], with sink [B, 1 + T, H, W, A + X].
    """
    if sink:
        expression = jnp.pad(expression, ((0, 0), (1, 0), (0, 0)))
    batch, frames, width = expression.shape
    height, columns = reference.shape[1:3]
    spread = jnp.broadcast_to(
        expression[:, :, None, None], (batch, frames, height, columns, width)
    )
    return jnp.concatenate([jnp.repeat(reference[:, None], frames, 1), spread], -1)
