"""A parameter tree as an Orbax checkpoint, written and read leaf by leaf."""

from collections.abc import Iterator, Mapping
import dataclasses
import os

import numpy as np
import orbax.checkpoint as ocp

from tm_jax.core import trees

_MARK = "_METADATA"
_DATA_FILE = 2**28  # Bytes of a data file; Orbax gathers one in memory before it writes.


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

    # As `sources.Source` has them; a tree of ours is the whole checkpoint.
    state: str | None = None
    others: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

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


def write(folder: str, tensors: Mapping) -> None:
    """Writes arrays by path as one tree.

    Args:
      folder: Folder to make.
      tensors: Host arrays by path. They may be mapped from disk: only what is being written
        is in memory.
    """
    views = {name: np.asarray(x).view(_ReadOnly) for name, x in tensors.items()}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(
            os.path.abspath(folder),
            args=ocp.args.PyTreeSave(
                trees.unflatten(views), ocdbt_target_data_file_size=_DATA_FILE
            ),
        )


class _ReadOnly(np.ndarray):
    """A view that is never written to, so that a copy of it would be a waste of memory."""

    def __deepcopy__(self, memo):
        """Orbax copies host arrays before it writes them; this one need not be."""
        return self
