"""The Wan2.1 autoencoder: whole clips and streams, with normalised latents.

Frame 0 alone makes latent 0; frames 4k-3 ... 4k make latent k. A stream therefore has two
functions in each direction: `decode_first` (one latent to one frame) begins it, `decode_chunk`
(any number of latents to four times as many frames) carries it on; likewise `encode_first`
and `encode_chunk`. All four give the same numbers as the whole clip at once.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tm_jax.core import shapes
from tm_jax.models.vae.wan import coders
from tm_jax.models.vae.wan import config as config_lib
from tm_jax.nn import linear


class WanVAE(nn.Module):
    """Wan2.1's video autoencoder.

    Pixels are in -1..1. Latents are `(raw - mean) / std` with the mean of the posterior as
    raw latent: nothing is sampled.

    Attributes:
      config: Sizes and statistics of latents.
      dtype: Dtype of the products; norms, softmax and latent statistics stay in float32.
    """

    config: config_lib.WanVAEConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        channels = self.config.latent_channels
        self.encoder = coders.Encoder(self.config, self.dtype)
        self.decoder = coders.Decoder(self.config, self.dtype)
        self.quant = linear.Dense(2 * channels, (None, None), self.dtype)
        self.post_quant = linear.Dense(channels, (None, None), self.dtype)

    def _moments(self, frames, state):
        moments, state = self.encoder(frames, state)
        return self.quant(moments), state

    def moments_first(self, frames: jax.Array) -> tuple[jax.Array, Any]:
        """Mean and log variance of the raw first latent, [B, 1, h, w, 2 C], and the state."""
        check_frames(frames, self.config, first=True)
        return self._moments(frames, None)

    def moments_chunk(self, frames: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        """Mean and log variance of the next raw latents, [B, T, h, w, 2 C], and the state."""
        check_frames(frames, self.config, first=False)
        return self._moments(frames, state)

    def moments(self, frames: jax.Array) -> jax.Array:
        """Mean and log variance of all raw latents of a clip, [B, T, h, w, 2 C].

        Args:
          frames: Clip [B, 1 + 4 (T - 1), H, W, 3] in -1..1.
        """
        first, state = self.moments_first(frames[:, :1])
        if frames.shape[1] == 1:
            return first
        rest, _ = self.moments_chunk(frames[:, 1:], state)
        return jnp.concatenate([first, rest], 1)

    def encode_first(self, frames: jax.Array) -> tuple[jax.Array, Any]:
        """Begins a stream of frames.

        Args:
          frames: The first frame, [B, 1, H, W, 3] in -1..1; H and W are multiples of 8.

        Returns:
          Its latent [B, 1, h, w, C] and the state for `encode_chunk`.
        """
        moments, state = self.moments_first(frames)
        return self._normalise(moments, frames.dtype), state

    def encode_chunk(self, frames: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        """Carries a stream of frames on.

        Args:
          frames: The next frames, [B, 4 T, H, W, 3].
          state: What the last call returned.

        Returns:
          Latents [B, T, h, w, C] and the next state, of the same shapes as before.
        """
        moments, state = self.moments_chunk(frames, state)
        return self._normalise(moments, frames.dtype), state

    def encode(self, frames: jax.Array) -> jax.Array:
        """Latents [B, T, h, w, C] of a clip [B, 1 + 4 (T - 1), H, W, 3] in -1..1."""
        return self._normalise(self.moments(frames), frames.dtype)

    def decode_first(self, z: jax.Array) -> tuple[jax.Array, Any]:
        """Begins a stream of latents.

        Args:
          z: The first latent, [B, 1, h, w, C].

        Returns:
          Its frame [B, 1, H, W, 3] in -1..1 and the state for `decode_chunk`.
        """
        check_latents(z, self.config, first=True)
        return self._decode(z, None)

    def decode_chunk(self, z: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        """Carries a stream of latents on.

        Args:
          z: The next latents, [B, T, h, w, C].
          state: What the last call returned.

        Returns:
          Frames [B, 4 T, H, W, 3] in -1..1 and the next state, of the same shapes as before.
        """
        check_latents(z, self.config, first=False)
        return self._decode(z, state)

    def decode(self, z: jax.Array) -> jax.Array:
        """Frames [B, 1 + 4 (T - 1), H, W, 3] in -1..1 of latents [B, T, h, w, C]."""
        first, state = self.decode_first(z[:, :1])
        if z.shape[1] == 1:
            return first
        rest, _ = self.decode_chunk(z[:, 1:], state)
        return jnp.concatenate([first, rest], 1)

    def __call__(self, frames: jax.Array) -> jax.Array:
        """Reconstruction of a clip; touches every parameter."""
        return self.decode(self.encode(frames))

    def _normalise(self, moments, dtype):
        mean, std = (jnp.asarray(x, jnp.float32) for x in
                     (self.config.latent_mean, self.config.latent_std))
        raw = moments[..., : self.config.latent_channels].astype(jnp.float32)
        return ((raw - mean) / std).astype(dtype)

    def _decode(self, z, state):
        mean, std = (jnp.asarray(x, jnp.float32) for x in
                     (self.config.latent_mean, self.config.latent_std))
        raw = z.astype(jnp.float32) * std + mean
        frames, state = self.decoder(self.post_quant(raw), state)
        return jnp.clip(frames, -1, 1).astype(z.dtype), state


def check_frames(frames: jax.Array, config: config_lib.WanVAEConfig, first: bool) -> dict:
    """Sizes of the next frames [B, F, H, W, 3] of a stream.

    Raises:
      ValueError: The number of frames or the size of the picture does not divide.
    """
    sizes = shapes.check(frames, "B F H W C", "frames", C=3)
    group, stride = config.frames_per_latent, config.spatial_stride
    if first and sizes["F"] != 1:
        raise ValueError(f"frames: a stream begins with 1 frame alone, got {sizes['F']}.")
    if not first and (sizes["F"] % group or not sizes["F"]):
        raise ValueError(
            f"frames: expected a multiple of {group} frames after the first, got "
            f"{sizes['F']}; a clip has 1 + {group} k frames."
        )
    if sizes["H"] % stride or sizes["W"] % stride:
        raise ValueError(
            f"frames: height and width must be multiples of {stride}, "
            f"got {sizes['H']}x{sizes['W']}."
        )
    return sizes


def check_latents(z: jax.Array, config: config_lib.WanVAEConfig, first: bool) -> dict:
    """Sizes of the next latents [B, T, h, w, C] of a stream.

    Raises:
      ValueError: Another number of channels, or no latent, or more than one at the start.
    """
    sizes = shapes.check(z, "B T H W C", "latents", C=config.latent_channels)
    if first and sizes["T"] != 1:
        raise ValueError(f"latents: a stream begins with 1 latent alone, got {sizes['T']}.")
    if not sizes["T"]:
        raise ValueError(f"latents: expected at least one latent, got shape {z.shape}.")
    return sizes
