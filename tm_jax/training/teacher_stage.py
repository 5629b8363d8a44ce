"""Stage `teacher`: the bidirectional transformer learns the flow from noise to clips."""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.diffusion import guidance as guidance_lib
from tm_jax.training import batches
from tm_jax.training import groups
from tm_jax.training import loop
from tm_jax.training import lora as lora_lib
from tm_jax.training import optimizer as optimizer_lib
from tm_jax.training import rollouts
from tm_jax.training import sources
from tm_jax.training import transformer_stage

# Noise levels at which held-out clips are measured. At the highest nothing but the conditions tells
# what moves: a loss that rises there has learned the training clips by heart.
_LEVELS = (1.0, 0.9, 0.7)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherStageConfig(transformer_stage.TransformerStageConfig):
    """Settings of the stage.

    Attributes:
      dropout: Condition dropout, without which there is no guidance.
      lora: Low-rank adaptation; new layers learn in full, because published weights have none.
      sample_steps: Steps of the sampler for previews.
      guidance: Guidance of previews.
      optimizer: Optimiser.
    """

    dropout: batches.Dropout = batches.Dropout(text=0.1, image=0.1, audio=0.08)
    lora: lora_lib.LoraConfig = lora_lib.LoraConfig(new_in_full=True)
    sample_steps: int = 12
    guidance: guidance_lib.Guidance = guidance_lib.Guidance()
    optimizer: optimizer_lib.OptimizerConfig = optimizer_lib.OptimizerConfig(
        learning_rate=1.5e-3, warmup_steps=100, beta2=0.98, weight_decay=0.01,
        ema_decay=0.985,
    )


def make(
    models: rollouts.Models, source: sources.Source,
    preview: Callable[[int], sources.Preview], config: TeacherStageConfig, start: Any = None,
    base: Any = None,
) -> loop.Stage:
    """The stage.

    Args:
      models: Networks.
      source: Clips.
      preview: Function (latents) -> held-out clips of that length.
      config: Settings.
      start: Parameters instead of random ones, as of `loop.Stage`; with low-rank adaptation,
        adapters.
      base: The parameters that are adapted, as of `lora.adapt`; None without adaptation.
    """
    preset = models.preset
    latents = transformer_stage.window_latents(models, config)
    models = transformer_stage.trained(models, config)
    shown = preview(latents)
    sigmas = preset.schedule.steps(config.sample_steps)
    draw = jax.jit(lambda p, items, k: rollouts.teacher_sample(
        models, p, source.assemble(items), k, sigmas, config.guidance
    )[-1])

    @jax.jit
    def losses(params, items, key):
        batch = source.assemble(items)
        noise = rollouts.draw_noise(key, batch.x0.shape)
        return jax.lax.map(lambda sigma: transformer_stage.flow_loss(
            models, params, batch, jnp.broadcast_to(sigma, batch.size), noise
        ).mean(), jnp.array(_LEVELS))

    def sample(params, frozen, path):
        keys = jax.random.split(jax.random.key(2), len(shown.batches))
        held_out = [np.asarray(losses(params, *one)) for one in zip(shown.batches, keys)]
        found = {f"loss_{s:g}": float(x) for s, x in zip(_LEVELS, np.mean(held_out, 0))}
        return found | shown.show(draw(params, shown.batch, jax.random.key(1)), path)

    def feed(seed, rows=None):
        one = sources.random_window(source, latents, seed)
        return sources.stream(one, len(source), config.batch, seed, rows, source.sizes)

    def loss(params, frozen, items, key):
        keys = jax.random.split(key, 3)
        batch = source.assemble(items)
        sigma = preset.schedule.draw(keys[0], (batch.size,))
        noise = rollouts.draw_noise(keys[1], batch.x0.shape)
        batch = batch.without(config.dropout.draw(keys[2], batch.size))
        per_sample = transformer_stage.flow_loss(models, params, batch, sigma, noise)
        high = sigma > 0.8
        return per_sample.mean(), {
            "flow_high": jnp.sum(per_sample * high) / jnp.maximum(high.sum(), 1)
        }

    stage = loop.Stage(
        name="teacher", init=transformer_stage.init(models), loss=loss, frozen={},
        batches=feed, sample=sample, finish=lambda params, frozen: params,
        optimizer=config.optimizer, start=start, labels=groups.groups, batch=config.batch,
        frames=config.batch * latents * preset.timing.frames_per_latent,
    )
    return lora_lib.adapt(stage, config.lora, base, start)
