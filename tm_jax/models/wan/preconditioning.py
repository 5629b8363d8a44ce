"""Scaling of inputs and outputs around the reference picture.

EDM (Karras et al. 2022, eq. 7) scales a denoiser so that the network sees and predicts unit
variance. Here the prior is centred on the reference latent r with standard deviation s:
x0 ~ N(r, s^2). For the flow path x = (1 - sigma) x0 + sigma eps the best linear estimate of
the velocity is known in closed form, and the network adds a correction of unit scale:

  d = x - (1 - sigma) r,   q = (1 - sigma)^2 s^2 + sigma^2
  v = d (sigma - (1 - sigma) s^2) / q - r - s / sqrt(q) * F(d / sqrt(q), r)

An untrained network (F = 0) therefore shows the still picture.
"""

import jax
import jax.numpy as jnp


def _variance(sigma, std):
    return jnp.square(1 - sigma) * std**2 + jnp.square(sigma)


def scale_input(x, reference, sigma, std) -> jax.Array:
    """Network input of unit variance. All arguments broadcast to `x`."""
    return (x - (1 - sigma) * reference) / jnp.sqrt(_variance(sigma, std))


def to_velocity(output, x, reference, sigma, std) -> jax.Array:
    """Velocity from the network's unit-scale output. All arguments broadcast to `x`."""
    variance = _variance(sigma, std)
    distance = x - (1 - sigma) * reference
    prior = distance * (sigma - (1 - sigma) * std**2) / variance - reference
    return prior - std / jnp.sqrt(variance) * output


def loss_weight(sigma, std) -> jax.Array:
    """Weight that turns a squared velocity error into one of the network's output."""
    return _variance(sigma, std) / std**2
