"""The Wan autoencoder against diffusers' `AutoencoderKLWan`, whole, streamed and in tiles.

The reference is a small random model in its own checkpoint format, read through the table.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tm_jax.core import trees
from tm_jax.models.wan_vae import autoencoder
from tm_jax.models.wan_vae import clips
from tm_jax.models.wan_vae import config as config_lib
from tm_jax.models.wan_vae import layers
from tm_jax.models.wan_vae import tiling
from tm_jax.parallel import rules
from tm_jax.weights import mapping
from tm_jax.weights import wan_vae

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

_CONFIG = config_lib.PRESETS["pico"]
_MODEL = autoencoder.WanVAE(_CONFIG)
_SCALE = 1e-4  # Of the reference's largest value. Measured 1e-6 encoding, 5e-6 decoding.
_STREAM = 1e-5  # Streamed against whole. Measured 2e-6.
_LATENTS = 7


def _normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _frames(seed, *shape):
    return np.random.default_rng(seed).uniform(-1, 1, (*shape, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def reference():
    """Random weights everywhere; queries and keys large enough for sharp attention."""
    torch.manual_seed(0)
    model = diffusers.AutoencoderKLWan(
        base_dim=_CONFIG.base_width, num_res_blocks=_CONFIG.num_res_blocks
    ).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("gamma"):
                value.add_(0.2 * torch.randn_like(value))
            if "to_qkv" in name:
                value.mul_(6)
    return model


@pytest.fixture(scope="module")
def params(reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    reference.save_pretrained(folder)
    source = safetensors.numpy.load_file(folder / "diffusion_pytorch_model.safetensors")
    return mapping.read(source, wan_vae.rows(_CONFIG, "diffusers"), _shapes(_CONFIG))


def _shapes(config):
    model = autoencoder.WanVAE(config)
    frames = jax.ShapeDtypeStruct((1, 1, 8, 8, 3), jnp.float32)
    return rules.unbox(jax.eval_shape(model.init, jax.random.key(0), frames)["params"])


@torch.no_grad()
def _their_moments(reference, frames):
    """[B, T, h, w, 2 C] of the reference for channels-last frames."""
    posterior = reference.encode(torch.tensor(frames).permute(0, 4, 1, 2, 3)).latent_dist
    return torch.cat([posterior.mean, posterior.logvar], 1).permute(0, 2, 3, 4, 1).numpy()


@torch.no_grad()
def _their_frames(reference, z):
    """Frames of the reference for normalised latents, channels last."""
    raw = z * np.float32(_CONFIG.latent_std) + np.float32(_CONFIG.latent_mean)
    frames = reference.decode(torch.tensor(raw).permute(0, 4, 1, 2, 3)).sample
    frames = frames.permute(0, 2, 3, 4, 1).numpy()
    assert np.mean(np.abs(frames) == 1) < 0.2  # Clipped values would hide differences.
    return frames


def _ours(params, method, *args, model=_MODEL):
    return jax.jit(lambda p, *a: model.apply({"params": p}, *a, method=method))(params, *args)


def _close(actual, expected):
    assert actual.shape == expected.shape
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=_SCALE * scale)


@pytest.mark.parametrize("frames", [1, 5, 9, 13])
def test_encoding(reference, params, frames):
    x = _frames(frames, 2, frames, 16, 24)
    expected = _their_moments(reference, x)
    moments = _ours(params, "moments", x)
    _close(moments, expected)
    if frames == 5:
        z = (np.float64(expected[..., :16]) - _CONFIG.latent_mean) / _CONFIG.latent_std
        _close(_ours(params, "encode", x), z)


@pytest.mark.parametrize("latents", [1, 2, 3, 4])
def test_decoding(reference, params, latents):
    z = _normal(latents, 2, latents, 3, 2, 16)
    expected = _their_frames(reference, z)
    assert expected.shape == (2, 1 + 4 * (latents - 1), 24, 16, 3)
    _close(_ours(params, "decode", z), expected)


def test_81_frames_step_by_step(reference, params):
    x = _frames(0, 1, 81, 16, 16)
    expected = _their_moments(reference, x)[..., :16]
    z = jax.jit(lambda p, x: clips.encode(_MODEL, p, x, 3))(params, x)
    raw = z * np.float32(_CONFIG.latent_std) + np.float32(_CONFIG.latent_mean)
    _close(raw, expected)
    z = _normal(1, 1, 21, 2, 2, 16)
    y = jax.jit(lambda p, z: clips.decode(_MODEL, p, z, 3))(params, z)
    _close(y, _their_frames(reference, z))


@pytest.fixture(scope="module")
def streams(reference):
    """Input and the reference's whole-clip output of either direction."""
    z, x = _normal(2, 1, _LATENTS, 2, 3, 16), _frames(3, 1, 1 + 4 * (_LATENTS - 1), 16, 24)
    moments = np.float64(_their_moments(reference, x)[..., :16])
    latents = (moments - _CONFIG.latent_mean) / _CONFIG.latent_std
    return {"decode": (z, _their_frames(reference, z)), "encode": (x, latents)}


