"""Small causal video autoencoder with a linear patch code as its backbone.

A latent is a linear code of one 4 x 16 x 16 pixel block: its principal components, which
follow a mouth that opens inside a block better than convolutions of this size do after hours
of training. The decoder adds to the inverse of that code what convolutions see around it.
The first frame alone makes the first latent: it stands for
a block of four equal frames. Only the decoder looks back in time, by two causal convolutions
over latents, so a stream is decoded chunk by chunk with two small states and gives the same
pixels as the whole clip.
"""

import math

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.core import shapes
from tm_jax.models.vae import config as config_lib
from tm_jax.nn import linear

_TAPS = 3  # of a temporal convolution


def depth_to_space(x: jax.Array, block: int) -> jax.Array:
    """[B, H, W, block * block * C] -> [B, H * block, W * block, C]."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, block, block, c // block**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h * block, w * block, c // block**2)


def _normalise(x):
    """Root-mean-square over channels; keeps frames independent of one another."""
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-6)


class ResBlock(nn.Module):
    """Two 3x3 convolutions inside one frame; starts as the identity.

    Attributes:
      width: Channels.
      dtype: Dtype of the products.
    """

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        """Maps [B, H, W, width] to the same shape."""
        y = linear.Conv(self.width, dtype=self.dtype, name="first")(nn.silu(_normalise(x)))
        y = linear.Conv(self.width, dtype=self.dtype, zero=True, name="second")(nn.silu(y))
        return x + y


class TemporalConv(nn.Module):
    """Causal residual convolution over latent frames, with the past as state.

    Attributes:
      width: Channels.
      dtype: Dtype of the products.
    """

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, past):
        """Maps x [B, T, H, W, width] and past [B, 2, H, W, width] to (y, next past)."""
        y = jnp.concatenate([past.astype(x.dtype), x], 1)
        frames = x.shape[1]
        stacked = jnp.concatenate([y[:, i : i + frames] for i in range(_TAPS)], -1)
        dense = linear.Dense(self.width, (None, None), self.dtype, zero=True, name="mix")
        return x + dense(nn.silu(_normalise(stacked))), y[:, frames:]


@flax.struct.dataclass
class DecoderState:
    """Past inputs of the decoder's temporal convolutions.

    Attributes:
      first: [B, 2, H, W, latent_width].
      second: The same for the second convolution.
    """

    first: jax.Array
    second: jax.Array


class Decoder(nn.Module):
    """Raw latents to pixels, with the state of a stream.

    Attributes:
      config: Sizes.
      dtype: Dtype of the products.
    """

    config: config_lib.VAEConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, z, state: DecoderState):
        """Maps z [B, T, h, w, C] to (pixels [B, T, 4, H, W, 3], next state)."""
        c = self.config
        batch, latents, h, w, _ = z.shape

        def frames(x):
            return x.reshape(-1, *x.shape[2:])

        x = linear.Conv(c.latent_width, dtype=self.dtype, name="in")(frames(z))
        x = x.reshape(batch, latents, h, w, -1)
        x, first = TemporalConv(c.latent_width, self.dtype, name="time_0")(x, state.first)
        x = ResBlock(c.latent_width, self.dtype, name="coarse_0")(frames(x))
        x = x.reshape(batch, latents, h, w, -1)
        x, second = TemporalConv(c.latent_width, self.dtype, name="time_1")(x, state.second)
        x = ResBlock(c.latent_width, self.dtype, name="coarse_1")(frames(x))

        group = c.frames_per_latent
        width = 4 * c.middle_width
        x = linear.Dense(group * width, (None, None), self.dtype, name="to_frames")(
            nn.silu(_normalise(x))
        )
        x = x.reshape(-1, h, w, group, width).transpose(0, 3, 1, 2, 4)
        x = depth_to_space(x.reshape(-1, h, w, width), 2)
        x = ResBlock(c.middle_width, self.dtype, name="middle")(x)
        x = linear.Dense(4 * c.fine_width, (None, None), self.dtype, name="to_fine")(x)
        x = ResBlock(c.fine_width, self.dtype, name="fine")(depth_to_space(x, 2))
        x = linear.Conv(48, dtype=self.dtype, zero=True, name="out")(nn.silu(_normalise(x)))
        x = depth_to_space(x, 4)
        pixels = x.reshape(batch, latents, group, *x.shape[1:])
        return pixels, DecoderState(first=first, second=second)


class VideoAutoencoder(nn.Module):
    """Linear code of pixel blocks, and a decoder that refines its inverse.

    Attributes:
      config: Sizes.
      dtype: Dtype of the products.
    """

    config: config_lib.VAEConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        c = self.config
        self.decoder = Decoder(c, self.dtype)
        pixels = c.frames_per_latent * c.spatial_stride**2 * 3
        self.code = linear.Dense(c.latent_channels, (None, None), self.dtype)
        self.uncode = linear.Dense(pixels, (None, None), self.dtype)
        # Set from data after training; a latent is handed out as (raw - mean) / std.
        self.mean = self.param("mean", nn.initializers.zeros, (c.latent_channels,))
        self.std = self.param("std", nn.initializers.ones, (c.latent_channels,))

    def raw(self, frames: jax.Array) -> jax.Array:
        """Raw latents [B, T, h, w, C] of a clip [B, 1 + 4 (T - 1), H, W, 3] in -1..1."""
        c = self.config
        blocks = group_frames(frames, c)
        return self.code(to_patches(blocks, c.spatial_stride))

    def encode(self, frames: jax.Array) -> jax.Array:
        """Normalised latents of a clip; see `raw`."""
        std = jax.lax.stop_gradient(self.std)
        return (self.raw(frames) - jax.lax.stop_gradient(self.mean)) / std

    def decode_raw(self, z: jax.Array, state: DecoderState):
        """Pixels [B, 4 T, H, W, 3] of raw latents [B, T, h, w, C], and the next state."""
        c = self.config
        shapes.check(z, "B T H W C", "latents", C=c.latent_channels)
        # Convolutions read normalised latents, whose channels are of one size.
        normal = (z - jax.lax.stop_gradient(self.mean)) / jax.lax.stop_gradient(self.std)
        pixels, state = self.decoder(normal, state)
        blocks = from_patches(self.uncode(z), c.frames_per_latent, c.spatial_stride)
        pixels = pixels + blocks  # [B, T, 4, H, W, 3]
        return pixels.reshape(pixels.shape[0], -1, *pixels.shape[3:]), state

    def decode_chunk(self, z: jax.Array, state: DecoderState):
        """Next frames of a stream.

        Args:
          z: Normalised latents [B, T, h, w, C].
          state: State of the stream; `initial_state` before the first latent.

        Returns:
          Pixels in about -1..1, [B, 4 T, H, W, 3] (of the very first latent only the last
          of its four frames belongs to the clip), and the next state.
        """
        shapes.check(z, "B T H W C", "latents", C=self.config.latent_channels)
        raw = z * jax.lax.stop_gradient(self.std) + jax.lax.stop_gradient(self.mean)
        return self.decode_raw(raw, state)

    def decode(self, z: jax.Array) -> jax.Array:
        """Whole clip: latents [B, T, h, w, C] to pixels [B, 1 + 4 (T - 1), H, W, 3]."""
        pixels, _ = self.decode_chunk(z, initial_state(self.config, z.shape))
        return pixels[:, self.config.frames_per_latent - 1 :]

    def __call__(self, frames: jax.Array) -> jax.Array:
        """Reconstruction of a clip; touches every parameter."""
        return self.decode(self.encode(frames))


def initial_state(config: config_lib.VAEConfig, latent_shape) -> DecoderState:
    """Decoder state before the first latent of a stream with latents [B, T, h, w, C]."""
    batch, _, height, width, _ = latent_shape
    shape = (batch, _TAPS - 1, height, width, config.latent_width)
    return DecoderState(first=jnp.zeros(shape), second=jnp.zeros(shape))  # may be donated


def group_frames(frames: jax.Array, config: config_lib.VAEConfig) -> jax.Array:
    """Clip [B, 1 + 4 (T - 1), H, W, 3] to blocks [B, T, 4, H, W, 3].

    Raises:
      ValueError: The number of frames or the picture size does not divide.
    """
    sizes = shapes.check(frames, "B F H W C", "frames", C=3)
    group, stride = config.frames_per_latent, config.spatial_stride
    if (sizes["F"] - 1) % group:
        raise ValueError(f"frames: expected 1 + {group} k frames, got {sizes['F']}.")
    if sizes["H"] % stride or sizes["W"] % stride:
        raise ValueError(
            f"frames: height and width must be multiples of {stride}, "
            f"got {sizes['H']}x{sizes['W']}."
        )
    first = jnp.repeat(frames[:, :1], group - 1, 1)
    frames = jnp.concatenate([first, frames], 1)
    return frames.reshape(sizes["B"], -1, group, *frames.shape[2:])


def to_patches(blocks: jax.Array, stride: int) -> jax.Array:
    """Blocks [B, T, 4, H, W, 3] to [B, T, h, w, 4 * stride * stride * 3]."""
    b, t, g, height, width, c = blocks.shape
    h, w = height // stride, width // stride
    x = blocks.reshape(b, t, g, h, stride, w, stride, c)
    return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, t, h, w, -1)


def from_patches(patches: jax.Array, group: int, stride: int) -> jax.Array:
    """Inverse of `to_patches`."""
    b, t, h, w, _ = patches.shape
    x = patches.reshape(b, t, h, w, group, stride, stride, 3)
    return x.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, t, group, h * stride, w * stride, 3)


def principal_components(frames: np.ndarray, weights: np.ndarray, config) -> dict:
    """Fits the linear code to real frames.

    Args:
      frames: Clips [B, F, H, W, 3] in -1..1.
      weights: How much each pixel matters, [B, F, H, W]; a block counts with their mean.
      config: Sizes.

    Returns:
      Parameters `code`, `uncode`, `mean` and `std` of `VideoAutoencoder`. Raw latents are
      projections on orthonormal components. `std` takes the square root of each component's
      spread, half way to whitening, and is scaled so that latents differ from those of their
      clip's first frame by 1 in the mean square. That difference is then nearly as large in
      all channels: strong components change little in a clip, weak ones change altogether.
    """
    x = _blocks(frames, config)
    w = _blocks(np.repeat(weights[..., None], 3, -1), config).mean(-1, keepdims=True)
    w = w / w.mean()
    blocks_per_frame = math.prod(frames.shape[2:4]) // config.spatial_stride**2
    mean = (x * w).mean(0)
    covariance = (x - mean).T @ ((x - mean) * w) / len(x)
    vectors = np.linalg.eigh(covariance)[1][:, ::-1][:, : config.latent_channels]
    raw = ((x - mean) @ vectors).reshape(len(frames), -1, blocks_per_frame, vectors.shape[1])
    change = np.square(raw[:, 1:] - raw[:, :1]).mean((0, 1, 2))
    root = np.sqrt(raw.std((0, 1, 2)) + 1e-6)
    return {
        "code": {"kernel": vectors, "bias": -(mean @ vectors)},
        "uncode": {"kernel": vectors.T, "bias": mean},
        "mean": raw.mean((0, 1, 2)), "std": root * np.sqrt(np.mean(change / root**2) + 1e-12),
    }


def _blocks(frames, config) -> np.ndarray:
    """Clips [B, F, H, W, 3] to a matrix of blocks, one a row."""
    patches = to_patches(group_frames(jnp.asarray(frames), config), config.spatial_stride)
    return np.asarray(patches, np.float32).reshape(-1, patches.shape[-1])
