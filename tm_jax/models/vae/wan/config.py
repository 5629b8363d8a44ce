"""Sizes and latent statistics of the Wan2.1 video autoencoder."""

import dataclasses

# `latents_mean` and `latents_std` of the published configuration (Wan2.1's `vae/config.json`,
# and `wan/modules/vae.py`).
LATENT_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)
LATENT_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WanVAEConfig:
    """Size of the Wan2.1 video autoencoder.

    Attributes:
      base_width: Channels at full resolution.
      multipliers: Channels of each resolution, finest first, as multiples of `base_width`.
      num_res_blocks: Residual blocks of the encoder at each resolution; the decoder has one
        more.
      temporal_strides: Whether the step from one resolution to the next also halves time,
        finest first; one entry less than `multipliers`.
      latent_mean: Mean of the raw latents, one number per channel.
      latent_std: Their standard deviation; latents are handed out as (raw - mean) / std.
    """

    base_width: int
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_strides: tuple[bool, ...] = (False, True, True)
    latent_mean: tuple[float, ...] = LATENT_MEAN
    latent_std: tuple[float, ...] = LATENT_STD

    def __post_init__(self):
        if len(self.temporal_strides) != len(self.multipliers) - 1:
            raise ValueError(
                f"temporal_strides needs one entry less than multipliers={self.multipliers}, "
                f"got {self.temporal_strides}."
            )
        if len(self.latent_mean) != len(self.latent_std) or min(self.latent_std) <= 0:
            raise ValueError(
                "latent_mean and latent_std need one number per latent channel, and std must "
                f"be positive; got {len(self.latent_mean)} and {self.latent_std}."
            )
        odd = [w for w in self.widths[1:] if w % 2]
        if odd:
            raise ValueError(f"the decoder halves its channels on every step up: {odd} is odd.")

    @property
    def latent_channels(self) -> int:
        """Channels C of a latent."""
        return len(self.latent_mean)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each resolution, finest first."""
        return tuple(self.base_width * m for m in self.multipliers)

    @property
    def frames_per_latent(self) -> int:
        """Pixel frames of every latent after the first."""
        return 2 ** sum(self.temporal_strides)

    @property
    def spatial_stride(self) -> int:
        """Pixels per latent along height and width."""
        return 2 ** len(self.temporal_strides)


PRESETS = {
    # Same strides and channels of latents, a fraction of a second on a CPU: for tests.
    "pico": WanVAEConfig(base_width=4, num_res_blocks=1),
    # `Wan2.1_VAE.pth`, 126.9 M parameters.
    "wan-2.1": WanVAEConfig(base_width=96),
}
