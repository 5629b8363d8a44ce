"""Training the small video autoencoder: what the loss does, statistics, exact resume."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import compiled
from tm_jax.checkpoints import small_vae as weights
from tm_jax.configs import presets
from tm_jax.data import frame_store
from tm_jax.evaluation import reconstruction
from tm_jax.inference import part_files
from tm_jax.models.vae.small import config as config_lib
from tm_jax.models.vae.small import network
from tm_jax.parallel import rules
from tm_jax.training import optimizer as optimizer_lib
from tm_jax.training import run
from tm_jax.training import vae_measures
from tm_jax.training import video_vae

_SIDE = 64
_OPTIMIZER = optimizer_lib.OptimizerConfig(
    learning_rate=1e-2, schedule="constant", warmup_steps=1, muon=True, ema_decay=0.9
)
_CONFIG = video_vae.VideoVAEConfig(
    batch=2, latents=1, side=None, motion_channels=0, optimizer=_OPTIMIZER
)
_LOOP = run.loop.LoopConfig(sample_every=0, log_every=1)


@pytest.fixture(scope="module")
def model():
    return network.SmallVAE(config_lib.PRESETS["pico"])


@pytest.fixture(scope="module")
def preset():
    return presets.with_settings(presets.get("nano"), {
        "height": _SIDE, "width": _SIDE,
        "vae": dataclasses.asdict(config_lib.PRESETS["pico"]),
        "transformer": {"latent_channels": 4, "condition_channels": 4},
    })


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
def folder(clips, tmp_path_factory):
    """A folder of clips as the stage reads it."""
    root = tmp_path_factory.mktemp("clips")
    for name in ("drawn", video_vae.HELD_OUT):
        frame_store.write(str(root / name), list(clips))
    return str(root)


@pytest.fixture(scope="module")
def initial(model):
    return jax.jit(lambda key: rules.unbox(network.init(model.config, key)))(jax.random.key(0))


def _train(preset, folder, workdir, steps, **kwargs):
    config = dataclasses.replace(_CONFIG, path=folder)
    assert run.train(preset, "vae", config, str(workdir), steps, _LOOP, **kwargs)
    return weights.load(os.path.join(str(workdir), kwargs.get("name", "vae"), "vae.safetensors"))[1]


@pytest.fixture(scope="module")
def trained(preset, folder, tmp_path_factory):
    """Parameters after 60 updates, and the work directory."""
    workdir = tmp_path_factory.mktemp("run")
    return _train(preset, folder, workdir, 60, export=str(workdir / "export")), workdir


def test_it_learns_to_move_what_moves(model, trained, initial, clips):
    before = vae_measures.measure(model, initial, clips)
    after = vae_measures.measure(model, trained[0], clips)
    assert abs(before["psnr"] - before["psnr_still"]) < 1e-3  # It starts with the picture.
    assert after["psnr"] > before["psnr"] + 2


def test_a_resumed_run_is_the_uninterrupted_one(preset, folder, tmp_path):
    _train(preset, folder, tmp_path, 2, name="parts")
    resumed = _train(preset, folder, tmp_path, 4, name="parts")
    whole = _train(preset, folder, tmp_path, 4, name="whole")
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)


def test_a_run_starts_from_a_weight_file(preset, folder, trained, tmp_path):
    params, workdir = trained
    start = str(workdir / "vae" / "vae.safetensors")
    again = _train(preset, folder, tmp_path, 2, start=start)  # The first at learning rate 0.
    far = [np.abs(a - b).max() for a, b in zip(
        jax.tree.leaves(again["decoder"]), jax.tree.leaves(params["decoder"])
    )]
    assert 0 < max(far) < 0.1  # One update away.


def test_a_decoder_learns_alone(preset, folder, trained, tmp_path):
    params, workdir = trained
    start = str(workdir / "vae" / "vae.safetensors")
    optimizer = dataclasses.replace(_OPTIMIZER, weight_decay=0.5)
    config = dataclasses.replace(_CONFIG, path=folder, decoder_only=True, optimizer=optimizer)
    assert run.train(preset, "vae", config, str(tmp_path), 3, _LOOP, start=start)
    learned = weights.load(str(tmp_path / "vae" / "vae.safetensors"))[1]
    assert jax.tree.structure(learned) == jax.tree.structure(params)
    for name in params:
        same = jax.tree.map(np.array_equal, learned[name], params[name])
        assert all(jax.tree.leaves(same)) == (name != "decoder")
    # While it runs the other parts stay as well, without decay.
    stage = video_vae.make(preset, config, start)
    made = optimizer_lib.make(stage.optimizer, 3, stage.labels)
    updates = made.update(params, made.init(params), params)[0]
    assert not any(np.any(x) for name in params if name != "decoder"
                   for x in jax.tree.leaves(updates[name]))  # fmt: skip
    with pytest.raises(ValueError, match="give --start"):
        video_vae.make(preset, config)


def test_what_is_exported_is_a_part_of_the_preset(preset, trained):
    params, workdir = trained
    mesh = rules.make_mesh(jax.devices()[:1])
    found = part_files.load(preset, str(workdir / "export"), "vae", mesh, "float32")
    np.testing.assert_array_equal(found["latent_std"], params["latent_std"])
    kernel = ("decoder", "latent", "kernel")
    np.testing.assert_allclose(_at(found, kernel), _at(params, kernel), rtol=1 / 128, atol=1e-6)


def _at(tree, names):
    for name in names:
        tree = tree[name]
    return tree


def test_a_wrong_folder_is_explained(preset, tmp_path):
    with pytest.raises(ValueError, match="name their folder with --data"):
        video_vae.make(preset, _CONFIG)
    (tmp_path / video_vae.HELD_OUT).mkdir()
    with pytest.raises(ValueError, match="no folder of clips beside"):
        video_vae.stores(str(tmp_path))
    with pytest.raises(ValueError, match="no autoencoder that this stage trains"):
        video_vae.make(presets.get("pico"), _CONFIG)


def test_latents_have_unit_variance_with_statistics(model, trained, clips):
    params = video_vae.with_statistics(model, trained[0], [clips[:1], clips[1:]])
    x = jnp.asarray(clips, jnp.float32) / 127.5 - 1
    z = compiled.method(model, "encode")(params, x)[:, 1:]
    reference, _ = compiled.method(model, "begin")(params, x[:, 0])
    for values in (z, reference.condition):
        np.testing.assert_allclose(np.mean(values, (*range(values.ndim - 1),)), 0, atol=1e-3)
        np.testing.assert_allclose(np.std(values, (*range(values.ndim - 1),)), 1, atol=1e-2)


def test_moving_pixels_weigh_more(model, clips, initial):
    """The same error costs more where the frame differs from the reference."""
    still = np.repeat(clips[:1, :1], 5, 1)
    patch = (slice(None), slice(1, None), slice(0, 8), slice(0, 8))
    small, large = still.copy(), still.copy()
    small[patch] += 20
    large[patch] += 40
    value = lambda x, w: float(video_vae.loss(
        model, dataclasses.replace(_CONFIG, moving_weight=w, unseen_weight=0.0), initial, x,
        jax.random.key(0),
    )[0])
    plain = value(large, 0.0) / value(small, 0.0)
    weighted = value(large, 8.0) / value(small, 8.0)
    assert weighted > 1.2 * plain


@pytest.fixture
def painting_loss(model, clips, monkeypatch):
    """Function (moved picture, residual, settings) -> loss of these, of what is painted alone."""
    frames = clips.shape[1] - 1
    results = {"look": None, "encode_raw": jnp.zeros((2, 1, 2, 2, 4))}

    def value(warped, residual, **settings):
        results["decode_raw"] = (warped, residual, jnp.zeros((2, frames, 16, 16, 2)))
        monkeypatch.setattr(video_vae, "_apply", lambda model, params, name, *a: results[name])
        config = dataclasses.replace(
            _CONFIG, flow_weight=0.0, pooled_weight=0.0, motion_weight=0.0, **settings
        )
        return float(video_vae.loss(model, config, {}, clips, jax.random.key(0))[0])

    return value


def test_what_the_moved_picture_misses_weighs_more(clips, painting_loss):
    """A patch that it misses, of a square that it moves well."""
    frames = jnp.asarray(clips[:, 1:], jnp.float32) / 127.5 - 1
    patch = (slice(None), slice(None), slice(48, 60), slice(4, 60))
    moved = frames.at[patch].add(0.3)
    value = lambda warped, residual, w: painting_loss(warped, residual, unseen_weight=w)
    assert value(moved, 0.0, 16.0) > 1.5 * value(moved, 0.0, 0.0)
    # An error where it is right costs less instead: the mean weight is the same.
    elsewhere = jnp.zeros_like(frames).at[:, :, :12].set(0.1).at[patch].set(-0.3)
    assert value(moved, elsewhere, 16.0) < value(moved, elsewhere, 0.0)
    # Where the picture is not moved at all, no pixel is the exception.
    still = jnp.broadcast_to(jnp.asarray(clips[:, :1], jnp.float32) / 127.5 - 1, frames.shape)
    assert value(still, 0.0, 16.0) == pytest.approx(value(still, 0.0, 0.0), rel=1e-3)


def test_an_error_that_jumps_costs_more_than_one_that_stays(clips, painting_loss):
    frames = jnp.asarray(clips[:, 1:], jnp.float32) / 127.5 - 1
    off = jnp.full_like(frames, 0.2)
    jumps = off.at[:, ::2].multiply(-1)
    plain = dict(unseen_weight=0.0, moving_weight=0.0, edge_weight=0.0)
    of = lambda error, w: painting_loss(frames, error, steady_weight=w, **plain)
    assert of(off, 1.0) == pytest.approx(of(off, 0.0), rel=1e-5)
    assert of(jumps, 0.0) == pytest.approx(of(off, 0.0), rel=1e-5)
    # Three differences of 0.4 of four frames, with the corner rounded as the error's is.
    expected = of(off, 0.0) + (0.4**2 + _CONFIG.corner**2) ** 0.5 - _CONFIG.corner
    assert of(jumps, 1.0) == pytest.approx(expected, rel=1e-4)


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
