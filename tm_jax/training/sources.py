"""Where clips come from: the protocol of a source, and endless batches of its windows."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import grain
import jax
import numpy as np

from tm_jax.parallel import hosts
from tm_jax.training import batches

Size = tuple[int, int]


class Sizes:
    """Sizes of the latents of clips, of which a batch has one (aspect-ratio buckets)."""

    def __init__(self, sizes: Sequence[Size] | np.ndarray):
        """Sorts clips by the rows and columns of their latents."""
        found, kinds = np.unique(np.asarray(sizes).reshape(-1, 2), axis=0, return_inverse=True)
        self._kinds = kinds.reshape(-1)
        self.members: dict[Size, np.ndarray] = {
            (int(rows), int(columns)): np.flatnonzero(self._kinds == kind)
            for kind, (rows, columns) in enumerate(found)
        }
        self._sizes = list(self.members)

    def __len__(self) -> int:
        return len(self._kinds)

    def __getitem__(self, index: int) -> Size:
        """The size of clip `index` modulo their number."""
        return self._sizes[self._kinds[index % len(self)]]

    def alike(self, index: int, size: Size) -> int:
        """`index`, or an index in its place whose clip has this size.

        Raises:
          ValueError: None has.
        """
        if self[index] == size:
            return index
        if size not in self.members:
            raise ValueError(
                f"there is no clip with latents of {size[0]}x{size[1]}, only of "
                f"{', '.join(f'{h}x{w}' for h, w in self._sizes)}."
            )
        members = self.members[size]
        return index - index % len(self) + int(members[index % len(members)])


class Source(Protocol):
    """Clips of latents with what belongs to them.

    Attributes:
      sizes: Sizes of their latents.
    """

    sizes: Sizes

    def __len__(self) -> int:
        """Number of clips."""

    def place(self, index: int, rng: np.random.Generator, latents: int) -> tuple[int, int]:
        """(clip, first latent) of a random window of `latents` latents in clip `index`.

        Another clip of the same size takes the place of one that is too short.
        """

    def window(self, index: int, start: int, latents: int) -> dict[str, np.ndarray]:
        """The arrays of a window, without a batch axis; its latents count from after the sink."""

    def assemble(self, items: dict[str, jax.Array]) -> batches.Batch:
        """The batch that stacked windows make: a pure function for use inside `jax.jit`."""


class Preview(Protocol):
    """What a person looks at while a transformer trains.

    Attributes:
      batch: Stacked windows of held-out clips, which the source assembles.
      batches: More of them, `batch` among them: what is measured.
    """

    batch: dict[str, np.ndarray]
    batches: list[dict[str, np.ndarray]]

    def show(self, x0: jax.Array, path: str) -> dict[str, float]:
        """Writes samples x0 [B, T, H, W, C] below `path`, without extension; returns measures."""


def collate(items: list) -> Any:
    """Stacks trees of arrays."""
    return jax.tree.map(lambda *x: np.stack(x), *items)


def random_window(source: Source, latents: int, seed: int) -> Callable[[int], dict]:
    """Function (index) -> `latents` latent frames from a random place of clip `index`.

    Each index has a place of its own, whatever the number of clips.
    """
    count = len(source)

    def one(index):
        rng = np.random.default_rng((seed, 3, int(index)))
        return source.window(*source.place(int(index) % count, rng, latents), latents)

    return one


def stream(
    one: Callable[[int], Any], count: int, batch: int, seed: int,
    rows: hosts.Rows | None = None, sizes: Sizes | None = None,
) -> grain.IterDataset:
    """Endless shuffled batches; the iterator's position can be stored.

    Order and position do not depend on how many processes share a batch. Each batch has latents
    of one size, that of the first item drawn; others give way to items of that size.

    Args:
      one: Function (index from 0) -> item.
      count: Number of items in an epoch.
      batch: Items in a batch.
      seed: Seed of the order.
      rows: The samples of a batch to read; all by default.
      sizes: Sizes of the items; None: all have one.
    """
    here = list(range(batch) if rows is None else rows.here)

    def read(indices):
        chosen = indices[here]
        if sizes is not None and len(sizes.members) > 1:
            size = sizes[int(indices[0])]
            chosen = [sizes.alike(int(index), size) for index in chosen]
        return collate([one(index) for index in chosen])

    return (
        grain.MapDataset.range(count)
        .shuffle(seed=seed)
        .repeat()
        .batch(batch)
        .map(read)
        .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
    )
