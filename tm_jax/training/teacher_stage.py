"""Stage `teacher`: the bidirectional transformer learns the flow from noise to clips."""

import dataclasses

import grain
import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.diffusion import flow
from tm_jax.models.vae import config as vae_config
from tm_jax.models.wan import preconditioning
from tm_jax.training import latents as latents_lib
from tm_jax.training import loop
from tm_jax.training import optimizer as optimizer_lib
from tm_jax.training import preview as preview_lib
from tm_jax.training import rollouts


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherStageConfig:
    """Settings of the stage.

    Attributes:
      data: The latent store.
      batch: Clips per step.
      chunks: Chunks per clip; the sink comes on top.
      mouth_weight: Weight of the lower half, which speech moves, beside the upper.
      opening_weight: Weight of the opening of the mouth beside the rest of the lower half.
      audio_dropout: Fraction of samples that train without audio, for guidance.
      sample_steps: Steps of the sampler for previews.
      previews: Held-out clips in a preview.
      optimizer: Optimiser.
    """

    data: latents_lib.LatentConfig = latents_lib.LatentConfig()
    batch: int = 4
    chunks: int = 2
    mouth_weight: float = 3.0
    opening_weight: float = 3.0
    audio_dropout: float = 0.08
    sample_steps: int = 12
    previews: int = 12
    optimizer: optimizer_lib.OptimizerConfig = optimizer_lib.OptimizerConfig(
        learning_rate=1.5e-3, warmup_steps=100, beta2=0.98, weight_decay=0.01,
        ema_decay=0.985,
    )


def latent_weights(preset, config) -> np.ndarray:
    """How much the numbers of a latent matter, mean 1, [H, W, C]."""
    height, width, channels = preset.latent_shape
    weight = np.ones((height, width, preset.vae.frames_per_latent, len(vae_config.LOWER)))
    weight[height // 2 :] *= config.mouth_weight
    weight[height // 2 :, ..., vae_config.LOWER.index("mouth_open")] *= config.opening_weight
    weight = weight.reshape(height, width, channels)
    return (weight / weight.mean()).astype(np.float32)


def batches(store, config, models, latents: int, seed: int) -> grain.IterDataset:
    """Endless shuffled windows of a latent store."""
    count, length = len(store["mode"]), config.data.latents

    def one(index):
        rng = np.random.default_rng((seed, 3, int(index)))
        start = int(rng.integers(0, length - latents + 1))
        return latents_lib.window(store, int(index) % count, start, latents, models)

    return (
        grain.MapDataset.range(count)
        .shuffle(seed=seed)
        .repeat()
        .map(one)
        .batch(config.batch)
        .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
    )


def make(models, params: dict, store, config: TeacherStageConfig) -> loop.Stage:
    """The stage.

    Args:
      models: Networks.
      params: Trained parameters of `vae` and `audio`.
      store: Arrays of `latents.build`.
      config: Settings.
    """
    preset = models.preset
    latents = config.chunks * preset.timing.latents_per_chunk
    std, weights = preset.dit.reference_std, latent_weights(preset, config)

    def init(key):
        return models.init("dit", key)

    def loss(params, frozen, batch, key):
        keys = jax.random.split(key, 3)
        x0 = batch["x0"]
        sigma = preset.schedule.draw(keys[0], (x0.shape[0],))
        noise = jax.random.normal(keys[1], x0.shape)
        x = flow.corrupt(x0, noise, sigma)
        keep = jax.random.uniform(keys[2], (x0.shape[0],)) >= config.audio_dropout
        windows = batch["windows"] * keep[:, None, None, None]
        velocity = rollouts.teacher_velocity(
            models, params, batch, x, sigma, windows
        )
        error = jnp.square(velocity - flow.velocity(x0, noise))
        error = error * weights
        per_sample = error.mean((1, 2, 3, 4))
        if std is not None:
            per_sample = per_sample * preconditioning.loss_weight(sigma, std)
        high = sigma > 0.8
        return per_sample.mean(), {
            "flow_high": jnp.sum(per_sample * high) / jnp.maximum(high.sum(), 1)
        }

    preview = preview_lib.Preview(
        models, params, dataclasses.replace(config.data, clips=config.previews), latents
    )
    sigmas = preset.schedule.steps(config.sample_steps)
    draw = jax.jit(
        lambda p, b, k: rollouts.teacher_sample(models, p, b, k, sigmas)[-1]
    )

    def sample(params, frozen, path):
        return preview.show(draw(params, preview.batch, jax.random.key(1)), path)

    return loop.Stage(
        name="teacher", init=init, loss=loss, frozen={},
        batches=lambda seed: batches(store, config, models, latents, seed),
        sample=sample, finish=lambda params, frozen: params, optimizer=config.optimizer,
    )
