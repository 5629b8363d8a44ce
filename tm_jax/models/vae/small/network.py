"""Video autoencoder with a reference picture: a latent encodes how 4 frames differ from it.

The decoder warps the reference picture by a flow that it predicts, fades it where something else
is seen, such as a lid over an eye, and adds a residual. Identity, background and clothes come from
the picture and need no latents. Every latent is encoded from its own four frames and decoded with
the one before it as context, so a stream of any chunks gives the same as the whole clip. Everything
is learned from pixels.
"""

import dataclasses

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from tm_jax.core import shapes
from tm_jax.models.vae.small import config as config_lib
from tm_jax.models.vae.small import layers
from tm_jax.models.vae.small import motion
from tm_jax.nn import parameters
from tm_jax.nn import storage

PARTS = ("reference_encoder", "encoder", "decoder")
STATISTICS = ("latent_mean", "latent_std", "condition_mean", "condition_std")


@flax.struct.dataclass
class Reference:
    """What a transformer is given of a reference picture.

    Attributes:
      latent: Latent of the still picture, [B, h, w, C].
      condition: Features at the latents' resolution, [B, h, w, R].
    """

    latent: jax.Array
    condition: jax.Array


@flax.struct.dataclass
class State:
    """State of streams, for the encoder and the decoder; only `previous` changes.

    Attributes:
      picture: The reference picture, [B, H, W, 3].
      fine: Its features on the 8-pixel grid, [B, 4h, 4w, .].
      middle: Its features on the 16-pixel grid, [B, 2h, 2w, .].
      coarse: Its features on the latents' grid, not normalised, [B, h, w, R].
      previous: The latent decoded last, not normalised, [B, 1, h, w, C]; zeros at the start.
    """

    picture: jax.Array
    fine: jax.Array
    middle: jax.Array
    coarse: jax.Array
    previous: jax.Array


