"""Borders that keep the compiler from computing the same thing in many places."""

import jax
import jax.numpy as jnp

from tm_jax.core import target


@jax.custom_vjp
def once(x: jax.Array) -> jax.Array:
    """The same array, stored before anything reads it; likewise its gradient.

    XLA's CPU compiler otherwise repeats a chain of cheap operations in every program that reads
    its result, in an order of memory that suits the reader: a quarter of a training step.
    """
    return _stored(x)


def _stored(x):
    """A loop that never runs: a border that the compiler keeps while it fuses.

    An optimization barrier is taken away before.
    """
    if target.platform() != "cpu":
        return x
    bits = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    first = jax.lax.bitcast_convert_type(x[(0,) * x.ndim], bits)
    never = first * (first + 1) % 2 == 1  # Of two neighbours one is even.
    return jax.lax.while_loop(lambda c: c[0], lambda c: (c[0] & False, -c[1]), (never, x))[1]


def _once_forward(x):
    return once(x), None


def _once_backward(_, gradient):
    return (_stored(gradient),)


once.defvjp(_once_forward, _once_backward)
