"""The flow-matching path, in Wan's sign.

x_sigma = (1 - sigma) * x0 + sigma * eps, so the velocity is v = eps - x0 and
x0 = x_sigma - sigma * v. sigma = 1 is noise. The paper writes t = 1 - sigma, v_paper = -v.
"""

import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp

Time = TypeVar("Time", float, jax.Array)


def model_time(sigma: jax.Array | float) -> jax.Array:
    """The time that the network is conditioned on, 1000 * sigma as in Wan."""
    return 1000.0 * jnp.asarray(sigma, jnp.float32)


def _expand(sigma, x):
    """Appends unit axes to `sigma` until it broadcasts against `x`."""
    sigma = jnp.asarray(sigma, jnp.float32)
    return sigma.reshape(sigma.shape + (1,) * (x.ndim - sigma.ndim))


def corrupt(x0: jax.Array, noise: jax.Array, sigma: jax.Array | float) -> jax.Array:
    """Point of the path at `sigma`, whose axes are leading axes of `x0`."""
    s = _expand(sigma, x0)
    return (1 - s) * x0 + s * noise


def velocity(x0: jax.Array, noise: jax.Array) -> jax.Array:
    """Velocity of the path, eps - x0."""
    return noise - x0


def to_x0(x: jax.Array, v: jax.Array, sigma: jax.Array | float) -> jax.Array:
    """Clean estimate from a noisy point and its velocity."""
    return x - _expand(sigma, x) * v


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """Noise levels shared by teacher, critic and student.

    Attributes:
      shift: s in sigma' = s * sigma / (1 + (s - 1) * sigma); larger means more noise.
    """

    shift: float = 5.0

    def __post_init__(self):
        if self.shift <= 0:
            raise ValueError(f"shift must be positive, got {self.shift}.")

    def shifted(self, u: Time) -> Time:
        """Maps uniform time u in [0, 1] to sigma; the shift is applied here and only here."""
        return self.shift * u / (1 + (self.shift - 1) * u)

    def steps(self, num_steps: int) -> tuple[float, ...]:
        """Decreasing sigmas of `num_steps` evenly spaced times, from 1, without the final 0."""
        return tuple(float(self.shifted(1 - i / num_steps)) for i in range(num_steps))

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Random training sigmas: shifted uniform."""
        return self.shifted(jax.random.uniform(key, shape))
