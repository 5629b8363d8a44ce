"""Names and sizes of the leaves of a parameter tree."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
import numpy.typing as npt

Tree = TypeVar("Tree")


def key_name(key: Any) -> str:
    """The plain name of one step of a tree path."""
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def flatten(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Maps 'a/b/c' to each leaf of a tree; `is_leaf` is that of `jax.tree.map`."""
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]
    return {"/".join(map(key_name, path)): leaf for path, leaf in leaves}


def unflatten(flat: dict) -> dict:
    """Inverse of `flatten` for nested dictionaries."""
    tree = {}
    for name, leaf in flat.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def count(tree: Any) -> int:
    """Number of scalars in a tree of arrays or shapes."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def cast(tree: Tree, dtype: npt.DTypeLike) -> Tree:
    """Casts every floating-point leaf, those of eight bits apart."""

    def one(x):
        is_float = jax.numpy.issubdtype(x.dtype, jax.numpy.floating)
        return x.astype(dtype) if is_float and x.dtype.itemsize > 1 else x

    return jax.tree.map(one, tree)
