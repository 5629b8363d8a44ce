"""Identity measures on pictures that change in a known way."""

import numpy as np
import pytest

from tm_jax.evaluation import identity

_BOX = np.array([0.25, 0.25, 0.625, 0.75])


def _picture(seed: int = 0, side: int = 64) -> np.ndarray:
    """Soft coloured spots, uint8 [side, side, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    picture = np.full((side, side, 3), 0.5)
    for _ in range(12):
        cy, cx = rng.random(2)
        spot = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 0.01)
        picture += spot[..., None] * rng.uniform(-0.5, 0.5, 3)
    return np.uint8(np.clip(picture, 0, 1) * 235 + 10)


def test_the_reference_itself_has_no_distance():
    picture = _picture()
    frames = picture[None]
    np.testing.assert_allclose(identity.colour_distance(frames, picture), 0, atol=1e-7)
    np.testing.assert_allclose(identity.picture_distance(frames, picture), 0, atol=1e-7)
    np.testing.assert_allclose(identity.likeness(frames, picture, _BOX), 1, atol=1e-6)


def test_a_cast_of_known_strength_is_measured():
    picture = _picture()
    casts = np.stack([picture + np.uint8(s) for s in (0, 2, 4, 10)])
    expected = np.array([0, 2, 4, 10]) / 255
    found = identity.picture_distance(casts, picture)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    colours = identity.colour_distance(casts, picture)
    assert (np.diff(colours) > 0).all() and colours[-1] > 0.1
    # A cast is no other face: grey values stay correlated.
    np.testing.assert_allclose(identity.likeness(casts, picture, _BOX), 1, atol=1e-5)


def test_colours_without_a_common_bin_are_far():
    black, white = np.zeros((8, 8, 3), np.uint8), np.full((1, 8, 8, 3), 255, np.uint8)
    assert identity.colour_distance(white, black)[0] == 1


@pytest.mark.parametrize("dy, dx", [(0, 6), (-4, 2), (8, -8)])
def test_likeness_forgives_a_small_shift(dy, dx):
    picture = _picture()
    moved = np.roll(picture, (dy, dx), (0, 1))[None]
    assert identity.likeness(moved, picture, _BOX)[0] > 0.999
    assert identity.likeness(moved, picture, _BOX, reach=0)[0] < 0.95


def test_likeness_tells_pictures_apart():
    others = np.stack([_picture(seed) for seed in range(1, 6)])
    assert identity.likeness(others, _picture(), _BOX).max() < 0.9


def test_drift_is_found_and_noise_is_not():
    rng = np.random.default_rng(0)
    noise = 0.01 * rng.standard_normal(600)
    steady = identity.drift(0.2 + noise, rate=5)
    assert abs(steady.change) < 0.5
    assert steady.spread == pytest.approx(0.01, rel=0.1)
    drifting = identity.drift(0.2 + noise + np.linspace(0, 0.1, 600), rate=5)
    # The means of the first and last 50 of 600 values are 550 steps of 0.1 / 599 apart.
    assert drifting.last - drifting.first == pytest.approx(0.1 * 550 / 599, abs=0.006)
    assert drifting.change > 5


def test_a_short_video_uses_halves():
    found = identity.drift(np.array([0.0, 0.0, 1.0, 1.0]), rate=25)
    assert (found.first, found.last) == (0, 1)


def test_wrong_input_is_explained():
    picture = _picture()
    with pytest.raises(ValueError, match="uint8"):
        identity.colour_distance(picture[None] / 255, picture)
    with pytest.raises(ValueError, match="blocks"):
        identity.picture_distance(picture[None], picture, side=15)
    with pytest.raises(ValueError, match="covers less"):
        identity.likeness(picture[None], picture, np.array([0.5, 0.5, 0.5, 0.5]))
    with pytest.raises(ValueError, match="per window"):
        identity.drift(np.zeros(3), rate=25)
