"""Scaling of changes from the reference, from its definition in NumPy."""

import numpy as np
import pytest

from tm_jax.diffusion import flow_matching
from tm_jax.models.dit import preconditioning

_SIGMAS = np.float32([0.02, 0.3, 5 / 6, 1.0])
_STD = 0.5


def _points(seed, count=2):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, 4000), dtype=np.float32)


@pytest.mark.parametrize("sigma", _SIGMAS)
def test_the_output_is_the_scaled_change(sigma):
    x, output = _points(0)
    v = preconditioning.to_velocity(output, x, sigma, _STD)
    x0 = np.asarray(flow_matching.to_x0(x, v, sigma))
    # Measured 2.9e-7; float32 loses |x| / sigma before it is multiplied by sigma again.
    np.testing.assert_allclose(x0, _STD * output, rtol=0, atol=2e-6)


@pytest.mark.parametrize("sigma", _SIGMAS)
def test_the_network_sees_unit_variance(sigma):
    standard, noise = _points(1)
    x = np.asarray(flow_matching.corrupt(_STD * standard, noise, sigma))
    seen = np.asarray(preconditioning.scale_input(x, sigma, _STD))
    assert abs(seen.mean()) < 0.06 and abs(seen.std() - 1) < 0.05


@pytest.mark.parametrize("sigma", _SIGMAS)
def test_the_loss_weight_measures_errors_of_the_output(sigma):
    x, _ = _points(3)
    zero = preconditioning.to_velocity(0.0, x, sigma, _STD)
    one = preconditioning.to_velocity(1.0, x, sigma, _STD)
    error = np.square(one - zero) * float(preconditioning.loss_weight(sigma, _STD))
    np.testing.assert_allclose(error, 1.0, rtol=1e-3)  # Measured 2e-5 at sigma 0.02.


def test_without_noise_the_velocity_is_finite():
    x, _ = _points(4)
    assert np.isfinite(preconditioning.to_velocity(1.0, x, 0.0, _STD)).all()
