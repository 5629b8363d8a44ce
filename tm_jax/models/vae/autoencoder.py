"""Small causal video autoencoder of aligned faces: what a frame changes in its picture.

A latent says how 4 frames of one 16 x 16 block differ from the reference picture: the
projection of the difference on its principal components. Nothing changes, the latent is zero,
and the frame is the picture itself, as sharp as it came. The code also covers the frame before
its block; where the block before showed that frame otherwise, the difference fades out over
the frames of this one. That is the decoder's only look into the past; a stream is decoded
chunk by chunk with the last frame as its state, and gives the same pixels as the whole clip.

Few components of sums draw lips over lips that they should replace. So convolutions that see
the sum and the picture clean each frame up. They are trained with noise on the latents, which
stands for the errors of the transformer.
"""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.core import shapes
from tm_jax.models.vae import blocks
from tm_jax.models.vae import config as config_lib
from tm_jax.nn import linear

_BEFORE = 0.7  # Weight of the frame before a block, in the fit.
_FADE = np.array([0.5, 0.25, 0.1], np.float32)
_CELL = 4  # Pixels per side of what convolutions see as one.
_REPLICATED = (None, None)


@flax.struct.dataclass
class DecoderState:
    """What the decoder shows and showed last.

    Attributes:
      picture: The reference picture, [B, H, W, 3].
      last: Last change before the fade, as patches [B, h, w, side * side * 3].
    """

    picture: jax.Array
    last: jax.Array


class VideoAutoencoder(nn.Module):
    """Linear code of changed pixel blocks, and its inverse, cleaned up.

    Attributes:
      config: Sizes.
      dtype: Dtype of the products.
    """

    config: config_lib.VAEConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        c = self.config

        def table(name, *shape):
            normal = nn.with_logical_partitioning(nn.initializers.normal(0.02), _REPLICATED)
            return self.param(name, normal, shape)

        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        # Rows are orthonormal under the weights of `_weights`, so one table serves both ways.
        self.components = table("components", c.latent_channels, c.block_pixels)
        self.looks = table("looks", c.appearance_channels, c.patch_pixels)
        # Set from data; a latent is handed out as projection / std.
        self.std = self.param("std", ones, (c.latent_channels,))
        self.look_mean = self.param("look_mean", zeros, (c.appearance_channels,))
        self.look_std = self.param("look_std", ones, (c.appearance_channels,))
        # How much of the difference at the border each frame keeps. The last frame keeps
        # none, so a difference never outlives its block.
        self.fade = self.param("fade", zeros, (c.frames_per_latent - 1,))
        self.refine = Refiner(c.width, c.layers, self.dtype)

    def appearance(self, picture: jax.Array) -> jax.Array:
        """Code [B, h, w, A] of a picture [B, H, W, 3] in -1..1."""
        x = blocks.patches(picture[:, None], self.config)[:, 0]
        table = self.looks * blocks.window(self.config)
        return (x @ table.T - self.look_mean) / self.look_std

    def encode(self, frames: jax.Array, picture: jax.Array) -> jax.Array:
        """Latents of a clip.

        Args:
          frames: [B, 1 + 4 T, H, W, 3] in -1..1; the first is the one before the clip.
          picture: The reference picture, [B, H, W, 3].

        Returns:
          [B, T, h, w, C].

        Raises:
          ValueError: The number of frames or the picture size does not divide.
        """
        c = self.config
        code = (self.components * _weights(c)).T
        return group(frames - picture[:, None], c) @ code / self.std

    def decode_linear(self, z: jax.Array, state: DecoderState):
        """Like `decode_chunk`, without the convolutions."""
        c = self.config
        sizes = shapes.check(z, "B T H W C", "latents", C=c.latent_channels)
        frames = c.frames_per_latent
        window = jnp.tile(blocks.window(c), 1 + frames)
        parts = (z * self.std) @ (self.components * window)
        parts = parts.reshape(*z.shape[:4], 1 + frames, c.patch_pixels)
        believed, block = parts[..., 0, :], parts[..., 1:, :]
        shown = jnp.concatenate([state.last[:, None], block[:, :-1, :, :, -1]], 1)
        fade = jnp.append(self.fade, 0.0)[:, None]
        block = block + fade * (shown - believed)[..., None, :]
        x = jnp.moveaxis(block, 4, 2)
        x = x.reshape(sizes["B"], -1, sizes["H"], sizes["W"], c.patch_pixels)
        pixels = state.picture[:, None] + blocks.join(x, c)
        return pixels, state.replace(last=parts[:, -1, ..., -1, :])

    def decode_chunk(self, z: jax.Array, state: DecoderState):
        """Next frames of a stream.

        Args:
          z: Latents [B, T, h, w, C].
          state: State of the stream; `begin` gives the first.

        Returns:
          Pixels in about -1..1, [B, 4 T, H, W, 3], and the next state.
        """
        pixels, state = self.decode_linear(z, state)
        return self.refine(pixels, state.picture), state

    def decode(self, z: jax.Array, picture: jax.Array) -> jax.Array:
        """Whole clip: latents [B, T, h, w, C] to pixels [B, 4 T, H, W, 3]."""
        return self.decode_chunk(z, begin(self.config, picture))[0]

    def __call__(self, frames: jax.Array, picture: jax.Array):
        """Reconstruction of a clip and the picture's code; touches every parameter."""
        return self.decode(self.encode(frames, picture), picture), self.appearance(picture)


