"""The encoders' references of `experiments/parity`, for the tests of our own.

Skips the tests that import it where torch and transformers are not installed.
"""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from experiments.parity import encoders

torch.set_num_threads(1)

NAMES = encoders.NAMES
build = encoders.build


def relative(actual, expected) -> float:
    """Largest absolute difference over the largest absolute value of the reference."""
    expected = expected.detach().numpy()
    assert actual.shape == expected.shape
    return float(abs(actual - expected).max() / abs(expected).max())
