"""The autoencoder: streamed against whole, causality, and principal components."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tm_jax.core import trees
from tm_jax.models import presets
from tm_jax.models.vae import autoencoder

_CONFIG = presets.get("pico").vae
_SIDE, _LATENTS = 32, 6
_ATOL = 1e-5  # Measured 1.2e-6 with pixels of size 6.


@pytest.fixture(scope="module")
def model():
    return autoencoder.VideoAutoencoder(_CONFIG)


@pytest.fixture(scope="module")
def params(model, pico):
    """Random everywhere: a fade of zero would hide the state."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 5, _SIDE, _SIDE, 3)))
    return pico.random(shapes["params"])


@pytest.fixture(scope="module")
def z():
    return np.random.default_rng(0).standard_normal((2, _LATENTS, 2, 2, 8), dtype=np.float32)


@pytest.fixture(scope="module")
def decode(model, params):
    return jax.jit(lambda z: model.apply({"params": params}, z, method=model.decode))


@pytest.fixture(scope="module")
def whole(decode, z):
    return np.asarray(decode(z))


@pytest.fixture(scope="module")
def decode_chunk(model, params):
    return jax.jit(
        lambda z, s: model.apply({"params": params}, z, s, method=model.decode_chunk)
    )


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_chunks_reproduce_the_whole_clip(decode_chunk, whole, z, chunk):
    state = autoencoder.initial_state(_CONFIG, z.shape)
    frames = []
    for start in range(0, _LATENTS, chunk):
        y, after = decode_chunk(z[:, start : start + chunk], state)
        assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
        frames.append(y)
        state = after
    actual = np.concatenate(frames, 1)[:, 3:]
    assert whole.shape == (2, 21, _SIDE, _SIDE, 3)
    np.testing.assert_allclose(actual, whole, rtol=0, atol=_ATOL)


def test_the_first_frame_stands_alone(decode_chunk, whole, z):
    y, _ = decode_chunk(z[:, :1], autoencoder.initial_state(_CONFIG, z.shape))
    np.testing.assert_allclose(y[:, 3], whole[:, 0], rtol=0, atol=_ATOL)


@pytest.mark.parametrize("latent", [1, 3])
def test_later_latents_do_not_change_earlier_frames(decode, whole, z, latent):
    changed = z.copy()
    changed[:, latent] += 1
    difference = np.abs(decode(changed) - whole).max((0, 2, 3, 4))
    first = 1 + 4 * (latent - 1)  # Frames 4k-3 ... 4k belong to latent k.
    assert difference[:first].max() == 0
    assert difference[first : first + 7].min() > 1e-3  # Its own frames, and a fading border.
    assert difference[first + 7 :].max(initial=0) == 0


def test_an_encoded_latent_depends_on_its_own_frames(model, params):
    rng = np.random.default_rng(1)
    frames = rng.uniform(-1, 1, (1, 9, _SIDE, _SIDE, 3)).astype(np.float32)
    encode = jax.jit(lambda x: model.apply({"params": params}, x, method=model.encode))
    before = encode(frames)
    assert before.shape == (1, 3, 2, 2, 8)
    # The last frame of a block is also the one before the next.
    for frame, latents in ((0, [0, 1]), (1, [1]), (4, [1, 2]), (5, [2]), (8, [2])):
        changed = frames.copy()
        changed[:, frame] *= -1
        difference = np.abs(encode(changed) - before).max((0, 2, 3, 4))
        assert difference[latents].min() > 1e-3
        assert np.delete(difference, latents).max(initial=0) == 0


def test_latents_are_normalised(model, params):
    frames = np.random.default_rng(2).uniform(-1, 1, (1, 1, _SIDE, _SIDE, 3))
    frames = frames.astype(np.float32)
    encode = jax.jit(lambda p: model.apply({"params": p}, frames, method=model.encode))
    plain = {**params, "mean": jnp.zeros(8), "std": jnp.ones(8)}
    expected = (np.float64(encode(plain)) - params["mean"]) / params["std"]
    np.testing.assert_allclose(encode(params), expected, rtol=0, atol=_ATOL)


def test_decoding_undoes_the_normalisation(model, params, decode_chunk, z):
    z = z[:, :1]
    state = autoencoder.initial_state(_CONFIG, z.shape)
    decode_raw = jax.jit(
        lambda z: model.apply({"params": params}, z, state, method=model.decode_raw)[0]
    )
    actual, _ = decode_chunk(z, state)
    expected = decode_raw(z * params["std"] + params["mean"])
    np.testing.assert_allclose(actual, expected, rtol=0, atol=_ATOL)


def test_a_border_fades_out_inside_its_block():
    """With blocks of constant frames, the step from one to the next is spread as stated."""
    config = dataclasses.replace(_CONFIG, latent_channels=1)
    one = autoencoder.VideoAutoencoder(config)
    fade = np.array([0.5, 0.25, 0.1], np.float32)
    flat = {
        "code": {"kernel": np.zeros((3840, 1), np.float32), "bias": np.zeros(1, np.float32)},
        "uncode": {"kernel": np.ones((1, 3840), np.float32), "bias": np.zeros(3840, np.float32)},
        "fade": fade, "mean": np.zeros(1, np.float32), "std": np.ones(1, np.float32),
    }
    z = np.array([0.0, 0.0, 1.0, 1.0], np.float32).reshape(1, 4, 1, 1, 1)
    y = np.asarray(one.apply({"params": flat}, z, method=one.decode))[0, :, 3, 5, 1]
    step = np.append(1 - fade, 1.0)
    np.testing.assert_allclose(y, [0] * 5 + [*step] + [1] * 4, rtol=0, atol=1e-6)


