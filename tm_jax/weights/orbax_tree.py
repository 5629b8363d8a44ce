"""A parameter tree as an Orbax checkpoint, written and read leaf by leaf."""

from collections.abc import Iterator, Mapping
import dataclasses
import os

import jax
import numpy as np
import orbax.checkpoint as ocp

from tm_jax.core import trees

_MARK = "_METADATA"
_IN_FLIGHT_GB = 1  # Orbax copies what it writes; this bounds the copies.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leaf:
    """One array of a checkpoint.

    Attributes:
      folder: The checkpoint.
      name: Its path, "a/b/c".
      shape: Its shape.
      dtype: Its dtype.
    """

    folder: str
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Size of its data."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        """Reads this array alone."""
        del copy  # It is a new one in any case.
        item = trees.unflatten({self.name: 0})
        how = trees.unflatten({self.name: ocp.RestoreArgs(restore_type=np.ndarray)})
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            tree = checkpointer.restore(
                self.folder,
                args=ocp.args.PyTreeRestore(item=item, restore_args=how, partial_restore=True),
            )
        value = trees.flatten(tree)[self.name]
        return value if dtype is None else value.astype(dtype)


class Tree(Mapping):
    """Arrays of a checkpoint by path; none is read before NumPy asks for it."""

    def __init__(self, folder: str):
        self.path = os.path.abspath(folder)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            try:
                tree = checkpointer.metadata(self.path).item_metadata.tree
            except (ValueError, KeyError, FileNotFoundError, AttributeError) as error:
                raise ValueError(
                    f"{folder}: expected an Orbax checkpoint of one tree ({error})."
                ) from error
        self._leaves = {
            name: Leaf(
                folder=self.path, name=name, shape=tuple(x.shape), dtype=np.dtype(x.dtype)
            )
            for name, x in trees.flatten(tree).items()
        }

    def __getitem__(self, name: str) -> Leaf:
        return self._leaves[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._leaves)

    def __len__(self) -> int:
        return len(self._leaves)

    def origin(self, name: str | None = None) -> str:
        """The checkpoint's folder."""
        return self.path

    @property
    def nbytes(self) -> int:
        """Size of all data."""
        return sum(leaf.nbytes for leaf in self._leaves.values())


def is_tree(path: str) -> bool:
    """Whether a folder looks like an Orbax checkpoint of one tree."""
    return os.path.isfile(os.path.join(path, _MARK))


def write(folder: str, tensors: Mapping):
    """Writes arrays by path as one tree.

    Args:
      folder: Folder to make.
      tensors: Host arrays by path. They may be mapped from disk: only what is being written
        is in memory.
    """
    tree = jax.tree.map(np.asarray, trees.unflatten(dict(tensors)))
    handler = ocp.PyTreeCheckpointHandler(save_concurrent_gb=_IN_FLIGHT_GB)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(os.path.abspath(folder), args=ocp.args.PyTreeSave(tree))
