"""Stage `teacher`: the bidirectional transformer learns the flow from noise to clips."""

import dataclasses

import jax
import jax.numpy as jnp

from tm_jax.training import loop
from tm_jax.training import optimizer as optimizer_lib
from tm_jax.training import preview as preview_lib
from tm_jax.training import rollouts
from tm_jax.training import transformer_stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherStageConfig(transformer_stage.TransformerStageConfig):
    """Settings of the stage.

    Attributes:
      audio_dropout: Fraction of samples that train without audio, for guidance.
      sample_steps: Steps of the sampler for previews.
      optimizer: Optimiser.
    """

    audio_dropout: float = 0.08
    sample_steps: int = 12
    optimizer: optimizer_lib.OptimizerConfig = optimizer_lib.OptimizerConfig(
        learning_rate=1.5e-3, warmup_steps=100, beta2=0.98, weight_decay=0.01,
        ema_decay=0.985,
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
    weights = transformer_stage.element_weights(models.preset, config)
    models = transformer_stage.trained(models, config)

    def init(key):
        return models.init("dit", key)

    def loss(params, frozen, batch, key):
        keys = jax.random.split(key, 3)
        x0 = batch["x0"]
        sigma = preset.schedule.draw(keys[0], (x0.shape[0],))
        noise = jax.random.normal(keys[1], x0.shape)
        keep = jax.random.uniform(keys[2], (x0.shape[0],)) >= config.audio_dropout
        windows = batch["windows"] * keep[:, None, None, None]
        per_sample = transformer_stage.flow_loss(
            models, params, batch, x0, sigma, noise, windows, weights
        )
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

    def batches(seed):
        one = transformer_stage.random_window(store, config.data, models, latents, seed)
        return transformer_stage.stream(one, len(store["mode"]), config.batch, seed)

    return loop.Stage(
        name="teacher", init=init, loss=loss, frozen={}, batches=batches, sample=sample,
        finish=lambda params, frozen: params, optimizer=config.optimizer,
    )
