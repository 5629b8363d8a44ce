"""The Fréchet distance against closed forms, and on clips with known faults."""

import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage

from tm_jax.evaluation import frechet

_BOX = np.array([0.15, 0.15, 0.85, 0.85])
_SIDE, _FRAMES, _CLIPS = 64, 48, 16


def _face(rng) -> np.ndarray:
    """A textured disc with two eyes, [side, side, 3] in 0..1."""
    y, x = np.mgrid[:_SIDE, :_SIDE] / _SIDE - 0.5
    noise = scipy.ndimage.gaussian_filter(rng.standard_normal((_SIDE, _SIDE)), 1.0)
    face = 0.75 + 0.3 * noise
    for side in (-0.14, 0.14):
        face = np.where((x - side) ** 2 + (y + 0.12) ** 2 < 0.004, 0.1, face)
    face = np.where(x * x + y * y < 0.12, face, 0.4)
    return face[..., None] * rng.uniform(0.6, 1.0, 3)


def _opening(rng) -> np.ndarray:
    """Something like the opening of a mouth, [T] in 0..1."""
    smooth = scipy.ndimage.gaussian_filter1d(rng.standard_normal(_FRAMES), 1.5)
    return np.clip(0.5 + smooth, 0, 1)


def _clip(face: np.ndarray, opening: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[:_SIDE, :_SIDE] / _SIDE - 0.5
    video = np.repeat(face[None], len(opening), 0)
    for frame, height in zip(video, opening):
        inside = (x / 0.12) ** 2 + ((y - 0.17) / (0.004 + 0.07 * height)) ** 2 < 1
        frame[inside] = 0.05
    return np.uint8(np.clip(video, 0, 1) * 255)


@pytest.fixture(scope="module")
def clips():
    """Pairs of reference and clip of different faces; the first half and the second half."""
    made = []
    for seed in range(2 * _CLIPS):
        rng = np.random.default_rng(seed)
        face = _face(rng)
        made.append((_clip(face, np.zeros(1))[0], _clip(face, _opening(rng))))
    return made[:_CLIPS], made[_CLIPS:]


def _points(clips, change=lambda video: video):
    return np.concatenate([frechet.features(change(v), p, _BOX) for p, v in clips])


def _blur(sigma):
    return lambda v: scipy.ndimage.gaussian_filter(v, (0, sigma, sigma, 0))


def _shuffled(video):
    """The mouth alone in a wrong order."""
    wrong = video.copy()
    order = np.random.default_rng(0).permutation(len(video))
    wrong[:, 36:, 16:48] = video[order, 36:, 16:48]
    return wrong


def _shaken(video):
    return np.stack([np.roll(f, (-1) ** i, 1) for i, f in enumerate(video)])


def test_faults_are_far_and_halves_are_near(clips):
    first, second = clips
    truth = _points(first)
    space = frechet.space(truth)
    apart = lambda values: frechet.distance(space(values), space(truth))
    half = apart(_points(second))
    blurred = [apart(_points(second, _blur(s))) for s in (0.6, 1.0, 2.0)]
    shuffled, shaken = apart(_points(second, _shuffled)), apart(_points(second, _shaken))
    still = apart(_points(second, lambda v: np.repeat(v[:1], len(v), 0)))
    assert apart(truth) < 1e-6
    assert half < 0.2 * min(blurred[0], shuffled, shaken, still)
    assert blurred == sorted(blurred)
    assert still > shuffled


def test_features_see_no_borders_between_windows(clips):
    """A cut between two windows changes no window."""
    (picture, video), (_, other) = clips[0][:2]
    cut = np.concatenate([video[:12], other[12:24], video[24:36]])
    found = frechet.features(cut, picture, _BOX)
    np.testing.assert_array_equal(found[[0, 2]], frechet.features(video, picture, _BOX)[[0, 2]])


def test_crops_follow_the_head(clips):
    picture, video = clips[0][0]
    moved = np.roll(video, (3, -2), (1, 2))
    shifts = np.tile([3, -2], (len(video), 1))
    still = frechet.features(video, picture, _BOX)
    np.testing.assert_allclose(frechet.features(moved, picture, _BOX, shifts), still, atol=1e-5)
    assert np.abs(frechet.features(moved, picture, _BOX) - still).max() > 0.1


def test_distance_of_normal_distributions():
    """Against the formula with scipy's matrix root, for the shrunk covariances."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((400, 6)) @ rng.standard_normal((6, 6)) + 1
    b = rng.standard_normal((300, 6)) @ rng.standard_normal((6, 6))
    s, t = frechet.shrunk_covariance(a), frechet.shrunk_covariance(b)
    root = scipy.linalg.sqrtm(s @ t).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(s + t - 2 * root)
    assert frechet.distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet.distance(b, a) == pytest.approx(expected, rel=1e-8)
    assert frechet.distance(a, a) == pytest.approx(0, abs=1e-9)
    moved = frechet.distance(a + 2, a)
    assert moved == pytest.approx(6 * 4, rel=1e-9)  # Equal covariances: means alone count.


def test_shrinking_helps_where_points_are_few():
    rng = np.random.default_rng(1)
    scales = np.linspace(0.5, 2.0, 30)
    true = np.diag(scales**2)
    few = rng.standard_normal((20, 30)) * scales
    shrunk = frechet.shrunk_covariance(few)
    sample = np.cov(few.T, bias=True)
    assert np.square(shrunk - true).sum() < 0.6 * np.square(sample - true).sum()
    assert np.linalg.eigvalsh(shrunk).min() > 0.01
    assert np.trace(shrunk) == pytest.approx(np.trace(sample))
    many = rng.standard_normal((20000, 30)) * scales
    np.testing.assert_allclose(
        frechet.shrunk_covariance(many), np.cov(many.T, bias=True), rtol=0, atol=0.02
    )


def test_wrong_input_is_explained(clips):
    picture, video = clips[0][0]
    with pytest.raises(ValueError, match="window above"):
        frechet.features(video[:8], picture, _BOX)
    with pytest.raises(ValueError, match="two points"):
        frechet.distance(np.zeros((1, 3)), np.zeros((5, 3)))
    with pytest.raises(ValueError, match=r"\[N, d\]"):
        frechet.distance(np.zeros((4, 3)), np.zeros((5, 2)))
