"""The warp of head and chest, against the renderer that moves them for real."""

import jax
import numpy as np
import pytest

from tm_jax.data.synthetic import characters
from tm_jax.data.synthetic import motion as motion_lib
from tm_jax.models.puppet.motion import config as config_lib
from tm_jax.models.puppet.motion import pose

_SIZE = 128


@pytest.fixture(scope="module")
def scene():
    """A character at rest and in five poses, as drawn; and the box of its face."""
    character = characters.stack([characters.sample(3, "flat")])
    at = motion_lib.COLUMNS.index
    motion = np.zeros((1, 6, len(motion_lib.COLUMNS)), np.float32)
    for frame, name in enumerate(("roll", "head_x", "head_y", "yaw", "pitch"), 1):
        motion[0, frame, at(name)] = 0.8
    drawn = np.asarray(characters.render(character, motion, _SIZE)) / 255.0
    box = np.asarray(characters.regions(character, motion)["face"])[:, 0]
    columns = [at(name) for name in config_lib.POSE]
    return drawn.astype(np.float32), motion[:, :, columns], box


@pytest.fixture(scope="module")
def warped(scene):
    drawn, moved, box = scene
    still = np.repeat(drawn[:, :1], 6, 1)
    return np.asarray(jax.jit(pose.warp)(still, moved, box))


def test_at_rest_nothing_changes(scene, warped):
    np.testing.assert_allclose(warped[:, 0], scene[0][:, 0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("frame", range(1, 6))
def test_it_moves_a_face_as_the_renderer_does(scene, warped, frame):
    drawn, _, box = scene
    y0, x0, y1, x1 = (int(v) for v in np.round(box[0] * _SIZE))
    inside = (slice(y0 + 4, y1 - 4), slice(x0 + 4, x1 - 4))
    true = drawn[0, frame][inside]
    before = np.square(drawn[0, 0][inside] - true).mean()
    after = np.square(warped[0, frame][inside] - true).mean()
    assert after < 0.35 * before


def test_the_background_stays(scene, warped):
    corner = warped[0, :, :8, :8]
    np.testing.assert_allclose(corner, np.repeat(scene[0][:, 0, :8, :8], 6, 0), atol=1e-4)



def test_fine_stripes_survive_a_shift_by_half_a_pixel():
    stripes = np.sin(np.pi / 2 * np.arange(_SIZE) + np.pi / 4).astype(np.float32)  # Period 4.
    frames = np.broadcast_to(stripes[:, None], (1, 1, _SIZE, _SIZE, 1))
    shift = np.zeros((1, 1, 6), np.float32)
    shift[..., config_lib.POSE.index("head_x")] = 0.5 / (pose._SHIFT * _SIZE)
    moved = np.asarray(pose.warp(frames, shift, np.array([[0.2, 0.2, 0.8, 0.8]])))
    middle = (slice(_SIZE // 2 - 8, _SIZE // 2 + 8),) * 2
    # 0.88 of the contrast by the formula; bilinear sampling would leave 0.71.
    kept = np.std(moved[0, 0][middle]) / np.std(frames[0, 0][middle])
    assert kept == pytest.approx(0.884, abs=0.02)
