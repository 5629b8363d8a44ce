"""Norms against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tm_jax.nn import norms

_ATOL = 5e-6  # Measured 2.8e-7.
_X = np.random.default_rng(0).standard_normal((2, 3, 8), dtype=np.float32) * 3 + 1


def _layer_norm(x, epsilon=1e-6):
    x = np.float64(x)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)


def test_modulate_takes_shift_then_scale():
    rng = np.random.default_rng(1)
    shift, scale = rng.standard_normal((2, 2, 1, 8), dtype=np.float32)
    expected = _layer_norm(_X) * (1 + scale) + shift
    np.testing.assert_allclose(norms.modulate(_X, shift, scale), expected, rtol=0, atol=_ATOL)


@pytest.mark.parametrize("epsilon", [1e-6, 1e-1])
def test_layer_norm_with_affine_part(epsilon):
    scale, bias = np.random.default_rng(2).standard_normal((2, 8), dtype=np.float32)
    actual = norms.LayerNorm(epsilon=epsilon).apply(
        {"params": {"scale": scale, "bias": bias}}, _X
    )
    expected = _layer_norm(_X, epsilon) * scale + bias
    np.testing.assert_allclose(actual, expected, rtol=0, atol=_ATOL)


def test_rms_norm_spans_the_full_width():
    scale = np.random.default_rng(3).standard_normal(8, dtype=np.float32)
    actual = norms.RMSNorm().apply({"params": {"scale": scale}}, _X)
    x = np.float64(_X)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale
    np.testing.assert_allclose(actual, expected, rtol=0, atol=_ATOL)


@pytest.mark.parametrize("module", [norms.LayerNorm(), norms.RMSNorm()])
def test_half_precision_is_normalised_in_float32(module):
    x = jnp.asarray(_X * 200, jnp.bfloat16)  # Squares near the limits of half precision.
    params = module.init(jax.random.key(0), x)
    y = module.apply(params, x)
    assert y.dtype == jnp.bfloat16
    full = module.apply(params, x.astype(jnp.float32))
    np.testing.assert_array_equal(y, full.astype(jnp.bfloat16))
