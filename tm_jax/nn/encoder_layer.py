"""The plain bidirectional transformer layer that picture and speech encoders share."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from tm_jax.core import axes
from tm_jax.nn import attention
from tm_jax.nn import linear
from tm_jax.nn import norms

STREAM = (axes.BATCH, None, axes.WIDTH)  # tokens [B, L, D]
HEADS = (axes.BATCH, None, axes.HEADS, None)  # heads [B, L, N, K]


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward layer with exact GELU, each added to its input.

    Attributes:
      width: Token width D.
      num_heads: Attention heads N; must divide `width`.
      mlp_width: Hidden width of the feed-forward layer.
      pre_norm: Normalise the input of each half; otherwise the sum after it.
      epsilon: Added to the variance in norms.
      dtype: Dtype of the products.
    """

    width: int
    num_heads: int
    mlp_width: int
    pre_norm: bool = True
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        def heads():
            return linear.Dense(self.width, (axes.EMBED, axes.HEADS), self.dtype)

        self.norm_attention = norms.LayerNorm(self.epsilon)
        self.q, self.k, self.v = heads(), heads(), heads()
        self.o = linear.Dense(self.width, (axes.HEADS, axes.EMBED), self.dtype)
        self.norm_mlp = norms.LayerNorm(self.epsilon)
        self.mlp_in = linear.Dense(self.mlp_width, (axes.EMBED, axes.MLP), self.dtype)
        self.mlp_out = linear.Dense(self.width, (axes.MLP, axes.EMBED), self.dtype)

    def attend(self, x: jax.Array, valid: jax.Array | None) -> jax.Array:
        """Update [B, L, D] of tokens [B, L, D]; `valid` as in `__call__`."""
        def split(y):
            y = y.reshape(*y.shape[:-1], self.num_heads, -1)
            return nn.with_logical_constraint(y, HEADS)

        q, k, v = split(self.q(x)), split(self.k(x)), split(self.v(x))
        keys = None if valid is None else valid[:, None, None, :]  # [B, 1, 1, L]
        return self.o(attention.attend(q, k, v, keys).reshape(x.shape))

    def mlp(self, x: jax.Array) -> jax.Array:
        """Feed-forward update [B, L, D] of tokens [B, L, D]."""
        return self.mlp_out(nn.gelu(self.mlp_in(x), approximate=False))

    def __call__(self, x: jax.Array, valid: jax.Array | None = None) -> jax.Array:
        """Runs the layer.

        Args:
          x: Tokens [B, L, D].
          valid: Optional boolean [B, L]; tokens that are False are not attended to.

        Returns:
          Tokens [B, L, D] in the dtype of `x`.
        """
        if self.pre_norm:
            y = x + self.attend(self.norm_attention(x), valid).astype(x.dtype)
            y = nn.with_logical_constraint(y, STREAM)
            y = y + self.mlp(self.norm_mlp(y)).astype(x.dtype)
        else:
            y = self.norm_attention(x + self.attend(x, valid).astype(x.dtype))
            y = nn.with_logical_constraint(y, STREAM)
            y = self.norm_mlp(y + self.mlp(y).astype(x.dtype))
        return nn.with_logical_constraint(y, STREAM)
