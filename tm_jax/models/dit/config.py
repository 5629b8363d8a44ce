"""Sizes of the video transformer, and the window of its causal student."""

import dataclasses

import jax
import jax.numpy as jnp

from tm_jax.nn import attention
from tm_jax.nn import quantization

POSITIONS = ("window", "rollout", "absolute")


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """The window of the student: what a chunk attends to beside itself.

    The defaults are the paper's; weights that others trained have other windows.

    Attributes:
      sink: Whether it attends to the reference picture's keys and values.
      positions: Where the sink stands on the clock of the window, of which the current chunk is
        always the last part. "window": at 0, one latent before the oldest chunk that the window
        has room for. "rollout": right before the oldest chunk that there is, as in a rollout
        whose first frame is the picture. "absolute": at the begin of the stream, ever further
        away.
      history: Chunks before the current one that it attends to.
      keep: How many of them are the first ones of the stream for ever, so that the others roll.
    """

    sink: bool = True
    positions: str = "window"
    history: int = 1
    keep: int = 0

    def __post_init__(self):
        if self.positions not in POSITIONS:
            raise ValueError(
                f"positions must be one of {', '.join(POSITIONS)}, got {self.positions!r}."
            )
        if self.history < 1:
            raise ValueError(f"history must be at least 1 chunk, got {self.history}.")
        if not 0 <= self.keep < self.history:
            raise ValueError(
                f"keep must be 0 ... history - 1 = {self.history - 1}, got {self.keep}."
            )

    def filled(self, chunk: jax.Array | int) -> jax.Array:
        """Chunks of the history that there are before chunk `chunk`, a number or an array."""
        return jnp.minimum(chunk, self.history)

    def sink_time(self, chunk: jax.Array | int, frames: int) -> jax.Array | int | None:
        """Time of the sink on the clock of the window of a chunk.

        Rotary positions act by differences alone, so this is all in which the choices differ:
        a window of `history` chunks begins at 1, and the current chunk at
        history * frames + 1.

        Args:
          chunk: Index of the chunk, a number or an array.
          frames: Latent frames of a chunk.

        Returns:
          A number, or like `chunk`; None if the sink is not attended to.
        """
        if not self.sink:
            return None
        if self.positions == "window":
            return 0
        before = self.filled(chunk) if self.positions == "rollout" else chunk
        return (self.history - before) * frames


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """Size and inputs of the audio-driven video transformer.

    Attributes:
      width: Token width D.
      num_heads: Attention heads N; must divide `width`.
      num_layers: Transformer blocks.
      mlp_width: Hidden width of the feed-forward layers.
      latent_channels: Channels C of the latents, and of the predicted velocity.
      condition_channels: Channels concatenated to every noisy latent: 20 in Wan's
        image-to-video (4 of mask, 16 of latent), 0 in text-to-video. Those of `nano` are
        features of the reference picture, the same on every frame.
      patch: Side of a square patch of latents that makes one token.
      frequency_width: Width of the sinusoidal time features.
      text_width: Width of text features, None without text.
      text_length: Text tokens; shorter prompts are zero-padded, no mask.
      image_width: Width of image-encoder tokens, None without them.
      image_length: Image-encoder tokens.
      audio_feature_width: Width U of one audio feature frame.
      audio_window: Feature frames R that one latent frame attends to.
      audio_hidden: Hidden width of the audio projection.
      audio_tokens: Audio tokens A per latent frame.
      audio_width: Width E of an audio token.
      partner_audio: Whether tokens also attend to the other party's voice, through a projection,
        keys and values of its own.
      modes: Number of speaking/listening modes.
      clean_std: None: the network output is the velocity, as Wan was trained. A number: it is
        the clean latent in units of this, the standard deviation of latents, and inputs have
        unit variance (`preconditioning.py`).
      attention: How self-attention is computed, a name in `attention.BACKENDS`; weights are the
        same for all.
      matrices: How the matrices of the blocks are stored and multiplied, a name in
        `quantization.KINDS`; those that are trained are "full".
    """

    width: int
    num_heads: int
    num_layers: int
    mlp_width: int
    latent_channels: int = 16
    condition_channels: int = 20
    patch: int = 2
    frequency_width: int = 256
    text_width: int | None = 4096
    text_length: int = 512
    image_width: int | None = 1280
    image_length: int = 257
    audio_feature_width: int = 12 * 768
    audio_window: int = 8
    audio_hidden: int = 10240
    audio_tokens: int = 32
    audio_width: int = 1024
    partner_audio: bool = False
    modes: int = 2
    clean_std: float | None = None
    attention: str = attention.AUTO
    matrices: str = quantization.FULL

    def __post_init__(self):
        if self.attention not in attention.BACKENDS:
            raise ValueError(
                f"attention must be one of {', '.join(attention.BACKENDS)}, got "
                f"{self.attention!r}."
            )
        if self.matrices not in quantization.KINDS:
            raise ValueError(
                f"matrices must be one of {', '.join(quantization.KINDS)}, got {self.matrices!r}."
            )
        if self.width % self.num_heads:
            raise ValueError(
                f"width={self.width} is not a multiple of num_heads={self.num_heads}."
            )
        if (self.width // self.num_heads) % 2:
            raise ValueError(f"head width {self.width // self.num_heads} must be even.")
        if self.clean_std is not None and self.clean_std <= 0:
            raise ValueError(f"clean_std must be positive, got {self.clean_std}.")

    @property
    def head_width(self) -> int:
        """Width K of one head."""
        return self.width // self.num_heads
