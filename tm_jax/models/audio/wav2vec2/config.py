"""Sizes of the speech encoder, and of the window in which a stream runs it."""

import dataclasses
import math

from tm_jax.core import timing as timing_lib

FEATURE_NORMS = ("group", "layer")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wav2Vec2Config:
    """Size of a wav2vec 2.0 encoder.

    Attributes:
      width: Token width D.
      num_layers: Transformer layers.
      num_heads: Attention heads; must divide `width`.
      mlp_width: Hidden width of the feed-forward layers.
      feature_norm: "group": a norm per channel over time after the first convolution alone;
        "layer": a norm over channels after every convolution.
      conv_bias: Whether the convolutions over samples have biases.
      pre_norm: Norms before attention and feed-forward layer, and one at the end (published
        as `do_stable_layer_norm`); otherwise norms after them, and one at the start.
      channels: Output channels of each convolution.
      taps: Kernel size of each convolution.
      strides: Stride of each convolution.
      position_taps: Kernel size of the positional convolution.
      position_groups: Groups of the positional convolution.
      epsilon: Added to the variance in norms.
      sample_rate: Samples per second of the sound.
      normalise: Whether the encoder was trained on sound of zero mean and unit variance.
    """

    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    feature_norm: str = "group"
    conv_bias: bool = False
    pre_norm: bool = False
    channels: tuple[int, ...] = (512,) * 7
    taps: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    position_taps: int = 128
    position_groups: int = 16
    epsilon: float = 1e-5
    sample_rate: int = 16000
    normalise: bool = True

    def __post_init__(self):
        if self.width % self.num_heads or self.width % self.position_groups:
            raise ValueError(
                f"width={self.width} must be a multiple of num_heads={self.num_heads} "
                f"and of position_groups={self.position_groups}."
            )
        if not len(self.channels) == len(self.taps) == len(self.strides):
            raise ValueError(
                "channels, taps and strides must be equally long, got "
                f"{len(self.channels)}, {len(self.taps)} and {len(self.strides)}."
            )
        if self.feature_norm not in FEATURE_NORMS:
            raise ValueError(
                f"feature_norm must be one of {FEATURE_NORMS}, got {self.feature_norm!r}."
            )

    @property
    def hop(self) -> int:
        """Samples from one hidden state to the next: 320, that is 20 ms."""
        return math.prod(self.strides)

    @property
    def field(self) -> int:
        """Samples that the convolutions turn into one hidden state: 400, that is 25 ms."""
        size = 1
        for taps, stride in zip(reversed(self.taps), reversed(self.strides)):
            size = (size - 1) * stride + taps
        return size

    @property
    def features(self) -> int:
        """Width U of a feature frame: the states of all layers side by side."""
        return self.num_layers * self.width

    def states(self, samples: int) -> int:
        """Hidden states of so many samples."""
        return max(0, (samples - self.field) // self.hop + 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """The sliding window of sound from which a stream computes one chunk.

    The encoder attends in both directions: each of its states depends on the whole window.
    A window is [past | chunk | future]. Features of the chunk are kept, with those of a few
    frames around it, which the video transformer's audio windows reach (`wan.audio.margins`).

    Attributes:
      timing: Clocks; they give the length of a chunk.
      past_frames: Pixel frames of sound before the chunk.
      future_frames: Pixel frames of sound after the chunk.
      before_frames: Frames before the chunk whose features are kept too.
      after_frames: Frames after the chunk whose features are kept too; fewer than
        `future_frames`.
    """

    timing: timing_lib.Timing = timing_lib.Timing()
    past_frames: int = 50
    future_frames: int = 5
    before_frames: int = 2
    after_frames: int = 2

    def __post_init__(self):
        if not 0 <= self.before_frames <= self.past_frames:
            raise ValueError(
                f"before_frames={self.before_frames} must be 0 ... past_frames="
                f"{self.past_frames}."
            )
        # The last frame of a window ends in the middle of a hidden state.
        if not 0 <= self.after_frames < self.future_frames:
            raise ValueError(
                f"after_frames={self.after_frames} must be 0 or more and below "
                f"future_frames={self.future_frames}."
            )

    @property
    def lookahead_s(self) -> float:
        """Seconds of sound after the end of a chunk that its features depend on.

        This is latency, on top of the chunk's own length: features of a chunk can be
        computed when that much sound after it has arrived, and they use all of it.
        """
        return self.future_frames / self.timing.fps

    @property
    def kept(self) -> int:
        """Frames whose features are kept."""
        return self.before_frames + self.timing.frames_per_chunk + self.after_frames

    @property
    def frames(self) -> int:
        """Pixel frames of a window."""
        return self.past_frames + self.timing.frames_per_chunk + self.future_frames

    @property
    def samples(self) -> int:
        """Samples of a window."""
        return self.frames * self.timing.samples_per_frame

    @property
    def future_samples(self) -> int:
        """Samples of the look-ahead."""
        return self.future_frames * self.timing.samples_per_frame


PUBLISHED = {
    # facebook/wav2vec2-base, -base-960h and the many models fine-tuned from them.
    "base": Wav2Vec2Config(width=768, num_layers=12, num_heads=12, mlp_width=3072),
    # facebook/wav2vec2-large and -large-960h: trained like base.
    "large": Wav2Vec2Config(width=1024, num_layers=24, num_heads=16, mlp_width=4096),
    # facebook/wav2vec2-large-lv60, -large-960h-lv60-self and -large-xlsr-53.
    "large-lv60": Wav2Vec2Config(
        width=1024, num_layers=24, num_heads=16, mlp_width=4096, feature_norm="layer",
        conv_bias=True, pre_norm=True,
    ),
}
