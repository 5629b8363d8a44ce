"""Where clips come from: the protocol of a source, and endless batches of its windows."""

from collections.abc import Callable
from typing import Any, Protocol

import grain
import jax
import numpy as np

from tm_jax.parallel import hosts
from tm_jax.training import batches


class Source(Protocol):
    """Clips of latents with what belongs to them.

    Attributes:
      weights: How much the numbers of a latent matter in a loss, mean 1; broadcasts to
        [H, W, C].
    """

    weights: Any

    def __len__(self) -> int:
        """Number of clips."""

    def place(self, index: int, rng: np.random.Generator, latents: int) -> tuple[int, int]:
        """(clip, first latent) of a random window of `latents` latents in clip `index`.

        Another clip takes the place of one that is too short.
        """

    def window(self, index: int, start: int, latents: int) -> dict[str, np.ndarray]:
        """The arrays of a window, without a batch axis; its latents count from after the sink."""

    def assemble(self, items: dict[str, jax.Array]) -> batches.Batch:
        """The batch that stacked windows make: a pure function for use inside `jax.jit`."""


class Preview(Protocol):
    """What a person looks at while a transformer trains.

    Attributes:
      batch: Stacked windows of held-out clips, which the source assembles.
    """

    batch: dict[str, np.ndarray]

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
    rows: hosts.Rows | None = None,
) -> grain.IterDataset:
    """Endless shuffled batches; the iterator's position can be stored.

    Order and position do not depend on how many processes share a batch.

    Args:
      one: Function (index from 0) -> item.
      count: Number of items in an epoch.
      batch: Items in a batch.
      seed: Seed of the order.
      rows: The samples of a batch to read; all by default.
    """
    here = list(range(batch) if rows is None else rows.here)

    def read(indices):
        return collate([one(index) for index in indices[here]])

    return (
        grain.MapDataset.range(count)
        .shuffle(seed=seed)
        .repeat()
        .batch(batch)
        .map(read)
        .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
    )
