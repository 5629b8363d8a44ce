"""The table of presets: which components a model has, and their sizes."""

import dataclasses
import math
import pathlib
from typing import Any

from tm_jax.core import timing as timing_lib
from tm_jax.diffusion import flow_matching
from tm_jax.models.audio.causal import config as audio_config
from tm_jax.models.audio.wav2vec2 import config as wav2vec2_config
from tm_jax.models.dit import conditioning as conditioning_lib
from tm_jax.models.dit import config as dit_config
from tm_jax.models.image import config as clip_config
from tm_jax.models.text import config as umt5_config
from tm_jax.models.vae.small import config as small_vae_config
from tm_jax.models.vae.tiny import config as taehv_config
from tm_jax.models.vae.wan import config as wan_vae_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """Few-step sampler and cache of the student.

    Attributes:
      num_steps: Steps per chunk; the paper's student takes two.
      policy: Cache policy, "clean" or "per_step".
      temperature: Factor of the sampler's noise. At 1 mouths vary as much as people's do with
        the same sound; below, they follow the sound more closely.
      sink: Whether chunks attend to the reference picture's keys and values.
      positions: Where the sink stands in time (`dit_config.View`).
      history: Chunks before the current one that it attends to.
      keep: How many of them are the first ones of the stream for ever.
    """

    num_steps: int = 2
    policy: str = "clean"
    temperature: float = 1.0
    sink: bool = True
    positions: str = "window"
    history: int = 1
    keep: int = 0

    def __post_init__(self):
        if self.policy not in ("clean", "per_step"):
            raise ValueError(f"policy must be clean or per_step, got {self.policy!r}.")
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {self.num_steps}.")
        if not 0 <= self.temperature <= 1:
            raise ValueError(f"temperature must be in 0..1, got {self.temperature}.")
        assert self.view  # Refuses what does not exist.

    @property
    def view(self) -> dit_config.View:
        """The window."""
        return dit_config.View(
            sink=self.sink, positions=self.positions, history=self.history, keep=self.keep
        )

    @property
    def facts(self) -> dict[str, str]:
        """Metadata of a weight file of such a student."""
        facts = {
            "num_steps": str(self.num_steps), "policy": self.policy,
            "temperature": f"{self.temperature:g}",
        }
        if not self.sink:
            facts["sink"] = "no"
        if self.positions != "window":
            facts["positions"] = self.positions
        for name in ("history", "keep"):
            if getattr(self, name) != getattr(StudentConfig, name):
                facts[name] = str(getattr(self, name))
        return facts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """Everything that defines one size of the system: all components with their sizes.

    Attributes:
      name: Name in the table.
      height: Height of the video in pixels.
      width: Width of the video in pixels.
      dit: Video transformer.
      vae: Video autoencoder.
      audio: Speech encoder.
      taehv: A faster decoder of the same latents; None without.
      text: Text encoder; None where the transformer takes no text.
      image: Image encoder; None where the transformer takes none of its tokens.
      conditioning: What the conditioning channels hold, one of `conditioning.KINDS`.
      teacher_latents: Latents of a clip of the teacher, the picture's included.
      audio_future_frames: Frames of sound after a chunk that a speech encoder which attends
        in both directions is given: its look-ahead. A causal one has its own.
      timing: Clocks.
      schedule: Noise levels.
      student: Few-step sampler.
      dtype: Compute dtype of the transformer. On a CPU bfloat16 is slower than float32.
    """

    name: str
    height: int
    width: int
    dit: dit_config.DiTConfig
    vae: wan_vae_config.WanVAEConfig | small_vae_config.SmallVAEConfig
    audio: wav2vec2_config.Wav2Vec2Config | audio_config.AudioEncoderConfig
    taehv: taehv_config.TAEHVConfig | None = None
    text: umt5_config.UMT5Config | None = None
    image: clip_config.CLIPConfig | None = None
    conditioning: str = "none"
    teacher_latents: int = 21
    audio_future_frames: int = 5
    timing: timing_lib.Timing = timing_lib.Timing()
    schedule: flow_matching.Schedule = flow_matching.Schedule()
    student: StudentConfig = StudentConfig()
    dtype: str = "float32"

    def __post_init__(self):
        dit, vae = self.dit, self.vae
        pairs: list[tuple[str, int | None, int | None]] = [
            ("dit.latent_channels", dit.latent_channels, vae.latent_channels),
            ("timing.frames_per_latent", self.timing.frames_per_latent, vae.frames_per_latent),
            ("dit.audio_feature_width", dit.audio_feature_width, self.audio.features),
        ]
        if self.taehv is not None:
            pairs.append(("taehv.latent_channels", self.taehv.latent_channels, vae.latent_channels))
        if self.text is not None:
            pairs.append(("dit.text_width", dit.text_width, self.text.width))
        if self.image is not None:
            pairs.append(("dit.image_width", dit.image_width, self.image.width))
            pairs.append(("dit.image_length", dit.image_length, self.image.tokens))
        pairs.append(("dit.condition_channels", dit.condition_channels, self._channels))
        for name, got, wanted in pairs:
            if got != wanted:
                raise ValueError(
                    f"{self.name}: {name} is {got}, but the component beside it has {wanted}."
                )
        for name in ("text", "image"):
            if (getattr(self, name) is None) != (getattr(dit, f"{name}_width") is None):
                raise ValueError(
                    f"{self.name}: dit.{name}_width is {getattr(dit, f'{name}_width')}, but "
                    f"{name} is {getattr(self, name)}: both or none."
                )
        step = self.spatial_stride * dit.patch
        if self.height % step or self.width % step:
            raise ValueError(
                f"height and width must be multiples of {step}, got "
                f"{self.height}x{self.width}."
            )

    @property
    def _channels(self) -> int:
        """Conditioning channels that `conditioning` makes."""
        if self.conditioning == "first_frame":
            return conditioning_lib.MASK_CHANNELS + self.vae.latent_channels
        if self.conditioning == "reference":
            if not isinstance(self.vae, small_vae_config.SmallVAEConfig):
                raise ValueError(
                    f"{self.name}: conditioning reference is made by the small autoencoder, got "
                    f"{type(self.vae).__name__}."
                )
            return self.vae.condition_channels
        if self.conditioning == "none":
            return 0
        raise ValueError(
            f"conditioning must be one of {', '.join(conditioning_lib.KINDS)}, got "
            f"{self.conditioning!r}."
        )

    @property
    def spatial_stride(self) -> int:
        """Pixels per latent along height and width."""
        return self.vae.spatial_stride

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one latent frame."""
        stride = self.spatial_stride
        return self.height // stride, self.width // stride, self.dit.latent_channels

    @property
    def tokens(self) -> int:
        """Tokens P of one latent frame."""
        height, width, _ = self.latent_shape
        return (height // self.dit.patch) * (width // self.dit.patch)

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Noise levels of the student's steps."""
        return self.schedule.steps(self.student.num_steps)

    def with_execution(self, **changes: Any) -> "Preset":
        """This preset with the same transformer computed in another way.

        Args:
          **changes: `attention` or `matrices` of `dit_config.DiTConfig`; None keeps it.

        Raises:
          ValueError: No such way.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        return dataclasses.replace(self, dit=dataclasses.replace(self.dit, **given))

    def with_student(self, **changes: Any) -> "Preset":
        """This preset with another few-step sampler; None keeps what it has.

        Args:
          **changes: Fields of `StudentConfig`.

        Raises:
          ValueError: A value that the student cannot have.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        return dataclasses.replace(self, student=dataclasses.replace(self.student, **given))

    @property
    def lookahead_s(self) -> float:
        """Seconds of sound after a chunk that must be known to make it."""
        from tm_jax.configs import components

        return components.audio_encoder(self).after / self.timing.sample_rate


