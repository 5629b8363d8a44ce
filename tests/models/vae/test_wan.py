"""The Wan autoencoder against diffusers' `AutoencoderKLWan`, whole, streamed and in tiles.

The reference is a small random model in its own checkpoint format, read through the table.
"""

import copy
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tm_jax.checkpoints import mapping
from tm_jax.checkpoints import wan_vae
from tm_jax.core import trees
from tm_jax.models.vae.wan import autoencoder
from tm_jax.models.vae.wan import clips
from tm_jax.models.vae.wan import config as config_lib
from tm_jax.models.vae.wan import layers
from tm_jax.models.vae.wan import tiling
from tm_jax.parallel import rules

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from experiments.parity import autoencoders as parity

_CONFIG = config_lib.PRESETS["pico"]
_MODEL = autoencoder.WanVAE(_CONFIG)
# These models are tiny: optimising their programs would take ten times longer than running them.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
_SCALE = 1e-4  # Of the reference's largest value. Measured 2e-6 encoding, 3e-5 decoding.
_STREAM = 1e-5  # Streamed against whole. Measured 5e-6.
# 8 devices against one. Measured 7e-6 on an Intel and 2.1e-5 on an AMD processor, which adds up a
# device's single row in another order: noise of 1e-7 on the latents, the last bit, moves frames by
# 4e-5. Rows of zeros in place of a neighbour's move them by 1.
_SPLIT = 1e-4


