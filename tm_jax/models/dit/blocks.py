"""One transformer block: self-attention, cross-attention to text, image and audio, MLP."""

import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from tm_jax.core import axes
from tm_jax.models.dit import config as config_lib
from tm_jax.nn import attention
from tm_jax.nn import linear
from tm_jax.nn import norms
from tm_jax.nn import parameters
from tm_jax.nn import storage

_TOKENS = (axes.BATCH, axes.FRAMES, axes.TOKENS, axes.WIDTH)
_HEADS = (axes.BATCH, axes.FRAMES, axes.TOKENS, axes.HEADS, None)
_TEXT = (axes.BATCH, axes.TOKENS, axes.WIDTH)
_AUDIO = (axes.BATCH, axes.FRAMES, axes.TOKENS, None)


@flax.struct.dataclass
class KeyValue:
    """Keys and values of one layer.

    Attributes:
      k: Keys [..., N, K].
      v: Values [..., N, K].
    """

    k: jax.Array
    v: jax.Array


def _residual(x, update):
    """Adds to the residual stream and stores the sum.

    Otherwise XLA's CPU backend computes the sums of all layers anew in each of their readers: a
    gradient of seven layers took 14 s instead of under 2.
    """
    return storage.once(nn.with_logical_constraint((x + update).astype(x.dtype), _TOKENS))


