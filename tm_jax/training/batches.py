"""One batch of clips, as every stage of the transformer takes it, whatever the preset."""

from collections.abc import Mapping
import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from tm_jax.models.dit import conditioning as conditioning_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dropout:
    """Condition dropout: each condition is dropped for a sample with its own probability.

    Attributes:
      text: Probability that a sample has the negative prompt's features, or zeros.
      image: Probability that it has zeros for the tokens of the image encoder.
      audio: Probability that it has silent audio features (zeros).
    """

    text: float = 0.0
    image: float = 0.0
    audio: float = 0.0

    def __post_init__(self):
        for name in CONDITIONS:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"dropout.{name} must be in 0..1, got {getattr(self, name)}."
                )

    @property
    def active(self) -> bool:
        """Whether anything is ever dropped."""
        return any(getattr(self, name) for name in CONDITIONS)

    def draw(self, key: jax.Array, size: int) -> dict[str, jax.Array]:
        """Which samples drop which condition: {name: bool [size]}, drawn independently."""
        # The audio has the key itself: presets without text and image draw nothing else.
        keys = {"audio": key}
        keys |= {n: jax.random.fold_in(key, i) for i, n in enumerate(("text", "image"), 1)}
        return {
            name: jax.random.uniform(k, (size,)) < getattr(self, name) for name, k in keys.items()
        }


CONDITIONS = ("text", "image", "audio")


@flax.struct.dataclass
class Batch:
    """Clips and what the transformer is given beside them.

    Attributes:
      x0: Clean latents of the frames after the reference picture, [B, T, H, W, C].
      sink: Latent of the reference picture, [B, H, W, C].
      conditioning: Inputs of the 1 + T frames of a clip of its own, as the bidirectional
        transformer takes them; frame 0 is the sink's: silent audio (zeros) and mode 0.
      stream_channels: Conditioning channels of the student's streams: the sink's, and those of
        every later frame, [B, 2, H, W, Cc]; those of `conditioning` belong to the place of a
        frame in its clip.
      negative_text: Features that replace a dropped text, [B, L, D]; None: zeros.
    """

    x0: jax.Array
    sink: jax.Array
    conditioning: conditioning_lib.Conditioning
    stream_channels: jax.Array
    negative_text: jax.Array | None = None

    @property
    def size(self) -> int:
        """Samples B."""
        return self.x0.shape[0]

    @property
    def frames(self) -> int:
        """Latent frames T after the sink."""
        return self.x0.shape[1]

    @property
    def clip(self) -> jax.Array:
        """The sink and the frames after it, [B, 1 + T, H, W, C]."""
        return jnp.concatenate([self.sink[:, None], self.x0], 1)

    @property
    def streamed(self) -> conditioning_lib.Conditioning:
        """Inputs of the 1 + T frames as the student's streams have them."""
        first, later = self.stream_channels[:, :1], self.stream_channels[:, 1:]
        channels = jnp.concatenate([first, jnp.repeat(later, self.frames, 1)], 1)
        return dataclasses.replace(self.conditioning, channels=channels)

    def cut(self, first: jax.Array | int, frames: int) -> "Batch":
        """A shorter clip.

        Args:
          first: Its first frame after the sink, an int32 scalar or one of each sample, [B];
            may be traced.
          frames: Its number T of frames after the sink.
        """
        def rest(x):
            return jnp.concatenate([x[:, :1], take(x, first + 1, frames)], 1)

        given = self.conditioning
        channels = given.channels[:, : 1 + frames]
        given = dataclasses.replace(given.per_frame(rest), channels=channels)
        return dataclasses.replace(self, x0=take(self.x0, first, frames), conditioning=given)

    def without(self, dropped: Mapping[str, jax.Array | bool]) -> "Batch":
        """This batch with some conditions dropped.

        Args:
          dropped: Names among `CONDITIONS` to a boolean, or to one of each sample, [B].
        """
        given = self.conditioning.without_audio(dropped.get("audio", False))

        def drop(name, value, other):
            if value is None or name not in dropped:
                return value
            mask = jnp.asarray(dropped[name]).reshape(-1, 1, 1)
            return jnp.where(mask, other, value)

        text = drop("text", given.text, 0.0 if self.negative_text is None else self.negative_text)
        image = drop("image", given.image, 0.0)
        return dataclasses.replace(
            self, conditioning=dataclasses.replace(given, text=text, image=image)
        )


def take(x: jax.Array, first: jax.Array | int, count: int) -> jax.Array:
    """`count` entries along axis 1 from entry `first`, a scalar or one of each sample, [B]."""
    first = jnp.asarray(first)
    if first.ndim == 0:
        return jax.lax.dynamic_slice_in_dim(x, first, count, 1)
    return jax.vmap(lambda one, at: jax.lax.dynamic_slice_in_dim(one, at, count, 0))(x, first)


def take_frames(
    given: conditioning_lib.Conditioning, first: jax.Array | int, count: int
) -> conditioning_lib.Conditioning:
    """Inputs of `count` frames from frame `first`, a scalar or one of each sample, without
    what is constant in a clip."""
    frames = dataclasses.replace(given, face_mask=None, text=None, image=None)
    return frames.per_frame(lambda x: take(x, first, count))