@pytest.mark.parametrize("chunk", [1, 2, 3])
@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_streams_reproduce_the_whole_clip(params, streams, direction, chunk):
    x, expected = streams[direction]
    whole = _ours(params, direction, x)
    step = chunk * (4 if direction == "encode" else 1)
    y, state = _ours(params, f"{direction}_first", x[:, :1])
    outputs, sizes = [y], jax.tree.map(jnp.shape, state)
    run = jax.jit(
        lambda p, x, s: _MODEL.apply({"params": p}, x, s, method=f"{direction}_chunk")
    )
    for start in range(1, x.shape[1], step):
        y, state = run(params, x[:, start : start + step], state)
        assert jax.tree.map(jnp.shape, state) == sizes
        outputs.append(y)
    outputs = np.concatenate(outputs, 1)
    np.testing.assert_allclose(outputs, whole, rtol=0, atol=_STREAM)
    _close(outputs, expected)


def test_bf16_keeps_norms_exact_and_stays_near(params):
    x = _normal(4, 2, 1, 3, 3, 8).astype(jnp.bfloat16)
    scale = np.linspace(0.5, 2, 8, dtype=np.float32)
    y = layers.Norm().apply({"params": {"scale": scale}}, x)
    exact = np.float64(x)
    exact *= np.sqrt(8) * scale / np.linalg.norm(exact, axis=-1, keepdims=True)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float64(y), exact, rtol=2**-8)  # One rounding at the end.

    z = _normal(5, 1, 2, 2, 3, 16)
    half = _ours(params, "decode", z, model=autoencoder.WanVAE(_CONFIG, jnp.bfloat16))
    difference = np.abs(half - _ours(params, "decode", z))
    assert half.dtype == jnp.float32
    assert 1e-4 < difference.mean() < 0.02  # Measured 0.006: it did compute in bf16.


def test_a_channel_without_signal_stays_finite():
    """`max(length, 1e-12)`, not a number added to the length: small inputs are not damped."""
    x = np.zeros((1, 1, 1, 2, 4), np.float32)
    x[..., 1, :] = [3e-6, 0, 0, 4e-6]
    y = layers.Norm().apply({"params": {"scale": np.ones(4, np.float32)}}, x)
    expected = torch.nn.functional.normalize(torch.tensor(x), dim=-1).numpy() * 2
    np.testing.assert_allclose(y, expected, atol=1e-6)


@pytest.mark.parametrize(
    "method, shape, message",
    [
        ("encode_first", (1, 2, 16, 16, 3), "begins with 1 frame alone, got 2"),
        ("encode", (1, 4, 16, 16, 3), "multiple of 4 frames after the first, got 3"),
        ("encode", (1, 5, 16, 12, 3), "multiples of 8, got 16x12"),
        ("decode", (1, 2, 2, 2, 8), "axis C of [B T H W C] must be 16, got 8"),
        ("decode_first", (1, 2, 2, 2, 16), "begins with 1 latent alone, got 2"),
    ],
)
def test_errors_say_what_was_expected(params, method, shape, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        jax.eval_shape(
            lambda p, x: _MODEL.apply({"params": p}, x, method=method),
            params, jax.ShapeDtypeStruct(shape, jnp.float32),
        )


def test_configurations_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="one entry less than multipliers"):
        config_lib.WanVAEConfig(base_width=4, temporal_strides=(True,))
    with pytest.raises(ValueError, match="is odd"):
        config_lib.WanVAEConfig(base_width=3, multipliers=(1, 1), temporal_strides=(True,))


# Tiles


@pytest.mark.parametrize("length, size, overlap", [(9, 9, 3), (20, 8, 2), (21, 8, 4), (9, 8, 0)])
def test_tiles_cover_an_axis_and_their_shares_sum_to_one(length, size, overlap):
    first = tiling.starts(length, size, overlap)
    shares = tiling.weights(length, size, first)
    assert first[0] == 0 and first[-1] == length - size
    assert all(0 < b - a <= size - overlap for a, b in zip(first[:-1], first[1:]))
    total = np.zeros(length)
    for start, share in zip(first, shares):
        total[start : start + size] += share
    np.testing.assert_allclose(total, 1, rtol=1e-12)
    assert shares.min() > 0
    if len(first) > 1:
        assert shares[0, 0] == 1  # Alone at the border of the frame.
        assert shares[0, -1] < shares[0, first[1]]  # Fades out towards its inner border.


def test_a_ramp_is_linear():
    shares = tiling.weights(12, 8, [0, 4])
    np.testing.assert_allclose(shares[1], [1 / 8, 3 / 8, 5 / 8, 7 / 8, 1, 1, 1, 1])
    np.testing.assert_allclose(shares[0], shares[1][::-1])


