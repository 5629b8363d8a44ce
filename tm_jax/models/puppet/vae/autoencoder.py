"""Small video autoencoder of aligned faces: latents of what moved, and a painter.

A latent encodes how the face of 4 frames differs from the reference picture: at every place of
the upper half lids, gaze and brows, at every place of the lower half the mouth, each in units
of its spread. The drawn data set has labels of these, so the encoder is trained to read them
off the pixels and the painter to draw them; neither has to invent a code.

The painter's input has the picture. So no latent, nor the transformer that makes it, carries
colours and outlines of a character, and where nothing changes the picture itself is shown, as
sharp as it came. Every frame has its own channels of a latent: a stream is decoded chunk by
chunk to the same pixels as the whole clip.
"""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from tm_jax.core import shapes
from tm_jax.models.puppet.vae import config as config_lib
from tm_jax.nn import linear
from tm_jax.nn import parameters

_CELL = 4  # Pixels per side at the finest stride of the convolutions.
_COLOURS = 3 * _CELL**2  # Numbers in a cell.


@flax.struct.dataclass
class DecoderState:
    """What is constant in the decoding of a stream.

    Attributes:
      picture: The reference picture, [B, H, W, 3].
      looks: Features of the picture at strides 4, 8 and 16.
      rest: The painter's output for latents of zero, paint [B, 1, H, W, 3] and
        cover [B, 1, H, W, 1].
    """

    picture: jax.Array
    looks: tuple[jax.Array, jax.Array, jax.Array]
    rest: tuple[jax.Array, jax.Array]


class VideoAutoencoder(nn.Module):
    """Reads what moved in a face, and paints it.

    Attributes:
      config: Sizes.
      dtype: Dtype of the products.
    """

    config: config_lib.VAEConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        c, dtype = self.config, self.dtype
        self.encoder = Encoder(c, dtype)
        self.viewer = Viewer(c, dtype)
        self.painter = Painter(c, dtype)

    def encode(self, frames: jax.Array, picture: jax.Array) -> jax.Array:
        """Latents of a clip.

        Args:
          frames: [B, 4 T, H, W, 3] in -1..1.
          picture: The reference picture, [B, H, W, 3].

        Returns:
          [B, T, h, w, C].

        Raises:
          ValueError: The number of frames does not divide, or the square has another size.
        """
        c = self.config
        sizes = shapes.check(frames, "B F H W C", "frames", C=3)
        length = c.frames_per_latent
        if sizes["F"] % length:
            raise ValueError(f"frames: expected {length} k frames, got {sizes['F']}.")
        if (sizes["H"], sizes["W"]) != (c.side, c.side):
            raise ValueError(
                f"frames: expected {c.side}x{c.side} pixels, got {sizes['H']}x{sizes['W']}."
            )
        both = jnp.concatenate([picture[:, None], frames], 1)
        z = self.encoder(both, picture)  # [B, 1 + F, h, w, 6]
        z = z[:, 1:] - z[:, :1]
        z = z.reshape(sizes["B"], -1, length, *z.shape[2:])
        return jnp.moveaxis(z, 2, 4).reshape(*z.shape[:2], *z.shape[3:5], -1)

    def begin(self, picture: jax.Array) -> DecoderState:
        """Decoder state before the first latent of streams with pictures [B, H, W, 3]."""
        c = self.config
        looks = self.viewer(picture)
        zero = jnp.zeros((len(picture), 1, c.rows, c.rows, c.latent_channels))
        paint, cover = self.painter(zero, looks)
        return DecoderState(picture=picture, looks=looks, rest=(paint[:, :1], cover[:, :1]))

    def paint_chunk(
        self, z: jax.Array, state: DecoderState
    ) -> tuple[jax.Array, jax.Array, DecoderState]:
        """What hides the picture in the next frames of a stream.

        Args:
          z: Latents [B, T, h, w, C].
          state: State of the stream; `begin` gives the first.

        Returns:
          The paint [B, 4 T, H, W, 3]; how much of the picture it hides, 1 being all of it,
          [B, 4 T, H, W, 1]; the next state. A frame is (1 - hidden) * picture + paint.
        """
        shapes.check(z, "B T H W C", "latents", C=self.config.latent_channels)
        paint, cover = self.painter(z, state.looks)
        # With latents of zero nothing changes.
        return paint - state.rest[0], cover - state.rest[1], state

    def decode_chunk(self, z: jax.Array, state: DecoderState) -> tuple[jax.Array, DecoderState]:
        """Next frames of a stream.

        Args:
          z: Latents [B, T, h, w, C].
          state: State of the stream; `begin` gives the first.

        Returns:
          Pixels in about -1..1, [B, 4 T, H, W, 3], and the next state.
        """
        paint, hidden, state = self.paint_chunk(z, state)
        return (1 - hidden) * state.picture[:, None] + paint, state

    def decode(self, z: jax.Array, picture: jax.Array) -> jax.Array:
        """Whole clip: latents [B, T, h, w, C] to pixels [B, 4 T, H, W, 3]."""
        return self.decode_chunk(z, self.begin(picture))[0]

    def __call__(self, frames: jax.Array, picture: jax.Array):
        """Reconstruction of a clip; touches every parameter."""
        return self.decode(self.encode(frames, picture), picture)


