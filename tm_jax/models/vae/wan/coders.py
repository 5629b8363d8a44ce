"""Encoder and decoder of the Wan autoencoder, one pass over the next frames of a stream.

The state is a dictionary from the name of a block to the pasts of its convolutions. None
stands for the start of a clip: the call then takes the first frame (or latent) alone.
"""

import flax.linen as nn
import jax.numpy as jnp

from tm_jax.models.vae.wan import config as config_lib
from tm_jax.models.vae.wan import layers


class _Stream:
    """Hands every block its past and collects the next one."""

    def __init__(self, state):
        self._state = state
        self.next = {}

    def __call__(self, block, x):
        past = None if self._state is None else self._state.get(block.name)
        x, after = block(x, past)
        if after is not None:
            self.next[block.name] = after
        return x


class Entry(nn.Module):
    """Convolution of a coder's input.

    Attributes:
      features: Output channels.
      dtype: Dtype of the products.
    """

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, past):
        """Maps x [B, T, H, W, in] and past to (y, next past)."""
        x, past = layers.extend(x, past)
        conv = layers.Conv(self.features, (layers.TAPS, 3, 3), self.dtype, name="conv")
        return conv(x), past


class Exit(nn.Module):
    """Norm, activation and convolution of a coder's output.

    Attributes:
      features: Output channels.
      dtype: Dtype of the products.
    """

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, past):
        """Maps x [B, T, H, W, in] and past to (y, next past)."""
        x, past = layers.extend(nn.silu(layers.Norm(name="norm")(x)), past)
        conv = layers.Conv(self.features, (layers.TAPS, 3, 3), self.dtype, name="conv")
        return conv(x), past


class Encoder(nn.Module):
    """Pixels to moments of raw latents, before the last pointwise layer.

    Attributes:
      config: Sizes.
      dtype: Dtype of the products.
    """

    config: config_lib.WanVAEConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, state):
        """Maps frames to moments.

        Args:
          x: The first frame alone, [B, 1, H, W, 3], or the next 4 T frames.
          state: None for the first frame, then what the last call returned.

        Returns:
          [B, T, h, w, 2 C] and the next state.
        """
        c, stream = self.config, _Stream(state)
        x = stream(Entry(c.widths[0], self.dtype, name="entry"), x.astype(self.dtype))
        for level, width in enumerate(c.widths):
            for i in range(c.num_res_blocks):
                x = stream(layers.ResBlock(width, self.dtype, name=f"down_{level}_res_{i}"), x)
            if level < len(c.temporal_strides):
                temporal = c.temporal_strides[level]
                name = f"down_{level}_sample"
                x = stream(layers.Downsample(temporal, self.dtype, name=name), x)
        x = stream(layers.Middle(self.dtype, name="middle"), x)
        x = stream(Exit(2 * c.latent_channels, self.dtype, name="exit"), x)
        return x, stream.next


class Decoder(nn.Module):
    """Raw latents, after the first pointwise layer, to pixels.

    Attributes:
      config: Sizes.
      dtype: Dtype of the products.
    """

    config: config_lib.WanVAEConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, z, state):
        """Maps latents to frames.

        Args:
          z: The first latent alone, [B, 1, h, w, C], or the next T latents.
          state: None for the first latent, then what the last call returned.

        Returns:
          One frame [B, 1, H, W, 3] or 4 T frames, and the next state.
        """
        c, stream = self.config, _Stream(state)
        x = stream(Entry(c.widths[-1], self.dtype, name="entry"), z.astype(self.dtype))
        x = stream(layers.Middle(self.dtype, name="middle"), x)
        for level, width in reversed(list(enumerate(c.widths))):
            for i in range(c.num_res_blocks + 1):
                x = stream(layers.ResBlock(width, self.dtype, name=f"up_{level}_res_{i}"), x)
            if level:
                temporal = c.temporal_strides[level - 1]
                x = stream(layers.Upsample(temporal, self.dtype, name=f"up_{level}_sample"), x)
        x = stream(Exit(3, self.dtype, name="exit"), x)
        return x, stream.next
