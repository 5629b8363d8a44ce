"""Sizes of the motion model."""

import dataclasses

# Drawn into the picture by the transformer, which is conditioned on them.
EXPRESSION = ("blink_left", "blink_right", "gaze_x", "gaze_y", "brow", "smile")
# Applied to the picture by `pose.warp`.
POSE = ("yaw", "pitch", "roll", "head_x", "head_y", "breath")
COLUMNS = EXPRESSION + POSE
LOUDNESS_DB = 80.0  # Loudness 0 of the other party is this far below full scale, 1 is there.
HEARD = 2  # Features of the other party's voice per pixel frame, of `heard.py`.


@dataclasses.dataclass(frozen=True, kw_only=True)
class MotionConfig:
    """Size of the motion model.

    Attributes:
      width: Hidden width.
      mlp_width: Width inside a residual block.
      layers: Residual blocks.
      history: Latent frames of past motion in its input.
      heard: Latent frames before its own whose features of the other party it reads.
      steps: Euler steps of its sampler.
      frames_per_latent: Pixel frames made at once.
    """

    width: int = 256
    mlp_width: int = 512
    layers: int = 3
    history: int = 10
    heard: int = 8
    steps: int = 8
    frames_per_latent: int = 4

    @property
    def history_frames(self) -> int:
        """Pixel frames of past motion."""
        return self.history * self.frames_per_latent

    @property
    def heard_width(self) -> int:
        """Width of the features of the other party's voice."""
        return (self.heard + 1) * self.frames_per_latent * HEARD
