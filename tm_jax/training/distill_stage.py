"""Stage `distill`: the student learns on its own rollouts by distribution matching.

Three networks of one architecture: the teacher, bidirectional and frozen, is the real score;
the critic, a bidirectional copy of it, learns by flow matching what the student makes, and is
the fake score; the student is sparse causal and makes its samples chunk by chunk with its own
cache, past the teacher's window, so that it meets its own errors. Both scores read one
window of the teacher's length somewhere in that rollout.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from tm_jax.diffusion import dmd
from tm_jax.diffusion import flow_matching
from tm_jax.diffusion import guidance as guidance_lib
from tm_jax.training import alternating
from tm_jax.training import batches
from tm_jax.training import example_source
from tm_jax.training import groups
from tm_jax.training import loop
from tm_jax.training import lora as lora_lib
from tm_jax.training import optimizer as optimizer_lib
from tm_jax.training import rollouts
from tm_jax.training import sources
from tm_jax.training import student_stage
from tm_jax.training import transformer_stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillStageConfig(student_stage.StudentStageConfig):
    """Settings of the stage; each names where its default comes from.

    What is inherited describes the regression term, which is the loss of stage `student` on
    the same trajectories.

    Attributes:
      start: Folder in the work directory whose student is the start: "student" after the
        regression (CausVid, arXiv 2412.07772, section 4.3), "teacher" to leave it out.
      rollouts: The clips whose sound rollouts have and from which, in part, they start. Clips
        of 18 latents last six chunks: four past the window of two of teacher and critic.
      rollout_chunks: Longest rollout; the window ends at a random chunk of it. Own choice:
        seven layers that attend one chunk back each carry an error no further than seven.
      real_fraction: Fraction of samples whose window follows true chunks instead of the
        student's own. Own choice: the paper mixes both and gives no number.
      score_guidance: Guidance of the teacher's score. Own choice: the drawn mouth follows its
        sound closely without, and opens too far with the 3 to 6 of text-to-video models.
      regression_weight: Weight of the regression term (DMD, arXiv 2311.18828, section 3.3).
      regression_batch: Samples of a batch that the term uses; at most `batch`. Own choice:
        with all four it would be a third of the student's step.
      critic_updates: Updates of the critic for one of the student (DMD2, arXiv 2405.14867,
        section 4.2).
      lowest_sigma: Noise levels of both scores are clipped here (DMD, section 3.2: 0.02)
      highest_sigma: and here (0.98).
      least_error: Smallest divisor of the gradient, in units of latents. Own choice: a drawn
        face at rest is known to the teacher almost exactly, as no filmed one is, and would
        get the full gradient for differences that are invisible.
      optimizer: Optimiser of the student. No first moment: the direction that the critic
        gives is out of date after one update (Self-Forcing, arXiv 2506.08009: beta1 = 0,
        beta2 = 0.999; its 2e-6 belongs to 1.3 B parameters).
      critic_optimizer: Optimiser of the critic, likewise. It keeps no average.
    """

    start: str = "student"
    rollouts: example_source.ExampleConfig = example_source.ExampleConfig()
    rollout_chunks: int = 6
    real_fraction: float = 0.5
    score_guidance: guidance_lib.Guidance = guidance_lib.Guidance(audio=1.5)
    regression_weight: float = 0.25
    regression_batch: int = 2
    critic_updates: int = 5
    lowest_sigma: float = 0.02
    highest_sigma: float = 0.98
    least_error: float = 0.01
    optimizer: optimizer_lib.OptimizerConfig = optimizer_lib.OptimizerConfig(
        learning_rate=5e-5, warmup_steps=10, final_fraction=0.2, beta1=0.0, beta2=0.999,
        weight_decay=0.01, ema_decay=0.97,
    )
    critic_optimizer: optimizer_lib.OptimizerConfig = optimizer_lib.OptimizerConfig(
        learning_rate=1e-4, warmup_steps=20, final_fraction=0.2, beta1=0.0, beta2=0.999,
        weight_decay=0.01,
    )

    def __post_init__(self):
        super().__post_init__()
        if self.rollout_chunks < self.chunks:
            raise ValueError(
                f"rollout_chunks={self.rollout_chunks} must be at least the window of "
                f"chunks={self.chunks}."
            )
        if not 0 <= self.real_fraction <= 1:
            raise ValueError(f"real_fraction must be in 0..1, got {self.real_fraction}.")
        for name in ("critic_updates", "regression_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 < self.lowest_sigma < self.highest_sigma <= 1:
            raise ValueError(
                "lowest_sigma and highest_sigma must be rising in (0, 1], got "
                f"{self.lowest_sigma} and {self.highest_sigma}."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regression:
    """The regression term's data: trajectories of the teacher.

    Attributes:
      source: Their clips.
      one: Function (index) -> window and trajectory, as of `trajectories.windows`.
      sizes: Their sizes.
    """

    source: sources.Source
    one: Callable[[int], dict]
    sizes: sources.Sizes


def make(
    models: rollouts.Models, source: sources.Source, regression: Regression | None,
    preview: Callable[[int], sources.Preview], config: DistillStageConfig, *,
    start: Any, teacher: Any, critic: Any, base: Any = None,
) -> loop.Stage:
    """The stage.

    Args:
      models: Networks, with the sampler that the student learns.
      source: Clips of rollouts.
      regression: Data of the regression term; None without.
      preview: Function (latents) -> held-out clips of that length.
      config: Settings.
      start: Parameters that the student starts from, as of `loop.Stage`.
      teacher: The teacher's parameters, a tree as `loop.Stage.frozen` has them.
      critic: The same parameters as the critic's start, as of `loop.Stage`.
      base: With low-rank adaptation (`lora.adapt`), the parameters whose adapters the student
        has; by default the teacher's. Then `start` are adapters, and `critic` is not read.
    """
    longest = config.rollout_chunks * models.preset.timing.latents_per_chunk
    sample = student_stage.previewer(models, source, preview(longest))
    models = transformer_stage.trained(models, config)
    student_loss, critic_loss = losses(models, source, regression, config)
    count = len(source) * (len(regression.sizes) if regression else 1)

    def feed(seed, rows=None):
        clip = sources.random_window(source, longest, seed)

        def one(index):
            item = {"rollout": clip(index)}
            if regression is None:
                return item
            path = regression.sizes.alike(index, source.sizes[index])
            return {**item, "regression": regression.one(path)}

        # An epoch in which every clip meets every trajectory, if their counts allow it.
        return sources.stream(one, count, config.batch, seed, rows, source.sizes)

    init = transformer_stage.init(models)
    stage = loop.Stage(
        name="distill", init=init, loss=student_loss, frozen={"teacher": teacher},
        batches=feed, sample=sample, finish=lambda params, frozen: params,
        optimizer=config.optimizer, start=start, labels=groups.groups, batch=config.batch,
        frames=config.batch * longest * models.preset.timing.frames_per_latent,
        critic=alternating.Critic(
            init=init, loss=critic_loss, optimizer=config.critic_optimizer,
            updates=config.critic_updates, start=critic, labels=groups.groups,
        ),
    )
    return lora_lib.adapt(stage, config.lora, teacher if base is None else base, start)


def losses(
    models: rollouts.Models, source: sources.Source, regression: Regression | None,
    config: DistillStageConfig,
) -> tuple[Callable, Callable]:
    """The losses of student and critic.

    Args:
      models: Networks, with the sampler that the student learns.
      source: Clips of rollouts.
      regression: Data of the regression term; None without.
      config: Settings.

    Returns:
      Two functions (params, frozen, items, key) -> (scalar, metrics). `items` holds
      `rollout`, stacked windows of the longest rollout, and `regression`, stacked items of
      `trajectories.windows`. The student's `frozen` holds `teacher` and `critic`, the critic's
      `student`.
    """
    schedule = models.preset.schedule

    def begin(items, key):
        keys = jax.random.split(key, 4)
        batch = source.assemble(items["rollout"])
        if config.dropout.active:
            batch = batch.without(config.dropout.draw(jax.random.fold_in(key, 4), batch.size))
        return batch, keys

    def noised(key, clip):
        keys = jax.random.split(key)
        sigma = dmd.draw_sigma(
            schedule, keys[0], len(clip), config.lowest_sigma, config.highest_sigma
        )
        return sigma, rollouts.draw_noise(keys[1], (len(clip), clip.shape[1] - 1, *clip.shape[2:]))

    def student_loss(params, frozen, items, key):
        batch, keys = begin(items, key)
        found, batch = random_window(models, params, batch, keys[0], config)
        x = rollouts.exit_pass(models, params, batch, found)
        sample = jax.lax.stop_gradient(x)
        clip = dataclasses.replace(batch, x0=sample).clip
        sigma, noise = noised(keys[1], clip)
        noisy = rollouts.corrupt(models, clip, noise, sigma)

        def estimate(params, guidance):
            velocity = rollouts.teacher_velocity(models, params, batch, noisy, sigma, guidance)
            return flow_matching.to_x0(noisy, velocity, sigma)[:, 1:]

        real = estimate(frozen["teacher"], config.score_guidance)
        fake = estimate(frozen["critic"], guidance_lib.Guidance())
        direction = dmd.gradient(sample, fake, real, config.least_error)
        total = dmd.loss(x, direction)
        metrics = {
            "dmd": total, "real": jnp.mean(jnp.abs(sample - real)),
            "gap": jnp.mean(jnp.abs(fake - real)),
        }
        if regression is not None:
            error = _regression(models, params, items, regression.source, keys[2], config)
            metrics["regression"] = error
            total = total + config.regression_weight * error
        return total, metrics

    def critic_loss(params, frozen, items, key):
        batch, keys = begin(items, key)
        found, batch = random_window(models, frozen["student"], batch, keys[0], config)
        batch = dataclasses.replace(batch, x0=found.x0)
        sigma, noise = noised(keys[1], batch.clip)
        per_sample = transformer_stage.flow_loss(models, params, batch, sigma, noise)
        return per_sample.mean(), {}

    return student_loss, critic_loss


def _regression(models, params, items, source, key, config) -> jax.Array:
    """The regression term on the first samples of a batch, a scalar."""
    part = jax.tree.map(lambda a: a[: config.regression_batch], items["regression"])
    error, _ = student_stage.regression(
        models, params, *student_stage.assemble(source, part), key, config.context_noise
    )
    return error.mean()


def random_window(
    models: rollouts.Models, params: dict, batch: batches.Batch, key: jax.Array,
    config: DistillStageConfig,
) -> tuple[rollouts.RolloutWindow, batches.Batch]:
    """A window at a random place of each sample's rollout, after true or own chunks.

    Every sample has a place, a coin and an exit step of its own.

    Args:
      models: Networks.
      params: Parameters of the student.
      batch: Clips of the longest rollout.
      key: Random key.
      config: Settings.

    Returns:
      The windows, and the batch cut to them.
    """
    keys, size = jax.random.split(key, 4), batch.size
    last = config.rollout_chunks - config.chunks
    teacher_forced = jax.random.bernoulli(keys[0], config.real_fraction, (size,))
    # Without a chunk before the window there is nothing to be forced.
    lowest = jnp.minimum(teacher_forced.astype(jnp.int32), last)
    start = jax.random.randint(keys[1], (size,), lowest, last + 1)
    exit_step = jax.random.randint(keys[2], (size,), 0, models.preset.student.num_steps)
    found = rollouts.rollout_window(
        models, params, batch, keys[3], config.chunks, start, teacher_forced, exit_step
    )
    c = models.preset.timing.latents_per_chunk
    return found, batch.cut(start * c, config.chunks * c)
