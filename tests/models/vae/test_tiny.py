"""The tiny autoencoder against a torch implementation with the published tensor names."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tm_jax.checkpoints import mapping
from tm_jax.checkpoints import taehv
from tm_jax.core import trees
from tm_jax.models.vae.tiny import autoencoder
from tm_jax.models.vae.tiny import config as config_lib
from tm_jax.parallel import rules

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from experiments.parity import autoencoders as parity

_CONFIG = config_lib.PRESETS["pico"]
_MODEL = autoencoder.TAEHV(_CONFIG)
_SCALE = 1e-4  # Of the reference's largest value. Measured 1e-6.
_STREAM = 1e-5  # Streamed against whole. Measured 3e-7.


@pytest.fixture(scope="module")
def reference():
    return parity.taehv_reference(_CONFIG)


def _shapes(config):
    model = autoencoder.TAEHV(config)
    frames = jax.ShapeDtypeStruct((1, 4, 8, 8, 3), jnp.float32)
    return rules.unbox(jax.eval_shape(model.init, jax.random.key(0), frames)["params"])


@pytest.fixture(scope="module")
def params(reference):
    source = {name: value.numpy() for name, value in reference.state_dict().items()}
    table = taehv.rows(_CONFIG)
    tree = mapping.read(source, table, _shapes(_CONFIG))
    written = mapping.write(tree, table)
    assert written.keys() == source.keys()
    for name, value in source.items():
        np.testing.assert_array_equal(written[name], value, err_msg=name)
    return tree


@functools.cache
def _jitted(model, method):
    # Tiny: optimising the program would take ten times longer than running it.
    return jax.jit(
        lambda p, *a: model.apply({"params": p}, *a, method=method),
        compiler_options={"xla_backend_optimization_level": 0},
    )


def _ours(params, method, *args, model=_MODEL):
    return _jitted(model, method)(params, *args)


def _close(actual, expected):
    assert actual.shape == expected.shape
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=_SCALE * scale)


@pytest.mark.parametrize("frames", [4, 9])
def test_encoding(reference, params, frames):
    x = np.random.default_rng(frames).uniform(-1, 1, (2, frames, 16, 24, 3)).astype(np.float32)
    padded = np.concatenate([x] + [x[:, -1:]] * (-frames % 4), 1)
    _close(_ours(params, "encode", x), parity.by_clips(reference["encoder"], (padded + 1) / 2))


def _decoded(reference, z):
    """The reference's pixels in -1..1, without the three frames that come before the clip."""
    y = parity.by_clips(reference["decoder"], z)[:, 3:]
    assert np.mean((y > 0) & (y < 1)) > 0.8  # Clipped values would hide differences.
    return np.clip(y, 0, 1) * 2 - 1


def test_decoding_one_latent(reference, params):
    z = np.random.default_rng(1).standard_normal((2, 1, 3, 2, 16)).astype(np.float32)
    expected = _decoded(reference, z)
    assert expected.shape == (2, 1, 24, 16, 3)
    _close(_ours(params, "decode", z), expected)


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_streams_reproduce_the_whole_clip(reference, params, direction):
    rng = np.random.default_rng(2)
    if direction == "decode":
        x, latent = 2 * rng.standard_normal((2, 7, 2, 3, 16)).astype(np.float32), 1
        expected = _decoded(reference, x)
        assert expected.shape == (2, 25, 16, 24, 3)
    else:
        x, latent = rng.uniform(-1, 1, (2, 28, 16, 24, 3)).astype(np.float32), 4
        expected = parity.by_clips(reference["encoder"], (x + 1) / 2)
    whole = np.asarray(_ours(params, direction, x))
    _close(whole, expected)
    for chunk in (1, 2, 3):
        y, state = _ours(params, f"{direction}_first", x[:, :latent])
        outputs, sizes = [y], jax.tree.map(jnp.shape, state)
        for start in range(latent, x.shape[1], chunk * latent):
            part = x[:, start : start + chunk * latent]
            y, state = _ours(params, f"{direction}_chunk", part, state)
            assert jax.tree.map(jnp.shape, state) == sizes
            outputs.append(y)
        outputs = np.concatenate(outputs, 1)
        np.testing.assert_allclose(outputs, whole, rtol=0, atol=_STREAM)
    # The past matters: another first entry changes what comes much later.
    other = x.copy()
    other[:, 0] *= -1
    changed = np.abs(_ours(params, direction, other) - whole)
    assert changed[:, -whole.shape[1] // 2 :].max() > 10 * _STREAM


def test_the_published_size():
    """Names and shapes of `taew2_1.pth`, whose layers `taehv_layers` lists; 11.3 M parameters."""
    config = config_lib.PRESETS["taew-2.1"]
    with torch.device("meta"):
        published = parity.taehv_layers(config).state_dict()
    shapes = _shapes(config)
    mapping.check(published, taehv.rows(config), shapes)
    assert {"encoder.2.conv.weight", "encoder.17.bias", "decoder.22.weight"} <= published.keys()
    assert published["decoder.13.conv.weight"].shape == (256, 128, 1, 1)
    assert published["encoder.4.conv.0.weight"].shape == (64, 128, 3, 3)
    assert trees.count(shapes) == 11_315_539


def test_bf16(params):
    z = np.random.default_rng(3).standard_normal((1, 2, 2, 3, 16)).astype(np.float32)
    y = _ours(params, "decode", z, model=autoencoder.TAEHV(_CONFIG, jnp.bfloat16))
    difference = np.abs(y - _ours(params, "decode", z))
    assert y.dtype == jnp.float32
    assert 1e-5 < difference.mean() < 0.01


@pytest.mark.parametrize(
    "method, shape, message",
    [
        ("encode_first", (1, 3, 16, 16, 3), "multiples of 4 frames, got 3"),
        ("encode", (1, 4, 16, 12, 3), "multiples of 8, got 16x12"),
        ("decode", (1, 1, 2, 2, 8), "axis C of [B T H W C] must be 16, got 8"),
    ],
)
def test_errors_say_what_was_expected(params, method, shape, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        jax.eval_shape(
            lambda p, x: _MODEL.apply({"params": p}, x, method=method),
            params, jax.ShapeDtypeStruct(shape, jnp.float32),
        )


def test_stages_must_agree():
    with pytest.raises(ValueError, match="the same factor"):
        config_lib.TAEHVConfig(
            encoder_width=8, decoder_widths=(8, 8, 8, 8), decoder_grows=(1, 1, 2)
        )
