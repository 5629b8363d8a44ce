"""Sizes of the reference-conditioned video autoencoder."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmallVAEConfig:
    """Video autoencoder: one latent for 4 frames x 32 x 32 pixels, given a reference picture.

    Widths belong to grids with one place for 8, 16 and 32 pixels a side.

    Attributes:
      latent_channels: Channels C of a latent.
      condition_channels: Channels R of the reference's features at the latents' resolution.
      reference_widths: Widths of the reference encoder.
      encoder_widths: Widths of the encoder.
      decoder_widths: Widths of the decoder.
      encoder_depths: Residual blocks of the encoder on each grid.
      decoder_depths: Residual blocks of the decoder before the flow, on each grid.
      paint_width: Width of the blocks behind the warp, on the 8-pixel grid.
      paint_depth: Residual blocks behind the warp.
      refine_width: Width of the blocks behind those, on a 4-pixel grid.
      refine_depth: Residual blocks there.
      expansion: Hidden width of a block over its width.
      frames_per_latent: Pixel frames of a latent.
      flow_limit: Largest displacement in pixels that the flow reaches.
    """

    latent_channels: int = 48
    condition_channels: int = 48
    reference_widths: tuple[int, int, int] = (64, 96, 128)
    encoder_widths: tuple[int, int, int] = (96, 192, 256)
    decoder_widths: tuple[int, int, int] = (96, 192, 256)
    encoder_depths: tuple[int, int, int] = (1, 2, 4)
    decoder_depths: tuple[int, int, int] = (1, 2, 4)
    paint_width: int = 128
    paint_depth: int = 2
    refine_width: int = 96
    refine_depth: int = 2
    expansion: int = 2
    frames_per_latent: int = 4
    flow_limit: float = 40.0

    def __post_init__(self) -> None:
        for name in ("reference_widths", "encoder_widths", "decoder_widths",
                     "encoder_depths", "decoder_depths"):
            if len(getattr(self, name)) != 3:
                raise ValueError(
                    f"{name}: expected one number per grid (8, 16, 32 pixels), got "
                    f"{getattr(self, name)}."
                )
        if self.flow_limit <= 0:
            raise ValueError(f"flow_limit must be positive, got {self.flow_limit}.")

    @property
    def cell(self) -> int:
        """Pixels a side of a place of the finest grid."""
        return 8

    @property
    def spatial_stride(self) -> int:
        """Pixels a side of a latent."""
        return 4 * self.cell


PRESETS = {
    # Seconds on a CPU with compilation; for tests.
    "pico": SmallVAEConfig(
        latent_channels=4, condition_channels=4, reference_widths=(8, 8, 8),
        encoder_widths=(8, 8, 16), decoder_widths=(8, 8, 16), encoder_depths=(1, 1, 1),
        decoder_depths=(1, 1, 1), paint_width=16, paint_depth=1, refine_width=8, refine_depth=1,
    ),
    # 12 frames of 256x256 in less than a tenth of a second on two CPU cores.
    "nano": SmallVAEConfig(),
}
