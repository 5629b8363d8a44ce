"""What the stages of the transformer share: settings, weights of the loss, input, start."""

import dataclasses
from collections.abc import Callable

import grain
import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.diffusion import flow
from tm_jax.models import networks
from tm_jax.models import presets
from tm_jax.models.vae import config as vae_config
from tm_jax.models.wan import preconditioning
from tm_jax.parallel import rules
from tm_jax.training import latents as latents_lib
from tm_jax.training import optimizer as optimizer_lib
from tm_jax.training import rollouts


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerStageConfig:
    """Settings that every stage of the transformer has.

    Attributes:
      data: The latent store.
      batch: Clips per step.
      chunks: Chunks per clip, which is the teacher's window; the sink comes on top.
      mouth_weight: Weight of the lower half, which speech moves, beside the upper.
      opening_weight: Weight of the opening of the mouth beside the rest of the lower half.
      remat: Recompute every block in the backward pass: less memory, a third more time.
      previews: Held-out clips in a preview.
      optimizer: Optimiser.
    """

    data: latents_lib.LatentConfig = latents_lib.LatentConfig()
    batch: int = 8
    chunks: int = 2
    mouth_weight: float = 3.0
    opening_weight: float = 3.0
    remat: bool = False
    previews: int = 12
    optimizer: optimizer_lib.OptimizerConfig = optimizer_lib.OptimizerConfig()


def trained(models: networks.Models, config: TransformerStageConfig) -> networks.Models:
    """The networks as the stage runs them: with or without rematerialisation."""
    return dataclasses.replace(models, dit=models.dit.clone(remat=config.remat))


def element_weights(preset: presets.Preset, config: TransformerStageConfig) -> np.ndarray:
    """How much the numbers of a latent matter, mean 1, [H, W, C]."""
    height, width, channels = preset.latent_shape
    weight = np.ones((height, width, preset.vae.frames_per_latent, len(vae_config.LOWER)))
    weight[height // 2 :] *= config.mouth_weight
    weight[height // 2 :, ..., vae_config.LOWER.index("mouth_open")] *= config.opening_weight
    weight = weight.reshape(height, width, channels)
    return (weight / weight.mean()).astype(np.float32)


def flow_loss(models: networks.Models, params, batch, x0, sigma, noise, windows, weight):
    """Flow matching of a bidirectional transformer: of the teacher, and of the critic.

    Args:
      models: Networks.
      params: Parameters of the transformer.
      batch: As in `rollouts.teacher_velocity`.
      x0: Clean latents [B, T, H, W, C].
      sigma: Noise level of each sample, [B].
      noise: Unit normal, [B, T, H, W, C].
      windows: Audio windows [B, T, R, U].
      weight: Weights that broadcast to `x0`.

    Returns:
      Loss of every sample, [B].
    """
    x = flow.corrupt(x0, noise, sigma)
    velocity = rollouts.teacher_velocity(models, params, batch, x, sigma, windows)
    error = jnp.square(velocity - flow.velocity(x0, noise)) * weight
    per_sample = error.mean((1, 2, 3, 4))
    std = models.preset.dit.reference_std
    if std is not None:
        per_sample = per_sample * preconditioning.loss_weight(sigma, std)
    return per_sample


def boxed(models: networks.Models, values: dict):
    """Parameters of the transformer from an earlier stage, boxed with their logical axes."""
    return rules.box_like(jax.eval_shape(lambda: models.init("dit", jax.random.key(0))), values)


def stream(one: Callable, count: int, batch: int, seed: int) -> grain.IterDataset:
    """Endless shuffled batches; the iterator's position can be stored.

    Args:
      one: Function (index from 0) -> item.
      count: Number of items in an epoch.
      batch: Items in a batch.
      seed: Seed of the order.
    """
    return (
        grain.MapDataset.range(count)
        .shuffle(seed=seed)
        .repeat()
        .map(one)
        .batch(batch)
        .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
    )


def random_window(store, config: latents_lib.LatentConfig, models, latents: int, seed: int):
    """Function (index) -> `latents` latent frames from a random place of clip `index`."""
    count = len(store["mode"])

    def one(index):
        rng = np.random.default_rng((seed, 3, int(index)))
        start = int(rng.integers(0, config.latents - latents + 1))
        return latents_lib.window(store, int(index) % count, start, latents, models)

    return one