def _conv(features, dtype, name):
    return linear.Conv(features, dtype=dtype, name=name)


class Encoder(nn.Module):
    """What the latent of each frame encodes at each place, beside its picture.

    Attributes:
      config: Sizes.
      dtype: Dtype of the products.
    """

    config: config_lib.VAEConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, frames, picture):
        """Maps frames [B, F, H, W, 3] and pictures [B, H, W, 3] to [B, F, h, w, 6]."""
        fine, middle, coarse = self.config.widths
        b, f = frames.shape[:2]
        x = _to_cells(frames, _CELL).reshape(b * f, *(n // _CELL for n in frames.shape[2:4]), -1)
        x = _conv(fine // 2, self.dtype, "frames")(x)
        still = _conv(fine // 2, self.dtype, "picture")(_to_cells(picture, _CELL))
        x = x + jnp.repeat(still, f, 0)
        x = _conv(middle, self.dtype, "middle")(_to_cells(nn.silu(x), 2))
        x = _conv(coarse, self.dtype, "coarse")(_to_cells(nn.silu(x), 2))
        # Every place encodes its whole half.
        h, w = x.shape[1:3]
        half = nn.silu(x).reshape(b * f, 2, h // 2, w, coarse).mean((2, 3))
        half = linear.Dense(coarse, (None, None), self.dtype, name="half")(half)
        x = x + jnp.repeat(half[:, :, None], h // 2, 2).reshape(b * f, h, 1, coarse)
        x = _conv(len(config_lib.UPPER), self.dtype, "out")(nn.silu(x))
        return x.reshape(b, f, *x.shape[1:]).astype(jnp.float32)


class Viewer(nn.Module):
    """Features of a picture at strides 4, 8 and 16.

    Attributes:
      config: Sizes.
      dtype: Dtype of the products.
    """

    config: config_lib.VAEConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, picture):
        """Maps [B, H, W, 3] to [B, H/4, W/4, .], [B, H/8, W/8, .] and [B, h, w, .]."""
        c = self.config
        fine, middle, _ = c.widths
        x = nn.silu(_conv(fine, self.dtype, "in")(_to_cells(picture, _CELL)))
        x = _conv(fine, self.dtype, "fine")(x)
        y = _conv(middle, self.dtype, "middle")(_to_cells(nn.silu(x), 2))
        z = _conv(c.look_channels, self.dtype, "coarse")(_to_cells(nn.silu(y), 2))
        return x, y, jnp.tanh(z.astype(jnp.float32))


class Painter(nn.Module):
    """Latents to what changes in the picture, frame by frame.

    Attributes:
      config: Sizes.
      dtype: Dtype of the products.
    """

    config: config_lib.VAEConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, z, looks):
        """Maps latents [B, T, h, w, C] to paint [B, 4 T, H, W, 3] and to how much of the picture
        it covers [B, 4 T, H, W, 1]."""
        c = self.config
        fine, middle, coarse = c.widths
        b, t, h, w, _ = z.shape
        x = z.reshape(b * t, h, w, c.frames_per_latent, -1)
        x = jnp.moveaxis(x, 3, 1).reshape(-1, h, w, x.shape[-1])  # One frame each.
        # The square is aligned: every place has a meaning, and weights of its own.
        places = parameters.named(nn.initializers.normal(x.shape[-1] ** -0.5), (None,) * 4)
        kernel = self.param("places", places, (c.rows, c.rows, x.shape[-1], coarse))
        bias = self.param("places_bias", places, (c.rows, c.rows, 1, coarse))
        x = jnp.einsum("bhwi,hwio->bhwo", x.astype(self.dtype), kernel) + bias[:, :, 0]
        frames = t * c.frames_per_latent
        x = x + jnp.repeat(_conv(coarse, self.dtype, "still")(looks[2]), frames, 0)
        x = x + _conv(coarse, self.dtype, "joint")(nn.silu(x))
        x = _from_cells(_conv(4 * middle, self.dtype, "middle")(nn.silu(x)), 2)
        x = x + jnp.repeat(looks[1], frames, 0)
        x = x + _conv(middle, self.dtype, "middle_joint")(nn.silu(x))
        x = _from_cells(_conv(4 * fine, self.dtype, "fine")(nn.silu(x)), 2)
        x = x + jnp.repeat(looks[0], frames, 0)
        for i in range(2):
            x = x + _conv(fine, self.dtype, f"fine_joint_{i}")(nn.silu(x))
        x = nn.silu(x)
        silent = lambda name, features: linear.Conv(
            features, dtype=self.dtype, zero=True, name=name
        )
        detail = _from_cells(silent("out", _COLOURS)(x))
        # A lid covers an eye: one colour a cell, and how much of the picture it hides.
        cover = _from_cells(jnp.tanh(silent("cover", _CELL**2)(x)))
        colour = _from_cells(jnp.tile(_conv(3, self.dtype, "colour")(x), _CELL**2))
        shape = (b, frames, *detail.shape[1:3])
        detail, cover, colour = (y.reshape(*shape, -1) for y in (detail, cover, colour))
        return (detail + cover * colour).astype(jnp.float32), cover.astype(jnp.float32)


def _to_cells(x, side):
    """[..., H, W, C] to [..., H / side, W / side, side * side * C]."""
    *lead, h, w, c = x.shape
    x = x.reshape(*lead, h // side, side, w // side, side, c)
    return jnp.swapaxes(x, -4, -3).reshape(*lead, h // side, w // side, -1)


def _from_cells(x, side=_CELL):
    """The inverse of `_to_cells`."""
    *lead, h, w, c = x.shape
    x = jnp.swapaxes(x.reshape(*lead, h, w, side, side, c // side**2), -4, -3)
    return x.reshape(*lead, h * side, w * side, -1)


def appearance(picture: jax.Array, config: config_lib.VAEConfig) -> jax.Array:
    """The transformer's conditioning on a picture: its colours, coarsely.

    Args:
      picture: [B, H, W, 3] in -1..1.
      config: Sizes.

    Returns:
      [B, h, w, A].
    """
    side = config.spatial_stride // 4
    cells = _to_cells(picture, side).reshape(
        *(n // side if i else n for i, n in enumerate(picture.shape[:3])), side**2, 3
    )
    return _to_cells(cells.mean(3), 4)


def labels(upper: jax.Array, lower: jax.Array, height: int, width: int, group: int) -> jax.Array:
    """Latents of given labels.

    Args:
      upper: Changes of the columns `config.UPPER`, in units of their spread, [B, F, 6].
      lower: The same of `config.LOWER`.
      height: Latents per column of the square.
      width: Latents per row.
      group: Frames per latent.

    Returns:
      [B, F / group, height, width, 6 * group].
    """
    both = jnp.stack([upper, lower], 2)  # [B, F, 2, 6]
    b, f, _, n = both.shape
    both = both.reshape(b, f // group, group, 2, n)
    both = jnp.moveaxis(both, 2, 3).reshape(b, f // group, 2, 1, group * n)
    both = jnp.repeat(both, height // 2, 2)
    return jnp.broadcast_to(both, (b, f // group, height, width, group * n))


def respond(z: jax.Array, points: tuple[tuple[float, float], ...]) -> jax.Array:
    """Latents with the opening of the mouth corrected for the painter.

    Args:
      z: Latents [B, T, h, w, C].
      points: Openings in the latents and those to give to the painter instead, both
        growing from (0, 0), in units of the labels; straight lines between them, and the last
        difference beyond. A mouth that is shut stays as it is.

    Returns:
      The same shape.
    """
    told, given = jnp.asarray(points).T
    opened = jnp.interp(z, told, given) + jnp.maximum(z - told[-1], 0)
    column = config_lib.LOWER.index("mouth_open")
    opens = jnp.arange(z.shape[-1]) % len(config_lib.LOWER) == column
    lower = jnp.arange(z.shape[2])[:, None, None] >= z.shape[2] // 2
    return jnp.where(opens & lower & (z > 0), opened, z)
