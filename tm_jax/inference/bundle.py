"""A preset with its weights, and the compiled programs that a session runs."""

import dataclasses
import functools
import os

import jax
import jax.numpy as jnp

from tm_jax.data import drawn
from tm_jax.models import networks
from tm_jax.models import presets
from tm_jax.models.wan import audio as dit_audio
from tm_jax.models.wan import student
from tm_jax.weights import files


@dataclasses.dataclass(frozen=True, eq=False)
class Bundle:
    """Networks and weights, ready for any number of sessions.

    Attributes:
      models: The networks.
      params: Their parameters by part, on the device.
    """

    models: networks.Models
    params: dict

    @property
    def preset(self) -> presets.Preset:
        """Sizes and clocks."""
        return self.models.preset

    @functools.cached_property
    def begin(self):
        """Compiled (params, picture uint8 [H, W, 3], key) -> `Start` of one stream."""
        return jax.jit(functools.partial(_begin, self.models))

    @functools.cached_property
    def hear(self):
        """Compiled (params, samples [n]) -> windows [1, T, R, U], voice [T] in 0..1."""
        return jax.jit(functools.partial(_hear, self.models))

    @functools.cached_property
    def score(self):
        """Compiled (params, state, start, windows, mode [1, T]) -> latents, next state."""
        return jax.jit(functools.partial(_score, self.models), donate_argnums=1)

    @functools.cached_property
    def decode(self):
        """Compiled (params, latents, state) -> frames uint8 [F, H, W, 3], next state."""
        return jax.jit(functools.partial(_decode, self.models), donate_argnums=2)


def load(preset: str = "nano", weights: str | None = None) -> Bundle:
    """Loads a preset.

    Args:
      preset: Name in `presets.PRESETS`.
      weights: Folder with dit, vae, audio and locator `.safetensors`; the weights that come
        with the package by default.

    Returns:
      The bundle.

    Raises:
      ValueError: Unknown preset, a preset that this version cannot run, or files that do not
        fit it.
      FileNotFoundError: No such weights.
    """
    models = networks.models(presets.get(preset))
    folder = weights or networks.shipped(preset)
    if not os.path.isdir(folder):
        where = "--weights" if weights else "the package"
        raise FileNotFoundError(
            f"{where}: {folder} is not a folder with weights of preset {preset}; train them "
            "with launch/train.py, or use preset nano, whose weights come with the package."
        )
    shapes = networks.shapes(models)
    params = {
        part: files.load(os.path.join(folder, f"{part}.safetensors"), shapes[part])
        for part in networks.PARTS
    }
    return Bundle(models, jax.device_put(params))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Start:
    """What a reference picture gives to a stream.

    Attributes:
      context: Constant conditioning of the transformer.
      condition: Conditioning channels of a chunk, [1, T, H, W, C].
      reference: Latent of the picture, [1, 1, H, W, C].
    """

    context: object
    condition: jax.Array
    reference: jax.Array


def _begin(models, params, picture, key):
    preset = models.preset
    frames = drawn.to_float(picture)[None, None]
    z = models.vae.apply({"params": params["vae"]}, frames, method=models.vae.encode)
    logits = models.locator.apply({"params": params["locator"]}, z[:, 0])
    face = (logits > 0).astype(jnp.float32)
    context = models.dit.apply(
        {"params": params["dit"]}, face_mask=face, method=models.dit.context
    )
    count = preset.timing.latents_per_chunk
    state = student.begin(
        models.dit, params["dit"], z[:, 0], z[:, 0], context, key[None], count,
        preset.student.num_steps, preset.student.policy,
    )
    start = Start(context=context, condition=jnp.repeat(z, count, 1), reference=z)
    return start, state


def _hear(models, params, samples):
    preset = models.preset
    variables = {"params": params["audio"]}
    features = models.audio.apply(variables, samples[None])
    labels = models.audio.apply(variables, features, method=models.audio.predict)
    before, _ = dit_audio.margins(preset.dit.audio_window, preset.timing)
    frames = preset.timing.frames_per_chunk
    voice = jax.nn.sigmoid(labels[0, before : before + frames, -1])
    voice = voice.reshape(-1, preset.timing.frames_per_latent).max(1)
    windows = dit_audio.windows(features, preset.dit.audio_window, preset.timing)
    return windows, voice


def _score(models, params, state, start, windows, mode):
    preset = models.preset
    return student.next_chunk(
        models.dit, params["dit"], state, start.condition, windows, mode, start.context,
        preset.sigmas, preset.student.policy,
    )


def _decode(models, params, latents, state):
    pixels, state = models.vae.apply(
        {"params": params["vae"]}, latents, state, method=models.vae.decode_chunk
    )
    return drawn.to_uint8(pixels[0]), state
