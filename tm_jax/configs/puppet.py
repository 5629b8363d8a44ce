"""The networks of a small preset."""

from collections.abc import Mapping
import dataclasses
import functools
import os

import jax
import jax.numpy as jnp

from tm_jax.configs import presets
from tm_jax.models.audio.causal import config as audio_config
from tm_jax.models.audio.causal import encoder
from tm_jax.models.dit import attention_patterns
from tm_jax.models.dit import transformer
from tm_jax.models.puppet import locator as locator_lib
from tm_jax.models.puppet.motion import config as motion_config
from tm_jax.models.puppet.motion import network as motion_network
from tm_jax.models.puppet.vae import autoencoder
from tm_jax.models.puppet.vae import config as vae_config

PARTS = ("dit", "vae", "audio", "locator", "motion")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Models:
    """The networks of a preset, without weights.

    Attributes:
      preset: Their sizes.
      dit: Video transformer.
      vae: Video autoencoder.
      audio: Speech encoder.
      locator: Face locator.
      motion: Motion model.
    """

    preset: presets.Preset
    dit: transformer.DiT
    vae: autoencoder.VideoAutoencoder
    audio: encoder.AudioEncoder
    locator: locator_lib.FaceLocator
    motion: motion_network.MotionModel

    @property
    def grid(self) -> attention_patterns.Grid:
        """Token grid of one latent frame."""
        height, width, _ = self.preset.latent_shape
        return attention_patterns.Grid.of(
            self.preset.dit, height, width, self.preset.timing.latents_per_chunk
        )

    def init(self, part: str, key: jax.Array) -> Mapping:
        """Boxed random parameters of one part (one of `PARTS`)."""
        c = self.preset.dit
        if part == "vae":
            vae = self.vae.config
            frames = jnp.zeros((1, vae.frames_per_latent, vae.side, vae.side, 3))
            return self.vae.init(key, frames, frames[:, 0])["params"]
        if part == "audio":
            frames = self.audio.config.history + 1 + self.audio.config.future
            samples = jnp.zeros((1, frames * encoder.FRAME + 2 * encoder.MARGIN))
            return self.audio.init(key, samples, method=self.audio.train)["params"]
        if part == "locator":
            return self.locator.init(key, jnp.zeros((1, 64, 64, 3)))["params"]
        if part == "motion":
            m = self.motion.config
            columns = len(motion_config.COLUMNS)
            frames = jnp.zeros((1, m.frames_per_latent, columns))
            past = jnp.zeros((1, m.history_frames, columns))
            window = jnp.zeros((1, c.audio_window, c.audio_feature_width))
            zero = jnp.zeros((1,))
            heard = jnp.zeros((1, m.heard_width))
            return self.motion.init(key, frames, zero, past, window, zero, heard)["params"]
        return self.dit.init(key, method=transformer.touch)["params"]


def models(preset: presets.Preset) -> Models:
    """The networks of a preset with a motion model.

    Raises:
      ValueError: It has none; `components.build` makes those of all others.
    """
    vae, audio = preset.vae, preset.audio
    if preset.motion is None:
        raise ValueError(
            f"preset {preset.name} has no motion model; its components are those of "
            "components.build."
        )
    if not (
        isinstance(vae, vae_config.VAEConfig)
        and isinstance(audio, audio_config.AudioEncoderConfig)
    ):
        raise ValueError(
            f"{preset.name}: a motion model goes with the autoencoder of aligned faces and the "
            f"causal speech encoder, got {type(vae).__name__} and {type(audio).__name__}."
        )
    dtype = jnp.dtype(preset.dtype)
    return Models(
        preset=preset, dit=transformer.DiT(preset.dit, dtype),
        vae=autoencoder.VideoAutoencoder(vae, dtype),
        audio=encoder.AudioEncoder(audio),
        locator=locator_lib.FaceLocator(),
        motion=motion_network.MotionModel(preset.motion),
    )


@functools.cache
def shapes(networks: Models) -> dict:
    """Tree of parameter shapes of every part."""
    from flax.core import meta

    key = jax.random.key(0)
    return {
        part: jax.eval_shape(lambda k, p=part: meta.unbox(networks.init(p, k)), key)
        for part in PARTS
    }


def shipped(preset: str) -> str:
    """Folder of the weights that come with the package."""
    return os.path.join(os.path.dirname(os.path.dirname(__file__)), "assets", preset)
