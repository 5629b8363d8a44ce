"""Sizes of the small speech encoder."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioEncoderConfig:
    """Log-mel front end and a convolutional encoder at the video's frame rate.

    Attributes:
      mels: Mel bands.
      width: Channels of the hidden layers.
      features: Width U of a feature frame.
      dilations: Dilation of each causal three-tap layer after the first.
      past: Frames that the first layer reads before the current one.
      future: Frames that the first layer reads after the current one.
      outputs: What features predict in training: columns of a frame, such as logits of its
        phones, and voice activity.
      recalled: Earlier frames whose columns a feature predicts besides its own: which stop
        it was is only heard when it opens, and the transformer makes several frames together.
    """

    mels: int = 64
    width: int = 192
    features: int = 32
    dilations: tuple[int, ...] = (1, 2, 4, 8)
    past: int = 3
    future: int = 1
    outputs: int = 7
    recalled: int = 2

    @property
    def history(self) -> int:
        """Frames before the current one that a feature depends on."""
        return self.past + 2 * sum(self.dilations)
