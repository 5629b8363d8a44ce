"""Every part of the system that has published weights: its tables, sizes and file names.

A part's tables and modules are imported when they are asked for. Parts of equal
size are one object: tracing the shapes of the largest takes seconds, and a loaded pipeline asks
for every part several times.
"""

from collections.abc import Callable
import dataclasses
import functools
import os

import jax
import jax.numpy as jnp

from tm_jax.checkpoints import mapping
from tm_jax.configs import presets
from tm_jax.models.audio.causal import config as audio_config
from tm_jax.models.audio.wav2vec2 import config as wav2vec2_config
from tm_jax.models.dit import config as dit_config
from tm_jax.models.image import config as clip_config
from tm_jax.models.text import config as umt5_config
from tm_jax.models.vae.small import config as small_vae_config
from tm_jax.models.vae.tiny import config as taehv_config
from tm_jax.models.vae.wan import config as vae_config
from tm_jax.nn import quantization

OURS = ("ours", "orbax")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One model whose weights can be converted.

    Attributes:
      name: Name of the part and its size.
      layouts: Published layouts.
      boxed: Tree of parameter shapes, with logical axis names where the model has them.
      rows: Layout to table.
      init: Random key to boxed parameters; gives the values of what no file fills.
      is_own: Whether a parameter has no published counterpart.
      ignore: Layout to patterns of published tensors that carry nothing.
      places: Where the part lies in a folder of all parts, as it is published.
      stems: Layout to the beginning of published file names.
      settings: Layout to the content of `config.json`, None where there is none.
    """

    name: str
    layouts: tuple[str, ...]
    boxed: dict
    rows: Callable[[str], list[mapping.Row]]
    init: Callable
    is_own: Callable[[str], bool] = lambda path: False
    ignore: Callable[[str], tuple[str, ...]] = lambda layout: ()
    places: tuple[str, ...] = ()
    stems: Callable[[str], str] = lambda layout: "model"
    settings: Callable[[str], dict | None] = lambda layout: None


def locate(path: str, part: Part) -> str:
    """The file or folder of a part, given that or a folder of all parts."""
    for place in part.places:
        inside = os.path.join(path, place)
        if os.path.exists(inside):
            return inside
    return path


def transformer(preset: presets.Preset) -> Part:
    """The video transformer in the size of a preset."""
    full = dataclasses.replace(preset.dit, matrices=quantization.FULL)
    return transformer_of(full, preset.name)


@functools.cache
def transformer_of(c: dit_config.DiTConfig, name: str) -> Part:
    """The video transformer in any size."""
    from tm_jax.checkpoints import wan
    from tm_jax.models.dit import transformer as dit

    model = dit.DiT(c)

    def init(key):
        return model.init(key, method=dit.touch)["params"]

    return Part(
        name=f"transformer of {name}", layouts=wan.LAYOUTS,
        boxed=jax.eval_shape(init, jax.random.key(0)),
        rows=lambda layout: wan.rows(c, layout), init=init, is_own=wan.is_own,
        ignore=wan.IGNORED.__getitem__, places=("transformer",),
        stems=lambda layout: "diffusion_pytorch_model",
        settings=lambda layout: wan.settings(c, layout),
    )


@functools.cache
def vae(
    config: vae_config.WanVAEConfig | small_vae_config.SmallVAEConfig, name: str = "vae"
) -> Part:
    """The video autoencoder of one size: Wan's, or the small one, which is ours alone."""
    if isinstance(config, small_vae_config.SmallVAEConfig):
        from tm_jax.models.vae.small import network

        return _own(name, lambda key: network.init(config, key))
    from tm_jax.checkpoints import wan_vae
    from tm_jax.models.vae.wan import autoencoder

    model = autoencoder.WanVAE(config)
    return _part(
        wan_vae, config, name,
        init=lambda key: model.init(key, jnp.zeros((1, 1, 8, 8, 3)))["params"],
        places=("vae", "Wan2.1_VAE.pth"), stem="diffusion_pytorch_model",
    )


@functools.cache
def taehv(config: taehv_config.TAEHVConfig, name: str = "taehv") -> Part:
    """The tiny autoencoder of one size."""
    from tm_jax.checkpoints import taehv as table
    from tm_jax.models.vae.tiny import autoencoder

    model = autoencoder.TAEHV(config)
    return _part(
        table, config, name,
        init=lambda key: model.init(key, jnp.zeros((1, 4, 8, 8, 3)))["params"],
        places=("taew2_1.safetensors", "taew2_1.pth"), stem="taew2_1",
    )


