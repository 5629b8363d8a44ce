"""Scaling of inputs and outputs around the reference picture.

Latents of a small preset are changes from the reference picture, of standard deviation s. The
network predicts the clean latent in units of s:

  x0 = s F,   so   v = (x - s F) / sigma,

and its input is the noisy latent at unit variance, x / sqrt((1 - sigma)^2 s^2 + sigma^2).

An untrained network (F = 0) shows the still picture at every noise level. Scaled outputs go
back to EDM (Karras et al. 2022, eq. 7). Differs from it: nothing of the noise is passed
around the network, because a picture at rest needs an output of exactly zero, whereas a
velocity would have to carry all of the noise through a token narrower than its latents.
"""

import jax
import jax.numpy as jnp

_SMALLEST = 1e-3  # A velocity at sigma = 0 is never used, but must be finite.


def scale_input(x: jax.Array, sigma: jax.Array | float, std: jax.Array | float) -> jax.Array:
    """Network input of unit variance. All arguments broadcast to `x`."""
    return x / jnp.sqrt(jnp.square(1 - sigma) * std**2 + jnp.square(sigma))


def to_velocity(
    output: jax.Array, x: jax.Array, sigma: jax.Array | float, std: jax.Array | float
) -> jax.Array:
    """Velocity from the network's unit-scale output. All arguments broadcast to `x`."""
    return (x - std * output) / jnp.maximum(sigma, _SMALLEST)


def loss_weight(sigma: jax.Array | float, std: jax.Array | float) -> jax.Array:
    """Weight that turns a squared velocity error into one of the network's output."""
    return jnp.square(jnp.maximum(sigma, _SMALLEST) / std)
