"""wav2vec 2.0: sound to the hidden states of all layers, 50 times a second."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from tm_jax.core import axes
from tm_jax.core import shapes
from tm_jax.models.audio.wav2vec2 import config as config_lib
from tm_jax.models.audio.wav2vec2 import sound
from tm_jax.nn import encoder_layer
from tm_jax.nn import linear
from tm_jax.nn import norms
from tm_jax.nn import parameters


class Hidden(NamedTuple):
    """What the encoder computes.

    Attributes:
      states: Input of the first layer and output of each, `num_layers` + 1 arrays [B, n, D].
      last: The result, [B, n, D]: the last state, after the final norm where there is one.
      valid: Boolean [B, n], or None: states of padding carry no meaning.
    """

    states: tuple[jax.Array, ...]
    last: jax.Array
    valid: jax.Array | None

    def features(self) -> jax.Array:
        """Outputs of all layers side by side, first layer first, [B, n, U]."""
        return jnp.concatenate(self.states[1:], -1)


class SampleConv(nn.Module):
    """Strided convolution over time without padding.

    Attributes:
      features: Output channels.
      taps: Kernel size.
      stride: Stride.
      bias: Whether to add a bias.
      dtype: Dtype of the product.
    """

    features: int
    taps: int
    stride: int
    bias: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, inputs, in] to [B, outputs, features]."""
        names = (None, axes.CHANNELS_IN, axes.CHANNELS_OUT)
        init = parameters.named(nn.initializers.he_normal(), names)
        kernel = self.param("kernel", init, (self.taps, x.shape[-1], self.features))
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype), kernel.astype(self.dtype), (self.stride,), "VALID",
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        if self.bias:
            zeros = parameters.named(nn.initializers.zeros, (axes.CHANNELS_OUT,))
            y = y + self.param("bias", zeros, (self.features,)).astype(self.dtype)
        return y


class TimeNorm(nn.Module):
    """Norm of each channel over time, with affine part.

    Attributes:
      epsilon: Added to the variance.
    """

    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array | None) -> jax.Array:
        """Normalises [B, n, C]; statistics are of the valid positions [B, n] if given."""
        ones = parameters.named(nn.initializers.ones, (axes.CHANNELS_OUT,))
        zeros = parameters.named(nn.initializers.zeros, (axes.CHANNELS_OUT,))
        scale = self.param("scale", ones, (x.shape[-1],))
        bias = self.param("bias", zeros, (x.shape[-1],))
        y = x.astype(jnp.float32)
        weight = jnp.ones(x.shape[:2]) if valid is None else valid.astype(jnp.float32)
        weight = weight[..., None] / jnp.maximum(weight.sum(-1), 1)[:, None, None]
        y = y - (y * weight).sum(1, keepdims=True)
        variance = (jnp.square(y) * weight).sum(1, keepdims=True)
        y = y * jax.lax.rsqrt(variance + self.epsilon) * scale + bias
        return y.astype(x.dtype)


