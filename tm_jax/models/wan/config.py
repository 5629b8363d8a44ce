"""Sizes of the video transformer."""

import dataclasses


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
        image-to-video (4 of mask, 16 of latent), 0 in text-to-video. Where `reference_std`
        is set the first C are the reference latent, repeated on every frame; what follows
        is the expression of eyes and brows (`expression_channels`).
      patch: Side of a square patch of latents that makes one token.
      frequency_width: Width of the sinusoidal time features.
      text_width: Width of text features, None without text.
      text_length: Text tokens; shorter prompts are zero-padded, no mask.
      image_width: Width of image-encoder tokens, None without them.
      image_length: Image-encoder tokens.
      audio_feature_width: Width U of one audio feature frame.
      audio_window: Feature frames R that one latent frame looks at.
      audio_hidden: Hidden width of the audio projection.
      audio_tokens: Audio tokens A per latent frame.
      audio_width: Width E of an audio token.
      modes: Number of speaking/listening modes.
      reference_std: None: the network output is the velocity, as Wan was trained. A number:
        inputs and outputs are scaled around the reference latent, whose distance to the
        frames has this standard deviation, so that an untrained network already predicts
        the still picture (`preconditioning.py`).
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
    modes: int = 2
    reference_std: float | None = None

    def __post_init__(self):
        if self.width % self.num_heads:
            raise ValueError(
                f"width={self.width} is not a multiple of num_heads={self.num_heads}."
            )
        if (self.width // self.num_heads) % 2:
            raise ValueError(f"head width {self.width // self.num_heads} must be even.")
        if self.reference_std is not None and (
            self.condition_channels < self.latent_channels or self.reference_std <= 0
        ):
            raise ValueError(
                "reference_std needs condition_channels >= latent_channels and a positive "
                f"value; got {self.condition_channels}, {self.latent_channels} and "
                f"{self.reference_std}."
            )

    @property
    def expression_channels(self) -> int:
        """Conditioning channels after the reference latent; 0 where that is not repeated."""
        if self.reference_std is None:
            return 0
        return self.condition_channels - self.latent_channels

    @property
    def head_width(self) -> int:
        """Width K of one head."""
        return self.width // self.num_heads
