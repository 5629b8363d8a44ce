"""Time features and patches against their definitions."""

import jax.numpy as jnp
import numpy as np
import pytest

from tm_jax.nn import embeddings


def test_sinusoid_is_cosines_then_sines():
    times = np.float32([[0, 1.5], [833.25, 1000]])
    actual = embeddings.sinusoid(jnp.asarray(times), 16)
    angle = np.float64(times)[..., None] / 10000 ** (np.arange(8) / 8)
    expected = np.concatenate([np.cos(angle), np.sin(angle)], -1)
    # Measured 1.2e-5: float32 keeps an angle of 1000 to 3e-5.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)


def test_patchify_is_wans_strided_convolution():
    """A token times the flattened kernel equals Conv3d(kernel = stride = (1, 2, 2))."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 4, 6, 5), dtype=np.float32)
    kernel = rng.standard_normal((7, 5, 1, 2, 2), dtype=np.float32)  # [D, C, 1, 2, 2]
    tokens = np.asarray(embeddings.patchify(x, 2))
    assert tokens.shape == (2, 3, 6, 20)
    actual = tokens @ kernel.reshape(7, -1).T
    expected = np.zeros((2, 3, 2, 3, 7))
    for row in range(2):
        for column in range(3):
            block = np.float64(x[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2])
            expected[:, :, row, column] = np.einsum("bthwc,dchw->btd", block, kernel[:, :, 0])
    expected = expected.reshape(2, 3, 6, 7)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)  # Measured 1.6e-6.


def test_unpatchify_is_wans_einsum():
    """Wan: view(rows, columns, ph, pw, c), then einsum 'hwqrc->chqwr'."""
    rng = np.random.default_rng(1)
    tokens = rng.standard_normal((2, 3, 6, 20), dtype=np.float32)
    view = tokens.reshape(2, 3, 2, 3, 2, 2, 5)
    expected = np.einsum("bfhwqrc->bfhqwrc", view).reshape(2, 3, 4, 6, 5)
    actual = embeddings.unpatchify(jnp.asarray(tokens), 2, 2, 5)
    np.testing.assert_array_equal(actual, expected)


def test_unpatchify_inverts_patchify_up_to_the_order_in_a_token():
    x = np.random.default_rng(2).standard_normal((1, 2, 4, 6, 5), dtype=np.float32)
    tokens = embeddings.patchify(x, 2).reshape(1, 2, 6, 5, 4)
    tokens = tokens.swapaxes(-1, -2).reshape(1, 2, 6, 20)  # Channel slowest to fastest.
    np.testing.assert_array_equal(embeddings.unpatchify(tokens, 2, 2, 5), x)


def test_a_size_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="latents of 5x6 do not divide into 2x2 patches"):
        embeddings.patchify(np.zeros((1, 1, 5, 6, 3)), 2)
