"""A pipeline of the smallest preset, and a picture for it."""

import numpy as np
import pytest

from tests import miniature


@pytest.fixture(scope="module")
def pipeline(pico):
    return miniature.pipeline(pico)


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