class ReferenceEncoder(nn.Module):
    """Features of a picture on three grids.

    Attributes:
      config: Sizes.
      dtype: Dtype of the products.
    """

    config: config_lib.SmallVAEConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, picture: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Maps [B, H, W, 3] to [B, 4h, 4w, .], [B, 2h, 2w, .] and [B, h, w, R]."""
        c = self.config
        fine, middle, coarse = c.reference_widths
        blocks = lambda name: layers.Blocks(1, c.expansion, self.dtype, name=name)
        x = layers.to_cells(picture, c.cell).astype(self.dtype)
        x = blocks("fine")(layers.dense(fine, "cells", self.dtype)(x))
        y = layers.dense(middle, "down_16", self.dtype)(layers.to_cells(x, 2))
        y = blocks("middle")(y)
        z = layers.dense(coarse, "down_32", self.dtype)(layers.to_cells(y, 2))
        z = blocks("coarse")(z)
        return x, y, layers.dense(c.condition_channels, "condition", self.dtype)(z)


class Encoder(nn.Module):
    """Four frames to one latent: how the reference picture moves, and what that does not explain.

    Attributes:
      config: Sizes.
      dtype: Dtype of the products.
    """

    config: config_lib.SmallVAEConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, change: jax.Array, flow: jax.Array, fine: jax.Array) -> jax.Array:
        """Latents before normalisation.

        Args:
          change: Frames minus the reference picture as `flow` moves it, [N, 4, H, W, 3].
          flow: Measured motion in pixels, [N, 4, H/4, W/4, 2]; see `motion.estimate`.
          fine: Features of the reference picture, [N, 4h, 4w, .].

        Returns:
          [N, h, w, C].
        """
        c = self.config
        blocks = lambda i: layers.Blocks(
            c.encoder_depths[i], c.expansion, self.dtype, name=f"blocks_{c.cell * 2**i}"
        )
        width = c.encoder_widths[0]
        x = layers.dense(width, "cells", self.dtype)(abreast(change.astype(self.dtype), c.cell))
        flow = (flow / c.cell).astype(self.dtype)
        x = x + layers.dense(width, "motion", self.dtype)(
            abreast(flow, c.cell // motion.PLACE)
        )
        x = blocks(0)(x + layers.dense(width, "fine", self.dtype)(fine))
        for i in (1, 2):
            x = layers.to_cells(x, 2)
            x = layers.dense(c.encoder_widths[i], f"down_{c.cell * 2**i}", self.dtype)(x)
            x = blocks(i)(x)
        return layers.dense(c.latent_channels, "latent", self.dtype)(x)


def abreast(x: jax.Array, side: int) -> jax.Array:
    """Cells of frames [N, 4, H, W, C], four frames in one place: [N, H / side, W / side, .]."""
    x = jnp.moveaxis(layers.to_cells(x, side), 1, 3)
    return x.reshape(*x.shape[:3], -1)


class Decoder(nn.Module):
    """One latent, given the one before and the reference picture, to four frames.

    Attributes:
      config: Sizes.
      dtype: Dtype of the products.
    """

    config: config_lib.SmallVAEConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, z: jax.Array, previous: jax.Array, state: State):
        """Frames in parts; they are `warped + residual`.

        Args:
          z: Latents of B streams, before normalisation, [B, T, h, w, C].
          previous: The latent before each, [B, T, h, w, C].
          state: State of the streams; `previous` in it is not read.

        Returns:
          The reference picture as the flow moves it, [B, 4 T, H, W, 3]; the residual, the same
          shape; the flow in pixels, on places of 4 pixels, [B, 4 T, H/4, W/4, 2].
        """
        c, dtype = self.config, self.dtype
        b, t, length = z.shape[0], z.shape[1], c.frames_per_latent
        fine, middle, coarse = c.decoder_widths
        blocks = lambda i: layers.Blocks(
            c.decoder_depths[i], c.expansion, dtype, name=f"blocks_{c.cell * 2**i}"
        )

        def still(x, features, name):
            """Adds the reference's features, one for all latents of a stream."""
            y = layers.dense(x.shape[-1], name, dtype)(features)
            y = y[:, None] + x.reshape(b, t, *x.shape[1:])
            return y.reshape(x.shape)

        x = jnp.concatenate([z, previous], -1).reshape(b * t, *z.shape[2:4], -1)
        x = layers.dense(coarse, "latent", dtype)(x)
        x = blocks(2)(still(x, state.coarse, "still_32"))
        x = layers.from_cells(layers.dense(4 * middle, "up_16", dtype)(x), 2)
        x = blocks(1)(still(x, state.middle, "still_16"))
        x = layers.from_cells(layers.dense(4 * fine, "up_8", dtype)(x), 2)
        x = blocks(0)(still(x, state.fine, "still_8"))
        flow = layers.dense(length * 2 * 4, "flow", dtype, zero=True)(x)
        flow = self._flow(flow, b, t)
        warped = layers.warp(state.picture, layers.resize(flow, motion.PLACE))
        # The residual is made where the moved picture is seen, twice: what covers and uncovers
        # on the 8-pixel grid, its lines on a finer one. [B T, 4h, 4w, .]
        moved = warped.reshape(b * t, length, *warped.shape[2:])
        y = layers.dense(c.paint_width, "seen", dtype)(abreast(moved, c.cell).astype(dtype))
        y = y + layers.dense(c.paint_width, "moved", dtype)(x)
        y = layers.Blocks(c.paint_depth, c.expansion, dtype, name="paint")(y)
        residual = self._pixels(y, "residual", c.cell)
        painted = storage.once(moved + residual)
        seen = abreast(painted, c.cell // 2).astype(dtype)
        y = layers.dense(4 * c.refine_width, "up_4", dtype)(y)
        y = layers.from_cells(y, 2) + layers.dense(c.refine_width, "painted", dtype)(seen)
        y = layers.Blocks(c.refine_depth, c.expansion, dtype, name="refine")(y)
        # To take lines away by adding to them, features would have to carry every pixel.
        fade = jnp.tanh(self._pixels(y, "fade", c.cell // 2, 1))
        residual = residual - fade * painted
        residual = residual + self._pixels(y, "refined", c.cell // 2)
        return warped, residual.reshape(warped.shape), flow

    def _pixels(self, x, name, side, channels=3):
        """Features [N, H / side, W / side, .] to four pictures, float32 [N, 4, H, W, channels]."""
        length = self.config.frames_per_latent
        x = layers.dense(length * channels * side**2, name, self.dtype, zero=True)(x)
        x = jnp.moveaxis(x.reshape(*x.shape[:3], length, -1), 3, 1)
        return layers.from_cells(x, side).astype(jnp.float32)

    def _flow(self, flow, b, t):
        """[B T, 4h, 4w, 4 * 2 * 2 * 2] to displacements, [B, 4 T, H/4, W/4, 2]."""
        c = self.config
        *_, h, w, _ = flow.shape
        flow = flow.astype(jnp.float32).reshape(b * t, h, w, c.frames_per_latent, -1)
        flow = layers.from_cells(jnp.moveaxis(flow, 3, 1), 2)
        flow = c.flow_limit * jnp.tanh(c.cell * flow / c.flow_limit)
        return flow.reshape(b, t * c.frames_per_latent, *flow.shape[2:])


class SmallVAE(nn.Module):
    """Encodes and decodes video beside a reference picture.

    Attributes:
      config: Sizes.
      dtype: Dtype of the products.
    """

    config: config_lib.SmallVAEConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        c, dtype = self.config, self.dtype
        self.reference_encoder = ReferenceEncoder(c, dtype)
        self.encoder = Encoder(c, dtype)
        self.decoder = Decoder(c, dtype)
        # Set after training; not trained.
        zeros = parameters.named(nn.initializers.zeros, (None,))
        ones = parameters.named(nn.initializers.ones, (None,))
        self.latent_mean = self.param("latent_mean", zeros, (c.latent_channels,))
        self.latent_std = self.param("latent_std", ones, (c.latent_channels,))
        self.condition_mean = self.param("condition_mean", zeros, (c.condition_channels,))
        self.condition_std = self.param("condition_std", ones, (c.condition_channels,))

    def __call__(self, clip: jax.Array) -> jax.Array:
        """Reconstruction of a clip [B, 1 + 4k, H, W, 3], its first frame as it is."""
        _, state = self.begin(clip[:, 0])
        latents, _ = self.encode_chunk(clip[:, 1:], state)
        frames, _ = self.decode_chunk(latents, state)
        return jnp.concatenate([clip[:, :1], frames], 1)

    def begin(self, picture: jax.Array) -> tuple[Reference, State]:
        """Starts streams.

        Args:
          picture: Reference pictures, [B, H, W, 3] in -1..1; H and W multiples of 32.

        Returns:
          What the transformer is given, and the state for `encode_chunk` and `decode_chunk`.

        Raises:
          ValueError: The size does not fit.
        """
        state = self.look(picture)
        still = self.encode_raw(jnp.repeat(
            picture[:, None], self.config.frames_per_latent, 1
        ), state)
        condition = (state.coarse.astype(jnp.float32) - self.condition_mean) / self.condition_std
        return Reference(latent=self._normalise(still)[:, 0], condition=condition), state

    def encode(self, clip: jax.Array) -> jax.Array:
        """Latents of a clip.

        Args:
          clip: [B, 1 + 4k, H, W, 3] in -1..1; frame 0 is the reference picture.

        Returns:
          Normalised latents [B, 1 + k, h, w, C]; latent 0 is that of the still picture.

        Raises:
          ValueError: The number of frames or their size does not fit.
        """
        reference, state = self.begin(clip[:, 0])
        if clip.shape[1] == 1:
            return reference.latent[:, None]
        latents, _ = self.encode_chunk(clip[:, 1:], state)
        return jnp.concatenate([reference.latent[:, None], latents], 1)

    def encode_chunk(self, frames: jax.Array, state: State) -> tuple[jax.Array, State]:
        """Latents of the next frames of streams.

        Args:
          frames: [B, 4 T, H, W, 3] in -1..1.
          state: State of the streams.

        Returns:
          Normalised latents [B, T, h, w, C], and the state, which encoding leaves as it is.

        Raises:
          ValueError: The number of frames or their size does not fit.
        """
        return self._normalise(self.encode_raw(frames, state)), state

    def decode_chunk(self, latents: jax.Array, state: State) -> tuple[jax.Array, State]:
        """The next frames of streams.

        Args:
          latents: Normalised latents [B, T, h, w, C].
          state: State of the streams.

        Returns:
          Frames [B, 4 T, H, W, 3] in -1..1, and the next state.

        Raises:
          ValueError: The latents do not fit the state.
        """
        b, _, h, w, c = state.previous.shape
        shapes.check(latents, "B T H W C", "latents", B=b, H=h, W=w, C=c)
        raw = latents.astype(jnp.float32) * self.latent_std + self.latent_mean
        warped, residual, _ = self.decode_raw(raw, state)
        frames = jnp.clip(warped + residual, -1, 1)
        return frames, dataclasses.replace(state, previous=raw[:, -1:])

    def look(self, picture: jax.Array) -> State:
        """The state of streams that begin with pictures [B, H, W, 3]."""
        c = self.config
        sizes = shapes.check(picture, "B H W C", "picture", C=3)
        if sizes["H"] % c.spatial_stride or sizes["W"] % c.spatial_stride:
            raise ValueError(
                f"picture: sides must be multiples of {c.spatial_stride} pixels, got "
                f"{sizes['H']}x{sizes['W']}; scale the picture first."
            )
        fine, middle, coarse = self.reference_encoder(picture)
        previous = jnp.zeros((sizes["B"], 1, *coarse.shape[1:3], c.latent_channels))
        return State(
            picture=picture, fine=fine, middle=middle, coarse=coarse, previous=previous
        )

    def encode_raw(self, frames: jax.Array, state: State) -> jax.Array:
        """Frames [B, 4 T, H, W, 3] to latents before normalisation, [B, T, h, w, C]."""
        length = self.config.frames_per_latent
        b, height, width, _ = state.picture.shape
        sizes = shapes.check(frames, "B F H W C", "frames", B=b, H=height, W=width, C=3)
        if sizes["F"] % length or not sizes["F"]:
            raise ValueError(f"frames: expected {length} k frames, got {sizes['F']}.")
        t = sizes["F"] // length
        flow = motion.estimate(state.picture, frames)
        change = frames - layers.warp(state.picture, layers.resize(flow, motion.PLACE))
        change = storage.once(change)
        change, flow = (x.reshape(b * t, length, *x.shape[2:]) for x in (change, flow))
        z = self.encoder(change, flow, jnp.repeat(state.fine, t, 0))
        return z.astype(jnp.float32).reshape(b, t, *z.shape[1:])

    def decode_raw(self, raw: jax.Array, state: State) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Latents before normalisation to the decoder's parts; see `Decoder`."""
        previous = jnp.concatenate([state.previous, raw[:, :-1]], 1)
        return self.decoder(raw.astype(self.dtype), previous.astype(self.dtype), state)

    def _normalise(self, raw):
        return (raw - self.latent_mean) / self.latent_std


def init(config: config_lib.SmallVAEConfig, key: jax.Array) -> dict:
    """Random parameters."""
    side = config.spatial_stride
    clip = jnp.zeros((1, 1 + config.frames_per_latent, side, side, 3))
    return dict(SmallVAE(config).init(key, clip)["params"])
