"""Samplers on velocity fields with a closed form."""

import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.diffusion import flow_matching
from tm_jax.diffusion import samplers

_NOISE = np.random.default_rng(0).standard_normal((2, 3), dtype=np.float32)


def test_euler_follows_a_straight_path_exactly():
    x0 = np.float32([[1, -2, 3], [0, 5, 1]])
    sigmas = flow_matching.Schedule().steps(5)
    points = samplers.euler(lambda x, s: jnp.asarray(_NOISE - x0), _NOISE, sigmas)
    assert points.shape == (6, 2, 3)
    levels = np.append(sigmas, 0.0)[:, None, None]
    expected = (1 - levels) * x0 + levels * _NOISE
    # Measured 4.8e-7.
    np.testing.assert_allclose(points, expected, rtol=0, atol=3e-6)


def test_euler_converges_to_the_exponential():
    # dx / dsigma = a x from sigma = 1 to 0: x(0) = exp(-a) x(1).
    rate, errors = 0.7, []
    for steps in (50, 100):
        sigmas = 1 - np.arange(steps) / steps
        end = samplers.euler(lambda x, s: rate * x, _NOISE, sigmas)[-1]
        product = _NOISE * (1 - rate / steps) ** steps  # Euler's own closed form.
        np.testing.assert_allclose(end, product, rtol=3e-6)  # Measured 4e-7.
        errors.append(np.abs(end - _NOISE * np.exp(-rate)).max())
    assert 1.8 < errors[0] / errors[1] < 2.2  # First order.


def _draw(step):
    return jax.random.normal(jax.random.fold_in(jax.random.key(3), step), (2, 3))


def test_few_step_with_an_exact_predictor_returns_x0():
    x0, seen = jnp.arange(6.0).reshape(2, 3), []

    def predict(step, x, sigma):
        seen.append((step, x, sigma))
        return x0, step

    sigmas = flow_matching.Schedule().steps(3)
    result, extras = samplers.few_step(predict, _draw, sigmas)
    np.testing.assert_array_equal(result, x0)
    assert extras == [0, 1, 2]
    assert tuple(s for _, _, s in seen) == sigmas
    for step, x, sigma in seen:
        # Fresh noise in every step, on the path through x0: this is not Euler.
        expected = (1 - sigma) * np.float64(x0) + sigma * np.float64(_draw(step))
        np.testing.assert_allclose(x, expected, rtol=0, atol=1e-6)  # Measured 1.6e-7.


def test_few_step_returns_the_last_prediction():
    result, _ = samplers.few_step(lambda i, x, s: (x + 10 * i, None), _draw, (1.0, 0.5))
    first = np.float64(_draw(0))
    expected = 0.5 * first + 0.5 * np.float64(_draw(1)) + 10
    np.testing.assert_allclose(result, expected, rtol=0, atol=2e-6)
