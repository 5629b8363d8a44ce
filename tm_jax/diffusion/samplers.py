"""Samplers as pure functions of a velocity function.

The path is x_sigma = (1 - sigma) x0 + sigma eps (`flow.py`); sigma falls from 1 to 0.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tm_jax.diffusion import flow_matching


def euler(
    velocity: Callable[[jax.Array, jax.Array], jax.Array], noise: jax.Array,
    sigmas: Sequence[float]
) -> jax.Array:
    """Integrates the flow with Euler steps: the many-step teacher.

    Args:
      velocity: Function (x [B, ...], sigma scalar) -> velocity [B, ...].
      noise: Start of the path, [B, ...].
      sigmas: Decreasing sigmas, the first is 1; a final 0 is added here.

    Returns:
      Points of the trajectory before each step and the end, [steps + 1, B, ...].
    """
    before = jnp.asarray(sigmas, jnp.float32)
    after = jnp.append(before[1:], 0.0)

    def step(x, pair):
        sigma, sigma_next = pair
        return x + (sigma_next - sigma) * velocity(x, sigma), x

    end, points = jax.lax.scan(step, noise, (before, after))
    return jnp.concatenate([points, end[None]])


def few_step(
    predict: Callable[[int, jax.Array, float], tuple[jax.Array, Any]],
    draw: Callable[[int], jax.Array], sigmas: Sequence[float]
) -> tuple[jax.Array, list]:
    """Consistency sampling: predict x0, add fresh noise at the next sigma, repeat.

    The number of steps is small and static, so the loop is unrolled and `predict` may keep
    a different state per step.

    Args:
      predict: Function (step, x [B, ...], sigma) -> (x0 estimate [B, ...], extra).
      draw: Function (step) -> unit normal noise [B, ...], a fresh one for every step.
      sigmas: Decreasing sigmas, the first is 1; Python floats.

    Returns:
      Estimate of x0 [B, ...] and the list of extras, one per step.
    """
    x0, extra = predict(0, draw(0), sigmas[0])
    extras = [extra]
    for step, sigma in enumerate(sigmas[1:], 1):
        x = flow_matching.corrupt(x0, draw(step), jnp.float32(sigma))
        x0, extra = predict(step, x, sigma)
        extras.append(extra)
    return x0, extras
