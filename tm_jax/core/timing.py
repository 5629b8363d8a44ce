"""The only place that converts between pixel frames, latents, chunks and samples.

Frame 0 is the reference picture; it makes latent 0, the sink. Frames 4k-3 ... 4k make
latent k, and chunk c (counted from 0) holds latents 3c+1 ... 3c+3. Speech sample 0
sounds with frame 1, so the first chunk shows the first 0.48 s of sound.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """Clocks of one preset.

    Attributes:
      fps: Pixel frames per second.
      frames_per_latent: Pixel frames in every latent after the first.
      latents_per_chunk: Latent frames that the student makes at once.
      sample_rate: Samples per second of the models' speech input.
    """

    fps: int = 25
    frames_per_latent: int = 4
    latents_per_chunk: int = 3
    sample_rate: int = 16000

    def __post_init__(self):
        if self.sample_rate % self.fps:
            raise ValueError(
                f"sample_rate={self.sample_rate} is not a multiple of fps={self.fps}."
            )

    @property
    def samples_per_frame(self) -> int:
        """Speech samples that sound while one pixel frame is shown."""
        return self.sample_rate // self.fps

    @property
    def frames_per_chunk(self) -> int:
        """Pixel frames of one chunk."""
        return self.frames_per_latent * self.latents_per_chunk

    @property
    def samples_per_chunk(self) -> int:
        """Speech samples of one chunk."""
        return self.frames_per_chunk * self.samples_per_frame

    @property
    def chunk_s(self) -> float:
        """Seconds that one chunk lasts."""
        return self.frames_per_chunk / self.fps

    def latents(self, chunks: int) -> int:
        """Latent frames of a clip: the sink and `chunks` chunks."""
        return 1 + chunks * self.latents_per_chunk

    def chunks_for(self, seconds: float) -> int:
        """Chunks that cover `seconds`, rounded up, at least one."""
        frames = -(-round(seconds * self.sample_rate) // self.samples_per_frame)
        return max(1, -(-frames // self.frames_per_chunk))
