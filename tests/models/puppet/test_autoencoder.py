"""The autoencoder: streamed against whole, what latents mean, and what stays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import compiled
from tm_jax.configs import presets
from tm_jax.models.puppet.vae import autoencoder
from tm_jax.models.puppet.vae import config as config_lib

_CONFIG = presets.get("puppet").vae
_SIDE, _LATENTS = _CONFIG.side, 6
_ATOL = 1e-5  # With pixels of size 4.


@pytest.fixture(scope="module")
def model():
    return autoencoder.VideoAutoencoder(_CONFIG)


@pytest.fixture(scope="module")
def params(model, pico):
    """Random everywhere: the painter's last layer starts silent."""
    frames = jnp.zeros((1, 4, _SIDE, _SIDE, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), frames, frames[:, 0])
    return pico.random(shapes["params"])


@pytest.fixture(scope="module")
def clip():
    """Latents and pictures of two streams."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((2, _LATENTS, 4, 4, 24), dtype=np.float32)
    return z, rng.uniform(-1, 1, (2, _SIDE, _SIDE, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def decode(model, params):
    return jax.jit(lambda z, x: model.apply({"params": params}, z, x, method=model.decode))


@pytest.fixture(scope="module")
def encode(model, params):
    return jax.jit(lambda f, x: model.apply({"params": params}, f, x, method=model.encode))


@pytest.fixture(scope="module")
def whole(decode, clip):
    return np.asarray(decode(*clip))


@pytest.mark.parametrize("chunk", [1, 3])
def test_chunks_reproduce_the_whole_clip(model, params, whole, clip, chunk):
    z, picture = clip
    state = compiled.method(model, "begin")(params, picture)
    frames = []
    for start in range(0, _LATENTS, chunk):
        y, state = compiled.method(model, "decode_chunk")(
            params, z[:, start : start + chunk], state
        )
        frames.append(y)
    assert whole.shape == (2, 4 * _LATENTS, _SIDE, _SIDE, 3)
    np.testing.assert_allclose(np.concatenate(frames, 1), whole, rtol=0, atol=_ATOL)


def test_each_frame_has_channels_of_its_own(decode, whole, clip):
    z, picture = clip
    changed = z.copy()
    changed[:, 2, ..., 6:12] += 1  # Frame 1 of latent 2.
    difference = np.abs(decode(changed, picture) - whole).max((0, 2, 3, 4))
    assert difference[9] > 1e-3 and np.delete(difference, 9).max() == 0


def test_the_halves_of_the_square_speak_of_other_things(decode, clip):
    """The same numbers at a place of the upper half and of the lower paint other pixels."""
    z, picture = np.zeros_like(clip[0]), clip[1]
    shown = []
    for row in (1, 2):
        told = z.copy()
        told[:, :, row, 1] = 1
        shown.append(np.asarray(decode(told, picture))[0, 0] - picture[0])
    assert min(np.abs(x).max() for x in shown) > 1e-3
    assert np.abs(np.roll(shown[0], 16, 0) - shown[1])[20:44, 12:36].max() > 1e-3


def test_a_still_picture_has_latents_of_zero_and_stays_itself(encode, decode, clip):
    picture = clip[1]
    z = encode(np.repeat(picture[:, None], 8, 1), picture)
    assert z.shape == (2, 2, 4, 4, 24)
    np.testing.assert_allclose(z, np.zeros_like(z), rtol=0, atol=_ATOL)
    shown = decode(np.zeros_like(z), picture)
    np.testing.assert_allclose(shown, np.repeat(picture[:, None], 8, 1), rtol=0, atol=_ATOL)


def test_paint_says_what_it_hides(model, params, clip, whole):
    z, picture = clip
    state = compiled.method(model, "begin")(params, picture)
    paint, hidden, _ = compiled.method(model, "paint_chunk")(params, z, state)
    assert hidden.shape == (2, 4 * _LATENTS, _SIDE, _SIDE, 1) and np.ptp(hidden) > 0.1
    shown = (1 - hidden) * picture[:, None] + paint
    np.testing.assert_allclose(shown, whole, rtol=0, atol=_ATOL)
    _, hidden, _ = compiled.method(model, "paint_chunk")(params, 0 * z, state)
    np.testing.assert_allclose(hidden, np.zeros_like(hidden), rtol=0, atol=_ATOL)


def test_an_encoded_frame_tells_of_itself_and_its_picture(encode):
    rng = np.random.default_rng(1)
    frames = rng.uniform(-1, 1, (1, 8, _SIDE, _SIDE, 3)).astype(np.float32)
    before = np.asarray(encode(frames, frames[:, 0])).reshape(1, 2, 4, 4, 4, 6)
    changed = frames.copy()
    changed[:, 5] *= -1
    after = np.asarray(encode(changed, frames[:, 0])).reshape(before.shape)
    difference = np.abs(after - before).max((0, 2, 3, 5)).ravel()
    assert difference[5] > 1e-3 and np.delete(difference, 5).max() == 0


def test_labels_lie_in_their_half_and_frame():
    upper = np.arange(48, dtype=np.float32).reshape(1, 8, 6)
    lower = 100 + upper
    z = np.asarray(autoencoder.labels(upper, lower, 4, 4, 4))
    assert z.shape == (1, 2, 4, 4, _CONFIG.latent_channels)
    np.testing.assert_array_equal(z[0, 1, 0, 3], upper[0, 4:].ravel())
    np.testing.assert_array_equal(z[0, 0, 3, 0], lower[0, :4].ravel())
    np.testing.assert_array_equal(z[:, :, 0], z[:, :, 1])
    assert len(config_lib.UPPER) == len(config_lib.LOWER) == 6


@pytest.mark.parametrize(
    "shape, message",
    [
        ((1, 5, 64, 64, 3), "expected 4 k frames, got 5"),
        ((1, 4, 32, 64, 3), "expected 64x64 pixels, got 32x64"),
        ((1, 4, 64, 64, 4), "axis C of .* must be 3, got 4"),
        ((4, 64, 64, 3), "expected axes .B F H W C."),
    ],
)
def test_wrong_clips_are_explained(model, params, shape, message):
    frames = jnp.zeros(shape)
    with pytest.raises(ValueError, match=message):
        model.apply({"params": params}, frames, frames[:, 0], method=model.encode)


def test_wrong_latents_are_explained(model, params, clip):
    state = model.apply({"params": params}, clip[1], method=model.begin)
    with pytest.raises(ValueError, match="latents: axis C of .* must be 24, got 5"):
        model.apply({"params": params}, jnp.zeros((2, 1, 4, 4, 5)), state, method=model.decode_chunk)


def test_only_an_open_mouth_is_told_otherwise(clip):
    z, _ = clip
    points = ((0.0, 0.0), (0.5, 0.8), (2.0, 2.1))
    told = np.asarray(autoencoder.respond(z, points))
    column = config_lib.LOWER.index("mouth_open")
    opening = z.reshape(*z.shape[:4], 4, 6)[..., column]
    moved = told.reshape(*z.shape[:4], 4, 6)
    lower = slice(z.shape[2] // 2, None)
    expected = z.reshape(*z.shape[:4], 4, 6).copy()
    line = np.interp(opening, *zip(*points)) + np.maximum(opening - 2.0, 0)  # 2.5 becomes 2.6.
    expected[:, :, lower, ..., column] = np.where(opening > 0, line, opening)[:, :, lower]
    assert (opening > 2).any() and (opening < 0).any()
    np.testing.assert_allclose(moved, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", presets.PRESETS)
def test_openings_of_presets_grow_from_shut(name):
    told, given = np.array(presets.get(name).opening).T
    assert told[0] == given[0] == 0
    assert (np.diff(told) > 0).all() and (np.diff(given) > 0).all()
