"""Devices for tests: frames whose pixels encode the input, after a chosen time."""

import threading
import time

import numpy as np

from tm_jax.serving.runtime import backend

_LOUD = 0.05


class FakeBackend:
    """Fulfils `backend.Backend` without any model.

    The upper half of a frame shows the loudness of its 40 ms of sound, the lower half the
    red level of the character's picture and the number of the stream's chunk.

    Attributes:
      step_s: How long the devices take for a chunk of a lane.
      begin_s: How long they take for a new stream.
      fail: Set to an exception that the next call shall raise.
      steps: Chunks so far.
      others: Sound of the other parties in the last step, as it was given.
    """

    def __init__(
        self, side: int = 32, *, step_s: float = 0.0, begin_s: float = 0.0, fps: int = 25,
        chunk_frames: int = 12, depth: int = 1,
    ):
        """Makes devices that compute square frames."""
        self.height = self.width = side
        self.fps, self.chunk_frames, self.depth = fps, chunk_frames, depth
        self.before, self.after = 800, 1400
        self.step_s, self.begin_s = step_s, begin_s
        self.fail: Exception | None = None
        self.steps = 0
        self.others: np.ndarray | None = None
        self.threads: set[int] = set()

    def lane(self, batch: int) -> list:
        """A list of streams: [red level, chunk]."""
        return [[0, 0] for _ in range(batch)]

    def begin(self, lane: list, slot: int, picture: np.ndarray, seed: int, chunk: int) -> None:
        """See `backend.Backend`."""
        self._work(self.begin_s)
        lane[slot] = [int(picture[..., 0].mean()), 0]

    def step(
        self, lane: list, sounds: np.ndarray, poses: np.ndarray, clear: np.ndarray,
        others: np.ndarray | None = None
    ) -> backend.Job:
        """See `backend.Backend`."""
        self._work(0)
        self.steps += 1
        self.others = others
        samples = 16000 // self.fps
        own = sounds[:, self.before : self.before + samples * self.chunk_frames]
        loud = np.abs(own.reshape(len(lane), self.chunk_frames, samples)).mean(-1)  # [B, F]
        frames = np.zeros((len(lane), self.chunk_frames, self.height, self.width, 3), np.uint8)
        half = self.height // 2
        level = np.clip(loud * 1000, 0, 255).astype(np.uint8)  # [B, F]
        frames[:, :, :half] = level[..., None, None, None]
        for slot, stream in enumerate(lane):
            frames[slot, :, half:] = stream[0]
            frames[slot, :, half:, self.width // 2 :] = stream[1] * 8 % 256
            stream[1] += 1
        auto = np.where(poses == backend.AUTO, loud.max(1) > _LOUD, poses == backend.SPEAK)
        return _Job(frames, auto, time.perf_counter() + self.step_s)

    def _work(self, seconds: float) -> None:
        self.threads.add(threading.get_ident())
        if self.fail is not None:
            error, self.fail = self.fail, None
            raise error
        time.sleep(seconds)


class _Job:
    """See `backend.Job`."""

    def __init__(self, frames, speaking, done_s: float):
        self._frames, self._speaking, self._done_s = frames, speaking, done_s

    def wait(self) -> backend.Result:
        """Waits as devices would."""
        left_s = max(0.0, self._done_s - time.perf_counter())
        time.sleep(left_s)
        return backend.Result(
            self._frames, self._speaking, {"score": left_s, "transfer": 0.0, "decode": 0.0}
        )
