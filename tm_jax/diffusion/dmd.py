"""Distribution matching distillation: the losses, free of networks.

The student's samples x are moved from where a critic, trained on the student's distribution,
expects them to where the teacher expects them (DMD, arXiv 2311.18828, equations 7 and 8). Both
give the clean estimate of the same noisy point of x.
"""

import jax
import jax.numpy as jnp

from tm_jax.diffusion import flow_matching


def draw_sigma(
    schedule: flow_matching.Schedule, key: jax.Array, size: int, lowest: float, highest: float
) -> jax.Array:
    """One noise level for every sample, shifted and clipped, [B]."""
    return jnp.clip(schedule.draw(key, (size,)), lowest, highest)


def gradient(
    x: jax.Array, x0_fake: jax.Array, x0_real: jax.Array, least: float = 1e-6
) -> jax.Array:
    """Direction away from the student's distribution, towards the teacher's.

    Args:
      x: Samples of the student, [B, ...].
      x0_fake: What the critic takes them for, [B, ...].
      x0_real: What the teacher takes them for, [B, ...].
      least: Smallest divisor.

    Returns:
      (x0_fake - x0_real) / mean|x - x0_real|, the mean over all axes but the first; a
      constant, [B, ...].
    """
    axes = tuple(range(1, x.ndim))
    size = jnp.mean(jnp.abs(x - x0_real), axes, keepdims=True)
    return jax.lax.stop_gradient((x0_fake - x0_real) / jnp.maximum(size, least))


def loss(x: jax.Array, direction: jax.Array) -> jax.Array:
    """Loss whose gradient to x is `direction`, divided by the number of elements.

    Args:
      x: Samples of the student, [B, ...].
      direction: Result of `gradient`.

    Returns:
      0.5 * mean((x - constant(x - direction))^2), scalar.
    """
    target = jax.lax.stop_gradient(x - direction)
    return 0.5 * jnp.mean(jnp.square(x - target))
