"""The table of presets: one implementation, four sizes."""

import dataclasses

from tm_jax.core import timing as timing_lib
from tm_jax.diffusion import flow
from tm_jax.models.audio_encoder import config as audio_config
from tm_jax.models.motion import config as motion_config
from tm_jax.models.vae import config as vae_config
from tm_jax.models.wan import config as dit_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """Few-step sampler and cache of the student.

    Attributes:
      num_steps: Steps per chunk; the paper's student takes two.
      policy: Cache policy, "clean" or "per_step".
      temperature: Factor of the sampler's noise. At 1 mouths vary as much as people's do with
        the same sound; below, they follow the sound more closely.
      sink: Whether chunks see the reference picture's keys and values.
      positions: Where the sink stands in time, "window" or "absolute" (`dit_config.View`).
    """

    num_steps: int = 2
    policy: str = "clean"
    temperature: float = 1.0
    sink: bool = True
    positions: str = "window"

    def __post_init__(self):
        if self.policy not in ("clean", "per_step"):
            raise ValueError(f"policy must be clean or per_step, got {self.policy!r}.")
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {self.num_steps}.")
        if not 0 <= self.temperature <= 1:
            raise ValueError(f"temperature must be in 0..1, got {self.temperature}.")
        dit_config.View(positions=self.positions)  # Refuses what does not exist.

    @property
    def view(self) -> dit_config.View:
        """What chunks see of the sink."""
        return dit_config.View(sink=self.sink, positions=self.positions)

    @property
    def facts(self) -> dict[str, str]:
        """What a weight file says of a student that was trained so; `Preset.trained` reads it."""
        facts = {"num_steps": str(self.num_steps), "policy": self.policy}
        if not self.sink:
            facts["sink"] = "no"
        if self.positions != "window":
            facts["positions"] = self.positions
        return facts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """Everything that defines one size of the system.

    Attributes:
      name: Name in the table.
      height: Height of the video in pixels.
      width: Width of the video in pixels.
      dit: Video transformer.
      vae: Own small autoencoder; None where the Wan VAE is used.
      audio: Own small speech encoder; None where wav2vec2 is used.
      motion: Own motion model; None where the transformer draws all motion.
      opening: Openings of the mouth that latents of `vae` tell and what its painter is given
        for them (`autoencoder.respond`), by `experiments/nano/opening.py`.
      spatial_stride: Pixels per latent.
      timing: Clocks.
      schedule: Noise levels.
      student: Few-step sampler.
      dtype: Compute dtype of the transformer. On a CPU bfloat16 is slower than float32.
    """

    name: str
    height: int
    width: int
    dit: dit_config.DiTConfig
    vae: vae_config.VAEConfig | None = None
    audio: audio_config.AudioEncoderConfig | None = None
    motion: motion_config.MotionConfig | None = None
    opening: tuple[tuple[float, float], ...] = ((0.0, 0.0), (1.0, 1.0))
    spatial_stride: int = 16
    timing: timing_lib.Timing = timing_lib.Timing()
    schedule: flow.Schedule = flow.Schedule()
    student: StudentConfig = StudentConfig()
    dtype: str = "float32"

    @property
    def crop(self) -> int | None:
        """Side in pixels of the aligned face that is generated; None for the whole picture."""
        return self.vae and self.vae.side

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one latent frame."""
        stride = self.spatial_stride
        height, width = (self.crop or self.height), (self.crop or self.width)
        return height // stride, width // stride, self.dit.latent_channels

    @property
    def tokens(self) -> int:
        """Tokens P of one latent frame."""
        height, width, _ = self.latent_shape
        return (height // self.dit.patch) * (width // self.dit.patch)

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Noise levels of the student's steps."""
        return self.schedule.steps(self.student.num_steps)

    def with_student(
        self, num_steps: int | None = None, policy: str | None = None,
        sink: bool | None = None, positions: str | None = None,
    ):
        """This preset with another few-step sampler; None keeps what it has.

        Raises:
          ValueError: No such policy, positions or number of steps.
        """
        changes = {
            "num_steps": num_steps, "policy": policy, "sink": sink, "positions": positions
        }
        given = {name: value for name, value in changes.items() if value is not None}
        return dataclasses.replace(self, student=dataclasses.replace(self.student, **given))

    def trained(self, facts: dict[str, str]):
        """This preset with the sampler that weights were trained for.

        Args:
          facts: What their file says, `StudentConfig.facts` among it; what is not said stays.

        Raises:
          ValueError: A sampler that does not exist.
        """
        steps = facts.get("num_steps")
        if steps is not None and not steps.isdigit():
            raise ValueError(f"num_steps must be a number, got {steps!r}.")
        return self.with_student(
            steps and int(steps), facts.get("policy"),
            False if facts.get("sink") == "no" else None, facts.get("positions"),
        )

    @property
    def lookahead_s(self) -> float:
        """Seconds of sound after a frame that must be known to draw it.

        Where wav2vec2 is used, that of its audio windows alone: the encoder's own comes on
        top (`models/wav2vec2/config.py`).
        """
        from tm_jax.models.wan import audio as dit_audio

        _, after = dit_audio.margins(self.dit.audio_window, self.timing)
        if self.audio is None:
            return after / self.timing.fps
        # The 25 ms analysis window reaches 7.5 ms past the last hop.
        return (after + self.audio.future) / self.timing.fps + 0.0075


