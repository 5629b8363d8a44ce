"""Scaling of inputs and outputs of a network that predicts clean latents.

Tokens of many channels are better predicted clean than as a velocity, which would carry all of
the noise through them (Li and He 2025, arXiv 2511.13720). With latents of standard deviation s
the network predicts them in units of s:

  x0 = s F,   so   v = (x - s F) / sigma,

and its input is the noisy latent at unit variance, x / sqrt((1 - sigma)^2 s^2 + sigma^2).

Scaled inputs and outputs go back to EDM (Karras et al. 2022, eq. 7). Differs from it: nothing of
the noise is passed around the network.
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
