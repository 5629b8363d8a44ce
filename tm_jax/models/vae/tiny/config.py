"""Sizes of the tiny autoencoder."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True, kw_only=True)
class TAEHVConfig:
    """Size of the tiny autoencoder (TAEHV architecture).

    Attributes:
      encoder_width: Channels of the whole encoder.
      decoder_widths: Channels of the decoder before its first stage and after each stage,
        coarsest first.
      num_blocks: Blocks with memory in each stage.
      latent_channels: Channels C of a latent.
      encoder_pools: Frames that each stage of the encoder joins into one, finest first.
      decoder_grows: Frames that each stage of the decoder makes from one, coarsest first.
    """

    encoder_width: int
    decoder_widths: tuple[int, ...]
    num_blocks: int = 3
    latent_channels: int = 16
    encoder_pools: tuple[int, ...] = (2, 2, 1)
    decoder_grows: tuple[int, ...] = (1, 2, 2)

    def __post_init__(self):
        stages = len(self.encoder_pools)
        if len(self.decoder_grows) != stages or len(self.decoder_widths) != stages + 1:
            raise ValueError(
                f"{stages} stages of the encoder need as many decoder_grows and one more of "
                f"decoder_widths, got {self.decoder_grows} and {self.decoder_widths}."
            )
        if math.prod(self.encoder_pools) != math.prod(self.decoder_grows):
            raise ValueError(
                "encoder and decoder must change time by the same factor, got "
                f"{self.encoder_pools} and {self.decoder_grows}."
            )

    @property
    def frames_per_latent(self) -> int:
        """Pixel frames of every latent after the first."""
        return math.prod(self.encoder_pools)

    @property
    def spatial_stride(self) -> int:
        """Pixels per latent along height and width."""
        return 2 ** len(self.encoder_pools)


PRESETS = {
    # Same strides and channels of latents, a fraction of a second on a CPU: for tests.
    "pico": TAEHVConfig(encoder_width=8, decoder_widths=(16, 12, 8, 8), num_blocks=2),
    # `taew2_1.pth` of madebyollin/taehv.
    "taew-2.1": TAEHVConfig(encoder_width=64, decoder_widths=(256, 128, 64, 64)),
}
