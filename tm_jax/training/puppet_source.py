"""Clips of a preset with a motion model: its latent store as a source."""

import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.configs import presets
from tm_jax.configs import puppet as networks
from tm_jax.models.dit import conditioning as conditioning_lib
from tm_jax.models.dit import transformer
from tm_jax.models.puppet.vae import config as vae_config
from tm_jax.training import batches
from tm_jax.training import latents as latents_lib
from tm_jax.training import rollouts


class PuppetSource:
    """See `sources.Source`.

    Attributes:
      weights: Weights of the numbers of a latent, [H, W, C].
    """

    def __init__(self, store: dict, models: networks.Models, config: latents_lib.LatentConfig):
        """A source over a store.

        Args:
          store: Arrays of `latents.build`.
          models: Networks.
          config: Settings of the store and of the weights.
        """
        self._store, self._models, self._config = store, models, config
        self.weights = element_weights(models.preset, config)

    def __len__(self) -> int:
        return len(self._store["mode"])

    def place(self, index: int, rng: np.random.Generator, latents: int) -> tuple[int, int]:
        """See `sources.Source`.

        Raises:
          ValueError: The clips are shorter than the window.
        """
        if latents > self._config.latents:
            raise ValueError(
                f"clips have latents={self._config.latents}, too short for windows of {latents}; "
                f"it must be at least {latents}."
            )
        return index, int(rng.integers(0, self._config.latents - latents + 1))

    def window(self, index: int, start: int, latents: int) -> dict[str, np.ndarray]:
        """See `latents.window`."""
        return latents_lib.window(self._store, index, start, latents, self._models)

    def assemble(self, items: dict[str, jax.Array]) -> batches.Batch:
        """See `assemble`."""
        return assemble(self._models.preset, items)


def assemble(preset: presets.Preset, items: dict[str, jax.Array]) -> batches.Batch:
    """The batch of stacked windows.

    Args:
      preset: Sizes.
      items: Stacked results of `latents.window`: `x0` [B, T, H, W, C], `reference`
        [B, H, W, A], `expression` [B, T, X], `windows` [B, T, R, U], `mode` [B], `face` [B, P].
    """
    x0, windows = jnp.asarray(items["x0"]), jnp.asarray(items["windows"])
    frames = x0.shape[1]
    mode = jnp.repeat(jnp.asarray(items["mode"])[:, None].astype(jnp.int32), frames, 1)
    given = conditioning_lib.Conditioning(
        channels=conditioning_lib.expression_channels(
            items["reference"], items["expression"], sink=True
        ),
        audio=windows, mode=mode, face_mask=jnp.asarray(items["face"]),
    ).after_sink()
    # Latents are changes from the picture, so its own are zeros.
    sink = jnp.zeros((len(x0), *preset.latent_shape))
    return batches.Batch(x0=x0, sink=sink, conditioning=given)


def teacher_velocity(
    models: networks.Models, params: dict, items: dict[str, jax.Array], x: jax.Array,
    sigma: jax.Array, windows: jax.Array, context: transformer.Context,
) -> jax.Array:
    """`rollouts.teacher_velocity` for streams, which have the pieces of a clip at hand.

    Args:
      models: Networks.
      params: Parameters of the transformer.
      items: `reference`, `expression` and `mode`, as of `assemble`.
      x: Noisy latents of the frames after the sink, [B, T, H, W, C].
      sigma: Noise level of each sample, [B].
      windows: Audio windows [B, T, R, U].
      context: Context of the streams, whose face mask is taken.

    Returns:
      [B, T, H, W, C], float32.
    """
    batch = assemble(
        models.preset, {**items, "x0": x, "windows": windows, "face": context.face_mask}
    )
    return rollouts.teacher_velocity(models, params, batch, batch.clip, sigma)[:, 1:]


def element_weights(
    preset: presets.Preset, config: latents_lib.LatentConfig
) -> np.ndarray:
    """How much the numbers of a latent matter, mean 1, [H, W, C]."""
    height, width, channels = preset.latent_shape
    weight = np.ones((height, width, preset.vae.frames_per_latent, len(vae_config.LOWER)))
    weight[height // 2 :] *= config.mouth_weight
    weight[height // 2 :, ..., vae_config.LOWER.index("mouth_open")] *= config.opening_weight
    weight = weight.reshape(height, width, channels)
    return (weight / weight.mean()).astype(np.float32)
