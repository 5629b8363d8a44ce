"""The linear start of the small video autoencoder, and the motion that it is made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import compiled
from tm_jax.models.vae.small import config as config_lib
from tm_jax.models.vae.small import layers
from tm_jax.models.vae.small import motion
from tm_jax.models.vae.small import network
from tm_jax.parallel import rules
from tm_jax.training import vae_measures
from tm_jax.training import vae_start

_SIDE = 64
_CONFIG = config_lib.SmallVAEConfig(
    latent_channels=16, condition_channels=4, reference_widths=(8, 8, 8),
    encoder_widths=(40, 136, 24), decoder_widths=(40, 136, 24), encoder_depths=(1, 1, 1),
    decoder_depths=(1, 1, 1), paint_width=16, paint_depth=1,
)


def _texture(rng):
    """A smooth picture, [96, 96, 3] in 20..235."""
    coarse = jnp.asarray(rng.uniform(20, 235, (12, 12, 3)), jnp.float32)
    return np.asarray(layers.resize(coarse, 8))


def _shifted(texture, down, right):
    """A window of 64 x 64 pixels whose content lies at whole offsets in the middle one."""
    return texture[16 + down : 80 + down, 16 + right : 80 + right]


@pytest.fixture(scope="module")
def clips():
    """Pictures that move with some speed, uint8 [6, 5, 64, 64, 3]."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(6):
        texture, speed = _texture(rng), rng.integers(-2, 3, 2)
        frames = [_shifted(texture, *(speed * f)) for f in range(5)]
        made.append(np.stack(frames).astype(np.uint8))
    return np.stack(made)


@pytest.fixture(scope="module")
def codes(clips):
    batches = [clips[:3], clips[3:]]
    return (
        vae_start.measure_motion(_CONFIG, batches, 12),
        vae_start.measure_change(_CONFIG, batches, 4),
    )


@pytest.fixture(scope="module")
def started(codes):
    """The model, its parameters as initialised and as started."""
    model = network.SmallVAE(_CONFIG)
    fresh = jax.jit(lambda key: rules.unbox(network.init(_CONFIG, key)))(jax.random.key(0))
    return model, fresh, vae_start.start(fresh, _CONFIG, *codes)


@pytest.mark.parametrize("down, right", [(0, 0), (3, -2), (-5, 6)])
def test_a_shift_is_measured(down, right):
    texture = _texture(np.random.default_rng(1)) / 127.5 - 1
    picture, frame = _shifted(texture, 0, 0), _shifted(texture, down, right)
    flow = np.asarray(motion.estimate(jnp.asarray(picture[None]), jnp.asarray(frame[None, None])))
    assert flow.shape == (1, 1, _SIDE // 4, _SIDE // 4, 2)
    inner = flow[0, 0, 3:-3, 3:-3]
    np.testing.assert_allclose(np.median(inner, (0, 1)), (down, right), atol=0.3)


def test_a_flat_picture_does_not_move():
    flat = jnp.full((1, _SIDE, _SIDE, 3), 0.3)
    flow = motion.estimate(flat, flat[:, None] + 0.2)
    np.testing.assert_array_equal(flow, 0)


def test_the_flow_is_the_projection_of_measured_motion(started, codes, clips):
    """Encoder and decoder rebuild what the components hold, computed here step by step."""
    model, _, params = started
    x = jnp.asarray(clips[:2], jnp.float32) / 127.5 - 1
    picture, frames = x[:, 0], x[:, 1:]
    state = compiled.method(model, "look")(params, picture)
    z = compiled.method(model, "encode_raw")(params, frames, state)
    flow = np.asarray(compiled.method(model, "decode_raw")(params, z, state)[2])
    measured = np.float64(motion.estimate(picture, frames))  # [2, 4, 16, 16, 2]
    matrix = codes[0].cell, codes[0].middle, codes[0].coarse
    code = network.abreast(measured, 2)
    code = layers.to_cells(code @ matrix[0], 2) @ matrix[1]
    code = layers.to_cells(code, 2) @ matrix[2]
    scale = np.sum(np.square(matrix[2]), 0)
    back = layers.from_cells((code / scale) @ matrix[2].T, 2)
    back = layers.from_cells(back @ matrix[1].T, 2) @ matrix[0].T
    back = np.moveaxis(np.reshape(back, (2, 8, 8, 4, 8)), 3, 1)
    expected = np.asarray(layers.from_cells(back, 2))
    bent = _CONFIG.flow_limit * np.tanh(expected / _CONFIG.flow_limit)
    assert np.abs(bent).max() > 1
    np.testing.assert_allclose(flow, bent, rtol=0, atol=2e-3)
    assert np.abs(expected - measured).mean() < 0.35 * np.abs(measured).mean()


def test_the_start_beats_the_still_picture(started, clips):
    model, fresh, params = started
    before = vae_measures.measure(model, fresh, clips)
    after = vae_measures.measure(model, params, clips)
    assert before["psnr"] == pytest.approx(before["psnr_still"], abs=0.01)
    assert after["psnr_warped"] > after["psnr_still"] + 3
    assert after["psnr"] > after["psnr_warped"]


def test_codes_have_a_mean_square_of_one(started, clips):
    model, _, params = started
    x = jnp.asarray(clips, jnp.float32) / 127.5 - 1
    state = compiled.method(model, "look")(params, x[:, 0])
    z = np.asarray(compiled.method(model, "encode_raw")(params, x[:, 1:], state))
    assert np.mean(np.square(z[..., :12])) == pytest.approx(1, rel=0.05)
    assert np.mean(np.square(z[..., 12:])) == pytest.approx(1, rel=0.05)


def test_codes_survive_the_file(codes, tmp_path):
    path = str(tmp_path / "start.npz")
    vae_start.save(path, *codes)
    for before, after in zip(codes, vae_start.load(path)):
        for name, value in vars(before).items():
            np.testing.assert_array_equal(getattr(after, name), value)


def test_narrow_networks_are_refused(codes, started):
    pico = config_lib.PRESETS["pico"]
    with pytest.raises(ValueError, match="widths must be at least"):
        vae_start.start(started[1], pico, *codes)
