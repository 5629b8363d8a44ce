"""Finds and loads the parts of a preset in one folder of weights.

The folder holds every part under its name, as launch/convert.py writes it (`transformer`,
`vae`, `image`, `audio`, `text`, `taehv`; a folder or a `.safetensors` file), or as it is
published. A file `preset.json` beside them states sizes that differ from the preset's: weights
of reduced depth then run through the same code.
"""

from collections.abc import Callable
import glob
import json
import os

import jax.numpy as jnp
from jax.sharding import Mesh
import numpy.typing as npt

from tm_jax.checkpoints import loading
from tm_jax.checkpoints import parts
from tm_jax.configs import presets

SETTINGS = "preset.json"
TOKENIZERS = ("tokenizer", os.path.join("google", "umt5-xxl"))


def preset_of(name: str, folder: str) -> presets.Preset:
    """A preset, with the sizes of a folder's `preset.json` if there is one.

    Raises:
      ValueError: The file is of another preset, or names what does not exist.
      FileNotFoundError: No such folder.
    """
    base = presets.get(name)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"--weights: {folder} is not a folder.")
    path = os.path.join(folder, SETTINGS)
    if not os.path.isfile(path):
        return base
    try:
        with open(path, encoding="utf-8") as stream:
            return presets.with_settings(base, json.load(stream))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from error


def write_settings(preset: presets.Preset, folder: str) -> None:
    """Writes the `preset.json` that `preset_of` reads."""
    with open(os.path.join(folder, SETTINGS), "w", encoding="utf-8") as stream:
        json.dump(presets.settings(preset), stream, indent=1)


def find(folder: str, name: str, part: parts.Part) -> str | None:
    """Where a part lies in a folder; None if it is not there."""
    for place in (name, f"{name}.safetensors", *part.places):
        path = os.path.join(folder, place)
        if os.path.exists(path):
            return path
    # The original layout keeps the transformer's files beside those of the other parts.
    pattern = os.path.join(glob.escape(folder), "diffusion_pytorch_model*.safetensors")
    return folder if name == "transformer" and glob.glob(pattern) else None


def require(preset: presets.Preset, folder: str, names: tuple[str, ...]) -> None:
    """Raises FileNotFoundError for the first part that a folder lacks."""
    for name in names:
        if find(folder, name, parts.of_preset(preset, name)) is None:
            raise FileNotFoundError(
                f"--weights: {folder} has no {name}; make it with `python launch/convert.py "
                f"--part={name} --preset={preset.name} --source=PUBLISHED "
                f"--out={os.path.join(folder, name)}`."
            )


def load(
    preset: presets.Preset, folder: str, name: str, mesh: Mesh, dtype: npt.DTypeLike | None = None
) -> dict:
    """Parameters of one part, each placed directly where the rules table says.

    Raises:
      FileNotFoundError: The folder has no such part.
      ValueError: The files do not fit the sizes.
    """
    require(preset, folder, (name,))
    part = parts.of_preset(preset, name)
    path = find(folder, name, part)
    assert path is not None  # Required above.
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
