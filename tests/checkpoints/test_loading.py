"""Weights go straight into their sharding, and a sharded model equals one device."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from tm_jax.checkpoints import convert
from tm_jax.checkpoints import loading
from tm_jax.checkpoints import mapping
from tm_jax.checkpoints import parts
from tm_jax.checkpoints import sinks
from tm_jax.checkpoints import wan
from tm_jax.core import trees
from tm_jax.models.dit import attention_patterns
from tm_jax.models.dit import transformer
from tm_jax.parallel import rules


@pytest.fixture(scope="module")
def small(pico):
    """The smallest preset with one layer, and its random parameters."""
    preset = dataclasses.replace(
        pico.preset, dit=dataclasses.replace(pico.preset.dit, num_layers=1)
    )
    boxed = pico.shapes(preset.dit)
    return types.SimpleNamespace(
        preset=preset, boxed=boxed, params=pico.random(boxed), touch=pico.touch,
        inputs=pico.inputs, model=transformer.DiT(preset.dit),
    )


@pytest.fixture(scope="module")
def part(small):
    return parts.transformer(small.preset)


@pytest.fixture(scope="module")
def published(tmp_path_factory, small):
    """Folder with a model in the diffusers layout, in several files."""
    rows = wan.rows(small.preset.dit, "diffusers")
    tensors = mapping.write(small.params, rows, own=wan.is_own)
    path = str(tmp_path_factory.mktemp("weights") / "transformer")
    sinks.write_safetensors(path, tensors, tensors.items(), limit=100000)
    return path


def test_every_device_reads_its_own_slice(small, part, published, monkeypatch):
    mesh = rules.make_mesh(jax.devices()[:8], fsdp=2, tensor=2, seq=2)
    read = []

    class Watched(convert.Parameters):
        def __getitem__(self, path):
            value = super().__getitem__(path)
            assert _is_mapped(value), path  # Not in memory.
            return _Watch(value, path, read)

    monkeypatch.setattr(convert, "Parameters", Watched)
    params = loading.load_part(part, published, mesh)
    flat, wanted = trees.flatten(params), trees.flatten(small.params)
    places = trees.flatten(rules.shardings(mesh, small.boxed))
    assert list(flat) == list(trees.flatten(rules.unbox(part.boxed)))
    for name, x in flat.items():
        assert x.sharding.is_equivalent_to(places[name], x.ndim), name
        if not wan.is_own(name):
            np.testing.assert_array_equal(x, wanted[name], err_msg=name)
    # A kernel that is split over four devices is read in quarters, once for each device.
    kernel = "blocks_0/q/kernel"
    quarters = {shape for name, shape in read if name == kernel}
    assert quarters == {(16, 16)} == {s.data.shape for s in flat[kernel].addressable_shards}
    assert flat["blocks_0/modulation"].sharding.is_fully_replicated


def _is_mapped(x):
    while x is not None and not isinstance(x, np.memmap):
        x = x.base
    return x is not None


class _Watch:
    """An array that records what is cut out of it."""

    def __init__(self, value, name, read):
        self.value, self.name, self.read = value, name, read
        self.dtype = value.dtype

    def __getitem__(self, index):
        part = self.value[index]
        self.read.append((self.name, part.shape))
        return part


def test_what_no_file_fills_is_initialised(small, part, published):
    params = trees.flatten(loading.load_part(part, published, seed=3))
    again = trees.flatten(loading.load_part(part, published, seed=3))
    other = trees.flatten(loading.load_part(part, published, seed=4))
    fresh = trees.flatten(rules.unbox(jax.jit(part.init)(jax.random.key(3))))
    for name in filter(wan.is_own, params):
        np.testing.assert_array_equal(params[name], again[name])
        np.testing.assert_allclose(params[name], fresh[name], rtol=1e-6, atol=0, err_msg=name)
    assert not np.any(params["blocks_0/cross/v_audio/kernel"])
    name = "audio_projection/in/kernel"
    assert np.any(params[name]) and not np.array_equal(params[name], other[name])


def test_dtypes(tmp_path, small, part, published):
    half = str(tmp_path / "half")
    convert.convert(part, published, half, dtype=ml_dtypes.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(loading.load_part(part, half))} == {
        jnp.dtype(jnp.bfloat16)
    }
    params = loading.load_part(part, half, dtype=jnp.float32)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    wanted = np.float32(np.asarray(small.params["head"]["kernel"]).astype(ml_dtypes.bfloat16))
    np.testing.assert_array_equal(params["head"]["kernel"], wanted)


def test_every_layout_gives_the_same_parameters(tmp_path, small, part, published):
    for to in ("original", "orbax", "ours"):
        convert.convert(part, published, str(tmp_path / to), to=to)
        loaded = trees.flatten(loading.load_part(part, str(tmp_path / to)))
        for name, x in trees.flatten(small.params).items():
            if not wan.is_own(name):
                np.testing.assert_array_equal(loaded[name], x, err_msg=f"{to} {name}")


def test_a_wrong_size_is_told(part, published):
    with pytest.raises(ValueError, match="transformer.*does not fit this model|must have shape"):
        loading.load("nano", published)
    with pytest.raises(FileNotFoundError):
        loading.load("pico", published + "x")


def _forward(small, params, mesh, frames):
    """One pass of the teacher; what is split over the devices is told too."""
    height, width, _ = small.preset.latent_shape
    patch = small.preset.dit.patch
    grid = attention_patterns.Grid(height // patch, width // patch, frames)
    inputs = small.inputs(small.preset, 2, frames)

    @jax.jit
    def run(params, inputs):
        return small.model.apply(
            {"params": params}, **inputs, pattern=attention_patterns.bidirectional(grid),
            method=small.touch,
        )

    with rules.use(mesh):
        return run(params, inputs)


def test_sharded_equals_one_device(small, part, published):
    """Also with the tokens of a chunk split over devices."""
    sizes = dict(fsdp=2, seq=2, tensor=2)
    one = rules.make_mesh(jax.devices()[:1])
    expected, _ = _forward(small, loading.load_part(part, published, one), one, 3)
    mesh = rules.make_mesh(jax.devices()[:8], **sizes)
    actual, states = _forward(small, loading.load_part(part, published, mesh), mesh, 3)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)
    # No parameter and no input is split over "seq": the constraints in the blocks split heads.
    heads = small.preset.dit.num_heads // sizes["tensor"] // sizes["seq"]
    shapes = {s.data.shape for s in states[0].k.addressable_shards}
    assert {shape[3] for shape in shapes} == {heads}
