"""Losses of distribution matching: NumPy from the definition, and Gaussians in closed form."""

import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.diffusion import dmd
from tm_jax.diffusion import flow_matching

_RNG = np.random.default_rng(0)
_X, _FAKE, _REAL = _RNG.standard_normal((3, 4, 2, 3, 5)).astype(np.float32)


def test_the_gradient_is_the_formula():
    actual = dmd.gradient(_X, _FAKE, _REAL)
    for x, fake, real, found in zip(*map(np.float64, (_X, _FAKE, _REAL)), actual):
        expected = (fake - real) / np.mean(np.abs(x - real))
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_the_divisor_has_a_floor():
    near = _X + 1e-4 * _REAL
    actual = dmd.gradient(_X, _FAKE, near, least=0.5)
    np.testing.assert_allclose(actual, (_FAKE - near) / 0.5, rtol=1e-6)
    still = dmd.gradient(_X, _X, _X)
    np.testing.assert_array_equal(still, 0)


def test_the_loss_pushes_along_the_direction_alone():
    def loss(x, fake, real):
        return dmd.loss(x, dmd.gradient(x, fake, real))

    to_x, to_fake, to_real = jax.grad(loss, (0, 1, 2))(_X, _FAKE, _REAL)
    direction = np.asarray(dmd.gradient(_X, _FAKE, _REAL))
    np.testing.assert_allclose(to_x, direction / _X.size, rtol=0, atol=1e-7)
    np.testing.assert_array_equal(to_fake, 0)
    np.testing.assert_array_equal(to_real, 0)
    value = 0.5 * np.mean(direction**2)
    np.testing.assert_allclose(loss(_X, _FAKE, _REAL), value, rtol=1e-5)


def test_scores_that_agree_leave_the_student_alone():
    gradient = jax.grad(lambda x: dmd.loss(x, dmd.gradient(x, _REAL, _REAL)))(_X)
    np.testing.assert_array_equal(gradient, 0)


def test_noise_levels_are_shifted_once_and_clipped():
    key, schedule = jax.random.key(1), flow_matching.Schedule(shift=5.0)
    u = np.float64(jax.random.uniform(key, (4000,)))
    expected = np.clip(5 * u / (1 + 4 * u), 0.02, 0.98)
    actual = dmd.draw_sigma(schedule, key, 4000, 0.02, 0.98)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)
    assert (actual == np.float32(0.02)).any() and (actual == np.float32(0.98)).any()


def _posterior(x, sigma, mean, std):
    """E[x0 | x] for Gaussian data on the path x = (1 - sigma) x0 + sigma eps."""
    keep = 1 - sigma
    gain = std**2 * keep / (keep**2 * std**2 + sigma**2)
    return mean + gain * (x - keep * mean)


def test_a_gaussian_student_becomes_the_teacher():
    """x = a + b z with exact scores: mean and spread go to the teacher's, from both sides."""
    mean, std, schedule = 2.0, 0.5, flow_matching.Schedule(shift=1.0)

    def loss(params, key):
        keys = jax.random.split(key, 3)
        x = params[0] + params[1] * jax.random.normal(keys[0], (4096, 1))
        fixed = jax.lax.stop_gradient(params)
        sigma = dmd.draw_sigma(schedule, keys[1], len(x), 0.02, 0.98)
        noisy = flow_matching.corrupt(x, jax.random.normal(keys[2], x.shape), sigma)
        noisy = jax.lax.stop_gradient(noisy)
        real = _posterior(noisy, sigma[:, None], mean, std)
        fake = _posterior(noisy, sigma[:, None], fixed[0], fixed[1])
        # One element a sample: a floor on the divisor in place of the mean over many.
        return dmd.loss(x, dmd.gradient(x, fake, real, least=1.0))

    for start in ((-1.0, 1.5), (3.0, 0.1)):
        params = jnp.asarray(start)
        step = jax.jit(lambda p, k: p - 0.2 * jax.grad(loss)(p, k))
        for i in range(300):
            params = step(params, jax.random.key(i))
        np.testing.assert_allclose(params, (mean, std), rtol=0, atol=0.02)
