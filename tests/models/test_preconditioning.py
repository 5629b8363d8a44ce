"""Scaling around the reference against Gaussian conditioning in NumPy."""

import numpy as np
import pytest

from tm_jax.models.wan import preconditioning

_SIGMAS = np.float32([0.0, 0.02, 0.3, 5 / 6, 1.0])
_STD = 0.5


def _moments(sigma):
    """Mean map and covariance of (x, v) for x0 ~ N(r, std^2), eps ~ N(0, 1)."""
    mix = np.array([[1 - sigma, sigma], [-1.0, 1.0]])  # (x, v) from (x0, eps)
    return mix[:, 0], mix @ np.diag([_STD**2, 1.0]) @ mix.T


@pytest.mark.parametrize("sigma", _SIGMAS)
def test_zero_output_is_the_posterior_mean(sigma):
    rng = np.random.default_rng(0)
    x, reference = rng.standard_normal((2, 50), dtype=np.float32)
    mean, covariance = _moments(np.float64(sigma))
    gain = covariance[1, 0] / covariance[0, 0]
    expected = mean[1] * reference + gain * (x - mean[0] * reference)
    actual = preconditioning.to_velocity(0.0, x, reference, sigma, _STD)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)  # Measured 2.5e-7.


@pytest.mark.parametrize("sigma", _SIGMAS)
def test_network_sees_and_predicts_unit_variance(sigma):
    rng = np.random.default_rng(1)
    x, reference = rng.standard_normal((2, 50), dtype=np.float32)
    mean, covariance = _moments(np.float64(sigma))
    expected = (x - mean[0] * reference) / np.sqrt(covariance[0, 0])
    actual = preconditioning.scale_input(x, reference, sigma, _STD)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)  # Measured 5.1e-7.
    # What the network adds has the posterior's standard deviation.
    posterior = np.linalg.det(covariance) / covariance[0, 0]
    zero = preconditioning.to_velocity(0.0, x, reference, sigma, _STD)
    one = preconditioning.to_velocity(1.0, x, reference, sigma, _STD)
    np.testing.assert_allclose(np.square(one - zero), posterior, rtol=1e-4)
    weight = preconditioning.loss_weight(sigma, _STD)
    assert float(weight) * posterior == pytest.approx(1, rel=1e-5)


def test_pure_noise_is_denoised_to_the_reference():
    rng = np.random.default_rng(2)
    noise, reference = rng.standard_normal((2, 50), dtype=np.float32)
    v = preconditioning.to_velocity(0.0, noise, reference, np.float32(1), _STD)
    np.testing.assert_allclose(noise - v, reference, rtol=0, atol=1e-6)  # Measured 1.2e-7.
