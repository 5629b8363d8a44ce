"""Shape checks: what they bind and what they say."""

import numpy as np
import pytest

from tm_jax.core import shapes


def test_binds_letters_and_keeps_given_sizes():
    assert shapes.check(np.zeros((2, 3)), "B T", "x", Q=9) == {"Q": 9, "B": 2, "T": 3}


def test_one_letter_has_one_size():
    with pytest.raises(ValueError, match="axis K of .K K. must be 2, got 3"):
        shapes.check(np.zeros((2, 3)), "K K", "square")


def test_message_of_a_wrong_size():
    expected = r"audio: axis T of \[B T A E\] must be 3, got 2 \(shape \(1, 2, 7, 16\)\)\."
    with pytest.raises(ValueError, match=expected):
        shapes.check(np.zeros((1, 2, 7, 16)), "B T A E", "audio", T=3)


def test_message_of_a_wrong_rank():
    with pytest.raises(ValueError, match=r"x: expected axes \[B T\], got shape \(4,\)"):
        shapes.check(np.zeros(4), "B T", "x")