def test_patches_round_trip():
    blocks = np.random.default_rng(3).standard_normal((2, 3, 4, 32, 48, 3), dtype=np.float32)
    patches = autoencoder.to_patches(blocks, 16)
    assert patches.shape == (2, 3, 2, 3, 4 * 16 * 16 * 3)
    one = blocks[1, 2, :, 16:32, 32:48].ravel()
    np.testing.assert_array_equal(patches[1, 2, 1, 2], one)
    np.testing.assert_array_equal(autoencoder.from_patches(patches, 4, 16), blocks)


def test_the_linear_code_is_principal_component_analysis(pico):
    """The best linear reconstruction of blocks of one frame and, less important, the last."""
    config = dataclasses.replace(_CONFIG, frames_per_latent=1)  # Small blocks: 768 numbers.
    model = autoencoder.VideoAutoencoder(config)
    rng = np.random.default_rng(5)
    # Twelve directions with distinct strengths, eight of which are kept.
    directions = rng.standard_normal((12, 16, 16, 3))
    mixing = rng.standard_normal((5, 4, 2, 2, 12)) * 0.2 * 0.7 ** np.arange(12)
    blocks = np.tensordot(mixing, directions, 1) + 0.1  # [5, 4, 2, 2, 16, 16, 3]
    frames = blocks.transpose(0, 1, 2, 4, 3, 5, 6).reshape(5, 4, 32, 32, 3).astype(np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), frames[:1])["params"]
    params = trees.flatten(pico.random(shapes))
    params = trees.unflatten(params)
    code = autoencoder.principal_components(frames, np.ones(frames.shape[:4]), config)
    params.update(code)
    actual = jax.jit(lambda x: model.apply({"params": params}, x))(frames)

    pixels = blocks.reshape(5, 4, 4, 768)
    before = np.concatenate([pixels[:, :1], pixels[:, :-1]], 1)
    rows = np.concatenate([0.7 * before, pixels], -1).reshape(-1, 1536)
    mean = rows.mean(0)
    _, values, right = np.linalg.svd(rows - mean, full_matrices=False)
    assert values[7] > 1.1 * values[8]  # Otherwise the subspace is not unique.
    kept = right[:8]
    best = (mean + (rows - mean) @ kept.T @ kept)[:, 768:].reshape(blocks.shape)
    expected = best.transpose(0, 1, 2, 4, 3, 5, 6).reshape(frames.shape)
    assert np.abs(expected - frames).max() > 0.01  # Something was lost.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5)  # Measured 2e-6.
    # Latents differ from those of their clip's first frame by 1 in the mean square.
    z = np.asarray(model.apply({"params": params}, frames, method=model.encode))
    assert np.square(z[:, 1:] - z[:, :1]).mean() == pytest.approx(1, rel=1e-3)


def test_the_linear_code_favours_what_matters(pico):
    """With weight on some blocks alone their own directions are kept."""
    config = dataclasses.replace(_CONFIG, frames_per_latent=1, latent_channels=1)
    rng = np.random.default_rng(6)
    frames = np.zeros((4, 5, 16, 32, 3), np.float32)
    frames[:, :, :, :16, 0] = rng.standard_normal((4, 5, 1, 1))  # strong, unimportant: red
    frames[:, :, :, 16:, 2] = 0.3 * rng.standard_normal((4, 5, 1, 1))  # weak, important: blue
    weights = np.ones((4, 5, 16, 32))

    def colour(weights):
        kernel = autoencoder.principal_components(frames, weights, config)["code"]["kernel"]
        return np.abs(kernel.reshape(-1, 3).sum(0)).argmax()

    assert colour(weights) == 0
    weights[:, :, :, 16:] = 1000
    assert colour(weights) == 2


@pytest.mark.parametrize(
    "shape, message",
    [
        ((1, 4, 32, 32, 3), r"expected 1 \+ 4 k frames, got 4"),
        ((1, 5, 30, 32, 3), "multiples of 16, got 30x32"),
        ((1, 5, 32, 32, 4), "axis C of .* must be 3, got 4"),
        ((5, 32, 32, 3), "expected axes .B F H W C."),
    ],
)
def test_wrong_clips_are_explained(model, params, shape, message):
    with pytest.raises(ValueError, match=message):
        model.apply({"params": params}, jnp.zeros(shape), method=model.encode)


def test_wrong_latents_are_explained(model, params):
    z = jnp.zeros((1, 1, 2, 2, 5))
    state = autoencoder.initial_state(_CONFIG, z.shape)
    with pytest.raises(ValueError, match="latents: axis C of .* must be 8, got 5"):
        model.apply({"params": params}, z, state, method=model.decode_chunk)
