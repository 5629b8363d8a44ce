"""Optimiser of every stage: AdamW, warm-up and cosine decay, clipped gradients."""

import dataclasses

import jax
import optax


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimiser settings of one stage.

    Attributes:
      learning_rate: Peak learning rate.
      warmup_steps: Linear warm-up.
      final_fraction: Learning rate at the last step, as a fraction of the peak.
      beta1: Decay of the first moment.
      beta2: Decay of the second moment.
      weight_decay: Decoupled decay of matrices; vectors are not decayed.
      clip_norm: Largest global norm of a gradient.
      accumulate: Micro-batches per update.
      ema_decay: Decay of the averaged parameters that are sampled and shipped.
    """

    learning_rate: float = 1e-3
    warmup_steps: int = 50
    final_fraction: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.98
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    accumulate: int = 1
    ema_decay: float = 0.995


def make(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The optimiser for a run of `steps` micro-batches, `accumulate` of them per update."""
    steps = max(1, steps // config.accumulate)  # The schedule counts updates.
    warmup = min(config.warmup_steps, max(1, steps // 2))
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, warmup, max(steps, warmup + 1),
        config.learning_rate * config.final_fraction,
    )
    chain = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            rate, config.beta1, config.beta2, weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params),
        ),
    )
    if config.accumulate > 1:
        return optax.MultiSteps(chain, config.accumulate)
    return chain
