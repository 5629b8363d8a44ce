"""What the video transformer is given beside the noisy latents, as one pytree."""

from collections.abc import Callable
import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

KINDS = ("none", "first_frame", "reference")


@flax.struct.dataclass
class Conditioning:
    """Inputs of the transformer beside the noisy latents and their noise level.

    Attributes:
      channels: Channels that are concatenated to the latents of every frame,
        [B, T, H, W, Cc]; Cc may be 0.
      audio: Windows of audio features, [B, T, R, U]; the tokens of frame t attend to window t.
      mode: 0 listening, 1 speaking, [B, T] int32.
      face_mask: Weight of the audio for each token, [B, P] in 0..1; None where the constant
        inputs were embedded before (`transformer.DiT.context`).
      text: Text features [B, L, D]; None without text, or embedded before.
      image: Tokens of the image encoder [B, L, D]; None without, or embedded before.
      partner_audio: Windows of the other party's voice, as `audio`; None for a model without.
    """

    channels: jax.Array
    audio: jax.Array
    mode: jax.Array
    face_mask: jax.Array | None = None
    text: jax.Array | None = None
    image: jax.Array | None = None
    partner_audio: jax.Array | None = None

    def after_sink(self) -> "Conditioning":
        """A frame that listens in silence, the sink's, before sound and mode; `channels` has it."""

        def pad(x):
            return jnp.pad(x, ((0, 0), (1, 0), *((0, 0) for _ in x.shape[2:])))

        partner = None if self.partner_audio is None else pad(self.partner_audio)
        return dataclasses.replace(
            self, audio=pad(self.audio), mode=pad(self.mode), partner_audio=partner
        )

    def frames(self, start: jax.Array | int, count: int) -> "Conditioning":
        """`count` latent frames from frame `start`, which may be traced."""
        return self.per_frame(lambda x: jax.lax.dynamic_slice_in_dim(x, start, count, 1))

    def at(self, order: jax.Array) -> "Conditioning":
        """The frames with the indices `order`, in that order."""
        return self.per_frame(lambda x: x[:, order])

    def without_audio(self, drop: jax.Array | bool = True) -> "Conditioning":
        """Audio of both parties replaced by silent features (zeros), as condition dropout does it.

        Args:
          drop: Boolean, or one of every sample, [B].
        """
        keep = 1 - jnp.asarray(drop, self.audio.dtype)
        keep = keep.reshape(-1, 1, 1, 1) if keep.ndim else keep
        partner = None if self.partner_audio is None else self.partner_audio * keep
        return dataclasses.replace(self, audio=self.audio * keep, partner_audio=partner)

    def per_frame(self, function: Callable[[jax.Array], jax.Array]) -> "Conditioning":
        """`function` of every array that has an entry [B, T, ...] for each latent frame."""
        partner = None if self.partner_audio is None else function(self.partner_audio)
        return dataclasses.replace(
            self, channels=function(self.channels), audio=function(self.audio),
            partner_audio=partner, mode=function(self.mode),
        )


def channels(kind: str, reference: jax.Array, frames: int, first: int = 0) -> jax.Array:
    """Conditioning channels of consecutive latent frames of a clip or stream.

    Args:
      kind: "none": no channels. "first_frame": Wan's image-to-video conditioning [mask | latent]:
        mask 1 where the frame is known, which is frame 0 alone, and the latents of a clip whose
        other frames are empty. "reference": features of the reference picture, the same for
        every frame.
      reference: [B, 1 + K, H, W, R]: what belongs to frames 0 ... K; later frames take what
        frame K has.
      frames: Number of frames T.
      first: Index of the first of them; frame 0 is the reference picture.

    Returns:
      [B, T, H, W, Cc].

    Raises:
      ValueError: Unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"conditioning must be one of {', '.join(KINDS)}, got {kind!r}.")
    index = jnp.minimum(first + jnp.arange(frames), reference.shape[1] - 1)
    latents = reference[:, index]  # [B, T, H, W, R]
    if kind == "none":
        return latents[..., :0]
    if kind == "reference":
        return latents
    known = (first + jnp.arange(frames) == 0).astype(latents.dtype)
    mask = jnp.broadcast_to(
        known[None, :, None, None, None], (*latents.shape[:-1], MASK_CHANNELS)
    )
    return jnp.concatenate([mask, latents], -1)


# One for each pixel frame of a latent (Wan2.1 image-to-video, `wan/image2video.py`).
MASK_CHANNELS = 4
