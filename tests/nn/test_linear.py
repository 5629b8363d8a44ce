"""Matrix layers against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.core import axes
from tm_jax.nn import linear

_RNG = np.random.default_rng(0)


def _normal(*shape):
    return _RNG.standard_normal(shape, dtype=np.float32)


def test_dense_matches_the_definition():
    x, kernel, bias = _normal(2, 3, 4), _normal(4, 5), _normal(5)
    actual = linear.Dense(5).apply({"params": {"kernel": kernel, "bias": bias}}, x)
    expected = np.float64(x) @ kernel + bias
    np.testing.assert_allclose(actual, expected, rtol=0, atol=5e-6)  # Measured 2.5e-7.


def test_conv_matches_the_definition():
    x, kernel, bias = _normal(2, 4, 5, 3), _normal(3, 3, 3, 6), _normal(6)
    actual = linear.Conv(6).apply({"params": {"kernel": kernel, "bias": bias}}, x)
    padded = np.pad(np.float64(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = sum(
        padded[:, i : i + 4, j : j + 5] @ kernel[i, j] for i in range(3) for j in range(3)
    ) + bias
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5)  # Measured 3.5e-6.


def test_zero_starts_silent():
    for layer, x in ((linear.Dense(4, zero=True), _normal(2, 3)),
                     (linear.Conv(4, zero=True), _normal(1, 2, 2, 3))):
        y, _ = layer.init_with_output(jax.random.key(0), x)
        np.testing.assert_array_equal(y, np.zeros_like(y))


def test_parameters_carry_logical_names():
    layer = linear.Dense(4, (axes.EMBED, axes.HEADS))
    boxed = jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros((1, 3)))["params"]
    assert boxed["kernel"].names == (axes.EMBED, axes.HEADS)
    assert boxed["bias"].names == (axes.HEADS,)
