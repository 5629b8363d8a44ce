"""A transformer of one layer and random clips: what tests of the stages run on."""

import dataclasses
import functools
import os

import jax
import numpy as np

from tm_jax.checkpoints import files
from tm_jax.checkpoints import parts
from tm_jax.configs import components
from tm_jax.configs import overrides
from tm_jax.configs import presets
from tm_jax.data import examples
from tm_jax.data import shards
from tm_jax.models.dit import transformer
from tm_jax.parallel import rules
from tm_jax.training import example_source
from tm_jax.training import run

LATENTS = 14  # Of every record, after the picture.
LOOP = run.loop.LoopConfig(sample_every=0, log_every=1)
STEPS = {"teacher": 2, "student": 2, "distill": 4}
_SETTINGS = {
    "teacher": ["sample_steps=2"],
    "student": ["trajectories=4", "guidance.audio=2"],
    # With the losses of `test_distill_stage`, so that the programs are compiled once.
    "distill": ["trajectories=4", "guidance.audio=2", "rollout_chunks=3",
                "critic_updates=1"],
}


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
    return components.build(preset(name, num_steps, policy))


@functools.cache
def shapes(name: str = "pico"):
    """Boxed shapes of the transformer's parameters."""
    return transformer.boxed_shapes(preset(name).dit)


def record(index: int, latents: int = LATENTS, aspect: float = 1.0) -> dict:
    """A random example of preset pico."""
    rng, found = np.random.default_rng((6, index)), presets.with_aspect(preset(), aspect)
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


def one_device():
    """A mesh of the first device."""
    return rules.make_mesh(jax.devices()[:1])


def write_examples(folder: str, count: int = 6, latents: int = 9) -> None:
    """A store of random examples."""
    with shards.ExampleWriter(folder, {"preset": "pico"}, {}) as writer:
        for i in range(count):
            values = record(i, latents)
            del values["negative_text"]
            writer.add(examples.Example(**values), f"{i}.mp4", 1)
            writer.finish(f"{i}.mp4", {"bytes": 1, "clips": [0], "rejected": [], "notes": []})


def lay_out(folder: str, pico, count: int = 6, latents: int = 9) -> None:
    """Examples and an autoencoder in an empty work directory."""
    os.makedirs(f"{folder}/weights")
    write_examples(f"{folder}/examples", count, latents)
    vae = parts.of_preset(preset(), "vae")
    files.save(f"{folder}/weights/vae.safetensors", pico.random(vae.boxed), "float32")


def settings(stage: str, folder: str, *more: str):
    """Settings of a stage in such a folder."""
    shared = ["batch=2", "data.held_out=2", f"data.weights={folder}/weights"]
    base = run.config(stage, "unused", data=os.path.join(folder, "examples"))
    return overrides.apply(base, [*shared, *_SETTINGS[stage], *more])