class CrossAttention(nn.Module):
    """Attention of video tokens to text, image and audio with one query.

    The results are summed before the output projection, as in Wan's image-to-video model.
    Audio values start at zero: until they are trained the layer equals the video model's.

    Attributes:
      config: Sizes of the transformer.
      dtype: Dtype of the projections.
    """

    config: config_lib.DiTConfig
    dtype: jnp.dtype

    def setup(self):
        c, dtype = self.config, self.dtype

        def heads(zero=False):
            return linear.Dense(
                c.width, (axes.EMBED, axes.HEADS), dtype, zero=zero, stored=c.matrices
            )

        self.q, self.norm_q = heads(), norms.RMSNorm(logical=axes.HEADS)
        self.o = linear.Dense(c.width, (axes.HEADS, axes.EMBED), dtype, stored=c.matrices)
        if c.text_width is not None:
            self.k, self.v, self.norm_k = heads(), heads(), norms.RMSNorm(logical=axes.HEADS)
        if c.image_width is not None:
            self.k_image, self.v_image = heads(), heads()
            self.norm_k_image = norms.RMSNorm(logical=axes.HEADS)
        self.k_audio, self.v_audio = heads(), heads(zero=True)
        self.norm_k_audio = norms.RMSNorm(logical=axes.HEADS)
        if c.partner_audio:
            self.k_partner, self.v_partner = heads(), heads(zero=True)
            self.norm_k_partner = norms.RMSNorm(logical=axes.HEADS)

    def split(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., N, K]."""
        return x.reshape(*x.shape[:-1], self.config.num_heads, self.config.head_width)

    def context(self, text: jax.Array | None, image: jax.Array | None) -> dict:
        """Keys and values that never change in a stream, by source name.

        `transformer.DiT.context` has checked that what the config asks for is there.
        """
        result = {}
        if self.config.text_width is not None:
            assert text is not None
            text = nn.with_logical_constraint(text, _TEXT)
            result["text"] = self._keys(self.norm_k(self.k(text)), self.v(text))
        if self.config.image_width is not None:
            assert image is not None
            image = nn.with_logical_constraint(image, _TEXT)
            keys = self.norm_k_image(self.k_image(image))
            result["image"] = self._keys(keys, self.v_image(image))
        return result

    def audio(self, tokens: jax.Array, partner: jax.Array | None) -> dict[str, KeyValue]:
        """Keys and values [B, T, A, N, K] of audio tokens [B, T, A, E], by source name."""
        tokens = nn.with_logical_constraint(tokens, _AUDIO)
        keys = self.norm_k_audio(self.k_audio(tokens))
        result = {"audio": self._keys(keys, self.v_audio(tokens))}
        if self.config.partner_audio:
            assert partner is not None  # `transformer.DiT.embed` has checked it.
            partner = nn.with_logical_constraint(partner, _AUDIO)
            keys = self.norm_k_partner(self.k_partner(partner))
            result["partner"] = self._keys(keys, self.v_partner(partner))
        return result

    def _keys(self, k, v) -> KeyValue:
        """Keys and values [..., D], made token by token, -> [..., N, K], whole for all queries."""
        k, v = (attention.place_context(self.split(x)) for x in (k, v))
        return KeyValue(k=k, v=v)

    def __call__(self, x, context: dict, audio: dict, face_mask) -> jax.Array:
        """Residual update of tokens [B, T, P, D].

        Args:
          x: Normalised tokens.
          context: Result of `context`.
          audio: Result of `audio`; frame t attends to its own tokens alone.
          face_mask: [B, P] in 0..1, how strongly a token listens to the audio.
        """
        q = self.split(self.norm_q(self.q(x)))  # [B, T, P, N, K]
        q = nn.with_logical_constraint(q, _HEADS)
        heard = [attention.attend(q, source.k, source.v) for source in audio.values()]
        mixed = functools.reduce(jnp.add, heard)
        mixed = mixed * face_mask[:, None, :, None, None].astype(mixed.dtype)
        for source in context.values():
            mixed = mixed + attention.attend(q, source.k[:, None], source.v[:, None])
        return self.o(mixed.reshape(x.shape))


class Block(nn.Module):
    """Modulated transformer block.

    Attributes:
      config: Sizes of the transformer.
      dtype: Dtype of the projections.
    """

    config: config_lib.DiTConfig
    dtype: jnp.dtype

    def setup(self):
        c, dtype = self.config, self.dtype

        def heads():
            return linear.Dense(c.width, (axes.EMBED, axes.HEADS), dtype, stored=c.matrices)

        self.modulation = self.param(
            "modulation",
            parameters.named(nn.initializers.normal(c.width**-0.5), (None, axes.WIDTH)),
            (6, c.width),
        )
        self.q, self.k, self.v = heads(), heads(), heads()
        self.norm_q = norms.RMSNorm(logical=axes.HEADS)
        self.norm_k = norms.RMSNorm(logical=axes.HEADS)
        self.o = linear.Dense(c.width, (axes.HEADS, axes.EMBED), dtype, stored=c.matrices)
        self.cross_norm = norms.LayerNorm()
        self.cross = CrossAttention(c, dtype)
        self.mlp_in = linear.Dense(c.mlp_width, (axes.EMBED, axes.MLP), dtype, stored=c.matrices)
        self.mlp_out = linear.Dense(c.width, (axes.MLP, axes.EMBED), dtype, stored=c.matrices)

    def context(self, text: jax.Array | None, image: jax.Array | None) -> dict:
        """See `CrossAttention.context`."""
        return self.cross.context(text, image)

    def audio(self, tokens: jax.Array, partner: jax.Array | None) -> dict[str, KeyValue]:
        """See `CrossAttention.audio`."""
        return self.cross.audio(tokens, partner)

    def __call__(self, x, time, pattern, context, audio, face_mask):
        """Runs the block.

        Args:
          x: Tokens [B, T, P, D].
          time: Time modulation [B, T, 6, D], float32.
          pattern: Attention pattern (`patterns.py`).
          context: Constant keys and values of this layer.
          audio: Audio keys and values of this layer, by source name.
          face_mask: [B, P].

        Returns:
          Tokens [B, T, P, D], and this layer's unrotated self-attention `KeyValue`
          [B, T, P, N, K].
        """
        parts = (self.modulation + time)[:, :, None]  # [B, T, 1, 6, D]
        shift1, scale1, gate1, shift2, scale2, gate2 = (parts[..., i, :] for i in range(6))
        split = self.cross.split

        y = norms.modulate(x, shift1, scale1).astype(self.dtype)
        q = nn.with_logical_constraint(split(self.norm_q(self.q(y))), _HEADS)
        k = nn.with_logical_constraint(split(self.norm_k(self.k(y))), _HEADS)
        v = nn.with_logical_constraint(split(self.v(y)), _HEADS)
        q, k, v = attention.place_queries(q), attention.place_keys(k), attention.place_keys(v)
        y = nn.with_logical_constraint(pattern(q, k, v), _HEADS)
        y = self.o(y.reshape(x.shape))
        x = _residual(x, gate1 * y)

        x = _residual(x, self.cross(self.cross_norm(x), context, audio, face_mask))

        y = norms.modulate(x, shift2, scale2).astype(self.dtype)
        y = self.mlp_out(nn.gelu(self.mlp_in(y), approximate=True))
        return _residual(x, gate2 * y), KeyValue(k=k, v=v)
