"""The search for what the painter has to be told, on a painter whose error is known."""

import numpy as np

from experiments.nano import opening


def test_the_error_of_a_painter_is_undone():
    rng = np.random.default_rng(0)
    drawn = rng.uniform(0, 1.2, 20000)
    told = drawn / 0.4  # In units of the labels.

    def paint(given):  # A dead zone, and too little beyond it.
        return np.maximum(0, 0.3 * given - 0.06)

    found = opening.points(told, told, paint(told), drawn)
    assert found[0] == (0.0, 0.0)
    at, given = np.array(found).T
    inside = paint(given) < 0.9 * paint(told).max()  # What it has been seen to paint.
    assert inside.sum() > 5
    np.testing.assert_allclose(paint(given)[inside], 0.4 * at[inside], atol=0.02)
