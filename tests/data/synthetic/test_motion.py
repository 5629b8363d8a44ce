"""Bounds, statistics and determinism of everything that moves but the mouth."""

import numpy as np
import pytest

from tm_jax.data.synthetic import motion

_COLUMN = {name: index for index, name in enumerate(motion.COLUMNS)}
_HEAD = [_COLUMN[name] for name in ("yaw", "pitch", "roll", "head_x", "head_y")]


def _mouth(num_frames):
    """A mouth that opens four times a second."""
    mouth = np.zeros((num_frames, 6), np.float32)
    size = 0.5 + 0.4 * np.sin(np.arange(num_frames) * 0.13)
    mouth[:, 0] = size * (0.5 - 0.5 * np.cos(2 * np.pi * 4 * np.arange(num_frames) / 25))
    return mouth


def _both(seed, num_frames):
    rng = np.random.default_rng(seed)
    return {
        "talking": motion.talking(rng, _mouth(num_frames)),
        "listening": motion.listening(rng, num_frames),
    }


@pytest.mark.parametrize("num_frames", [1, 2, 5, 250])
def test_shapes_and_bounds(num_frames):
    for seed in range(10):
        for curves in _both(seed, num_frames).values():
            assert curves.shape == (num_frames, 17) and curves.dtype == np.float32
            assert np.isfinite(curves).all() and np.abs(curves).max() <= 1
            assert np.abs(curves[:, _HEAD]).max() <= 0.9
            blink = curves[:, _COLUMN["blink_left"]]
            assert blink.min() >= 0
            np.testing.assert_array_equal(blink, curves[:, _COLUMN["blink_right"]])


def test_the_generator_decides():
    for kind, curves in _both(3, 100).items():
        np.testing.assert_array_equal(curves, _both(3, 100)[kind])
        assert np.abs(curves - _both(4, 100)[kind]).max() > 0.05


def test_talking_keeps_the_mouth_and_listening_shuts_it():
    curves = _both(0, 200)
    np.testing.assert_array_equal(curves["talking"][:, :5], _mouth(200)[:, :5])
    assert not curves["listening"][:, :5].any()


@pytest.mark.parametrize("kind", ["talking", "listening"])
def test_blinks_are_natural(kind):
    num_frames, clips = 1500, 20  # One minute each.
    counts, lengths = [], []
    for seed in range(clips):
        blink = _both(seed, num_frames)[kind][:, _COLUMN["blink_left"]]
        full = blink > 0.99
        counts.append(np.sum(full[1:] & ~full[:-1]))
        moving = np.concatenate([[0], (blink > 0.01).astype(int), [0]])
        starts = np.flatnonzero(np.diff(moving) > 0)
        lengths += list(np.flatnonzero(np.diff(moving) < 0) - starts)
    assert 14 <= np.mean(counts) <= 21
    assert 6 <= np.median(lengths) <= 8


def test_the_head_moves_modestly_and_slowly():
    clips = np.concatenate([_both(seed, 250)["listening"] for seed in range(60)])
    std = clips[:, _HEAD].std(axis=0)
    assert np.all((std > 0.2) & (std < 0.34))
    slow = np.stack([_both(seed, 250)["listening"] for seed in range(20)])[:, :, _HEAD]
    power = np.abs(np.fft.rfft(slow * np.hanning(250)[:, None], axis=1)) ** 2
    hz = np.fft.rfftfreq(250, 1 / 25)
    # All but the nods (pitch, column 1) lies below 1 Hz; the rest is the window's.
    still = [0, 2, 3, 4]
    assert power[:, hz > 1.2][:, :, still].sum() < 0.01 * power[..., still].sum()


def test_gaze_rests_on_the_camera_and_jumps():
    gaze = np.stack([_both(seed, 250)["listening"][:, 8:10] for seed in range(30)])
    assert 0.55 < np.mean(np.abs(gaze).max(axis=-1) < 0.08) < 0.95
    assert np.abs(gaze).max() <= 0.75
    assert np.abs(np.diff(gaze, axis=1)).max() > 0.15


def test_breath_is_slow():
    breath = _both(0, 2500)["listening"][:, _COLUMN["breath"]]
    crossings = np.sum(np.diff(np.sign(breath - 0.5)) > 0)
    assert 17 <= crossings <= 33  # About 0.25 Hz over 100 s.
    assert breath.min() >= 0 and breath.max() <= 1


def test_a_portrait_is_nearly_neutral():
    rng = np.random.default_rng(0)
    poses = np.stack([motion.portrait(rng) for _ in range(300)])
    assert poses.shape == (300, 17)
    assert not poses[:, :5].any() and not poses[:, 6:8].any()
    np.testing.assert_allclose(poses[:, _HEAD].std(axis=0), 0.1, rtol=0, atol=0.02)


def test_a_mouth_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="mouth"):
        motion.talking(np.random.default_rng(0), np.zeros((10, 5)))
