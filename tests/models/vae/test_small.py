"""The reference-conditioned autoencoder: streamed against whole, causality, what is shown."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tm_jax.checkpoints import small_vae as weights
from tm_jax.configs import components
from tm_jax.models.vae.small import config as config_lib
from tm_jax.models.vae.small import layers
from tm_jax.models.vae.small import network

_CONFIG = config_lib.PRESETS["pico"]
_SIDE, _LATENTS, _STREAMS = 64, 4, 2
_ATOL = 1e-3  # Measured 3.2e-4: random weights amplify rounding (in float64 it is 0).
_CHANGED = 0.01


@pytest.fixture(scope="module")
def model():
    return network.SmallVAE(_CONFIG)


@pytest.fixture(scope="module")
def params(pico):
    """Random everywhere, also in the layers that start silent, and statistics that matter."""
    values = pico.random(weights.shapes(_CONFIG))
    rng = np.random.default_rng(1)
    for name in ("latent", "condition"):
        size = values[f"{name}_mean"].shape
        values[f"{name}_mean"] = rng.normal(size=size).astype(np.float32)
        values[f"{name}_std"] = rng.uniform(0.5, 2, size).astype(np.float32)
    return values


@pytest.fixture(scope="module")
def clip():
    """Smooth moving colours, [B, 1 + 4k, H, W, 3]."""
    rng = np.random.default_rng(0)
    frames = 1 + _LATENTS * _CONFIG.frames_per_latent
    coarse = rng.uniform(-0.9, 0.9, (_STREAMS, frames, _SIDE // 8, _SIDE // 8, 3))
    return np.asarray(layers.resize(jnp.asarray(coarse, jnp.float32), 8))


@pytest.fixture(scope="module")
def run(model, params):
    """Calls a method of the model by name, compiled."""

    def call(name, *inputs):
        apply = jax.jit(
            lambda p, *x: model.apply({"params": p}, *x, method=getattr(model, name))
        )
        return apply(params, *inputs)

    return call


@pytest.fixture(scope="module")
def whole(run, clip):
    """Latents and frames of the whole clip."""
    _, state = run("begin", clip[:, 0])
    latents = run("encode", clip)
    frames, _ = run("decode_chunk", latents[:, 1:], state)
    return np.asarray(latents), np.asarray(frames)


@pytest.mark.parametrize("chunk", [1, 2])
def test_chunks_reproduce_the_whole_clip(run, whole, clip, chunk):
    reference, state = run("begin", clip[:, 0])
    latents, frames, length = [np.asarray(reference.latent)[:, None]], [], 4 * chunk
    encoder = decoder = state
    for start in range(1, clip.shape[1], length):
        z, encoder = run("encode_chunk", clip[:, start : start + length], encoder)
        x, decoder = run("decode_chunk", z, decoder)
        latents.append(np.asarray(z))
        frames.append(np.asarray(x))
    np.testing.assert_allclose(np.concatenate(latents, 1), whole[0], rtol=0, atol=_ATOL)
    np.testing.assert_allclose(np.concatenate(frames, 1), whole[1], rtol=0, atol=_ATOL)
    assert np.std(whole[1]) > 0.1


def test_later_frames_do_not_change_earlier_ones(run, whole, clip):
    changed = clip.copy()
    changed[:, 9:] = -changed[:, 9:]  # From latent 3 on.
    latents = np.asarray(run("encode", changed))
    np.testing.assert_allclose(latents[:, :3], whole[0][:, :3], rtol=0, atol=_ATOL)
    assert np.abs(latents[:, 3:] - whole[0][:, 3:]).max() > _CHANGED
    _, state = run("begin", clip[:, 0])
    frames, _ = run("decode_chunk", latents[:, 1:], state)
    np.testing.assert_allclose(frames[:, :8], whole[1][:, :8], rtol=0, atol=_ATOL)
    assert np.abs(frames[:, 8:] - whole[1][:, 8:]).max() > _CHANGED


def test_a_latent_is_decoded_with_the_one_before(run, whole, clip):
    _, state = run("begin", clip[:, 0])
    z = whole[0][:, 1:3]
    alone, _ = run("decode_chunk", z[:, 1:], state)
    together, _ = run("decode_chunk", z, state)
    assert np.abs(np.asarray(alone) - np.asarray(together)[:, 4:]).max() > _CHANGED


def test_latent_zero_is_that_of_the_still_picture(run, whole, clip):
    reference, state = run("begin", clip[:, 0])
    still = np.repeat(clip[:, :1], 4, 1)
    z, _ = run("encode_chunk", still, state)
    np.testing.assert_allclose(z[:, 0], reference.latent, rtol=0, atol=_ATOL)
    np.testing.assert_allclose(whole[0][:, 0], reference.latent, rtol=0, atol=_ATOL)
    alone = run("encode", clip[:, :1])
    np.testing.assert_allclose(alone, whole[0][:, :1], rtol=0, atol=_ATOL)


def test_streams_of_a_batch_are_independent(run, whole, clip):
    latents = np.asarray(run("encode", clip[1:]))
    np.testing.assert_allclose(latents, whole[0][1:], rtol=0, atol=_ATOL)
    _, state = run("begin", clip[1:, 0])
    frames, _ = run("decode_chunk", latents[:, 1:], state)
    np.testing.assert_allclose(frames, whole[1][1:], rtol=0, atol=_ATOL)
    assert np.abs(whole[1][0] - whole[1][1]).max() > _CHANGED


def test_silent_layers_show_the_reference(model, run, params, clip):
    """Without flow and residual every frame is the picture."""
    silent = {**params, "decoder": dict(params["decoder"])}
    for name in ("flow", "residual", "fade", "refined"):
        silent["decoder"][name] = jax.tree.map(jnp.zeros_like, params["decoder"][name])
    apply = jax.jit(lambda *x: model.apply({"params": silent}, *x, method=model.decode_chunk))
    _, state = run("begin", clip[:, 0])
    z = np.random.default_rng(2).normal(size=(_STREAMS, 2, 2, 2, 4)).astype(np.float32)
    frames, _ = apply(z, state)
    expected = np.repeat(clip[:, :1], 8, 1)
    np.testing.assert_allclose(frames, expected, rtol=0, atol=_ATOL)


def test_statistics_normalise_and_are_undone(model, run, params, clip):
    plain = {**params}
    for name in ("latent", "condition"):
        plain[f"{name}_mean"] = np.zeros_like(params[f"{name}_mean"])
        plain[f"{name}_std"] = np.ones_like(params[f"{name}_std"])
    raw, state = jax.jit(lambda x: model.apply({"params": plain}, x, method=model.begin))(
        clip[:, 0]
    )
    reference, _ = run("begin", clip[:, 0])
    for name in ("latent", "condition"):
        mean, std = params[f"{name}_mean"], params[f"{name}_std"]
        expected = (np.asarray(getattr(raw, name)) - mean) / std
        np.testing.assert_allclose(getattr(reference, name), expected, rtol=0, atol=_ATOL)
    again, _ = run("decode_chunk", reference.latent[:, None], state)
    decode = jax.jit(lambda *x: model.apply({"params": plain}, *x, method=model.decode_chunk))
    np.testing.assert_allclose(
        again, decode(raw.latent[:, None], state)[0], rtol=0, atol=_ATOL
    )


def test_a_shifting_flow_shifts_the_picture():
    rng = np.random.default_rng(0)
    picture = rng.uniform(-1, 1, (1, 16, 16, 3)).astype(np.float32)
    flow = np.zeros((1, 2, 16, 16, 2), np.float32)
    flow[:, 0, ..., 0], flow[:, 1, ..., 1] = 2, -0.5
    down, half = np.asarray(layers.warp(picture, flow))[0]
    np.testing.assert_allclose(down[:14], picture[0, 2:], rtol=0, atol=1e-6)
    expected = (picture[0, :, 1:] + picture[0, :, :-1]) / 2
    np.testing.assert_allclose(half[:, 1:], expected, rtol=0, atol=1e-6)


def test_the_slope_of_the_warp_is_that_of_finite_differences():
    rng = np.random.default_rng(0)
    picture = jnp.asarray(rng.uniform(-1, 1, (1, 6, 6, 3)), jnp.float32)
    flow = jnp.asarray(rng.uniform(0.2, 0.4, (1, 1, 6, 6, 2)), jnp.float32)
    weight = jnp.asarray(rng.normal(size=(1, 1, 6, 6, 3)), jnp.float32)
    value = lambda flow: jnp.sum(weight * layers.warp(picture, flow))
    slope = np.asarray(jax.grad(value)(flow))
    step = 0.05  # Bilinear inside a pixel, so a difference is exact.
    for at in ((0, 0, 2, 3, 0), (0, 0, 2, 3, 1), (0, 0, 0, 0, 1)):
        moved = [value(flow.at[at].add(sign * step)) for sign in (1, -1)]
        expected = float(moved[0] - moved[1]) / (2 * step)
        assert abs(slope[at] - expected) < 1e-4
        assert abs(expected) > 1e-2


def test_cells_are_the_way_back():
    x = np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype(np.float32)
    cells = layers.to_cells(jnp.asarray(x), 4)
    assert cells.shape == (2, 2, 3, 48)
    np.testing.assert_array_equal(np.asarray(cells)[0, 1, 2], x[0, 4:8, 8:12].reshape(-1))
    np.testing.assert_array_equal(layers.from_cells(cells, 4), x)


def test_nano_has_the_promised_shapes():
    model = network.SmallVAE(config_lib.PRESETS["nano"])
    c = model.config
    shapes = weights.shapes(c)
    begin = jax.eval_shape(
        lambda p, x: model.apply({"params": p}, x, method=model.begin), shapes,
        jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32),
    )
    reference, state = begin
    assert reference.latent.shape == (1, 8, 8, c.latent_channels)
    assert reference.condition.shape == (1, 8, 8, c.condition_channels)
    frames, after = jax.eval_shape(
        lambda p, z, s: model.apply({"params": p}, z, s, method=model.decode_chunk), shapes,
        jax.ShapeDtypeStruct((1, 3, 8, 8, c.latent_channels), jnp.float32), state,
    )
    assert frames.shape == (1, 12, 256, 256, 3)
    assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, state)


@pytest.mark.parametrize(
    "name, shape, message",
    [("begin", (1, 48, 64, 3), "multiples of 32"), ("encode", (1, 4, 64, 64, 3), "4 k frames")],
)
def test_wrong_sizes_are_explained(run, name, shape, message):
    with pytest.raises(ValueError, match=message):
        run(name, np.zeros(shape, np.float32))


def test_weights_survive_the_file(tmp_path, params, pico):
    path = str(tmp_path / "vae.safetensors")
    weights.save(path, params, _CONFIG)
    config, again = weights.load(path)
    assert config == _CONFIG
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1 / 128, atol=1e-6), again, params
    )
    np.testing.assert_array_equal(again["latent_std"], params["latent_std"])  # Not rounded.


def test_another_file_is_refused(tmp_path):
    from tm_jax.checkpoints import files

    path = str(tmp_path / "other.safetensors")
    files.save(path, {"a": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match="no config"):
        weights.load(path)


def test_it_is_a_video_vae_of_the_pipeline(params, run, whole, clip):
    """Through the protocol of `configs/components.py`: the same latents, streamed frames."""
    vae, given = components.SmallVideoVAE(_CONFIG), {"vae": params}
    latents, frames = whole
    picture = jnp.asarray(clip[:, 0])
    reference = jax.jit(lambda p: vae.begin(p, vae.constants(p), picture))(given)
    np.testing.assert_allclose(reference.latent, latents[:, 0], rtol=0, atol=_ATOL)
    assert reference.condition.shape == (_STREAMS, 1, 2, 2, _CONFIG.condition_channels)
    encoded = jax.jit(vae.encode)(given, jnp.asarray(clip))
    np.testing.assert_allclose(encoded, latents, rtol=0, atol=_ATOL)
    state = jax.jit(vae.begin_decoder)(given, picture, reference.latent)
    decode, made = jax.jit(vae.decode_chunk), []
    for at in range(1, 1 + _LATENTS, 2):
        part, state = decode(given, jnp.asarray(latents[:, at : at + 2]), state)
        made.append(part)
    np.testing.assert_allclose(np.concatenate(made, 1), frames, rtol=0, atol=_ATOL)
