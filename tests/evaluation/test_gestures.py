"""Places of a head and lids in pictures that move in a known way."""

import numpy as np
import pytest
import scipy.ndimage

from tm_jax.evaluation import gestures

_BOX = np.array([0.25, 0.25, 0.6, 0.75])
_FPS = 25


def _picture(seed: int = 0, side: int = 96) -> np.ndarray:
    """Soft spots, uint8 [side, side, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    picture = np.full((side, side, 3), 0.5)
    for _ in range(40):
        cy, cx = rng.random(2)
        spot = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 0.004)
        picture += spot[..., None] * rng.uniform(-0.5, 0.5, 3)
    return np.uint8(np.clip(picture, 0, 1) * 235 + 10)


@pytest.mark.parametrize("step", [1, 2])
def test_a_known_path_is_found_to_a_fraction_of_a_pixel(step):
    picture = _picture()
    path = np.array([[0, 0], [3, -2], [0.5, 0.25], [-6.3, 4.7], [10, 9]])
    moved = [scipy.ndimage.shift(picture, (*s, 0), order=1, mode="nearest") for s in path]
    found = gestures.head(np.stack(moved), picture, _BOX, step=step)
    np.testing.assert_allclose(found, path, rtol=0, atol=0.15)


def test_light_is_no_movement():
    picture = _picture()
    dark = np.uint8(0.7 * picture + 5)[None]
    np.testing.assert_allclose(gestures.head(dark, picture, _BOX), 0, rtol=0, atol=0.05)


def _eyes(picture: np.ndarray) -> np.ndarray:
    """The picture with a strip of another texture where its eyes are."""
    shut = picture.copy()
    shut[34:46, 28:68] = _picture(5)[34:46, 28:68]
    return shut


def test_lids_follow_a_head_that_moves():
    picture = _picture()
    shut = _eyes(picture)
    true = np.array([0.0, 0.25, 0.5, 1.0, 0.5, 0.0])
    path = np.array([[0, 0], [2, 1], [-3, 4], [5, -5], [1, 0], [0, 7]])
    faces = [(1 - a) * picture.astype(float) + a * shut for a in true]
    video = np.stack([np.roll(f, s, (0, 1)) for f, s in zip(faces, path)]).astype(np.uint8)
    box = np.array([34 / 96, 28 / 96, 46 / 96, 68 / 96])
    found = gestures.lids(video, path, picture, shut, box)
    np.testing.assert_allclose(found, true, rtol=0, atol=0.03)
    still = gestures.lids(video, np.zeros_like(path), picture, shut, box)
    assert np.abs(still - true).max() > 0.1  # The place of the head matters.


def test_blinks_are_counted_and_timed():
    curve = np.zeros(250)
    for at in (20, 90, 200):
        curve[at : at + 5] = [0.4, 0.9, 1.0, 0.6, 0.31]
    curve[150:153] = 0.45  # Half a blink is none.
    assert gestures.blinks(curve) == [(21, 25), (91, 95), (201, 205)]
    still = np.zeros((250, 2), np.float32)
    found = gestures.summarise([still], [curve], _FPS, 100)
    assert found.blinks_per_minute == pytest.approx(18)
    assert found.blink_s == pytest.approx(4 / 25)
    assert (found.head_spread, found.head_speed) == (0, 0)
    assert gestures.blinks(np.ones(4)) == [(0, 4)]


def test_speed_and_spread_of_a_head_in_heights():
    back_and_forth = np.stack([np.tile([0.0, 2.0], 50), np.zeros(100)], 1)
    found = gestures.summarise([back_and_forth], [np.zeros(100)], _FPS, 100)
    assert found.head_spread == pytest.approx(0.01)
    assert found.head_speed == pytest.approx(0.5)  # 2 of 100 pixels 25 times a second.
    assert np.isnan(found.blink_s)
    twice = gestures.speed_distance([2 * back_and_forth], [back_and_forth], _FPS, 100)
    assert twice == pytest.approx(1)
    assert gestures.speed_distance([back_and_forth], [back_and_forth], _FPS, 100) == 0


def test_wrong_input_is_explained():
    picture = _picture()
    with pytest.raises(ValueError, match="uint8"):
        gestures.head(picture[None] / 255, picture, _BOX)
    with pytest.raises(ValueError, match="covers less"):
        gestures.head(picture[None], picture, np.array([0.5, 0.5, 0.5, 0.5]))
    with pytest.raises(ValueError, match="as in open_eyes"):
        gestures.lids(picture[None], np.zeros((1, 2)), picture, picture, _BOX)
