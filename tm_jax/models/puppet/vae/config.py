"""Sizes of the small video autoencoder."""

import dataclasses

# What a token of the upper half of the square and one of the lower half encode of a frame.
UPPER = ("blink_left", "blink_right", "gaze_x", "gaze_y", "brow", "smile")
LOWER = ("mouth_open", "mouth_width", "mouth_round", "teeth", "tongue", "smile")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """Small causal video autoencoder: strides 4 (time) x 16 x 16.

    Attributes:
      rows: Latents along each side of the square.
      look_channels: Channels of the picture's features at stride 16.
      widths: Channels at strides 4, 8 and 16.
      frames_per_latent: Pixel frames of every latent.
    """

    rows: int
    look_channels: int
    widths: tuple[int, int, int] = (48, 64, 96)
    frames_per_latent: int = 4

    @property
    def latent_channels(self) -> int:
        """Channels C of a latent: frames after one another."""
        return self.frames_per_latent * len(UPPER)

    @property
    def appearance_channels(self) -> int:
        """Channels A of the transformer's picture conditioning: 4 x 4 colours a latent."""
        return 3 * 4**2

    @property
    def side(self) -> int:
        """Pixels along each side of the square."""
        return self.rows * self.spatial_stride

    @property
    def spatial_stride(self) -> int:
        """Pixels per latent along height and width."""
        return 16
