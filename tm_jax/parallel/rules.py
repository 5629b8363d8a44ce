"""The one table from logical axes to mesh axes, and the shardings that follow from it."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from tm_jax.core import axes

MESH_AXES = ("data", "fsdp", "seq", "tensor")

BATCH_AXES = ("data", "fsdp")  # They share the streams or samples of a batch.

# First match wins; a logical axis without a mesh axis is replicated.
RULES = (
    (axes.BATCH, BATCH_AXES),
    (axes.FRAMES, None),
    (axes.TOKENS, "seq"),
    (axes.CACHE, None),
    (axes.WIDTH, None),
    (axes.EMBED, "fsdp"),
    (axes.HEADS, "tensor"),
    # Outside self-attention tokens are split over "seq"; inside, heads are instead.
    (axes.SPREAD, ("tensor", "seq")),
    (axes.MLP, "tensor"),
    (axes.VOCAB, "tensor"),
    (axes.CHANNELS_IN, None),
    (axes.CHANNELS_OUT, "fsdp"),
)


def make_mesh(devices: Sequence[jax.Device] | None = None, /, **sizes: int) -> Mesh:
    """A mesh with all four named axes.

    Args:
      devices: Devices to use; all of them by default.
      **sizes: Size of named axes; the others are 1, and `data` takes what is left.

    Returns:
      Mesh with automatic axes, as linen's constraints need them.

    Raises:
      ValueError: Unknown axis, or sizes that do not divide the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    unknown = set(sizes) - set(MESH_AXES)
    if unknown:
        raise ValueError(f"unknown mesh axes {sorted(unknown)}; choose from {MESH_AXES}.")
    given = int(np.prod([sizes.get(a, 1) for a in MESH_AXES if a != "data" or a in sizes]))
    if "data" not in sizes:
        sizes = {**sizes, "data": max(1, len(devices) // given)}
    shape = tuple(sizes.get(a, 1) for a in MESH_AXES)
    if int(np.prod(shape)) != len(devices):
        raise ValueError(
            f"mesh {dict(zip(MESH_AXES, shape))} needs {int(np.prod(shape))} devices, "
            f"got {len(devices)}."
        )
    grid = np.asarray(devices, dtype=object).reshape(shape)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


@contextlib.contextmanager
def use(mesh: Mesh) -> Iterator[Mesh]:
    """Makes `mesh` and the rules active, so that constraints inside modules take effect."""
    # Under the older `with mesh:` form linen's constraints are silently ignored.
    if is_described(mesh):  # Nothing can be computed there, so it is not where arrays go.
        active = jax.sharding.use_abstract_mesh(mesh.abstract_mesh)
    else:
        active = jax.set_mesh(mesh)
    with active, nn.logical_axis_rules(RULES):
        yield mesh


def is_described(mesh: Mesh) -> bool:
    """Whether the devices of a mesh are a description to compile for, such as a TPU topology."""
    return "CompileOnly" in type(mesh.devices.flat[0].client).__name__


def unbox(boxed: Any) -> Any:
    """Removes the boxes without touching placement; works on shapes as well as arrays."""

    def is_box(x):
        return isinstance(x, nn.meta.AxisMetadata)

    return jax.tree.map(lambda x: x.value if is_box(x) else x, boxed, is_leaf=is_box)


def sharding(mesh: Mesh, *logical: str | None) -> NamedSharding:
    """Sharding of an array whose axes have these logical names (None: replicated)."""
    spec = nn.logical_to_mesh_axes(logical, RULES)
    assert spec is not None  # None comes of None alone.
    return NamedSharding(mesh, spec)


def shardings(mesh: Mesh, boxed: Any) -> Any:
    """Shardings of a tree whose leaves are boxed with logical axis names.

    Args:
      mesh: Device mesh.
      boxed: See `specs`.

    Returns:
      The tree without boxes, of `NamedSharding`.
    """
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), specs(mesh.shape, boxed),
        is_leaf=lambda x: isinstance(x, PartitionSpec),
    )


def specs(sizes: Mapping[str, int], boxed: Any) -> Any:
    """Partitions of a tree whose leaves are boxed with logical axis names; needs no devices.

    An axis is split over the first of its mesh axes that divide it evenly, or over none:
    small presets have widths smaller than a large mesh.

    Args:
      sizes: Size of every mesh axis.
      boxed: Tree of arrays or shapes, with flax's logical partitioning boxes; leaves
        without a box are replicated.

    Returns:
      The tree without boxes, of `PartitionSpec`.
    """
    return jax.tree.map(
        lambda names, leaf: spec(sizes, leaf.shape, tuple(names)),
        nn.get_partition_spec(boxed), unbox(boxed),
        is_leaf=lambda x: isinstance(x, PartitionSpec),
    )


def spec(sizes: Mapping[str, int], shape: tuple[int, ...], logical: tuple) -> PartitionSpec:
    """Partition of one array, as `specs` finds it, by the logical names of its axes."""
    mapped = nn.logical_to_mesh_axes(logical, RULES)
    assert mapped is not None  # None comes of None alone.
    kept = []
    for axis, names in enumerate(mapped):
        group = (names,) if isinstance(names, str) else (names or ())
        group = axes.dividing(shape[axis], group, sizes)
        kept.append(group[0] if len(group) == 1 else group or None)
    return PartitionSpec(*kept)
