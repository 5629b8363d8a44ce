"""The former name of `alternating`, until the stage that imports it does so by the new one."""

from tm_jax.training.alternating import Critic
from tm_jax.training.alternating import make

__all__ = ["Critic", "make"]
