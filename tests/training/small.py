"""A transformer of one layer and random clips: what tests of the stages run on."""

import dataclasses
import functools

import jax
import numpy as np

from tm_jax.configs import components
from tm_jax.configs import presets
from tm_jax.configs import puppet as networks
from tm_jax.models.dit import transformer
from tm_jax.training import example_source

LATENTS = 14  # Of every record, after the picture.


@functools.cache
def preset(name: str = "pico", num_steps: int = 2, policy: str = "clean") -> presets.Preset:
    """A miniature preset with one layer."""
    found = presets.get(name)
    dit = dataclasses.replace(found.dit, num_layers=1)
    return dataclasses.replace(found, dit=dit).with_student(
        num_steps=num_steps, policy=policy
    )


def models(name: str = "pico", num_steps: int = 2, policy: str = "clean"):
    """Its networks."""
    found = preset(name, num_steps, policy)
    return components.build(found) if found.motion is None else networks.models(found)


@functools.cache
def shapes(name: str = "pico"):
    """Boxed shapes of the transformer's parameters."""
    return transformer.boxed_shapes(preset(name).dit)


def record(index: int, latents: int = LATENTS) -> dict:
    """A random example of preset pico."""
    rng, found = np.random.default_rng((6, index)), preset()
    c, (height, width, channels) = found.dit, found.latent_shape

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    return {
        "latents": normal(1 + latents, height, width, channels),
        "condition": normal(1 + 4, height, width, channels),
        "face_mask": rng.uniform(0.5, 1, found.tokens).astype(np.float32),
        "audio": normal(latents, c.audio_window, c.audio_feature_width),
        "mode": rng.integers(0, 2, latents).astype(np.int8),
        "text": normal(c.text_length, c.text_width),
        "image": normal(c.image_length, c.image_width),
        "negative_text": normal(c.text_length, c.text_width),
    }


@functools.cache
def source(count: int = 6) -> example_source.ExampleSource:
    """Some of them."""
    return example_source.ExampleSource([record(i) for i in range(count)], preset())


def items(size: int, latents: int, start: int = 0) -> dict:
    """Stacked windows of the first `size` examples."""
    windows = [source().window(i, start, latents) for i in range(size)]
    return jax.tree.map(lambda *x: np.stack(x), *windows)


def batch(size: int, latents: int, start: int = 0):
    """The batch that they make."""
    return source().assemble(items(size, latents, start))


def clip(index: int, latents: int) -> dict:
    """What `latents.window` would cut out of clip `index` of preset puppet."""
    rng, found = np.random.default_rng((5, index)), preset("puppet")
    c, shape = found.dit, found.latent_shape

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    return {
        "reference": normal(*shape[:2], found.vae.appearance_channels),
        "x0": normal(latents, *shape),
        "windows": normal(latents, c.audio_window, c.audio_feature_width),
        "face": rng.uniform(0.5, 1, found.tokens).astype(np.float32),
        "mode": np.int32(index % 2), "expression": normal(latents, c.expression_channels),
    }
