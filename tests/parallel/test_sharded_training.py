"""Training states on eight simulated devices: made, started and restored in shards."""

import gc
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from tm_jax.checkpoints import store as store_lib
from tm_jax.core import axes
from tm_jax.parallel import rules
from tm_jax.training import optimizer as optimizer_lib
from tm_jax.training import placing
from tm_jax.training import steps

_SIZES = {"data": 2, "fsdp": 2, "seq": 1, "tensor": 2}
_WIDTH, _LAYERS = 256, 4


def _init(key):
    """A few large matrices and a vector."""
    params = {}
    for layer in range(_LAYERS):
        value = jax.random.normal(jax.random.fold_in(key, layer), (_WIDTH, 2 * _WIDTH))
        params[f"layer_{layer}"] = nn.LogicallyPartitioned(value, (axes.EMBED, axes.MLP))
    params["bias"] = nn.LogicallyPartitioned(jnp.ones(2 * _WIDTH), (axes.MLP,))
    return params


def _optimizer():
    return optimizer_lib.make(optimizer_lib.OptimizerConfig(warmup_steps=1), 9)


def _mesh(**sizes):
    sizes = sizes or _SIZES
    return rules.make_mesh(jax.devices()[: math.prod(sizes.values())], **sizes)


def _shard_bytes(target):
    """Bytes of the largest shard of a tree, and of its largest leaf."""
    leaves = jax.tree.leaves(target)
    size = [math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves]
    return sum(size), max(math.prod(x.shape) * x.dtype.itemsize for x in leaves)


def _live_bytes():
    """Bytes of live buffers on every device; arrays may share them."""
    found = {device: {} for device in jax.devices()}
    for array in jax.live_arrays():
        if isinstance(array.dtype, np.dtype):  # Not random keys: their data counts.
            for shard in array.addressable_shards:
                found[shard.device][shard.data.unsafe_buffer_pointer()] = shard.data.nbytes
    return np.array([sum(buffers.values()) for buffers in found.values()])


def _spying(before, peaks):
    """`placing.array` that notes what is alive after every leaf."""
    original = placing.array

    def array(*args, **kwargs):
        placed = original(*args, **kwargs)
        peaks.append((_live_bytes() - before).max())
        return placed

    return array


def test_the_program_that_makes_a_state_holds_shards_only(monkeypatch):
    """Arguments, results and temporaries of one device, as the compiler counts them."""
    mesh, found = _mesh(), []
    original = jax.jit

    def jit(*args, **kwargs):
        compiled = original(*args, **kwargs)

        def call(key):
            found.append(compiled.lower(key).compile().memory_analysis())
            return compiled(key)

        return call

    monkeypatch.setattr(steps.jax, "jit", jit)
    state, _ = steps.create(_init, _optimizer(), mesh, jax.random.key(0))
    shard, largest = _shard_bytes(steps.layout(_init, _optimizer(), mesh))
    [memory] = found
    assert shard <= memory.output_size_in_bytes < 1.01 * shard + 1000
    assert memory.output_size_in_bytes + memory.temp_size_in_bytes <= shard + largest
    # A device holds a quarter of what is split over fsdp and tensor.
    whole = sum(x.nbytes for x in jax.tree.leaves(state))
    assert shard < 0.26 * whole


