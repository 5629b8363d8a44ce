"""Finds and loads the parts of a preset of full size in one folder of weights.

The folder holds every part under its name, as launch/convert.py writes it (`transformer`,
`vae`, `image`, `audio`, `text`, `taehv`; a folder or a `.safetensors` file), or as it is
published. A file `preset.json` beside them tells sizes that differ from the preset's: weights
of reduced depth then run through the same code.
"""

from collections.abc import Callable
import dataclasses
import glob
import json
import os
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from tm_jax.models import presets
from tm_jax.models.clip import config as clip_config
from tm_jax.models.taehv import config as taehv_config
from tm_jax.models.umt5 import config as umt5_config
from tm_jax.models.wan_vae import config as vae_config
from tm_jax.models.wav2vec2 import config as wav2vec2_config
from tm_jax.weights import loading
from tm_jax.weights import parts

SETTINGS = "preset.json"
TOKENIZERS = ("tokenizer", os.path.join("google", "umt5-xxl"))
_OWN = ("height", "width", "dtype")
_BESIDE = ("vae", "taehv", "text", "image", "audio")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of all parts of a preset whose autoencoder is Wan's.

    Attributes:
      preset: The preset; its `dit` is the transformer.
      vae: Wan's autoencoder.
      taehv: The tiny autoencoder.
      text: Text encoder.
      image: Image encoder.
      audio: Speech encoder.
    """

    preset: presets.Preset
    vae: vae_config.WanVAEConfig = vae_config.PRESETS["wan-2.1"]
    taehv: taehv_config.TAEHVConfig = taehv_config.PRESETS["taew-2.1"]
    text: umt5_config.UMT5Config = umt5_config.PUBLISHED["umt5-xxl"]
    image: clip_config.CLIPConfig = clip_config.PUBLISHED["vit-h-14"]
    audio: wav2vec2_config.Wav2Vec2Config = wav2vec2_config.PUBLISHED["base"]

    def __post_init__(self):
        preset, dit = self.preset, self.preset.dit
        if preset.vae is not None:
            raise ValueError(f"preset {preset.name} has an autoencoder of its own.")
        pairs = [
            ("transformer.latent_channels", dit.latent_channels, self.vae.latent_channels),
            ("taehv.latent_channels", self.taehv.latent_channels, self.vae.latent_channels),
            ("spatial_stride", preset.spatial_stride, self.vae.spatial_stride),
            ("frames_per_latent", preset.timing.frames_per_latent, self.vae.frames_per_latent),
            ("transformer.audio_feature_width", dit.audio_feature_width, self.audio.features),
        ]
        if dit.text_width is not None:
            pairs.append(("transformer.text_width", dit.text_width, self.text.width))
        if dit.image_width is not None:
            pairs.append(("transformer.image_width", dit.image_width, self.image.width))
            pairs.append(("transformer.image_length", dit.image_length, self.image.tokens))
        for name, got, wanted in pairs:
            if got != wanted:
                raise ValueError(f"{name} is {got}, but the part beside it has {wanted}.")
        mask = preset.timing.frames_per_latent
        if dit.condition_channels not in (0, mask + dit.latent_channels):
            raise ValueError(
                "transformer.condition_channels must be 0 or "
                f"{mask + dit.latent_channels}, got {dit.condition_channels}."
            )
        step = preset.spatial_stride * dit.patch
        if preset.height % step or preset.width % step:
            raise ValueError(
                f"height and width must be multiples of {step}, got "
                f"{preset.height}x{preset.width}."
            )

    def part(self, name: str) -> parts.Part:
        """The tables of one part."""
        if name == "transformer":
            return parts.transformer(self.preset)
        return getattr(parts, name)(getattr(self, name))


def sizes(preset: str, folder: str) -> Sizes:
    """Sizes of a preset, changed by the `preset.json` of a folder if there is one.

    Raises:
      ValueError: The file is of another preset, or names what does not exist.
      FileNotFoundError: No such folder.
    """
    base = presets.get(preset)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"--weights: {folder} is not a folder.")
    path = os.path.join(folder, SETTINGS)
    if not os.path.isfile(path):
        return Sizes(preset=base)
    try:
        with open(path, encoding="utf-8") as stream:
            changes = json.load(stream)
        if changes.pop("preset", preset) != preset:
            raise ValueError(f"its sizes belong to another preset than {preset}.")
        dit = _replace(base.dit, changes.pop("transformer", {}), "transformer")
        own = {name: changes.pop(name) for name in _OWN if name in changes}
        return Sizes(
            preset=dataclasses.replace(base, dit=dit, **own),
            **{name: _part(name, changes[name]) for name in changes},
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from error


def write_sizes(sizes: Sizes, folder: str) -> None:
    """Writes the `preset.json` that `sizes` reads."""
    preset = sizes.preset
    changes = {"preset": preset.name, **{name: getattr(preset, name) for name in _OWN}}
    changes["transformer"] = dataclasses.asdict(preset.dit)
    for name in _BESIDE:
        changes[name] = dataclasses.asdict(getattr(sizes, name))
    with open(os.path.join(folder, SETTINGS), "w", encoding="utf-8") as stream:
        json.dump(changes, stream, indent=1)


def _part(name: str, changes: dict):
    if name not in _BESIDE:
        known = ", ".join((*_OWN, "transformer", *_BESIDE))
        raise ValueError(f"there is no {name!r}; choose from {known}.")
    return _replace(getattr(Sizes, name), changes, name)  # The default of the field.


def _replace(config: Any, changes: dict, name: str):
    """A dataclass with other values; unknown names are an error that lists the known ones."""
    known = [field.name for field in dataclasses.fields(config)]
    unknown = sorted(set(changes) - set(known))
    if unknown:
        raise ValueError(f"{name} has no {unknown[0]!r}; choose from {', '.join(known)}.")
    fitting = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}
    return dataclasses.replace(config, **fitting)


def find(folder: str, name: str, part: parts.Part) -> str | None:
    """Where a part lies in a folder; None if it is not there."""
    for place in (name, f"{name}.safetensors", *part.places):
        path = os.path.join(folder, place)
        if os.path.exists(path):
            return path
    # The original layout keeps the transformer's files beside those of the other parts.
    pattern = os.path.join(glob.escape(folder), "diffusion_pytorch_model*.safetensors")
    return folder if name == "transformer" and glob.glob(pattern) else None


def require(sizes: Sizes, folder: str, names: tuple[str, ...]) -> None:
    """Raises FileNotFoundError for the first part that a folder lacks."""
    for name in names:
        if find(folder, name, sizes.part(name)) is None:
            raise FileNotFoundError(
                f"--weights: {folder} has no {name}; make it with `python launch/convert.py "
                f"--part={name} --preset={sizes.preset.name} --source=PUBLISHED "
                f"--out={os.path.join(folder, name)}`."
            )


def load(sizes: Sizes, folder: str, name: str, mesh: Mesh, dtype=None) -> dict:
    """Parameters of one part, each placed directly where the rules table says.

    Raises:
      FileNotFoundError: The folder has no such part.
      ValueError: The files do not fit the sizes.
    """
    require(sizes, folder, (name,))
    part = sizes.part(name)
    path = find(folder, name, part)
    return loading.load_part(part, path, mesh, dtype=None if dtype is None else jnp.dtype(dtype))


def tokenizer(folder: str, length: int) -> Callable:
    """The tokenizer of the text encoder.

    Raises:
      FileNotFoundError: The folder has none.
      ValueError: It cannot be read, or a package for it is missing.
    """
    from tm_jax.media import text

    places = [os.path.join(folder, place) for place in TOKENIZERS]
    found = [place for place in places if os.path.isdir(place)]
    if not found:
        raise FileNotFoundError(
            f"--weights: {folder} has a text encoder but no folder {TOKENIZERS[0]}; copy the "
            "checkpoint's tokenizer there (google/umt5-xxl of a Wan2.1 download)."
        )
    try:
        return text.Tokenizer(found[0], length)
    except ModuleNotFoundError as error:
        raise ValueError(f"prompts need the Python package {error.name}; install it.") from error
