"""Writes random weights of a full-size preset at reduced depth and width.

  python -m experiments.parity.reduced --preset=tm-18b --layers=2 --width=256 --out=FOLDER

The folder holds every part as launch/convert.py writes it, a small tokenizer, and
`preset.json` with the sizes; `launch/generate.py --preset=tm-18b --weights=FOLDER` then runs
the code of the full preset. What it shows is noise: nothing was trained.
"""

import dataclasses
import math
import os

from absl import app
from absl import flags
import numpy as np

from tm_jax.checkpoints import parts
from tm_jax.checkpoints import sinks
from tm_jax.configs import presets
from tm_jax.core import trees
from tm_jax.inference import part_files
from tm_jax.models.audio.wav2vec2 import config as wav2vec2_config
from tm_jax.models.image import config as clip_config
from tm_jax.models.text import config as umt5_config
from tm_jax.models.vae.tiny import config as taehv_config
from tm_jax.models.vae.wan import config as vae_config
from tm_jax.parallel import rules

_CHARACTERS = " abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,;:!?'-"
_ENCODER_WIDTH = 64  # Of the text and image encoders.
_SPEECH_WIDTH = 32


def sizes(
    preset: str, layers: int, width: int, *, side: int = 128, vae_width: int = 16,
    dtype: str = "float32",
) -> presets.Preset:
    """Sizes of all parts; heads keep the preset's width where it divides `width`."""
    base = presets.get(preset)
    head = base.dit.head_width if width % base.dit.head_width == 0 else 32
    if width % head:
        raise ValueError(f"width must be a multiple of {head}, got {width}.")
    image = clip_config.CLIPConfig(
        width=_ENCODER_WIDTH, num_layers=2, num_heads=2, mlp_width=128, picture=56
    )
    speech = wav2vec2_config.Wav2Vec2Config(
        width=_SPEECH_WIDTH, num_layers=2, num_heads=2, mlp_width=64, channels=(16,) * 7,
        position_taps=16, position_groups=4,
    )
    changes = {
        "width": width, "num_heads": width // head, "num_layers": layers,
        "mlp_width": base.dit.mlp_width * width // base.dit.width,
        "text_width": _ENCODER_WIDTH, "text_length": 32,
        "audio_feature_width": speech.features, "audio_hidden": width,
        "audio_width": min(width, base.dit.audio_width),
    }
    if base.dit.image_width is not None:
        changes.update(image_width=image.width, image_length=image.tokens)
    text = umt5_config.UMT5Config(
        vocab=len(_CHARACTERS) + 3, width=_ENCODER_WIDTH, num_layers=2, num_heads=2,
        head_width=32, mlp_width=128,
    )
    return dataclasses.replace(
        base, dit=dataclasses.replace(base.dit, **changes), height=side, width=side,
        dtype=dtype, vae=vae_config.WanVAEConfig(base_width=vae_width, num_res_blocks=1),
        taehv=taehv_config.PRESETS["pico"], text=text, audio=speech,
        image=None if base.image is None else image,
    )


def write(preset: presets.Preset, folder: str, seed: int = 0) -> None:
    """Writes random weights of all parts, the tokenizer and `preset.json` into a new folder.

    Every layer gets random values, also those that start at zero in training: an untrained
    output would be zero whatever the inputs are.
    """
    os.makedirs(folder)
    others = [n for n in parts.PARTS[1:] if getattr(preset, n) is not None]
    for i, name in enumerate(("transformer", *others)):
        part = parts.of_preset(preset, name)
        shapes = trees.flatten(rules.unbox(part.boxed))
        rng = np.random.default_rng((seed, i))
        sinks.write_safetensors(
            os.path.join(folder, name), shapes,
            ((path, _random(rng, path, shape)) for path, shape in shapes.items()),
            metadata={"part": part.name},
        )
    if preset.text is not None:
        _write_tokenizer(os.path.join(folder, part_files.TOKENIZERS[0]))
    part_files.write_settings(preset, folder)


def _random(rng, path: str, leaf) -> np.ndarray:
    """Matrices of about unit gain, scales around one, the rest small."""
    value = rng.standard_normal(leaf.shape, np.float32)
    if leaf.ndim > 1:
        value /= math.sqrt(math.prod(leaf.shape[:-1]))
    elif path.endswith(("scale", "std")):
        value = 1 + 0.2 * value
    else:
        value *= 0.1
    return value.astype(leaf.dtype)


def _write_tokenizer(folder: str) -> None:
    """A tokenizer whose pieces are single characters, in the format of UMT5's."""
    import tokenizers

    os.makedirs(folder)
    pieces = [(piece, 0.0) for piece in ("<pad>", "</s>", "<unk>", *_CHARACTERS)]
    model = tokenizers.models.Unigram(pieces, unk_id=2)
    tokenizers.Tokenizer(model).save(os.path.join(folder, "tokenizer.json"))


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    reduced = sizes(
        flags.FLAGS.preset, flags.FLAGS.layers, flags.FLAGS.width, side=flags.FLAGS.side,
        vae_width=flags.FLAGS.vae_width, dtype=flags.FLAGS.dtype,
    )
    write(reduced, flags.FLAGS.out, flags.FLAGS.seed)
    print(f"Wrote {flags.FLAGS.out}: {reduced.dit.num_layers} layers of width "
          f"{reduced.dit.width}, random weights.")


def define_flags():
    """Defines the flags of the command; importing this file defines none."""
    flags.DEFINE_enum("preset", "tm-18b", ["wan-1.3b", "tm-18b"], "Which preset.")
    flags.DEFINE_integer("layers", 2, "Layers of the transformer.", lower_bound=1)
    flags.DEFINE_integer("width", 256, "Its width, a multiple of 32.", lower_bound=32)
    flags.DEFINE_integer(
        "vae_width", 16, "Base width of Wan's autoencoder, a multiple of 2; 96 as published."
    )
    flags.DEFINE_integer("side", 128, "Side of the video in pixels, a multiple of 16.")
    flags.DEFINE_string("dtype", "float32", "Dtype of the large products.")
    flags.DEFINE_integer("seed", 0, "Seed of the weights.")
    flags.DEFINE_string("out", None, "New folder.", required=True)


if __name__ == "__main__":
    define_flags()
    app.run(main)
