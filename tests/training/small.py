"""A transformer of one layer and random clips: what tests of distillation run on."""

import dataclasses
import functools

import jax
import numpy as np

from tm_jax.models import networks
from tm_jax.models import presets


def models(num_steps: int = 2, policy: str = "clean") -> networks.Models:
    """The smallest preset with one layer, without text and image."""
    pico = presets.get("pico")
    dit = dataclasses.replace(pico.dit, num_layers=1, text_width=None, image_width=None)
    return networks.models(
        dataclasses.replace(pico, dit=dit).with_student(num_steps, policy)
    )


@functools.cache
def shapes():
    """Boxed shapes of the transformer's parameters."""
    return jax.eval_shape(lambda: models().init("dit", jax.random.key(0)))


def clip(index: int, latents: int) -> dict:
    """The window that `latents.window` would cut out of clip `index`."""
    rng, preset = np.random.default_rng((5, index)), models().preset
    c, shape = preset.dit, preset.latent_shape

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    return {
        "reference": normal(*shape[:2], presets.get("pico").vae.appearance_channels),
        "x0": normal(latents, *shape),
        "windows": normal(latents, c.audio_window, c.audio_feature_width),
        "face": rng.uniform(0.5, 1, preset.tokens).astype(np.float32),
        "mode": np.int32(index % 2), "expression": normal(latents, c.expression_channels),
    }


def batch(size: int, latents: int) -> dict:
    """Some of them."""
    return jax.tree.map(lambda *x: np.stack(x), *(clip(i, latents) for i in range(size)))