class PositionConv(nn.Module):
    """Grouped convolution over time: a positional embedding of the tokens.

    Its kernel is stored as published: a direction, and a length for every tap.

    Attributes:
      config: Sizes.
      dtype: Dtype of the product.
    """

    config: config_lib.Wav2Vec2Config
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps tokens [B, n, D] to their positional embedding [B, n, D]."""
        c, width = self.config, x.shape[-1]
        names = (None, axes.CHANNELS_IN, axes.CHANNELS_OUT)
        init = parameters.named(nn.initializers.he_normal(), names)
        ones = parameters.named(nn.initializers.ones, (None,))
        zeros = parameters.named(nn.initializers.zeros, (axes.CHANNELS_OUT,))
        shape = (c.position_taps, width // c.position_groups, width)
        direction = self.param("direction", init, shape).astype(jnp.float32)
        scale = self.param("scale", ones, (c.position_taps,)).astype(jnp.float32)
        bias = self.param("bias", zeros, (width,))
        length = jnp.sqrt(jnp.square(direction).sum((1, 2), keepdims=True))
        kernel = direction * (scale[:, None, None] / length)
        # An even kernel reaches one token further back than ahead.
        before = c.position_taps // 2
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype), kernel.astype(self.dtype), (1,),
            ((before, c.position_taps - 1 - before),),
            dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=c.position_groups,
        )
        return nn.gelu(y + bias.astype(self.dtype), approximate=False)


class Wav2Vec2(nn.Module):
    """Speech encoder.

    Attributes:
      config: Sizes.
      dtype: Dtype of the products and of the residual stream.
    """

    config: config_lib.Wav2Vec2Config
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        c, count = self.config, len(self.config.channels)
        self.convs = [
            SampleConv(c.channels[i], c.taps[i], c.strides[i], c.conv_bias, self.dtype)
            for i in range(count)
        ]
        if c.feature_norm == "group":
            self.conv_norms = [TimeNorm(1e-5)]
        else:
            self.conv_norms = [norms.LayerNorm(1e-5) for _ in range(count)]
        self.norm_features = norms.LayerNorm(c.epsilon)
        self.project = linear.Dense(c.width, (axes.CHANNELS_IN, axes.EMBED), self.dtype)
        self.position = PositionConv(c, self.dtype)
        self.norm = norms.LayerNorm(c.epsilon)
        self.blocks = [
            encoder_layer.EncoderLayer(
                c.width, c.num_heads, c.mlp_width, c.pre_norm, c.epsilon, self.dtype
            )
            for _ in range(c.num_layers)
        ]

    def extract(self, samples: jax.Array, valid: jax.Array | None) -> jax.Array:
        """Convolutions: samples [B, samples] to [B, n, channels of the last].

        Args:
          samples: [B, samples].
          valid: Samples that count in statistics over time, or None for all of them.
        """
        c = self.config
        x = samples[..., None].astype(self.dtype)
        for i, conv in enumerate(self.convs):
            x = conv(x)
            norm = self.conv_norms[i] if i < len(self.conv_norms) else None
            if isinstance(norm, TimeNorm):
                seen = None if valid is None else sound.covered(valid, c.taps[0], c.strides[0])
                x = norm(x, seen)
            elif norm is not None:
                x = norm(x)
            x = nn.gelu(x, approximate=False)
        return x

    def __call__(
        self, samples: jax.Array, valid: jax.Array | None = None,
        padding_counts: bool = True,
    ) -> Hidden:
        """Runs the encoder.

        Args:
          samples: Sound, [B, samples]; normalised (`sound.normalise`) if `config.normalise`.
          valid: Optional boolean [B, samples], False for padding in front or behind; states
            of padding are hidden from the others.
          padding_counts: Whether statistics over time (`feature_norm="group"`) include the
            padding, as in the reference. Without, a padded sound has the states that it
            has alone.

        Returns:
          Hidden states, `config.states(samples)` of them.

        Raises:
          ValueError: The sound is too short for one state.
        """
        sizes = shapes.check(samples, "B S", "samples")
        if self.config.states(sizes["S"]) < 1:
            raise ValueError(
                f"samples: at least {self.config.field} are needed, got {sizes['S']}."
            )
        seen = None
        if valid is not None:
            shapes.check(valid, "B S", "valid", **sizes)
            valid = valid.astype(bool)
            seen = sound.covered(valid, self.config.field, self.config.hop)
        x = self.extract(samples, None if padding_counts else valid)
        x = self.project(self.norm_features(x))
        if seen is not None:
            x = jnp.where(seen[..., None], x, 0)
        x = x + self.position(x)
        if not self.config.pre_norm:
            x = self.norm(x)
        states = [nn.with_logical_constraint(x, encoder_layer.STREAM)]
        for block in self.blocks:
            states.append(block(states[-1], seen))
        last = self.norm(states[-1]) if self.config.pre_norm else states[-1]
        return Hidden(tuple(states), last, seen)


def init(config: config_lib.Wav2Vec2Config, key: jax.Array) -> dict:
    """Random parameters, boxed with their logical axis names."""
    return dict(Wav2Vec2(config).init(key, jnp.zeros((1, config.field)))["params"])