@pytest.mark.parametrize("kind", ["host", "device", "loaded"])
def test_given_values_never_lie_whole_on_a_device(monkeypatch, kind):
    mesh = _mesh()
    target = steps.layout(_init, _optimizer(), mesh)
    values = {name: np.asarray(x) for name, x in rules.unbox(_init(jax.random.key(7))).items()}
    start = values
    if kind == "device":
        places = jax.tree.map(lambda x: x.sharding, target.params)
        start = {name: jax.device_put(x, places[name]) for name, x in values.items()}
    elif kind == "loaded":
        start = lambda places: {n: placing.array(x, places[n]) for n, x in values.items()}
    gc.collect()
    peaks, before = [], _live_bytes()
    monkeypatch.setattr(placing, "array", _spying(before, peaks))

    def init(key):  # Only its shapes are asked for: nothing of it may be computed.
        made = _init(key)
        jax.debug.callback(lambda: pytest.fail("init ran"))
        return made

    state, _ = steps.create(init, _optimizer(), mesh, jax.random.key(0), start=start)
    jax.effects_barrier()
    shard, largest = _shard_bytes(target)
    assert max(*peaks, (_live_bytes() - before).max()) <= shard + largest
    for name, value in values.items():
        np.testing.assert_array_equal(state.params[name], value)
        np.testing.assert_array_equal(state.average[name], value)
        assert state.params[name].sharding == target.params[name].sharding
    chex.assert_trees_all_equal_shapes_and_dtypes(state, target)
    if kind == "device":
        # The step donates the state; what the caller gave stays the caller's.
        step = steps.make_step(
            lambda p, f, b, k: (sum(jnp.sum(x**2) for x in p.values()), {}), _optimizer(), 0.9,
            mesh, jax.tree.map(lambda x: x.sharding, target),
        )
        step(state, {}, {}, jax.random.key(0))
        np.testing.assert_array_equal(start["layer_0"], values["layer_0"])


def test_values_that_do_not_fit_are_explained():
    target = steps.layout(_init, _optimizer(), _mesh()).params
    values = {name: np.zeros(x.shape) for name, x in target.items()}
    with pytest.raises(ValueError, match=r"missing \['bias'\], unknown \['bais'\]"):
        placing.parameters({**{n: v for n, v in values.items() if n != "bias"}, "bais": 0}, target)
    with pytest.raises(ValueError, match=r"bias to start from must be \(512,\), got \(3,\)"):
        placing.parameters({**values, "bias": np.zeros(3)}, target)


def test_frozen_values_are_placed_leaf_by_leaf():
    mesh, key = _mesh(), jax.random.key(1)
    boxed = jax.tree.map(
        lambda box: box.replace_boxed(np.asarray(box.value)), _init(key),
        is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata),
    )
    loaded = jax.device_put(np.ones((8, 8)), rules.sharding(mesh, axes.EMBED, axes.MLP))
    frozen = {"teacher": boxed, "loaded": loaded, "scale": np.float64(3)}
    placed = placing.place(frozen, mesh)
    assert placed["loaded"] is loaded
    assert placed["scale"].sharding.is_fully_replicated and placed["scale"].dtype == jnp.float32
    for name, box in boxed.items():
        np.testing.assert_array_equal(placed["teacher"][name], box.value)
    assert placed["teacher"]["layer_0"].sharding.spec == P("fsdp", "tensor")


@pytest.mark.parametrize("other", [{"fsdp": 8}, {"tensor": 2}, {"data": 2, "fsdp": 4}])
def test_a_state_is_restored_on_another_mesh(tmp_path, other):
    """From shapes alone: no state is made first, and devices hold their shards only."""
    mesh = _mesh()
    state, placement = steps.create(_init, _optimizer(), mesh, jax.random.key(3))
    loss = lambda p, f, b, k: (sum(jnp.sum(jnp.sin(x)) for x in p.values()), {})
    state, _ = steps.make_step(loss, _optimizer(), 0.9, mesh, placement)(
        state, {}, {}, jax.random.key(0)
    )
    store = store_lib.Store(str(tmp_path))
    store.save(1, state, {"next": 1})
    store.close()
    target = steps.layout(_init, _optimizer(), _mesh(**other))
    before = _live_bytes()
    store = store_lib.Store(str(tmp_path))
    restored, position = store.restore(target, jax.tree.map(lambda x: x.sharding, target))
    store.close()
    shard, largest = _shard_bytes(target)
    assert (_live_bytes() - before).max() <= shard + largest
    assert position == {"next": 1}
    chex.assert_trees_all_equal(jax.device_get(restored), jax.device_get(state))
    for value, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(target)):
        assert value.sharding == wanted.sharding