PRESETS = {
    # Unit tests: random weights, seconds to compile. Has text and image inputs, so that
    # tests cover every branch of the transformer.
    "pico": Preset(
        name="pico", height=64, width=64,
        dit=dit_config.DiTConfig(
            width=32, num_heads=2, num_layers=2, mlp_width=64,
            latent_channels=24, condition_channels=72, expression_channels=24, frequency_width=32,
            text_width=24, text_length=6, image_width=20, image_length=5,
            audio_feature_width=16, audio_window=6, audio_hidden=32, audio_tokens=4,
            audio_width=16, reference_std=0.5,
        ),
        vae=vae_config.VAEConfig(rows=4, look_channels=8, widths=(8, 8, 12)),
        audio=audio_config.AudioEncoderConfig(
            mels=20, width=16, features=16, dilations=(1, 2, 4)
        ),
        motion=motion_config.MotionConfig(
            width=16, mlp_width=16, layers=1, history=2, steps=2
        ),
    ),
    # The embedded default: trained by this repository, weights shipped.
    "nano": Preset(
        name="nano", height=256, width=256,
        dit=dit_config.DiTConfig(
            width=256, num_heads=4, num_layers=7, mlp_width=1024,
            latent_channels=24, condition_channels=72, expression_channels=24,
            text_width=None, image_width=None,
            audio_feature_width=32, audio_window=6, audio_hidden=256, audio_tokens=4,
            audio_width=128, reference_std=1.0,
        ),
        vae=vae_config.VAEConfig(rows=8, look_channels=32),
        audio=audio_config.AudioEncoderConfig(),
        motion=motion_config.MotionConfig(),
        opening=(
            (0.0, 0.0), (0.11, 0.33), (0.23, 0.45), (0.35, 0.54), (0.6, 0.78), (0.83, 1.0),
            (1.11, 1.28), (1.49, 1.66), (1.76, 1.9), (2.66, 2.67),
        ),
        student=StudentConfig(temperature=0.2),
    ),
    # Sizes of the published Wan2.1-T2V-1.3B, plus audio.
    "wan-1.3b": Preset(
        name="wan-1.3b", height=512, width=512, spatial_stride=8, dtype="bfloat16",
        dit=dit_config.DiTConfig(
            width=1536, num_heads=12, num_layers=30, mlp_width=8960,
            condition_channels=0, image_width=None,
            audio_hidden=1024, audio_width=768,
        ),
    ),
    # The paper: Wan2.1-I2V-14B plus an audio projection of about 1.2 B and audio keys and
    # values in every layer (about 0.4 B).
    "tm-18b": Preset(
        name="tm-18b", height=512, width=512, spatial_stride=8, dtype="bfloat16",
        dit=dit_config.DiTConfig(
            width=5120, num_heads=40, num_layers=40, mlp_width=13824
        ),
    ),
}


def get(name: str) -> Preset:
    """A preset by name.

    Raises:
      ValueError: Unknown name; the message lists the valid ones.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]
