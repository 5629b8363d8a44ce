"""Training the small video autoencoder: what the loss does, statistics, exact resume."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import compiled
from tm_jax.checkpoints import store as store_lib
from tm_jax.data import frame_store
from tm_jax.evaluation import reconstruction
from tm_jax.models.vae.small import config as config_lib
from tm_jax.models.vae.small import network
from tm_jax.training import video_vae

_SIDE = 64
_CONFIG = video_vae.VideoVAEConfig(batch=2, latents=1, side=None, warmup_steps=2, noise=0.1)


@pytest.fixture(scope="module")
def model():
    return network.SmallVAE(config_lib.PRESETS["pico"])


@pytest.fixture(scope="module")
def clips():
    """A bright square that moves right over a slope, uint8 [2, 5, 64, 64, 3]."""
    frames = np.empty((2, 5, _SIDE, _SIDE, 3), np.uint8)
    frames[:] = np.linspace(40, 120, _SIDE, dtype=np.uint8)[:, None]
    for b in range(2):
        for f in range(5):
            left = 16 + 3 * f + 4 * b
            frames[b, f, 20:44, left : left + 20] = (230, 180, 60)
    return frames


@pytest.fixture(scope="module")
def step(model):
    return video_vae.make_step(model, _CONFIG)


def _train(model, step, clips, state, updates):
    for _ in range(updates):
        state, metrics = step(state, clips, jax.random.key(5), 1.0)
    return state, metrics


def test_the_loss_falls_below_the_still_picture(model, step, clips):
    state = video_vae.create(model, _CONFIG, jax.random.key(0))
    state, first = _train(model, step, clips, state, 1)
    assert abs(first["psnr"] - first["psnr_warped"]) < 1e-3  # It starts with the picture.
    state, last = _train(model, step, clips, state, 60)
    assert last["loss"] < 0.7 * first["loss"]
    assert last["psnr"] > first["psnr"] + 2


def test_a_resumed_run_is_the_uninterrupted_one(model, step, clips, tmp_path):
    state = video_vae.create(model, _CONFIG, jax.random.key(0))
    state, _ = _train(model, step, clips, state, 2)
    with contextlib.closing(store_lib.Store(str(tmp_path))) as store:
        store.save(2, state, {"step": 2})
    whole, _ = _train(model, step, clips, state, 2)  # Donates `state`.
    fresh = video_vae.create(model, _CONFIG, jax.random.key(9))
    with contextlib.closing(store_lib.Store(str(tmp_path))) as store:
        resumed, position = store.restore(fresh, jax.tree.map(lambda x: x.sharding, fresh))
    assert position == {"step": 2}
    resumed, _ = _train(model, step, clips, resumed, 2)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)


def test_statistics_are_not_trained(model, step, clips):
    state = video_vae.create(model, _CONFIG, jax.random.key(0))
    state, _ = _train(model, step, clips, state, 3)
    for name, value in (("mean", 0), ("std", 1)):
        np.testing.assert_array_equal(state.params[f"latent_{name}"], value)
        np.testing.assert_array_equal(state.params[f"condition_{name}"], value)


def test_latents_have_unit_variance_with_statistics(model, step, clips):
    state = video_vae.create(model, _CONFIG, jax.random.key(0))
    state, _ = _train(model, step, clips, state, 5)
    params = video_vae.with_statistics(model, state.params, [clips[:1], clips[1:]])
    x = jnp.asarray(clips, jnp.float32) / 127.5 - 1
    z = compiled.method(model, "encode")(params, x)[:, 1:]
    reference, _ = compiled.method(model, "begin")(params, x[:, 0])
    for values in (z, reference.condition):
        np.testing.assert_allclose(np.mean(values, (*range(values.ndim - 1),)), 0, atol=1e-3)
        np.testing.assert_allclose(np.std(values, (*range(values.ndim - 1),)), 1, atol=1e-2)


def test_moving_pixels_weigh_more(model, clips):
    """The same error costs more where the frame differs from the reference."""
    state = video_vae.create(model, _CONFIG, jax.random.key(0))
    still = np.repeat(clips[:1, :1], 5, 1)
    patch = (slice(None), slice(1, None), slice(0, 8), slice(0, 8))
    small, large = still.copy(), still.copy()
    small[patch] += 20
    large[patch] += 40
    value = lambda x, w: float(video_vae.loss(
        model, dataclasses.replace(_CONFIG, moving_weight=w), state.params, x, jax.random.key(0)
    )[0])
    plain = value(large, 0.0) / value(small, 0.0)
    weighted = value(large, 8.0) / value(small, 8.0)
    assert weighted > 1.2 * plain


@pytest.mark.parametrize(
    "step, expected", [(0, 0.1), (9, 1.0), (50, 1.0), (80, 1.0), (90, 0.5), (100, 0.0)]
)
def test_the_schedule(step, expected):
    assert video_vae.rate(step, 100, 20, 10) == pytest.approx(expected)


def test_the_stable_part_does_not_depend_on_the_end():
    assert [video_vae.rate(i, 100, 20, 10) for i in range(80)] == [
        video_vae.rate(i, 500, 20, 10) for i in range(80)
    ]


def test_psnr_of_a_known_error():
    x = np.zeros((1, 1, 8, 8, 3), np.float32)
    x[..., :4, :] = 0.2  # Half of the picture moves.
    mask = reconstruction.moving(jnp.asarray(x), jnp.zeros((1, 8, 8, 3)))
    assert float(mask.mean()) == 0.5
    made = jnp.asarray(x) + 0.02 * mask
    square, count = reconstruction.squared_error(made, x)
    assert float(reconstruction.psnr(square, count)[0]) == pytest.approx(43.01, abs=0.01)
    square, count = reconstruction.squared_error(made, x, mask)
    assert float(reconstruction.psnr(square, count)[0]) == pytest.approx(40.0, abs=0.01)


def test_ssim_is_that_of_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    rng = np.random.default_rng(0)
    grey = rng.uniform(-1, 1, (32, 32)).astype(np.float32)
    other = np.clip(grey + 0.2 * rng.normal(size=grey.shape), -1, 1).astype(np.float32)
    colour = lambda x: jnp.asarray(np.repeat(x[None, ..., None], 3, -1))
    actual = float(reconstruction.ssim(colour(other), colour(grey))[0])
    _, full = metrics.structural_similarity(
        other + 1, grey + 1, data_range=2, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, full=True,
    )
    assert actual == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-4)


def test_ssim_of_equal_frames_is_one():
    x = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    np.testing.assert_allclose(reconstruction.ssim(x, x), 1, atol=1e-5)
    assert reconstruction.ssim(x, -x).max() < 0.1


@pytest.fixture
def store(tmp_path):
    """Seven clips in files of three; every pixel of frame f of clip n is 10 n + f."""
    clips = [
        np.broadcast_to((10 * n + np.arange(6, dtype=np.uint8))[:, None, None, None],
                        (6, 40, 40, 3))
        for n in range(7)
    ]
    assert frame_store.write(str(tmp_path / "a"), clips, clips_per_file=3) == 7
    return frame_store.FrameStore([str(tmp_path / "a")])


def test_the_store_returns_its_clips(store):
    assert len(store) == 7 and len(store.files) == 3
    for n in range(7):
        assert store.clip(n)[:, 0, 0, 0].tolist() == [10 * n + f for f in range(6)]


def test_batches_hold_the_reference_and_consecutive_frames(store):
    batch = store.batch(0, 3, size=8, frames=4, side=32)
    assert batch.shape == (8, 5, 32, 32, 3)
    for clip in batch[:, :, 0, 0, 0].astype(int):
        assert clip[0] % 10 == 0
        assert set(np.diff(clip[1:])) in ({1}, {-1})
    np.testing.assert_array_equal(batch, store.batch(0, 3, size=8, frames=4, side=32))
    assert np.any(batch != store.batch(0, 4, size=8, frames=4, side=32))


def test_a_store_without_clips_is_explained(tmp_path):
    with pytest.raises(ValueError, match="draw clips"):
        frame_store.FrameStore([str(tmp_path)])