def _normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _frames(seed, *shape):
    return np.random.default_rng(seed).uniform(-1, 1, (*shape, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def reference():
    return parity.vae_reference(_CONFIG)


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


@functools.cache
def _jitted(model, method):
    return _jit(lambda p, *a: model.apply({"params": p}, *a, method=method))


def _ours(params, method, *args, model=_MODEL):
    return _jitted(model, method)(params, *args)


def _close(actual, expected):
    assert actual.shape == expected.shape
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=_SCALE * scale)


@pytest.fixture(scope="module")
def clip(reference):
    """Inputs of both directions, 81 frames, and the reference's outputs.

    Time is causal: the beginning of the outputs is the output of the beginning.
    """
    x, z = _frames(0, 2, 81, 16, 24), _normal(1, 2, 21, 2, 3, 16)
    return {
        "moments": (x, parity.their_moments(reference, x)), "decode": (z, parity.their_frames(reference, z))
    }


def _stream(params, direction, x, chunk):
    """Outputs for all of `x`: the first entry alone, then `chunk` latents at a time."""
    y, state = _ours(params, f"{direction}_first", x[:, :1])
    outputs, sizes = [y], jax.tree.map(jnp.shape, state)
    step = chunk * (4 if direction == "moments" else 1)
    for start in range(1, x.shape[1], step):
        y, state = _ours(params, f"{direction}_chunk", x[:, start : start + step], state)
        assert jax.tree.map(jnp.shape, state) == sizes
        outputs.append(y)
    return np.concatenate(outputs, 1)


@pytest.mark.parametrize("frames, chunk", [(1, 1), (5, 1), (9, 2), (13, 3), (81, 2)])
def test_encoding(clip, params, frames, chunk):
    """Mean and log variance of raw latents."""
    x, expected = clip["moments"]
    _close(_stream(params, "moments", x[:, :frames], chunk), expected[:, : 1 + frames // 4])


@pytest.mark.parametrize("frames, chunk", [(1, 1), (5, 1), (9, 2), (13, 3), (81, 2)])
def test_decoding(clip, params, frames, chunk):
    z, expected = clip["decode"]
    _close(_stream(params, "decode", z[:, : 1 + frames // 4], chunk), expected[:, :frames])


@pytest.mark.parametrize("direction", ["moments", "decode"])
def test_streams_of_any_chunk_agree(clip, params, direction):
    x = clip[direction][0]
    x = x[:, :7] if direction == "decode" else x[:, :25]
    one, two, three = (_stream(params, direction, x, chunk) for chunk in (1, 2, 3))
    np.testing.assert_allclose(one, three, rtol=0, atol=_STREAM)
    np.testing.assert_allclose(two, three, rtol=0, atol=_STREAM)


def test_whole_clips_equal_their_streams(clip, params):
    z = clip["decode"][0][:, :2]
    streamed = _stream(params, "decode", z, 1)
    np.testing.assert_allclose(_ours(params, "decode", z), streamed, rtol=0, atol=_STREAM)
    x = clip["moments"][0][:, :5]
    raw = np.float64(_stream(params, "moments", x, 1)[..., :16])
    latents = (raw - _CONFIG.latent_mean) / _CONFIG.latent_std  # The mean, normalised.
    np.testing.assert_allclose(_ours(params, "encode", x), latents, rtol=0, atol=_STREAM)


def test_bf16_keeps_norms_exact_and_stays_near(reference, params):
    x = _normal(4, 2, 1, 3, 3, 8).astype(jnp.bfloat16)
    scale = np.linspace(0.5, 2, 8, dtype=np.float32)
    y = layers.Norm().apply({"params": {"scale": scale}}, x)
    exact = np.float64(x)
    exact *= np.sqrt(8) * scale / np.linalg.norm(exact, axis=-1, keepdims=True)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float64(y), exact, rtol=2**-8)  # One rounding at the end.

    z = _normal(5, 2, 1, 2, 3, 16)
    half, _ = _ours(params, "decode_first", z, model=autoencoder.WanVAE(_CONFIG, jnp.bfloat16))
    exact = parity.their_frames(reference, z)
    theirs = copy.deepcopy(reference).to(torch.bfloat16)
    expected = np.abs(parity.their_frames(theirs, z) - exact).mean()
    actual = np.abs(half - exact).mean()
    assert half.dtype == jnp.float32
    # Measured 0.86 times the reference's own loss in bf16; it did compute in bf16.
    assert 0.5 * expected < actual < 1.2 * expected


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


def _in_tiles(local, direction, x, tiles):
    """A clip in tiles, streamed by hand one latent at a time."""
    model, params = local
    first, chunk = (
        _jit(functools.partial(getattr(tiling, f"{direction}_{name}"), model, tiling=tiles))
        for name in ("first", "chunk")
    )
    y, state = first(params, x[:, :1])
    outputs, step = [y], 1 if direction == "decode" else 2
    for start in range(1, x.shape[1], step):
        y, state = chunk(params, x[:, start : start + step], state)
        outputs.append(y)
    return np.concatenate(outputs, 1)


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_tiles_equal_the_whole_frame_where_one_tile_sees_enough(local, direction):
    """Convolutions reach a bounded distance: away from inner borders nothing differs."""
    if direction == "decode":
        x, unit = 0.3 * _normal(6, 1, 2, 72, 6, 16), 2
    else:
        x, unit = _frames(7, 1, 3, 144, 12), 1
    # Rows 0 ... 47 and 24 ... 71 of latents.
    actual = _in_tiles(local, direction, x, tiling.Tiling(size=96, overlap=32))
    whole = np.asarray(_ours(local[1], direction, x, model=local[0]))
    assert actual.shape == whole.shape
    difference = np.abs(actual - whole).max((0, 1, 3, 4))
    alone = 24 * unit  # Rows of one tile alone.
    sure = np.r_[: alone - 2 * unit, 2 * unit - alone : 0]
    np.testing.assert_allclose(difference[sure], 0, atol=1e-5)
    # Border effects are there, and the ramps keep them small.
    assert 1e-6 < difference.max() < 0.1 * np.abs(whole).max()


def test_a_frame_of_one_tile_is_computed_as_a_whole(local):
    x, tiles = 0.3 * _normal(8, 1, 1, 6, 7, 16), tiling.Tiling(size=32, overlap=8)
    whole, _ = _ours(local[1], "decode_first", x, model=local[0])
    np.testing.assert_allclose(_in_tiles(local, "decode", x, tiles), whole, rtol=0, atol=_STREAM)


@pytest.mark.parametrize("tiles", [None, tiling.Tiling(size=16, overlap=8)])
def test_clips_step_by_step(local, tiles):
    """Two latents at a time with one left over, as a whole and in tiles."""
    model, params = local
    x = 0.3 * _normal(9, 1, 4, 9, 12, 16)
    clip = _jit(lambda p, z: clips.decode(model, p, z, 2, tiles))(params, x)
    if tiles is None:
        expected = _ours(params, "decode", x, model=model)
    else:
        expected = _in_tiles(local, "decode", x, tiles)
    np.testing.assert_allclose(clip, expected, rtol=0, atol=_STREAM)


def test_encoding_a_clip_step_by_step(local):
    model, params = local
    x = _frames(10, 1, 5, 8, 8)
    z = _jit(lambda p, x: clips.encode(model, p, x))(params, x)
    expected = _ours(params, "encode", x, model=model)
    np.testing.assert_allclose(z, expected, rtol=0, atol=_STREAM)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        clips.encode(model, params, x, 0)


def test_tiles_must_fit_the_stride(local):
    model, params = local
    with pytest.raises(ValueError, match="multiples of 2 pixels, got 15 and 4"):
        tiling.decode_first(model, params, jnp.zeros((1, 1, 9, 9, 16)),
                            tiling.Tiling(size=15, overlap=4))
    with pytest.raises(ValueError, match="between 0 and half of size=16"):
        tiling.Tiling(size=16, overlap=9)


# Many devices


def test_eight_devices_equal_one(params):
    """Batch and rows are split; convolutions exchange the rows at their borders."""
    z = _normal(10, 2, 2, 4, 2, 16)
    mesh = rules.make_mesh(jax.devices(), data=2, seq=4)
    frames = jax.ShapeDtypeStruct((1, 1, 8, 8, 3), jnp.float32)
    boxed = jax.eval_shape(_MODEL.init, jax.random.key(0), frames)["params"]
    placed = jax.device_put(params, rules.shardings(mesh, boxed))

    @_jit
    def decode(p, z):
        first, state = _MODEL.apply({"params": p}, z[:, :1], method="decode_first")
        rest, state = _MODEL.apply({"params": p}, z[:, 1:], state, method="decode_chunk")
        return jnp.concatenate([first, rest], 1), state

    with rules.use(mesh):
        y, state = decode(placed, z)
    alone = _stream(params, "decode", z, 1)
    np.testing.assert_allclose(y, alone, rtol=0, atol=_SPLIT)
    # Nothing but the constraints can have split the rows: no input is split.
    assert {s.data.shape for s in y.addressable_shards} == {(1, 5, 8, 16, 3)}
    past = state["up_3_res_0"][1]
    assert {s.data.shape for s in past.addressable_shards} == {(1, 2, 1, 2, 16)}
