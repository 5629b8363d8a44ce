"""Stage `student`: few-step, sparse causal, by regression onto the teacher's trajectories.

Each chunk gets a noise level of the student's own sampler; its input is the trajectory's point
there and its target the trajectory's end (the initialisation of CausVid, arXiv 2412.07772,
section 4.3).
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from tm_jax.diffusion import guidance as guidance_lib
from tm_jax.training import batches
from tm_jax.training import groups
from tm_jax.training import loop
from tm_jax.training import lora as lora_lib
from tm_jax.training import optimizer as optimizer_lib
from tm_jax.training import rollouts
from tm_jax.training import sources
from tm_jax.training import transformer_stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentStageConfig(transformer_stage.TransformerStageConfig):
    """Settings of the stage.

    Attributes:
      num_steps: Steps of the student's sampler; the preset's by default.
      policy: Cache policy, "clean" or "per_step"; the preset's by default.
      sink: Whether chunks attend to the sink; the preset's by default.
      positions: Where the sink stands in time (`dit_config.View`); the preset's by default.
      history: Chunks of the student's window before the current one; the preset's by default.
      keep: How many of them are the first of the stream; the preset's by default.
      trajectories: Teacher trajectories to compute.
      teacher_steps: Steps of the teacher's sampler; a multiple of the student's steps, so
        that the student's noise levels are points of the trajectory.
      guidance: Guidance of the teacher.
      temperature: Factor of the noise that trajectories and the student's samples start from.
        Scores get unit noise: below 1 distillation comes close to a regression.
      sampling_temperature: The factor in streams of the published student; as in training by
        default.
      context_noise: Largest standard deviation of the noise on a clean context, which
        stands for the errors of the student's own chunks.
      optimizer: Optimiser.
    """

    num_steps: int | None = None
    policy: str | None = None
    sink: bool | None = None
    positions: str | None = None
    history: int | None = None
    keep: int | None = None
    trajectories: int = 1200
    teacher_steps: int = 8
    guidance: guidance_lib.Guidance = guidance_lib.Guidance()
    temperature: float = 1.0
    sampling_temperature: float | None = None
    context_noise: float = 0.15
    optimizer: optimizer_lib.OptimizerConfig = optimizer_lib.OptimizerConfig(
        learning_rate=5e-4, warmup_steps=50, beta2=0.98, weight_decay=0.01, ema_decay=0.98
    )


def regression(
    models: rollouts.Models, params: dict, batch: batches.Batch, points: jax.Array,
    key: jax.Array, context_noise: float,
) -> tuple[jax.Array, jax.Array]:
    """Error of the student's x0 against the end of the teacher's trajectory.

    With the policy `clean` each chunk is at a step of its own and sees the clean chunk before
    it, with a little noise; with `per_step` all chunks of a sample are at one step and see
    the trajectory's point of the chunk before at that step, as their caches will hold it.

    Args:
      models: Networks.
      params: Parameters of the student.
      batch: Clips.
      points: Their trajectories at the student's noise levels, then their ends,
        [B, N + 1, T, H, W, C].
      key: Random key.
      context_noise: Largest standard deviation of the noise on a clean context.

    Returns:
      Error of every latent frame [B, T], and the step of each, [B, T].
    """
    preset = models.preset
    c, levels = preset.timing.latents_per_chunk, jnp.asarray(preset.sigmas)
    points = points.astype(jnp.float32)
    target = points[:, -1]
    size, chunks = points.shape[0], target.shape[1] // c
    keys = jax.random.split(key, 3)
    clean = preset.student.policy == "clean"
    step = jax.random.randint(keys[0], (size, chunks if clean else 1), 0, len(levels))
    step = jnp.broadcast_to(step, (size, chunks))
    frame_step = jnp.repeat(step, c, 1)  # [B, T]
    pick = frame_step[:, None, :, None, None, None]
    x = jnp.take_along_axis(points, pick, 1)[:, 0]
    if clean:
        strength = context_noise * jax.random.uniform(keys[1], (size, 1, 1, 1, 1))
        context = target[:, :-c]
        context = context + strength * jax.random.normal(keys[2], context.shape)
        context_sigmas = jnp.zeros((size, chunks - 1))
    else:
        context, context_sigmas = x[:, :-c], levels[step][:, :-1]
    x0 = rollouts.student_forward(
        models, params, batch, context, context_sigmas, x, levels[step]
    )
    error = jnp.square(x0 - target)
    if preset.dit.clean_std is not None:
        error = error / preset.dit.clean_std**2
    return error.mean((2, 3, 4)), frame_step


def assemble(source: sources.Source, items: dict) -> tuple[batches.Batch, jax.Array]:
    """Clips and trajectories of stacked items of `trajectories.windows`."""
    batch = source.assemble(items["window"])
    dropped = {name: items["dropped"][:, i] for i, name in enumerate(batches.CONDITIONS)}
    return batch.without(dropped), items["points"]


def make(
    models: rollouts.Models, source: sources.Source, one: Callable[[int], dict],
    sizes: sources.Sizes, preview: Callable[[int], sources.Preview],
    config: StudentStageConfig, start: Any, base: Any = None,
) -> loop.Stage:
    """The stage.

    Args:
      models: Networks, with the sampler that the student learns.
      source: Clips.
      one: Function (index) -> window and trajectory, as of `trajectories.windows`.
      sizes: Sizes of the trajectories.
      preview: Function (latents) -> held-out clips of that length.
      config: Settings.
      start: The teacher's parameters, as of `loop.Stage`; with low-rank adaptation, adapters.
      base: The teacher's parameters, as of `lora.adapt`; None without adaptation.
    """
    models = transformer_stage.trained(models, config)
    latents = transformer_stage.window_latents(models, config)

    def loss(params, frozen, items, key):
        error, step = regression(
            models, params, *assemble(source, items), key, config.context_noise
        )
        first = step == 0
        return error.mean(), {
            "x0_first": jnp.sum(error * first) / jnp.maximum(first.sum(), 1),
            "x0_last": jnp.sum(error * ~first) / jnp.maximum((~first).sum(), 1),
        }

    stage = loop.Stage(
        name="student", init=transformer_stage.init(models), loss=loss, frozen={},
        batches=lambda seed, rows=None: sources.stream(
            one, len(sizes), config.batch, seed, rows, sizes
        ),
        sample=previewer(models, source, preview(latents)),
        finish=lambda params, frozen: params, optimizer=config.optimizer, start=start,
        labels=groups.groups, batch=config.batch,
        frames=config.batch * latents * models.preset.timing.frames_per_latent,
    )
    return lora_lib.adapt(stage, config.lora, base, start)


def previewer(
    models: rollouts.Models, source: sources.Source, shown: sources.Preview
) -> Callable:
    """Function (student's parameters, frozen, path) that shows cached rollouts."""
    draw = jax.jit(
        lambda p, items, k: rollouts.student_sample(models, p, source.assemble(items), k)
    )

    def sample(params, frozen, path):
        return shown.show(draw(params, shown.batch, jax.random.key(1)), path)

    return sample
