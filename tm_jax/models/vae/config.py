"""Sizes of the small video autoencoder."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """Small causal video autoencoder: strides 4 (time) x 16 x 16.

    Attributes:
      latent_channels: Channels C of a latent.
      frames_per_latent: Pixel frames of every latent after the first.
    """

    latent_channels: int
    frames_per_latent: int = 4

    @property
    def spatial_stride(self) -> int:
        """Pixels per latent along height and width."""
        return 16

    @property
    def patch_pixels(self) -> int:
        """Numbers in the part of a block that belongs to one frame."""
        return self.spatial_stride**2 * 3

    @property
    def block_pixels(self) -> int:
        """Numbers in a block and the frame before it."""
        return (1 + self.frames_per_latent) * self.patch_pixels