@pytest.fixture(scope="module")
def local(params):
    """A model of two resolutions and few layers, whose attention is silent: it sees 13 latents."""
    config = dataclasses.replace(
        _CONFIG, base_width=2, multipliers=(1, 1), temporal_strides=(True,)
    )
    model = autoencoder.WanVAE(config)
    rng = np.random.default_rng(0)
    flat = {}
    for name, leaf in trees.flatten(_shapes(config)).items():
        value = rng.standard_normal(leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
        value = 0 * value if "attention/out" in name else value
        flat[name] = jnp.asarray(1 + value if name.endswith("scale") else value, jnp.float32)
    return model, trees.unflatten(flat)


def _both(local, direction, x, tiles):
    """The clip in tiles, streamed by hand, and the whole clip without tiles."""
    model, params = local
    first, chunk = (
        getattr(tiling, f"{direction}_{n}") for n in ("first", "chunk")
    )
    y, state = jax.jit(lambda p, x: first(model, p, x, tiles))(params, x[:, :1])
    run = jax.jit(lambda p, x, s: chunk(model, p, x, s, tiles))
    outputs = [y]
    step = 1 if direction == "decode" else 2
    for start in range(1, x.shape[1], step):
        y, state = run(params, x[:, start : start + step], state)
        outputs.append(y)
    return np.concatenate(outputs, 1), np.asarray(_ours(params, direction, x, model=model))


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_tiles_equal_the_whole_frame_where_one_tile_sees_enough(local, direction):
    """Convolutions reach a bounded distance: away from inner borders nothing differs."""
    if direction == "decode":
        x, unit = 0.3 * _normal(6, 1, 3, 72, 6, 16), 2
    else:
        x, unit = _frames(7, 1, 5, 144, 12), 1
    tiles = tiling.Tiling(size=96, overlap=32)  # Rows 0 ... 47 and 24 ... 71 of latents.
    actual, whole = _both(local, direction, x, tiles)
    assert actual.shape == whole.shape
    difference = np.abs(actual - whole).max((0, 1, 3, 4))
    alone = 24 * unit  # Rows of one tile alone.
    sure = np.r_[: alone - 2 * unit, -alone + 2 * unit : 0]
    np.testing.assert_allclose(difference[sure], 0, atol=1e-5)
    # Border effects are there, and the ramps keep them small.
    assert 1e-6 < difference.max() < 0.1 * np.abs(whole).max()


def test_a_frame_of_one_tile_is_computed_as_a_whole(local):
    x = 0.3 * _normal(8, 1, 3, 6, 7, 16)
    actual, whole = _both(local, "decode", x, tiling.Tiling(size=32, overlap=8))
    np.testing.assert_allclose(actual, whole, rtol=0, atol=_STREAM)


def test_clips_in_tiles_equal_streams_in_tiles(local):
    model, params = local
    x, tiles = 0.3 * _normal(9, 1, 4, 9, 12, 16), tiling.Tiling(size=16, overlap=8)
    streamed, whole = _both(local, "decode", x, tiles)
    clip = jax.jit(lambda p, z: clips.decode(model, p, z, 2, tiles))(params, x)
    np.testing.assert_allclose(clip, streamed, rtol=0, atol=_STREAM)
    assert np.abs(clip - whole).max() > 1e-3  # Small tiles do differ from the whole frame.


def test_tiles_must_fit_the_stride(local):
    model, params = local
    with pytest.raises(ValueError, match="multiples of 2 pixels, got 15 and 4"):
        tiling.decode_first(model, params, jnp.zeros((1, 1, 9, 9, 16)),
                            tiling.Tiling(size=15, overlap=4))
    with pytest.raises(ValueError, match="between 0 and half of size=16"):
        tiling.Tiling(size=16, overlap=9)


# Many devices


def test_eight_devices_equal_one(params, reference):
    """Batch and rows are split; convolutions exchange the rows at their borders."""
    z = _normal(10, 2, 2, 4, 2, 16)
    mesh = rules.make_mesh(jax.devices(), data=2, seq=4)
    frames = jax.ShapeDtypeStruct((1, 1, 8, 8, 3), jnp.float32)
    boxed = jax.eval_shape(_MODEL.init, jax.random.key(0), frames)["params"]
    placed = jax.device_put(params, rules.shardings(mesh, boxed))

    @jax.jit
    def decode(p, z):
        first, state = _MODEL.apply({"params": p}, z[:, :1], method="decode_first")
        rest, state = _MODEL.apply({"params": p}, z[:, 1:], state, method="decode_chunk")
        return jnp.concatenate([first, rest], 1), state

    with rules.use(mesh):
        y, state = decode(placed, z)
    _close(y, _their_frames(reference, z))
    # Nothing but the constraints can have split the rows: no input is split.
    assert {s.data.shape for s in y.addressable_shards} == {(1, 5, 8, 16, 3)}
    past = state["up_3_res_0"][1]
    assert {s.data.shape for s in past.addressable_shards} == {(1, 2, 1, 2, 16)}
