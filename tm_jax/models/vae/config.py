"""Sizes of the small video autoencoder."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """Small causal video autoencoder: strides 4 (time) x 16 x 16.

    Attributes:
      latent_channels: Channels C of a latent.
      latent_width: Channels of the blocks at 1/16 of the resolution.
      middle_width: Channels at 1/8 of the resolution, per pixel frame.
      fine_width: Channels at 1/4 of the resolution, per pixel frame.
      frames_per_latent: Pixel frames of every latent after the first.
    """

    latent_channels: int
    latent_width: int
    middle_width: int
    fine_width: int
    frames_per_latent: int = 4

    @property
    def spatial_stride(self) -> int:
        """Pixels per latent along height and width."""
        return 16
