"""Sizes of the small video autoencoder."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """Small causal video autoencoder: strides 4 (time) x 16 x 16.

    Attributes:
      latent_channels: Channels C of a latent: how a block differs from the picture.
      appearance_channels: Channels of the code of the picture itself.
      width: Channels of the convolutions that sharpen decoded frames.
      layers: Pairs of such convolutions.
      frames_per_latent: Pixel frames of every latent.
    """

    latent_channels: int
    appearance_channels: int
    width: int = 48
    layers: int = 2
    frames_per_latent: int = 4

    @property
    def spatial_stride(self) -> int:
        """Pixels per latent along height and width."""
        return 16

    @property
    def overlap(self) -> int:
        """Pixels by which a block reaches beyond its stride on each side."""
        return self.spatial_stride // 4

    @property
    def side(self) -> int:
        """Side of a block in pixels."""
        return self.spatial_stride + 2 * self.overlap

    @property
    def patch_pixels(self) -> int:
        """Numbers in the part of a block that belongs to one frame."""
        return self.side**2 * 3

    @property
    def block_pixels(self) -> int:
        """Numbers in a block and the frame before it."""
        return (1 + self.frames_per_latent) * self.patch_pixels