@functools.cache
def text(config: umt5_config.UMT5Config, name: str = "text") -> Part:
    """The text encoder of one size."""
    from tm_jax.checkpoints import umt5
    from tm_jax.models.text import encoder

    return _part(
        umt5, config, name, init=lambda key: encoder.init(config, key),
        places=("text_encoder", "models_t5_umt5-xxl-enc-bf16.pth"),
    )


@functools.cache
def image(config: clip_config.CLIPConfig, name: str = "image") -> Part:
    """The image encoder of one size."""
    from tm_jax.checkpoints import clip
    from tm_jax.models.image import encoder

    return _part(
        clip, config, name, init=lambda key: encoder.init(config, key),
        places=("image_encoder", "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"),
    )


@functools.cache
def audio(
    config: wav2vec2_config.Wav2Vec2Config | audio_config.AudioEncoderConfig, name: str = "audio"
) -> Part:
    """The speech encoder of one size: wav2vec2, or the causal one, which is ours alone."""
    if isinstance(config, audio_config.AudioEncoderConfig):
        from tm_jax.models.audio.causal import encoder as causal

        return _own(name, lambda key: causal.init(config, key))
    from tm_jax.checkpoints import wav2vec2
    from tm_jax.models.audio.wav2vec2 import encoder

    return _part(wav2vec2, config, name, init=lambda key: encoder.init(config, key))


def _own(name: str, init: Callable) -> Part:
    """A part that nobody else publishes."""
    return Part(
        name=name, layouts=(), boxed=jax.eval_shape(init, jax.random.key(0)),
        rows=lambda layout: [], init=init,
    )


def _part(table, config, name, init, places=(), stem="model") -> Part:
    """A part from the module of its table."""
    return Part(
        name=name, layouts=table.LAYOUTS, boxed=jax.eval_shape(init, jax.random.key(0)),
        rows=lambda layout: table.rows(config, layout), init=init,
        ignore=lambda layout: table.IGNORED[layout], places=places, stems=lambda layout: stem,
        settings=lambda layout: table.settings(config, layout),
    )


def of_preset(preset: presets.Preset, name: str) -> Part:
    """A part in the size that a preset has, whatever its name in the table.

    Raises:
      ValueError: No such part, or the preset has none.
    """
    if name == "transformer":
        return transformer(preset)
    config = getattr(preset, name) if name in _BUILDERS else None
    if config is None:
        raise ValueError(f"preset {preset.name} has no part {name!r}.")
    return _BUILDERS[name](config, f"{name} of {preset.name}")


def sizes(name: str) -> dict:
    """Sizes of a part by name; but for the transformer, the first is that of full presets.

    Raises:
      ValueError: Unknown part.
    """
    tables = {
        "transformer": presets.PRESETS,
        "vae": {n: vae_config.PRESETS[n] for n in ("wan-2.1", "pico")},
        "text": umt5_config.PUBLISHED, "image": clip_config.PUBLISHED,
        "audio": wav2vec2_config.PUBLISHED,
        "taehv": {n: taehv_config.PRESETS[n] for n in ("taew-2.1", "pico")},
    }
    if name not in tables:
        raise ValueError(f"unknown part {name!r}; choose one of {', '.join(tables)}.")
    return tables[name]


def get(name: str, size: str) -> Part:
    """A part in one size.

    Args:
      name: Name in `PARTS`.
      size: A preset, or a size of the part by its own name (`sizes`). Presets of full size
        share the published autoencoders and encoders.

    Raises:
      ValueError: Unknown part or size.
    """
    table = sizes(name)
    if name == "transformer":
        return transformer(presets.get(size))
    if size not in table:
        preset = presets.PRESETS.get(size)
        if preset is None or getattr(preset, name) is None:
            raise ValueError(
                f"part {name} has no size {size!r}; choose one of {', '.join(table)}, or a "
                "preset that has this part."
            )
        return of_preset(preset, name)
    return _BUILDERS[name](table[size], f"{name} of size {size}")


_BUILDERS = {"vae": vae, "text": text, "image": image, "audio": audio, "taehv": taehv}
PARTS = ("transformer", *_BUILDERS)
