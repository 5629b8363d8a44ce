"""UMT5 encoder: prompt tokens to text features.

Differs from a plain transformer in three ways: logits are not scaled, every layer adds its own
learned bias of the relative position, and no layer has additive parameters.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.core import axes
from tm_jax.core import shapes
from tm_jax.models.text import config as config_lib
from tm_jax.nn import attention
from tm_jax.nn import linear
from tm_jax.nn import norms
from tm_jax.nn import parameters

_STREAM = (axes.BATCH, axes.TOKENS, axes.WIDTH)
_HEADS = (axes.BATCH, axes.TOKENS, axes.HEADS, None)


def position_buckets(length: int, buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of every pair of a query and a key.

    Half of the buckets are for keys after the query. In each half n = buckets / 4 distances
    have a bucket of their own; from there on buckets grow evenly in the logarithm of the
    distance, up to `max_distance`.

    Args:
      length: Tokens L.
      buckets: Number of buckets.
      max_distance: Distance of the last bucket.

    Returns:
      int32 [L, L], query by key.
    """
    half, exact = buckets // 2, buckets // 4

    def bucket(distance):
        if distance < exact:
            return distance
        # floor((half - exact) * log(distance / exact) / log(max_distance / exact)), in
        # integers: the logarithm of a power of two must not fall just below its value.
        power = half - exact
        steps = sum(
            distance**power * exact**j >= max_distance**j * exact**power
            for j in range(1, power)
        )
        return exact + steps

    of_distance = np.array([bucket(n) for n in range(length)], np.int32)
    relative = np.arange(length)[None, :] - np.arange(length)[:, None]  # [L, L]
    return of_distance[np.abs(relative)] + half * (relative > 0).astype(np.int32)


class UMT5Layer(nn.Module):
    """Self-attention with a position bias, then a gated feed-forward layer.

    Attributes:
      config: Sizes.
      dtype: Dtype of the products.
    """

    config: config_lib.UMT5Config
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        c = self.config

        def dense(features, *names):
            return linear.Dense(features, names, self.dtype, bias=False)

        inner = c.num_heads * c.head_width
        self.norm_attention = norms.RMSNorm(c.epsilon)
        self.q, self.k, self.v = (dense(inner, axes.EMBED, axes.HEADS) for _ in range(3))
        self.o = dense(c.width, axes.HEADS, axes.EMBED)
        self.position_bias = self.param(
            "position_bias",
            parameters.named(nn.initializers.normal(c.buckets**-0.5), (None, axes.HEADS)),
            (c.buckets, c.num_heads),
        )
        self.norm_mlp = norms.RMSNorm(c.epsilon)
        self.gate = dense(c.mlp_width, axes.EMBED, axes.MLP)
        self.mlp_in = dense(c.mlp_width, axes.EMBED, axes.MLP)
        self.mlp_out = dense(c.width, axes.MLP, axes.EMBED)

    def attend(self, x: jax.Array, buckets: np.ndarray, valid: jax.Array) -> jax.Array:
        """Update [B, L, D] of normalised tokens [B, L, D]."""
        def split(y):
            y = y.reshape(*y.shape[:-1], self.config.num_heads, self.config.head_width)
            return nn.with_logical_constraint(y, _HEADS)

        q, k, v = split(self.q(x)), split(self.k(x)), split(self.v(x))
        bias = self.position_bias.astype(jnp.float32)[buckets]  # [L, L, N]
        bias = jnp.moveaxis(bias, -1, 0)  # [N, L, L]
        y = attention.attend(q, k, v, valid[:, None, None, :], bias, scale=1.0)
        return self.o(y.reshape(*x.shape[:-1], -1))

    def __call__(self, x: jax.Array, buckets: np.ndarray, valid: jax.Array) -> jax.Array:
        """Runs the layer.

        Args:
          x: Tokens [B, L, D].
          buckets: Position bucket of every pair, [L, L].
          valid: Boolean [B, L]; tokens that are False are not attended to.

        Returns:
          Tokens [B, L, D] in the dtype of `x`.
        """
        x = x + self.attend(self.norm_attention(x), buckets, valid).astype(x.dtype)
        x = nn.with_logical_constraint(x, _STREAM)
        y = self.norm_mlp(x)
        y = nn.gelu(self.gate(y), approximate=True) * self.mlp_in(y)
        x = x + self.mlp_out(y).astype(x.dtype)
        return nn.with_logical_constraint(x, _STREAM)


class UMT5Encoder(nn.Module):
    """Text encoder.

    Attributes:
      config: Sizes.
      dtype: Dtype of the products and of the residual stream.
    """

    config: config_lib.UMT5Config
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        c = self.config
        self.token_embedding = self.param(
            "token_embedding",
            parameters.named(nn.initializers.normal(1.0), (axes.VOCAB, axes.EMBED)),
            (c.vocab, c.width),
        )
        self.blocks = [UMT5Layer(c, self.dtype) for _ in range(c.num_layers)]
        self.norm = norms.RMSNorm(c.epsilon)

    def __call__(self, ids: jax.Array, valid: jax.Array) -> jax.Array:
        """Last hidden state, as the reference returns it.

        Args:
          ids: Token numbers, int [B, L].
          valid: [B, L], nonzero where a token belongs to the prompt.

        Returns:
          [B, L, D]; rows past the prompt hold values without meaning.
        """
        sizes = shapes.check(ids, "B L", "ids")
        shapes.check(valid, "B L", "valid", **sizes)
        c, valid = self.config, valid.astype(bool)
        x = jnp.take(self.token_embedding, ids, axis=0).astype(self.dtype)
        x = nn.with_logical_constraint(x, _STREAM)
        buckets = position_buckets(sizes["L"], c.buckets, c.max_distance)
        for block in self.blocks:
            x = block(x, buckets, valid)
        return self.norm(x)

    def prompt(self, ids: jax.Array, valid: jax.Array) -> jax.Array:
        """What Wan's transformer reads: `__call__` with zeros past the prompt."""
        x = self(ids, valid)
        return jnp.where(valid.astype(bool)[..., None], x, 0)


def init(config: config_lib.UMT5Config, key: jax.Array) -> dict:
    """Random parameters, boxed with their logical axis names."""
    ids = jnp.zeros((1, 2), jnp.int32)
    return dict(UMT5Encoder(config).init(key, ids, ids)["params"])
