"""Stage `distill`: the student learns on its own rollouts by distribution matching.

Three networks of one architecture: the teacher, bidirectional and frozen, is the real score;
the critic, a bidirectional copy of it, learns by flow matching what the student makes, and is
the fake score; the student is sparse causal and makes its samples chunk by chunk with its own
cache, past the teacher's window, so that it meets its own errors. Both scores look at one
window of the teacher's length somewhere in that rollout.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from tm_jax.core import trees
from tm_jax.diffusion import flow
from tm_jax.models import networks
from tm_jax.training import dmd
from tm_jax.training import latents as latents_lib
from tm_jax.training import loop
from tm_jax.training import optimizer as optimizer_lib
from tm_jax.training import rollouts
from tm_jax.training import student_stage
from tm_jax.training import transformer_stage
from tm_jax.training import turns


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillStageConfig(student_stage.StudentStageConfig):
    """Settings of the stage; each names where its default comes from.

    What is inherited describes the regression term, which is the loss of stage `student` on
    the same trajectories.

    Attributes:
      start: Folder in the work directory whose student is the start: "student" after the
        regression (CausVid, arXiv 2412.07772, section 4.3), "teacher" to leave it out.
      rollouts: Store of the clips that rollouts hear and, in part, start from. Clips of 18
        latents last six chunks: four past the window of two in which teacher and critic see.
      rollout_chunks: Longest rollout; the window ends at a random chunk of it. Own choice:
        seven layers that look back one chunk each carry an error no further than seven.
      real_fraction: Fraction of batches whose window follows true chunks instead of the
        student's own. Own choice: the paper mixes both and gives no number.
      score_guidance: g in uncond + g * (cond - uncond) of the teacher's score. Own choice: the
        drawn mouth follows its sound closely without, and opens too far with the 3 to 6 of
        text-to-video models.
      regression_weight: Weight of the regression term (DMD, arXiv 2311.18828, section 3.3).
      regression_batch: Samples of a batch that the term looks at; at most `batch`. Own choice:
        with all four it would be a third of the student's step.
      critic_updates: Updates of the critic for one of the student (DMD2, arXiv 2405.14867,
        section 4.2).
      lowest_sigma: Noise levels of both scores are clipped here (DMD, section 3.2: 0.02)
      highest_sigma: and here (0.98).
      least_error: Smallest divisor of the gradient, in units of latents. Own choice: a drawn
        face at rest is known to the teacher almost exactly, as no filmed one is, and would
        be pushed with all force over differences that nobody sees.
      optimizer: Optimiser of the student. No first moment: the direction that the critic
        gives is out of date after one update (Self-Forcing, arXiv 2506.08009: beta1 = 0,
        beta2 = 0.999; its 2e-6 belongs to 1.3 B parameters).
      critic_optimizer: Optimiser of the critic, likewise. It keeps no average.
    """

    start: str = "student"
    rollouts: latents_lib.LatentConfig = latents_lib.LatentConfig(
        clips=640, latents=18, seed=1
    )
    rollout_chunks: int = 6
    real_fraction: float = 0.5
    score_guidance: float = 1.5
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


def make(
    models: networks.Models, params: dict, teacher: dict, store, clips, paths, config
) -> loop.Stage:
    """The stage.

    Args:
      models: Networks, with the sampler that the student learns.
      params: Trained parameters of all parts; `dit` is the student's start.
      teacher: Parameters of the teacher.
      store: Arrays of `latents.build` for the trajectories; None without regression.
      clips: Arrays of `latents.build` for `config.rollouts`.
      paths: Arrays of `student_stage.trajectories`; None without regression.
      config: Settings.

    Raises:
      ValueError: The clips are shorter than a rollout.
    """
    c = models.preset.timing.latents_per_chunk
    longest = config.rollout_chunks * c
    if config.rollouts.latents < longest:
        raise ValueError(
            f"rollouts.latents={config.rollouts.latents} is too short for "
            f"rollout_chunks={config.rollout_chunks}; it must be at least {longest}."
        )
    weights = transformer_stage.element_weights(models.preset, config)
    sample = student_stage.previewer(
        models, params, config.rollouts, config.previews, longest
    )
    models = transformer_stage.trained(models, config)
    student_loss, critic_loss = losses(models, weights, config)

    def batches(seed):
        clip = transformer_stage.random_window(
            clips, config.rollouts, models, longest, seed
        )
        path = paths and student_stage.path_window(store, paths, config, models)

        def one(index):
            item = {"rollout": clip(index)}
            return {**item, "regression": path(index)} if path else item

        # An epoch in which every clip meets every trajectory, if their counts allow it.
        count = len(clips["mode"]) * (len(paths["start"]) if paths else 1)
        return transformer_stage.stream(one, count, config.batch, seed)

    start = transformer_stage.boxed(models, teacher)
    return loop.Stage(
        name="distill", init=lambda key: transformer_stage.boxed(models, params["dit"]),
        loss=student_loss, frozen={"teacher": trees.cast(start, jnp.bfloat16)},
        batches=batches, sample=sample, finish=lambda params, frozen: params,
        optimizer=config.optimizer,
        critic=turns.Critic(
            init=lambda key: start, loss=critic_loss, optimizer=config.critic_optimizer,
            updates=config.critic_updates,
        ),
    )


def losses(models: networks.Models, weights, config) -> tuple[Callable, Callable]:
    """The losses of student and critic.

    Args:
      models: Networks, with the sampler that the student learns.
      weights: Weights of the error, as of `transformer_stage.element_weights`.
      config: Settings.

    Returns:
      Two functions (params, frozen, batch, key) -> (scalar, metrics). `batch` holds
      `rollout`, windows of the longest rollout, and `regression`, items of
      `student_stage.path_window`, unless its weight is 0. The student's `frozen` holds
      `teacher` and `critic`, the critic's `student`.
    """
    schedule = models.preset.schedule

    def visit(params, batch, key):
        """Window of a rollout, and what belongs to its place in the batch."""
        found, first = visit_somewhere(models, params, batch, key, config)
        frames = config.chunks * models.preset.timing.latents_per_chunk
        return found, rollouts.cut(batch, first, frames)

    def noised(key, shape):
        keys = jax.random.split(key)
        sigma = dmd.draw_sigma(
            schedule, keys[0], shape[0], config.lowest_sigma, config.highest_sigma
        )
        return sigma, jax.random.normal(keys[1], shape)

    def student_loss(params, frozen, batch, key):
        keys = jax.random.split(key, 3)
        found, window = visit(params, batch["rollout"], keys[0])
        x = rollouts.exit_pass(models, params, window, found)
        sample = jax.lax.stop_gradient(x)
        sigma, noise = noised(keys[1], x.shape)
        noisy = flow.corrupt(sample, noise, sigma)

        def estimate(params, guidance):
            velocity = rollouts.guided_velocity(
                models, params, window, noisy, sigma, guidance
            )
            return flow.to_x0(noisy, velocity, sigma)

        real = estimate(frozen["teacher"], config.score_guidance)
        fake = estimate(frozen["critic"], 1.0)
        direction = dmd.gradient(sample, fake, real, config.least_error)
        total = dmd.loss(x, direction, weights)
        metrics = {
            "dmd": total, "real": jnp.mean(jnp.abs(sample - real)),
            "gap": jnp.mean(jnp.abs(fake - real)),
        }
        if config.regression_weight:
            part = jax.tree.map(
                lambda a: a[: config.regression_batch], batch["regression"]
            )
            error, _ = student_stage.regression(
                models, params, part, keys[2], weights, config.context_noise
            )
            metrics["regression"] = error.mean()
            total = total + config.regression_weight * error.mean()
        return total, metrics

    def critic_loss(params, frozen, batch, key):
        keys = jax.random.split(key)
        found, window = visit(frozen["student"], batch["rollout"], keys[0])
        sample = found.estimates  # [B, W, c, H, W, C]
        sample = sample.reshape(sample.shape[0], -1, *sample.shape[3:])
        sigma, noise = noised(keys[1], sample.shape)
        per_sample = transformer_stage.flow_loss(
            models, params, window, sample, sigma, noise, window["windows"], weights
        )
        return per_sample.mean(), {}

    return student_loss, critic_loss


def visit_somewhere(models: networks.Models, params, batch, key, config):
    """A window at a random place of a rollout that starts from true or own chunks.

    Args:
      models: Networks.
      params: Parameters of the student.
      batch: Windows of the longest rollout.
      key: Random key.
      config: Settings.

    Returns:
      `rollouts.Visit`, and the window's first latent frame.
    """
    keys = jax.random.split(key, 4)
    last = config.rollout_chunks - config.chunks
    given = jax.random.bernoulli(keys[0], config.real_fraction)
    # Without a chunk before the window there is nothing to be given.
    start = jax.random.randint(keys[1], (), jnp.minimum(given, last), last + 1)
    exit_step = jax.random.randint(
        keys[2], (batch["mode"].shape[0],), 0, models.preset.student.num_steps
    )
    found = rollouts.visit(
        models, params, batch, keys[3], config.chunks, start, given, exit_step
    )
    return found, start * models.preset.timing.latents_per_chunk
