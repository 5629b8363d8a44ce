"""Preset nano in miniature with random weights: its structure, seconds to compile."""

import dataclasses

from tm_jax.configs import presets
from tm_jax.inference import pipeline as pipeline_lib
from tm_jax.inference import streams
from tm_jax.models.vae.small import config as small_vae

SIDE = 64


def nano() -> presets.Preset:
    """Its sizes."""
    return presets.with_settings(presets.get("nano"), {
        "height": SIDE, "width": SIDE, "vae": dataclasses.asdict(small_vae.PRESETS["pico"]),
        "audio": {"mels": 20, "width": 16, "features": 16, "dilations": [1, 2]},
        "transformer": {
            "width": 32, "num_heads": 2, "num_layers": 1, "mlp_width": 64,
            "frequency_width": 32, "latent_channels": 4, "condition_channels": 4,
            "audio_feature_width": 16, "audio_hidden": 32, "audio_width": 16,
        },
    })


def pipeline(pico, **student) -> pipeline_lib.Pipeline:
    """Its pipeline on one device; `pico` is the fixture that draws weights."""
    functions = streams.StreamFunctions(nano().with_student(**student))
    boxed = functions.boxed()
    params = {name: pico.random(boxed[name]) for name in functions.components.parts}
    return pipeline_lib.on_first_device(functions, params | {streams.CONSTANTS: {}})
