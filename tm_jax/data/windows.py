"""Draws windows of a few chunks out of examples, and makes batches of them for training."""

from collections.abc import Callable

import grain
import jax
import numpy as np

from tm_jax.core import timing as timing_lib
from tm_jax.data import examples as examples_lib
from tm_jax.data import shards


def cut(
    example: examples_lib.Example, start: int, chunks: int, margins: tuple[int, int],
    timing: timing_lib.Timing = timing_lib.Timing(),
) -> examples_lib.Example:
    """A window of an example.

    Args:
      example: T latent frames after the reference picture.
      start: Chunks before the window.
      chunks: Chunks of the window, n.
      margins: Feature frames of `audio` before and after its pixel frames.
      timing: Clocks.

    Returns:
      The example with latents [1 + 3 n, h, w, C], of which the first is still the reference
      picture, and with the audio and modes of the others.

    Raises:
      ValueError: The window does not lie within the example.
    """
    length, latents = len(example.mode), chunks * timing.latents_per_chunk
    first = start * timing.latents_per_chunk
    if chunks < 1 or start < 0 or first + latents > length:
        raise ValueError(
            f"window: expected chunks {start}...{start + chunks - 1} within the "
            f"{length // timing.latents_per_chunk} of the example."
        )
    frames = timing.frames_per_latent
    heard = slice(first * frames, (first + latents) * frames + sum(margins))
    partner = example.partner_audio
    return example._replace(
        latents=np.concatenate(
            [example.latents[:1], example.latents[1 + first : 1 + first + latents]]
        ),
        audio=example.audio[heard],
        partner_audio=None if partner is None else partner[heard],
        mode=example.mode[first : first + latents],
    )


class RandomWindow(grain.transforms.RandomMap):
    """Cuts one window out of every example, each at a start of its own."""

    def __init__(
        self, chunks: int, margins: tuple[int, int],
        timing: timing_lib.Timing = timing_lib.Timing(),
    ):
        """Sizes of the windows, as of `cut`."""
        self._chunks, self._margins, self._timing = chunks, margins, timing

    def random_map(
        self, element: examples_lib.Example, rng: np.random.Generator
    ) -> examples_lib.Example:
        """The window of an example; `rng` depends on the seed and the record."""
        free = len(element.mode) // self._timing.latents_per_chunk - self._chunks
        start = int(rng.integers(free + 1)) if free > 0 else 0
        return cut(element, start, self._chunks, self._margins, self._timing)


def batches(
    source: shards.ExampleSource, chunks: int, batch: int, seed: int,
    timing: timing_lib.Timing = timing_lib.Timing(),
    transform: Callable[[examples_lib.Example], examples_lib.Example] | None = None,
) -> grain.IterDataset:
    """Endless shuffled batches of windows, whose position grain can save.

    Args:
      source: Examples.
      chunks: Chunks of a window. Examples shorter than that are left out.
      batch: Windows of a batch.
      seed: Order and starts.
      timing: Clocks.
      transform: Applied to every window, for example to change types.

    Returns:
      `Example`s with a leading axis [batch, ...] on every array.

    Raises:
      ValueError: No example is long enough.
    """
    schema = source.schema
    latents, margins = chunks * timing.latents_per_chunk, (schema.before, schema.after)
    long_enough = [
        index for index, length in enumerate(source.latents) if length >= latents
    ]
    if not long_enough:
        raise ValueError(
            f"{source.folder}: no example has {chunks} chunks; use fewer, or longer clips."
        )
    dataset = (
        grain.MapDataset.source(long_enough).shuffle(seed=seed).repeat().map(source.__getitem__)
        .random_map(RandomWindow(chunks, margins, timing), seed=seed)
    )  # fmt: skip
    if transform is not None:
        dataset = dataset.map(transform)
    return dataset.batch(
        batch, batch_fn=lambda items: jax.tree.map(lambda *parts: np.stack(parts), *items)
    ).to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
