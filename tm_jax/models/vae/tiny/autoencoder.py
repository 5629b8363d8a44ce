"""The tiny autoencoder: convolutions inside frames, and a memory of one frame per block.

It reads and makes the normalised latents that the video transformer works on, without any
further scale. Decoding is causal: latent k makes frames 4k-3 ... 4k. Encoding is not quite: the
network was trained on groups 4k ... 4k+3, so latent k depends on three frames that come after
its own.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tm_jax.core import shapes
from tm_jax.models.vae.tiny import config as config_lib
from tm_jax.models.vae.wan import layers
from tm_jax.nn import linear


class MemoryBlock(nn.Module):
    """Three 3x3 convolutions over this frame and the one before it.

    Attributes:
      dtype: Dtype of the products.
    """

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, past):
        """Maps x [B, T, H, W, C] and past [B, 1, H, W, C] to (y, next past)."""
        before = jnp.concatenate([past.astype(x.dtype), x[:, :-1]], 1)
        y = jnp.concatenate([x, before], -1)
        for i in range(3):
            y = layers.Conv(x.shape[-1], (3, 3), self.dtype, name=f"conv_{i}")(
                nn.relu(y) if i else y
            )
        return nn.relu(x + y), x[:, -1:]


def _pool(x, count):
    """[B, T, H, W, C] to [B, T / count, H, W, count * C], earlier frames first."""
    b, t, h, w, c = x.shape
    x = x.reshape(b, t // count, count, h, w, c).transpose(0, 1, 3, 4, 2, 5)
    return x.reshape(b, t // count, h, w, count * c)


def _grow(x, count):
    """Inverse of `_pool`."""
    b, t, h, w, c = x.shape
    x = x.reshape(b, t, h, w, count, c // count).transpose(0, 1, 4, 2, 3, 5)
    return x.reshape(b, t * count, h, w, c // count)


class _Memory:
    """Hands every block its past and collects the next one; zeros at the start."""

    def __init__(self, state):
        self._state = state
        self.next = {}

    def __call__(self, block, x):
        if self._state is None:
            past = jnp.zeros_like(x[:, :1])
        else:
            past = self._state[block.name]
        x, self.next[block.name] = block(x, past)
        return x


class Encoder(nn.Module):
    """Pixels in 0..1 to latents.

    Attributes:
      config: Sizes.
      dtype: Dtype of the products.
    """

    config: config_lib.TAEHVConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, state):
        """Maps frames [B, 4 T, H, W, 3] and state to ([B, T, h, w, C], next state)."""
        c, memory = self.config, _Memory(state)
        x = nn.relu(layers.Conv(c.encoder_width, (3, 3), self.dtype, name="entry")(x))
        for stage, count in enumerate(c.encoder_pools):
            name = f"stage_{stage}"
            pool = linear.Dense(
                c.encoder_width, (None, None), self.dtype, bias=False, name=f"{name}_pool"
            )
            down = layers.Conv(
                c.encoder_width, (3, 3), self.dtype, (2, 2), bias=False, name=f"{name}_down"
            )
            x = down(pool(_pool(x, count)))
            for i in range(c.num_blocks):
                x = memory(MemoryBlock(self.dtype, name=f"{name}_block_{i}"), x)
        x = layers.Conv(c.latent_channels, (3, 3), self.dtype, name="exit")(x)
        return x, memory.next


class Decoder(nn.Module):
    """Latents to pixels in about 0..1.

    Attributes:
      config: Sizes.
      dtype: Dtype of the products.
    """

    config: config_lib.TAEHVConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, z, state):
        """Maps latents [B, T, h, w, C] and state to ([B, 4 T, H, W, 3], next state)."""
        c, memory = self.config, _Memory(state)
        z = jnp.tanh(z.astype(jnp.float32) / 3) * 3  # Soft bound of outliers.
        width = c.decoder_widths[0]
        x = nn.relu(layers.Conv(width, (3, 3), self.dtype, name="entry")(z))
        for stage, count in enumerate(c.decoder_grows):
            name, width = f"stage_{stage}", x.shape[-1]
            for i in range(c.num_blocks):
                x = memory(MemoryBlock(self.dtype, name=f"{name}_block_{i}"), x)
            grow = linear.Dense(
                count * width, (None, None), self.dtype, bias=False, name=f"{name}_grow"
            )
            # Published order: repeat pixels, then this map of channels. They commute, and
            # there are four times fewer pixels before.
            x = _grow(grow(x), count)
            x = jnp.repeat(jnp.repeat(x, 2, 2), 2, 3)
            x = layers.Conv(
                c.decoder_widths[stage + 1], (3, 3), self.dtype, bias=False, name=f"{name}_out"
            )(x)
        x = layers.Conv(3, (3, 3), self.dtype, name="exit")(nn.relu(x))
        return x, memory.next


class TAEHV(nn.Module):
    """Tiny autoencoder with the interface of `WanVAE`: pixels -1..1, normalised latents.

    Attributes:
      config: Sizes.
      dtype: Dtype of the products.
    """

    config: config_lib.TAEHVConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.encoder = Encoder(self.config, self.dtype)
        self.decoder = Decoder(self.config, self.dtype)

    def encode_first(self, frames: jax.Array) -> tuple[jax.Array, Any]:
        """Begins a stream of frames; see `encode_chunk`."""
        return self._encode(frames, None)

    def encode_chunk(self, frames: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        """Carries a stream of frames on.

        Args:
          frames: The next frames, [B, 4 T, H, W, 3] in -1..1; H and W are multiples of 8.
          state: What the last call (`encode_first` or this) returned.

        Returns:
          Latents [B, T, h, w, C] and the next state, of the same shapes as before.
        """
        return self._encode(frames, state)

    def encode(self, frames: jax.Array) -> jax.Array:
        """Latents [B, T, h, w, C] of a clip [B, F, H, W, 3] in -1..1, T = ceil(F / 4).

        The last frame is repeated until the number divides, as the published encoder does.
        """
        short = -frames.shape[1] % self.config.frames_per_latent
        frames = jnp.concatenate([frames, jnp.repeat(frames[:, -1:], short, 1)], 1)
        return self._encode(frames, None)[0]

    def decode_first(self, z: jax.Array) -> tuple[jax.Array, Any]:
        """Begins a stream of latents.

        Args:
          z: The first latents, [B, T, h, w, C].

        Returns:
          Frames [B, 1 + 4 (T - 1), H, W, 3] in -1..1 and the state for `decode_chunk`. Of the
          first latent only the last of its four frames belongs to the clip.
        """
        frames, state = self._decode(z, None)
        return frames[:, self.config.frames_per_latent - 1 :], state

    def decode_chunk(self, z: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        """Carries a stream of latents on.

        Args:
          z: The next latents, [B, T, h, w, C].
          state: What the last call returned.

        Returns:
          Frames [B, 4 T, H, W, 3] in -1..1 and the next state, of the same shapes as before.
        """
        return self._decode(z, state)

    def decode(self, z: jax.Array) -> jax.Array:
        """Frames [B, 1 + 4 (T - 1), H, W, 3] in -1..1 of latents [B, T, h, w, C]."""
        return self.decode_first(z)[0]

    def __call__(self, frames: jax.Array) -> jax.Array:
        """Reconstruction of a clip; touches every parameter."""
        return self.decode(self.encode(frames))

    def _encode(self, frames, state):
        sizes = shapes.check(frames, "B F H W C", "frames", C=3)
        group, stride = self.config.frames_per_latent, self.config.spatial_stride
        if sizes["F"] % group or not sizes["F"]:
            raise ValueError(
                f"frames: a stream is encoded in multiples of {group} frames, got {sizes['F']}."
            )
        if sizes["H"] % stride or sizes["W"] % stride:
            raise ValueError(
                f"frames: height and width must be multiples of {stride}, "
                f"got {sizes['H']}x{sizes['W']}."
            )
        z, state = self.encoder((frames + 1) / 2, state)  # The weights expect 0..1.
        return z.astype(frames.dtype), state

    def _decode(self, z, state):
        sizes = shapes.check(z, "B T H W C", "latents", C=self.config.latent_channels)
        if not sizes["T"]:
            raise ValueError(f"latents: expected at least one latent, got shape {z.shape}.")
        frames, state = self.decoder(z, state)
        return (jnp.clip(frames, 0, 1) * 2 - 1).astype(z.dtype), state