_UMT5 = umt5_config.PUBLISHED["umt5-xxl"]
_CLIP = clip_config.PUBLISHED["vit-h-14"]
_WAV2VEC2 = wav2vec2_config.PUBLISHED["base"]

PRESETS = {
    # Unit tests: random weights, seconds to compile. Every part of the paper's model in
    # miniature, so that tests of the pipeline cover its structure.
    "pico": Preset(
        name="pico", height=64, width=64, conditioning="first_frame",
        dit=dit_config.DiTConfig(
            width=32, num_heads=4, num_layers=2, mlp_width=64,
            frequency_width=32, text_width=24, text_length=6, image_width=20, image_length=5,
            audio_feature_width=32, audio_window=6, audio_hidden=32, audio_tokens=4,
            audio_width=16,
        ),
        vae=wan_vae_config.PRESETS["pico"], taehv=taehv_config.PRESETS["pico"],
        audio=wav2vec2_config.Wav2Vec2Config(
            width=16, num_layers=2, num_heads=2, mlp_width=32, channels=(8,) * 7,
            position_taps=16, position_groups=4,
        ),
        text=umt5_config.UMT5Config(
            vocab=64, width=24, num_layers=1, num_heads=2, head_width=12, mlp_width=32
        ),
        image=clip_config.CLIPConfig(
            width=20, num_layers=1, num_heads=2, mlp_width=32, picture=28, patch=14
        ),
    ),
    # The embedded default, the paper's model made small: experiments/nano/train.sh trains it from
    # videos with sound, and its weights come with the package.
    "nano": Preset(
        name="nano", height=256, width=256, conditioning="reference", teacher_latents=7,
        dit=dit_config.DiTConfig(
            width=256, num_heads=4, num_layers=7, mlp_width=1024, patch=1,
            latent_channels=48, condition_channels=48, text_width=None, image_width=None,
            audio_feature_width=64, audio_window=6, audio_hidden=256, audio_tokens=4,
            audio_width=128, partner_audio=True, clean_std=1.0,
        ),
        # Fewer numbers a clip than Wan's latents: less noise hides as much.
        schedule=flow_matching.Schedule(shift=3.0),
        vae=small_vae_config.PRESETS["nano"],
        audio=audio_config.AudioEncoderConfig(features=64, outputs=92),
    ),
    # Sizes of the published Wan2.1-T2V-1.3B, plus audio.
    "wan-1.3b": Preset(
        name="wan-1.3b", height=512, width=512, dtype="bfloat16",
        vae=wan_vae_config.PRESETS["wan-2.1"], taehv=taehv_config.PRESETS["taew-2.1"],
        audio=_WAV2VEC2, text=_UMT5,
        dit=dit_config.DiTConfig(
            width=1536, num_heads=12, num_layers=30, mlp_width=8960,
            condition_channels=0, image_width=None,
            audio_hidden=1024, audio_width=768,
        ),
    ),
    # The paper: Wan2.1-I2V-14B plus an audio projection of about 1.2 B and audio keys and
    # values in every layer (about 0.4 B).
    "tm-18b": Preset(
        name="tm-18b", height=512, width=512, dtype="bfloat16", conditioning="first_frame",
        vae=wan_vae_config.PRESETS["wan-2.1"], taehv=taehv_config.PRESETS["taew-2.1"],
        audio=_WAV2VEC2, text=_UMT5, image=_CLIP,
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


def with_aspect(preset: Preset, aspect: float) -> Preset:
    """A preset with another aspect ratio and at most its area.

    Raises:
      ValueError: The aspect ratio is not between 1:4 and 4:1.
    """
    if not 0.25 <= aspect <= 4:
        raise ValueError(f"aspect must be between 1:4 and 4:1, got {aspect:g}.")
    step, area = preset.spatial_stride * preset.dit.patch, preset.height * preset.width
    widths = range(step, area // step + 1, step)
    pairs = [(width, area // (width * step) * step) for width in widths]
    fitting = [(width, height) for width, height in pairs if height]
    width, height = min(fitting, key=lambda size: abs(math.log(size[0] / size[1] / aspect)))
    return dataclasses.replace(preset, height=height, width=width)


def shipped(name: str) -> str:
    """Folder of the weights that come with the package.

    Raises:
      FileNotFoundError: There are none of this preset.
    """
    folder = pathlib.Path(__file__).parents[1] / "assets" / get(name).name
    if not (folder / "transformer.safetensors").is_file():
        raise FileNotFoundError(
            f"preset {name} comes without weights; name a folder with --weights. "
            "`python launch/convert.py` makes one of published weights, part by part; "
            "`python launch/train.py --export` of trained ones."
        )
    return str(folder)


_BESIDE = ("vae", "taehv", "text", "image", "audio", "timing", "schedule", "student")
_OWN = (
    "height", "width", "dtype", "conditioning", "teacher_latents", "audio_future_frames"
)


def settings(preset: Preset) -> dict:
    """All sizes of a preset as JSON, which `with_settings` reads."""
    found = {"preset": preset.name, **{name: getattr(preset, name) for name in _OWN}}
    for name in ("transformer", *_BESIDE):
        part = getattr(preset, _field(name))
        found[name] = None if part is None else dataclasses.asdict(part)
    return found


def with_settings(preset: Preset, changes: dict) -> Preset:
    """A preset with other sizes.

    Args:
      preset: Preset of the table.
      changes: Some of what `settings` gives.

    Raises:
      ValueError: They belong to another preset, name what does not exist, or do not fit.
    """
    changes = dict(changes)
    if changes.pop("preset", preset.name) != preset.name:
        raise ValueError(f"its sizes belong to another preset than {preset.name}.")
    new = {}
    for name, value in changes.items():
        if name in _OWN:
            new[name] = value
        elif name not in ("transformer", *_BESIDE):
            known = ", ".join((*_OWN, "transformer", *_BESIDE))
            raise ValueError(f"there is no {name!r}; choose from {known}.")
        else:
            base = getattr(preset, _field(name))
            new[_field(name)] = base if value is None else _replace(base, value, name)
    return dataclasses.replace(preset, **new)


def _field(part: str) -> str:
    """The field of a preset that holds the sizes of a part."""
    return "dit" if part == "transformer" else part


def _replace(config, changes: dict, name: str):
    """A dataclass with other values; unknown names are an error that lists the known ones."""
    if config is None:
        raise ValueError(f"the preset has no {name}.")
    known = [field.name for field in dataclasses.fields(config)]
    unknown = sorted(set(changes) - set(known))
    if unknown:
        raise ValueError(f"{name} has no {unknown[0]!r}; choose from {', '.join(known)}.")
    fitting = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}
    return dataclasses.replace(config, **fitting)
