"""Rotary positions against complex rotation in float64."""

import numpy as np
import pytest

from tm_jax.nn import rope

_ATOL = 5e-6  # Measured 2.8e-7.


def rotate(x, position, width):
    """Turns the pairs of `x` [..., width] by position * 10000 ** (-2 i / width)."""
    x = np.float64(x)
    z = x[..., 0::2] + 1j * x[..., 1::2]
    turn = 10000.0 ** (-2 * np.arange(width // 2) / width)
    z = z * np.exp(1j * np.asarray(position)[..., None] * turn)
    return np.stack([z.real, z.imag], -1).reshape(x.shape)


def reference(x, times, rows, columns):
    """Rotates x [L, N, K] token by token."""
    out, head = [], x.shape[-1]
    widths = rope.axis_widths(head)
    token = 0
    for t in times:
        for row in range(rows):
            for column in range(columns):
                parts = np.split(x[token], np.cumsum(widths)[:2], axis=-1)
                turned = [
                    rotate(part, np.full(len(part), position), width)
                    for part, position, width in zip(parts, (t, row, column), widths)
                ]
                out.append(np.concatenate(turned, -1))
                token += 1
    return np.stack(out)


def test_split_of_a_wan_head():
    assert [w // 2 for w in rope.axis_widths(128)] == [22, 21, 21]


@pytest.mark.parametrize("head", [12, 16, 64, 128])
def test_widths_are_even_and_fill_the_head(head):
    widths = rope.axis_widths(head)
    assert sum(widths) == head
    assert all(w % 2 == 0 for w in widths)


@pytest.mark.parametrize("head", [16, 128])
def test_matches_complex_rotation(head):
    rng = np.random.default_rng(0)
    times = [0, 4, 5]
    x = rng.standard_normal((3 * 2 * 3, 2, head), dtype=np.float32)
    actual = rope.apply(x, rope.angles(times, 2, 3, head))
    np.testing.assert_allclose(actual, reference(x, times, 2, 3), rtol=0, atol=_ATOL)


def test_only_relative_positions_matter():
    rng = np.random.default_rng(1)
    q, k = rng.standard_normal((2, 8, 1, 16), dtype=np.float32)

    def logits(shift):
        angle = rope.angles([shift, shift + 3], 2, 2, 16)
        return np.einsum("lnk,snk->ls", rope.apply(q, angle), rope.apply(k, angle))

    np.testing.assert_allclose(logits(0), logits(40), rtol=0, atol=1e-5)  # Measured 1e-6.
    moved = np.einsum(
        "lnk,snk->ls", rope.apply(q, rope.angles([0, 3], 2, 2, 16)),
        rope.apply(k, rope.angles([1, 4], 2, 2, 16)),
    )
    assert np.abs(moved - logits(0)).max() > 0.1
