"""Small causal video autoencoder: a linear code of pixel blocks, joined without seams in time.

A latent is a linear code of one 4 x 16 x 16 pixel block: its principal components, which
follow a mouth that opens inside a block better than convolutions of this cost do after hours
of training. The first frame alone makes the first latent: it stands for a block of four equal
frames.

A code of blocks alone shows where one block ends, because each errs in its own way. So blocks
overlap: the code also covers the frame before its block. Where the block before showed that
frame otherwise, the difference fades out over the frames of this one. That is the decoder's
only look into the past; a stream is decoded chunk by chunk with the last frame as its state,
and gives the same pixels as the whole clip.
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

_BEFORE = 0.7  # Weight of the frame before a block, in the fit.
_FADE = np.array([0.5, 0.25, 0.1], np.float32)


@flax.struct.dataclass
class DecoderState:
    """What the decoder showed last.

    Attributes:
      last: Last frame before the fade, as patches [B, h, w, 16 * 16 * 3].
      started: [B] 1 after the first latent, 0 before it.
    """

    last: jax.Array
    started: jax.Array


class VideoAutoencoder(nn.Module):
    """Linear code of pixel blocks, and its inverse with borders faded in time.

    Attributes:
      config: Sizes.
      dtype: Dtype of the products.
    """

    config: config_lib.VAEConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        c = self.config
        self.code = linear.Dense(c.latent_channels, (None, None), self.dtype)
        self.uncode = linear.Dense(c.block_pixels, (None, None), self.dtype)
        # How much of the difference at the border each frame keeps. The last frame keeps
        # none, so a difference never outlives its block.
        self.fade = self.param("fade", nn.initializers.zeros, (c.frames_per_latent - 1,))
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
        sizes = shapes.check(z, "B T H W C", "latents", C=c.latent_channels)
        group = c.frames_per_latent
        parts = self.uncode(z).reshape(*z.shape[:4], 1 + group, c.patch_pixels)
        believed, block = parts[..., 0, :], parts[..., 1:, :]
        shown = jnp.concatenate([state.last[:, None], block[:, :-1, :, :, -1]], 1)
        difference = shown - believed  # [B, T, h, w, patch]
        first = jnp.concatenate(
            [state.started[:, None], jnp.ones((sizes["B"], sizes["T"] - 1))], 1
        )
        fade = jnp.append(self.fade, 0.0)[:, None] * first[:, :, None, None, None, None]
        patches = block + fade * difference[..., None, :]
        patches = patches.reshape(*z.shape[:4], group * c.patch_pixels)
        pixels = from_patches(patches, group, c.spatial_stride)
        pixels = pixels.reshape(sizes["B"], -1, *pixels.shape[3:])
        last = block[:, -1, :, :, -1]
        return pixels, DecoderState(last=last, started=jnp.ones_like(state.started))

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
    return DecoderState(
        last=jnp.zeros((batch, height, width, config.patch_pixels)),
        started=jnp.zeros((batch,)),
    )


def group_frames(frames: jax.Array, config: config_lib.VAEConfig) -> jax.Array:
    """Clip [B, 1 + 4 (T - 1), H, W, 3] to blocks with the frame before, [B, T, 5, H, W, 3].

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
    blocks = jnp.concatenate([first, frames], 1)
    blocks = blocks.reshape(sizes["B"], -1, group, *frames.shape[2:])
    before = jnp.concatenate([frames[:, :1], frames[:, : -group or None : group]], 1)
    before = before[:, : blocks.shape[1]]
    return jnp.concatenate([before[:, :, None], blocks], 2)


def to_patches(blocks: jax.Array, stride: int) -> jax.Array:
    """Blocks [B, T, n, H, W, 3] to [B, T, h, w, n * stride * stride * 3]."""
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
      Parameters of `VideoAutoencoder`. Raw latents are projections on orthonormal components.
      `std` takes the square root of each component's spread, half way to whitening, and is
      scaled so that latents differ from those of their clip's first frame by 1 in the mean
      square, over blocks that weigh more than the least. That difference is then nearly as large in all channels: strong components
      change little in a clip, weak ones change altogether.
    """
    x = _blocks(frames, config)
    w = _blocks(np.repeat(weights[..., None], 3, -1), config).mean(-1, keepdims=True)
    w = w / w.mean()
    # The frame before counts less: the block before shows it.
    scale = np.ones(x.shape[1], np.float32)
    scale[: config.patch_pixels] = _BEFORE
    mean = (x * w).mean(0)
    weighted = (x - mean) * (scale * np.sqrt(w))
    vectors = np.linalg.eigh(weighted.T @ weighted / len(x))[1][:, ::-1]
    vectors = vectors[:, : config.latent_channels]
    code, uncode = scale[:, None] * vectors, vectors.T / scale
    blocks_per_frame = math.prod(frames.shape[2:4]) // config.spatial_stride**2
    raw = ((x - mean) @ code).reshape(len(frames), -1, blocks_per_frame, code.shape[1])
    # How far latents go from those of the first frame, where the weights look.
    extra = (w - w.min()).reshape(*raw.shape[:3], 1)
    extra = extra[:, 1:] + (1.0 if extra.max() == 0 else 0.0)
    change = np.square(raw[:, 1:] - raw[:, :1]) * extra
    change = change.sum((0, 1, 2)) / extra.sum()
    spread = np.sqrt(raw.std((0, 1, 2)) + 1e-6)
    return {
        "code": {"kernel": code, "bias": -(mean @ code)},
        "uncode": {"kernel": uncode, "bias": mean},
        "fade": _FADE[-(config.frames_per_latent - 1) :] if config.frames_per_latent > 1 else _FADE[:0],
        "mean": raw.mean((0, 1, 2)),
        "std": spread * np.sqrt(np.mean(change / spread**2) + 1e-12),
    }


def _blocks(frames, config) -> np.ndarray:
    """Clips [B, F, H, W, 3] to a matrix of blocks, one a row."""
    patches = to_patches(group_frames(jnp.asarray(frames), config), config.spatial_stride)
    return np.asarray(patches, np.float32).reshape(-1, patches.shape[-1])
