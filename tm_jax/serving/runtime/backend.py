"""What the engine needs from devices; plain code, independent of any model."""

from typing import Any, NamedTuple, Protocol

import numpy as np

AUTO, LISTEN, SPEAK = -1, 0, 1  # Poses, as `step` takes them.


class Result(NamedTuple):
    """One chunk of every stream of a lane.

    Attributes:
      frames: uint8 [B, F, H, W, 3].
      speaking: bool [B].
      spans: Seconds of the stages "score", "transfer" and "decode".
    """

    frames: np.ndarray
    speaking: np.ndarray
    spans: dict[str, float]


class Job(Protocol):
    """A chunk that devices are working on."""

    def wait(self) -> Result:
        """Blocks until it is done; called in another thread than `Backend.step`."""


class Backend(Protocol):
    """Streams in lanes: a lane is a batch of fixed size that steps together.

    All methods are called from one thread.

    Attributes:
      height: Height of a frame.
      width: Width of a frame.
      fps: Frames per second.
      chunk_frames: Frames of a chunk.
      before: Samples of 16 kHz ahead of a chunk that `step` needs.
      after: Samples of 16 kHz after it.
      depth: Chunks that may be dispatched before the first of them is done.
    """

    height: int
    width: int
    fps: int
    chunk_frames: int
    before: int
    after: int
    depth: int

    def lane(self, batch: int) -> Any:
        """Makes a lane of `batch` slots; what it is concerns the backend alone."""

    def begin(self, lane: Any, slot: int, picture: np.ndarray, seed: int, chunk: int) -> None:
        """Puts a new stream into a slot, whatever was there before."""

    def step(
        self, lane: Any, sounds: np.ndarray, poses: np.ndarray, clear: np.ndarray,
        others: np.ndarray | None = None,
    ) -> Job:
        """Dispatches the next chunk of all slots and returns at once.

        Args:
          lane: From `lane`.
          sounds: float32 [B, before + chunk + after] at 16 kHz.
          poses: int32 [B] of `AUTO`, `LISTEN` and `SPEAK`.
          clear: bool [B]: speech was interrupted, do not go on speaking after it.
          others: Sound of the other party up to the end of the chunk, float32
            [B, before + after + chunk] at 16 kHz; None for silence.
        """
