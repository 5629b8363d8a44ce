"""Weights straight from disk into their sharding: no device or host holds a second copy."""

import collections
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np
import numpy.typing as npt

from tm_jax.checkpoints import convert
from tm_jax.checkpoints import parts
from tm_jax.core import trees
from tm_jax.parallel import rules


def load(
    preset: str, path: str, mesh: Mesh | None = None, *, part: str = "transformer",
    layout: str = "auto", dtype: npt.DTypeLike | None = None, seed: int = 0
) -> dict:
    """Loads weights in any layout, each tensor placed directly in the sharding of the rules table.

    Args:
      preset: Name of the preset that gives the sizes.
      path: File or folder in the layout of this package or a published one.
      mesh: Device mesh; None: the default device.
      part: Name in `parts.PARTS`.
      layout: Layout of the files, "auto" to recognise it by their names.
      dtype: Dtype of floating-point parameters; None keeps that of the files, and what no
        file fills gets the dtype that most parameters have.
      seed: Seed of parameters that no file fills, such as new audio layers.

    Returns:
      Tree of parameters on the devices.

    Raises:
      ValueError: The files do not fit the preset.
      FileNotFoundError: No such files.
    """
    return load_part(
        parts.get(part, preset), path, mesh, layout=layout, dtype=dtype, seed=seed
    )


def load_part(
    part: parts.Part, path: str, mesh: Mesh | None = None, *, layout: str = "auto",
    dtype: npt.DTypeLike | None = None, seed: int = 0
) -> dict:
    """See `load`; for a part in a size of its own."""
    _, _, ours = convert.open_any(path, part, layout)
    mesh = rules.make_mesh(jax.devices()[:1]) if mesh is None else mesh
    places = trees.flatten(rules.shardings(mesh, part.boxed))
    shapes = trees.flatten(rules.unbox(part.boxed))
    flat = {}
    for name, shape in shapes.items():
        if name in ours:
            flat[name] = place(ours, name, shape.shape, places[name], dtype)
    missing = {n: places[n] for n in shapes if n not in flat}
    if dtype is None:
        [(dtype, _)] = collections.Counter(x.dtype for x in flat.values()).most_common(1)
    flat.update(_initial(part.init, missing, seed, dtype))
    return trees.unflatten({name: flat[name] for name in shapes})


def place(
    ours: Mapping[str, np.ndarray], name: str, shape: tuple, sharding: jax.sharding.Sharding,
    dtype: npt.DTypeLike | None = None
) -> jax.Array:
    """One parameter as a sharded array; a device reads its own slice of the file only."""
    view = ours[name]  # Mapped from disk, axes already in our order.
    target = view.dtype
    if dtype is not None and jnp.issubdtype(target, jnp.floating):
        target = np.dtype(dtype)

    def read(index):
        return np.array(view[index], target, order="C")

    return jax.make_array_from_callback(shape, sharding, read)


def _initial(init: Callable, places: dict, seed: int, dtype) -> dict:
    """Initial values of a few parameters, made in place; the others are never computed."""
    if not places:
        return {}

    def make(key):
        flat = trees.flatten(rules.unbox(init(key)))
        return trees.cast({name: flat[name] for name in places}, dtype)

    return jax.jit(make, out_shardings=places)(jax.random.key(seed))
