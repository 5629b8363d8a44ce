"""Attention against NumPy in float64."""

import jax.numpy as jnp
import numpy as np

from tm_jax.nn import attention

_ATOL = 3e-6  # Measured 3.6e-7.


def reference(q, k, v, valid=None):
    """softmax(q k / sqrt(K)) v in float64, axes [*, L, N, K]."""
    q, k, v = (np.float64(x) for x in (q, k, v))
    logits = np.einsum("...lnk,...snk->...nls", q, k) / np.sqrt(q.shape[-1])
    if valid is not None:
        logits = np.where(valid, logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("...nls,...snk->...lnk", weights, v)


def _inputs(dtype=np.float32):
    rng = np.random.default_rng(0)
    q = rng.standard_normal((2, 3, 5, 2, 8))
    k, v = rng.standard_normal((2, 2, 3, 7, 2, 8))
    return [x.astype(dtype) for x in (q, k, v)]


def test_matches_the_definition():
    q, k, v = _inputs()
    actual = attention.attend(q, k, v)
    np.testing.assert_allclose(actual, reference(q, k, v), rtol=0, atol=_ATOL)


def test_keys_broadcast_over_frames():
    q, k, v = _inputs()
    actual = attention.attend(q, k[:, :1], v[:, :1])
    expected = reference(q, k[:, [0, 0, 0]], v[:, [0, 0, 0]])
    np.testing.assert_allclose(actual, expected, rtol=0, atol=_ATOL)


def test_mask():
    q, k, v = _inputs()
    valid = np.random.default_rng(1).random((2, 3, 1, 5, 7)) < 0.5
    valid[..., 0] = True
    expected = reference(q, k, v, valid)
    actual = attention.attend(q, k, v, valid)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=_ATOL)
    hidden = ~valid.any((0, 1, 2, 3))
    assert not hidden.any()  # Every key is seen by some query: the test covers all slots.


def test_hidden_values_do_not_leak():
    q, k, v = _inputs()
    valid = np.arange(7) < 4
    k2, v2 = k.copy(), v.copy()
    k2[..., 4:, :, :], v2[..., 4:, :, :] = 1e4, -1e4
    np.testing.assert_array_equal(
        attention.attend(q, k, v, valid), attention.attend(q, k2, v2, valid)
    )


def test_returns_the_dtype_of_the_query():
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in _inputs())
    out = attention.attend(q, k, v)
    assert out.dtype == jnp.bfloat16
    # Measured 0.007: bfloat16 keeps 8 bits of inputs of size about 3.
    expected = reference(*(np.asarray(x, np.float32) for x in (q, k, v)))
    np.testing.assert_allclose(np.float32(out), expected, rtol=0, atol=0.04)


def test_close_logits_of_narrow_inputs_stay_apart():
    """Logits near 72 that differ by about one; bfloat16 knows only halves there."""
    rng = np.random.default_rng(2)
    q = np.full((1, 4, 2, 64), 3.0)
    k = 3 + 0.25 * rng.standard_normal((1, 9, 2, 64))
    v = rng.standard_normal((1, 9, 2, 64))
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in (q, k, v))
    expected = reference(*(np.asarray(x, np.float32) for x in (q, k, v)))
    # Measured 0.004; 0.12 where logits are rounded to bfloat16.
    np.testing.assert_allclose(
        np.float32(attention.attend(q, k, v)), expected, rtol=0, atol=0.02
    )


def test_large_heads_one_after_another(monkeypatch):
    q, k, v = _inputs()
    shared = k[:, :1], v[:, :1]
    expected = reference(q, k, v), reference(q, *(x[:, [0, 0, 0]] for x in shared))
    taken = []
    whole = attention._head_by_head
    monkeypatch.setattr(attention, "_LARGE", 1)
    monkeypatch.setattr(
        attention, "_head_by_head", lambda *a: taken.append(a[0].shape) or whole(*a)
    )
    for (keys, values), wanted in zip([(k, v), shared], expected):
        actual = attention.attend(q, keys, values)
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=_ATOL)
    # Frames that share their keys are one sequence.
    assert taken == [(2, 3, 5, 2, 8), (2, 15, 2, 8)]
