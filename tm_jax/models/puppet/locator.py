"""Finds the face of a picture: where the aligned square is cut."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from tm_jax.core import axes
from tm_jax.nn import linear

_SIDE = 64  # Pixels of the thumbnail that is read.
_SPREAD = jnp.array([0.1, 0.1, 0.2, 0.2])  # Of centres (pictures) and sizes (log).
_TYPICAL = jnp.array([0.5, 0.5, 0.27, 0.235])  # Centre y, x; half height, half width.


class FaceLocator(nn.Module):
    """Convolutions on a thumbnail, then a dense layer.

    Attributes:
      width: Channels of the first convolution.
    """

    width: int = 16

    @nn.compact
    def __call__(self, pictures: jax.Array) -> jax.Array:
        """Maps pictures [B, H, W, 3] in -1..1 to the numbers of `boxes`, [B, 4]."""
        shape = (pictures.shape[0], _SIDE, _SIDE, 3)
        x = jax.image.resize(pictures, shape, "linear")
        for i in range(3):
            x = nn.silu(linear.Conv(self.width * (i + 1), name=f"conv_{i}")(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        x = nn.silu(linear.Dense(64, (axes.EMBED, axes.MLP), name="hidden")(x))
        return linear.Dense(4, (axes.MLP, None), name="out")(x)


def boxes(numbers: jax.Array) -> jax.Array:
    """Boxes (y0, x0, y1, x1) in 0..1 of a locator's numbers, [B, 4]."""
    centre = _TYPICAL[:2] + _SPREAD[:2] * numbers[:, :2]
    # A face is neither smaller than a token nor larger than the picture.
    half = _TYPICAL[2:] * jnp.exp(_SPREAD[2:] * jnp.clip(numbers[:, 2:], -5, 5))
    return jnp.concatenate([centre - half, centre + half], -1)


def numbers(boxes: jax.Array) -> jax.Array:
    """The locator's targets for boxes [B, 4]: the inverse of `boxes`."""
    centre = 0.5 * (boxes[:, :2] + boxes[:, 2:])
    half = 0.5 * (boxes[:, 2:] - boxes[:, :2])
    return jnp.concatenate(
        [(centre - _TYPICAL[:2]) / _SPREAD[:2], jnp.log(half / _TYPICAL[2:]) / _SPREAD[2:]], -1
    )
