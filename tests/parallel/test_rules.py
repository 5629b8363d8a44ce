"""The rules table: it covers every name, and its constraints take effect."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from tm_jax.checkpoints import parts as parts_lib
from tm_jax.configs import components
from tm_jax.configs import presets
from tm_jax.core import axes
from tm_jax.core import trees
from tm_jax.parallel import rules


def _boxed_parameters(preset_shapes):
    """Every parameter of every preset by name; parameters without a box stay plain."""
    found = {}
    for name, preset in presets.PRESETS.items():
        others = [part for part in components.build(preset).parts if part != "transformer"]
        found[name] = {part: parts_lib.of_preset(preset, part).boxed for part in others}
        found[name]["transformer"] = preset_shapes[name]
    return found


def test_every_parameter_has_logical_names_that_the_table_knows(preset_shapes):
    known = {name for name, _ in rules.RULES}
    for preset, parts in _boxed_parameters(preset_shapes).items():
        leaves = jax.tree_util.tree_flatten_with_path(
            parts, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata)
        )[0]
        for path, leaf in leaves:
            name = "/".join(map(trees.key_name, path))
            assert isinstance(leaf, nn.LogicallyPartitioned), f"{preset}: {name} has no logical names"
            assert len(leaf.names) == leaf.value.ndim, f"{preset}: {name}"
            unknown = {n for n in leaf.names if n is not None} - known
            assert not unknown, f"{preset}: {name} uses {unknown}"


def test_every_logical_axis_has_a_rule():
    assert sorted(name for name, _ in rules.RULES) == sorted(axes.LOGICAL_AXES)
    for _, mesh_axes in rules.RULES:
        names = (mesh_axes,) if isinstance(mesh_axes, str) else mesh_axes or ()
        assert set(names) <= set(rules.MESH_AXES)


def test_large_matrices_are_split_over_fsdp_and_tensor(preset_shapes):
    mesh = rules.make_mesh(fsdp=2, tensor=2, data=2)
    placement = trees.flatten(rules.shardings(mesh, preset_shapes["tm-18b"]))
    shapes = trees.flatten(rules.unbox(preset_shapes["tm-18b"]))
    whole = sum(
        int(np.prod(shapes[n].shape)) for n, s in placement.items() if s.is_fully_replicated
    )
    assert whole < 1e-3 * trees.count(shapes)
    assert placement["blocks_0/q/kernel"].spec == P("fsdp", "tensor")
    assert placement["blocks_0/mlp_out/kernel"].spec == P("tensor", "fsdp")
    part = placement["blocks_0/q/kernel"].shard_shape((5120, 5120))
    assert part == (2560, 2560)


def test_an_axis_that_does_not_divide_is_replicated():
    mesh = rules.make_mesh(tensor=8)
    box = nn.LogicallyPartitioned(jax.ShapeDtypeStruct((4, 12), jnp.float32), (axes.EMBED, axes.HEADS))
    assert rules.shardings(mesh, {"w": box})["w"].spec == P("fsdp", None)


@pytest.mark.parametrize("heads, names", [(8, ("tensor", "seq")), (6, "tensor"), (3, None)])
def test_heads_of_a_cache_are_split_over_the_first_axes_that_divide(heads, names):
    mesh = rules.make_mesh(seq=2, tensor=2)
    slots = jax.ShapeDtypeStruct((2, 12, heads, 4), jnp.float32)
    box = nn.LogicallyPartitioned(slots, (axes.BATCH, axes.CACHE, axes.SPREAD, None))
    assert rules.shardings(mesh, {"k": box})["k"].spec == P(("data", "fsdp"), None, names, None)


def test_constraints_take_effect():
    """Fails if `use` were the older `with mesh:` form, which linen ignores silently."""
    mesh = rules.make_mesh(fsdp=2, seq=2, tensor=2)
    names = (axes.BATCH, axes.FRAMES, axes.TOKENS, axes.HEADS, None)
    function = lambda x: nn.with_logical_constraint(2 * x, names)
    x = np.ones((2, 3, 4, 6, 5), np.float32)
    with rules.use(mesh):
        y = jax.jit(function)(x)
    assert y.sharding.shard_shape(y.shape) == (1, 3, 2, 3, 5)
    assert {s.data.shape for s in y.addressable_shards} == {(1, 3, 2, 3, 5)}
    np.testing.assert_array_equal(y, 2 * x)


def test_make_mesh_gives_the_rest_to_data():
    mesh = rules.make_mesh(seq=2, tensor=2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 1, "seq": 2, "tensor": 2}


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"tensors": 2}, r"unknown mesh axes \['tensors'\]"),
        ({"tensor": 3}, "needs 6 devices, got 8"),
        ({"data": 3}, "needs 3 devices, got 8"),
    ],
)
def test_a_mesh_that_does_not_fit_is_explained(sizes, message):
    with pytest.raises(ValueError, match=message):
        rules.make_mesh(**sizes)


def test_partitions_need_no_devices():
    box = nn.LogicallyPartitioned(
        jax.ShapeDtypeStruct((4096, 12), jnp.float32), (axes.EMBED, axes.HEADS)
    )
    sizes = {"data": 2, "fsdp": 1024, "seq": 1, "tensor": 8}
    found = rules.specs(sizes, {"w": box, "plain": jax.ShapeDtypeStruct((3,), jnp.float32)})
    assert found == {"w": P("fsdp", None), "plain": P()}  # 12 heads are not split 8-fold.
    assert rules.spec(sizes, (4096, 3), (axes.BATCH, None)) == P(("data", "fsdp"), None)
