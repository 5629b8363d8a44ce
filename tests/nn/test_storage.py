"""A border for the compiler changes no number."""

import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.nn import storage


def test_what_is_stored_once_is_the_same():
    """Also of numbers that are not finite; and the compiler keeps the border."""
    x = jnp.asarray([[jnp.inf, -0.0, jnp.nan], [1.5, -jnp.inf, 3e38]])
    chain = jax.jit(lambda x: jnp.flip(storage.once(2 * x) + 1))
    np.testing.assert_array_equal(chain(x), jnp.flip(2 * x + 1))
    np.testing.assert_array_equal(jax.vmap(storage.once)(-x), -x)
    slope = jax.grad(lambda x: jnp.sum(jnp.sin(storage.once(3 * x))))(x[1])
    np.testing.assert_array_equal(slope, jax.grad(lambda x: jnp.sum(jnp.sin(3 * x)))(x[1]))
    assert " while(" in chain.lower(x).compile().as_text()
