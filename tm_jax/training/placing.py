"""Values onto a mesh, leaf by leaf and shard by shard: nothing is ever whole on one device."""

from typing import Any

from flax.core import meta
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import numpy.typing as npt

from tm_jax.core import axes
from tm_jax.core import trees
from tm_jax.parallel import hosts
from tm_jax.parallel import rules


def place(tree: Any, mesh: Mesh) -> Any:
    """Puts frozen values on a mesh.

    Args:
      tree: Tree of arrays. Leaves in flax's boxes are sharded by the rules table; device arrays
        that are on this mesh already stay where they are; all others are replicated.
      mesh: Device mesh.

    Returns:
      The tree without boxes, of device arrays.
    """
    replicated = NamedSharding(mesh, PartitionSpec())

    def one(leaf):
        if isinstance(leaf, meta.AxisMetadata):
            return array(rules.unbox(leaf), rules.shardings(mesh, leaf))
        if isinstance(leaf, jax.Array) and _is_on(leaf, mesh):
            return leaf
        return array(leaf, replicated)

    return jax.tree.map(one, tree, is_leaf=lambda x: isinstance(x, meta.AxisMetadata))


def _is_on(leaf: jax.Array, mesh: Mesh) -> bool:
    return isinstance(leaf.sharding, NamedSharding) and leaf.sharding.mesh == mesh


def array(value: Any, sharding: NamedSharding, dtype: npt.DTypeLike | None = None) -> jax.Array:
    """One value in its sharding; from a host array every device gets its own slice only.

    Args:
      value: Host array, which may be mapped from a file, or device array.
      sharding: Where it goes.
      dtype: Dtype of the result; that of the value by default.
    """
    if isinstance(value, jax.Array):
        placed = jax.device_put(value, sharding)
        return placed if dtype in (None, placed.dtype) else placed.astype(dtype)
    value = np.asarray(value)
    target = jax.dtypes.canonicalize_dtype(dtype or value.dtype)
    # Copied: on a CPU a device array might share the memory of the host's otherwise.
    return jax.make_array_from_callback(
        value.shape, sharding, lambda index: np.array(value[index], target, order="C")
    )


def parameters(start: Any, target: Any) -> Any:
    """Values of parameters that a training step may overwrite.

    Args:
      start: Tree of host or device arrays without boxes, which stay the caller's; or function
        (tree of shardings) -> tree of device arrays, which are taken over.
      target: Tree of `jax.ShapeDtypeStruct` with shardings.

    Returns:
      Tree of device arrays like `target`.

    Raises:
      ValueError: Names or shapes differ from the target's.
    """
    is_loaded = callable(start)
    values = start(jax.tree.map(lambda x: x.sharding, target)) if is_loaded else start
    found, wanted = trees.flatten(values), trees.flatten(target)
    if set(found) != set(wanted):
        missing, more = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
        raise ValueError(
            f"the parameters to start from are others: missing {missing[:3]}, unknown {more[:3]}."
        )
    placed = {}
    for name, leaf in wanted.items():
        value = found[name]
        if value.shape != leaf.shape:
            raise ValueError(
                f"the parameter {name} to start from must be {leaf.shape}, got {value.shape}."
            )
        new = array(value, leaf.sharding, leaf.dtype)
        if isinstance(value, jax.Array) and not is_loaded:
            new = jax.device_put(new, leaf.sharding, may_alias=False)
        placed[name] = new
    return jax.tree.unflatten(jax.tree.structure(target), [placed[name] for name in wanted])


def batch(
    items: Any, mesh: Mesh, stacked: bool = False, rows: hosts.Rows | None = None
) -> Any:
    """Puts a batch of host arrays on the mesh, split over the samples.

    Args:
      items: Tree of arrays [B, ...], or [n, B, ...] when `stacked`.
      mesh: Device mesh.
      stacked: Whether the first axis counts micro-batches.
      rows: Which of the B samples of a larger batch these are; None: all of them.
    """
    logical = (None, axes.BATCH) if stacked else (axes.BATCH,)
    axis = len(logical) - 1

    def one(x):
        shape = list(np.shape(x))
        if rows is not None:
            shape[axis] = rows.total
        place = NamedSharding(mesh, rules.spec(mesh.shape, tuple(shape), logical))
        if place.is_fully_addressable:
            return jax.device_put(x, place)
        here = rows.here if rows is not None else tuple(range(shape[axis]))

        def read(index):
            wanted = range(*index[axis].indices(shape[axis]))
            return np.take(x, np.searchsorted(here, np.asarray(wanted)), axis)

        return jax.make_array_from_callback(tuple(shape), place, read)

    return jax.tree.map(one, items)