class Refiner(nn.Module):
    """Convolutions at a quarter of the resolution that correct decoded frames.

    Attributes:
      width: Channels.
      layers: Pairs of convolutions.
      dtype: Dtype of the products.
    """

    width: int
    layers: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, frames, picture):
        """Maps frames [B, F, H, W, 3] and their picture [B, H, W, 3] to frames."""
        b, f = frames.shape[:2]
        conv = lambda name, zero=False, width=self.width: linear.Conv(
            width, dtype=self.dtype, zero=zero, name=name
        )
        seen = _to_cells(frames.reshape(b * f, *frames.shape[2:]))
        still = conv("picture")(_to_cells(picture))
        x = conv("in")(seen)
        x = x + jnp.repeat(still, f, 0)
        for i in range(self.layers):
            y = conv(f"first_{i}")(nn.silu(x))
            x = x + conv(f"second_{i}", zero=True)(nn.silu(y))
        x = conv("out", True, seen.shape[-1])(nn.silu(x))
        return frames + _from_cells(x.astype(jnp.float32)).reshape(frames.shape)


def begin(config: config_lib.VAEConfig, picture: jax.Array) -> DecoderState:
    """Decoder state before the first latent of streams with pictures [B, H, W, 3]."""
    batch, height, width, _ = picture.shape
    stride = config.spatial_stride
    last = jnp.zeros((batch, height // stride, width // stride, config.patch_pixels))
    return DecoderState(picture=picture, last=last)


def group(frames: jax.Array, config: config_lib.VAEConfig) -> jax.Array:
    """Clip [B, 1 + 4 T, H, W, 3] to blocks with the frame before, [B, T, h, w, 5 patches].

    Raises:
      ValueError: The number of frames or the picture size does not divide.
    """
    sizes = shapes.check(frames, "B F H W C", "frames", C=3)
    length = config.frames_per_latent
    if (sizes["F"] - 1) % length or sizes["F"] == 1:
        raise ValueError(f"frames: expected 1 + {length} k frames, got {sizes['F']}.")
    x = blocks.patches(frames, config)
    at = np.arange((sizes["F"] - 1) // length)[:, None] * length + np.arange(1 + length)
    x = jnp.moveaxis(x[:, at], 2, 4)  # [B, T, h, w, 5, patch]
    return x.reshape(*x.shape[:4], config.block_pixels)


def principal_components(
    frames: np.ndarray, weights: np.ndarray, config: config_lib.VAEConfig, looks: float = 0.05
) -> dict:
    """Fits the linear code to real clips.

    Args:
      frames: Clips [B, 1 + 4 T, H, W, 3] in -1..1; the first frame is the picture.
      weights: How much each pixel matters, [B, 1 + 4 T, H, W]; a block counts with the mean
        over its last frame.
      config: Sizes.
      looks: Energy of whole pictures beside that of changes, in the fit of the changes: so
        changes of faces unlike these find components too.

    Returns:
      Parameters of `VideoAutoencoder` without the convolutions. `std` takes the square root
      of each component's spread, half way to whitening, and is scaled so that latents are 1
      in the mean square over blocks, by weight.
    """
    frames = jnp.asarray(frames)
    scale = np.sqrt(_weights(config))
    change = np.asarray(group(frames - frames[:, :1], config)).reshape(-1, config.block_pixels)
    still = jnp.repeat(frames[:, :1], 1 + config.frames_per_latent, 1)
    still = np.asarray(group(still, config)).reshape(-1, config.block_pixels)
    w = blocks.patches(jnp.repeat(jnp.asarray(weights)[..., None], 3, -1), config).mean(-1)
    w = np.asarray(w[:, config.frames_per_latent :: config.frames_per_latent]).reshape(-1, 1)
    w = w / w.mean()
    rows = change * (scale * np.sqrt(w))
    plain = (still - still.mean(0)) * scale
    plain *= np.sqrt(looks * np.square(rows).sum() / max(np.square(plain).sum(), 1e-9))
    vectors = _right_singular(np.concatenate([rows, plain]), config.latent_channels)
    raw = change @ (scale[:, None] * vectors.T)
    power = (np.square(raw) * w).mean(0)

    window = blocks.window(config)
    pictures = np.asarray(blocks.patches(frames[:, :1], config)).reshape(-1, len(window))
    middle = (pictures - pictures.mean(0)) * np.sqrt(window)
    views = _right_singular(middle, config.appearance_channels) / np.sqrt(window)
    looked = pictures @ (views * window).T
    return {
        "components": vectors / scale, "std": _half_whiten(power),
        "looks": views, "look_mean": looked.mean(0), "look_std": _half_whiten(looked.var(0)),
        "fade": _FADE[len(_FADE) + 1 - config.frames_per_latent :],
    }


def _half_whiten(power):
    """Divisors of channels of this power: as its fourth root, for a mean square of 1."""
    spread = (power + 1e-9) ** 0.25
    return (spread * np.sqrt(np.mean(power / spread**2) + 1e-12)).astype(np.float32)


def _right_singular(rows, count):
    """The first right singular vectors of a matrix [n, d], [count, d]."""
    from sklearn.utils import extmath

    return extmath.randomized_svd(rows, count, n_iter=6, random_state=0)[2].astype(np.float32)


def _weights(config) -> np.ndarray:
    """How much each number of a block counts: less in stripes that a neighbour shares."""
    frames = np.ones(1 + config.frames_per_latent, np.float32)
    frames[0] = _BEFORE**2  # The block before shows it.
    return (frames[:, None] * blocks.window(config)).reshape(-1)


def _to_cells(x):
    b, h, w, c = x.shape
    x = x.reshape(b, h // _CELL, _CELL, w // _CELL, _CELL, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // _CELL, w // _CELL, -1)


def _from_cells(x):
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, _CELL, _CELL, c // _CELL**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h * _CELL, w * _CELL, -1)
