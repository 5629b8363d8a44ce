"""Matrices in eight bits against NumPy, and a transformer that has them."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from experiments.parity import reduced
import tm_jax
from tm_jax.configs import presets
from tm_jax.core import trees
from tm_jax.models.dit import config as dit_config
from tm_jax.models.dit import transformer
from tm_jax.nn import linear
from tm_jax.nn import quantization
from tm_jax.parallel import rules
from tm_jax.planning import work

_KINDS = (quantization.INT8, quantization.FLOAT8)


@pytest.mark.parametrize("kind", _KINDS)
def test_a_matrix_keeps_what_eight_bits_can(kind):
    """Every channel by its own scale: half a step of int8, three bits of float8's mantissa."""
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((64, 12)) * np.logspace(-3, 3, 12)
    kernel[:, 5] = 0
    values, scale = quantization.quantise(jnp.asarray(kernel, jnp.float32), kind)
    assert values.dtype == {"int8": jnp.int8, "float8": jnp.float8_e4m3fn}[kind]
    back = np.asarray(values, np.float64) * np.asarray(scale, np.float64)
    largest = np.abs(kernel).max(0)
    error = np.abs(back - kernel) / np.maximum(largest, 1e-30)
    # Of int8 everywhere alike; of float8 the largest numbers are 32 of 448 apart.
    assert error.max() <= (0.5001 / 127 if kind == "int8" else 16.001 / 448)
    assert np.abs(back).max(0) == pytest.approx(largest, rel=1e-6) and not back[:, 5].any()


@pytest.mark.parametrize("kind", _KINDS)
def test_products(kind):
    """In float64 from what is stored; the inputs of float8 are rounded by their own scales."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((3, 5, 64)) * np.logspace(-4, 4, 5)[:, None]
    kernel = jnp.asarray(rng.standard_normal((64, 12)), jnp.float32)
    values, scale = quantization.quantise(kernel, kind)
    found = quantization.dot(jnp.asarray(x, jnp.float32), values, scale, kind)
    stored = np.asarray(values, np.float64) * np.asarray(scale, np.float64)
    seen = x
    if kind == "float8":
        own = np.abs(x).max(-1, keepdims=True) / 448
        seen = (x / own).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * own
    wanted = seen @ stored
    size = np.sqrt(np.square(x @ np.asarray(kernel, np.float64)).mean((0, 2), keepdims=True))
    assert (np.abs(found - wanted) / size).max() < 1e-4
    # As a whole nearly what the full matrix gives: 0.6 and 4.3 % here.
    error = (found - x @ np.asarray(kernel, np.float64)) / size
    assert np.sqrt(np.square(error).mean()) < (0.01 if kind == "int8" else 0.05)


@pytest.mark.parametrize("kind", _KINDS)
def test_a_transformer_with_them(pico, kind):
    """The layer is that of full matrices up to rounding; everything else is untouched."""
    full = dataclasses.replace(pico.preset.dit, num_layers=1)
    narrow = dataclasses.replace(full, matrices=kind)
    boxed = transformer.boxed_shapes(narrow)
    params = {k: v for k, v in pico.params.items() if k != "blocks_1"}
    made = quantization.tree(params, boxed, kind)
    chex.assert_trees_all_equal_shapes_and_dtypes(made, rules.unbox(boxed))
    flat = trees.flatten(made)
    eight = {n for n, x in flat.items() if x.dtype.itemsize == 1}
    assert eight == {n for n in trees.flatten(params) if n.startswith("blocks_") and "kernel" in n}
    for name, value in trees.flatten(params).items():
        if name not in eight:
            np.testing.assert_array_equal(flat[name], value, err_msg=name)
    # Scales are split like the channels that they belong to.
    mesh = rules.make_mesh(jax.devices()[:4], fsdp=2, tensor=2)
    places = trees.flatten(rules.shardings(mesh, boxed))
    assert places["blocks_0/q/kernel_scale"].spec == places["blocks_0/q/bias"].spec


@pytest.mark.parametrize("kind", _KINDS)
def test_weights_are_loaded_in_eight_bits(tmp_path, kind):
    """A stream from files: nearly the frames of full matrices, and less memory."""
    pytest.importorskip("tokenizers")
    pytest.importorskip("ftfy")
    folder = str(tmp_path / "weights")
    preset = reduced.sizes("wan-1.3b", layers=1, width=128, side=64)
    reduced.write(preset, folder)
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)

    def latents(**more):
        pipeline = tm_jax.load("wan-1.3b", folder, **more)
        start, state, _ = pipeline.begin(picture[None], np.zeros((1, 2), np.uint32))
        c, timing = pipeline.preset.dit, pipeline.preset.timing
        shape = (1, timing.latents_per_chunk, c.audio_window, c.audio_feature_width)
        windows = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        mode = np.ones(shape[:2], np.int32)
        found, _ = pipeline.denoise(state, start, windows, mode)
        flat = trees.flatten(pipeline.params["transformer"])
        return np.asarray(found), sum(
            x.nbytes for name, x in flat.items() if name.startswith("blocks_") and "/kernel" in name
        )

    (wanted, whole), (found, less) = latents(), latents(matrices=kind)
    assert less < 0.27 * whole  # Of float32; a quarter and the scales.
    error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    assert 0 < error < (0.02 if kind == "int8" else 0.08)


def test_a_plan_counts_eight_bits():
    def stored(matrices):
        preset = presets.get("pico").with_execution(matrices=matrices)
        mesh = rules.make_mesh(jax.devices()[:1])
        trees_ = work.make(preset, "stream", type("S", (), {"batch": 1}), mesh).trees
        return {x.dtype.itemsize for x in jax.tree.leaves(trees_["parameters of transformer"])}

    assert stored("full") == {4} and stored("int8") == {1, 4}


def test_wrong_kinds_are_refused():
    with pytest.raises(ValueError, match="matrices must be one of full, int8, float8, got 'int4'"):
        dataclasses.replace(presets.get("pico").dit, matrices="int4")
    assert isinstance(presets.get("pico").dit, dit_config.DiTConfig)
    x = jnp.ones((2, 8))
    layer = linear.Dense(4, stored="int8")
    params = layer.init(jax.random.key(0), x)["params"]
    assert rules.unbox(params)["kernel"].dtype == jnp.int8
