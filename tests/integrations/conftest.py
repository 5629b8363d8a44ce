"""A session that is fast and shows what it was given."""

import threading

import numpy as np
import pytest

from tm_jax.inference import session


class Session:
    """Frames whose pixels tell their number and the sound under them.

    Pixel [0, 0] is the frame's number modulo 256, [0, 1] the median of its own 640
    samples, [1, 0] whether it speaks, [1, 1] the median of the sound after the chunk.

    Attributes:
      calls: Names of the methods that were called.
      threads: Identifiers of the threads that called them.
      others: What the other party said, one array a chunk.
      wait: Called in every `pull`.
    """

    fps, chunk_frames = 25, 12

    def __init__(self, lookahead=3200, size=4):
        self.calls, self.threads, self.others = [], set(), []
        self.lookahead, self.size = lookahead, size
        self.wait = lambda: None
        self._sound = np.zeros(0, np.float32)
        self._count, self._mode = 0, "auto"

    def _called(self, name):
        self.calls.append(name)
        self.threads.add(threading.get_ident())

    def push_audio(self, samples):
        self._called("push_audio")
        assert samples.dtype == np.float32 and samples.ndim == 1
        self._sound = np.concatenate([self._sound, samples])

    def push_other(self, samples):
        self._called("push_other")
        assert samples.dtype == np.float32
        self.others.append(samples)

    def set_mode(self, mode):
        assert mode in session.MODES
        self._called("set_mode")
        self._mode = mode

    def set_character(self, picture):
        self._called("set_character")

    def interrupt(self):
        self._called("interrupt")
        self._sound = self._sound[:0]

    def reset(self):
        self._called("reset")
        self._count = 0
        self._sound = self._sound[:0]

    def close(self):
        self._called("close")

    def pull(self):
        self._called("pull")
        self.wait()
        step = 640 * self.chunk_frames
        if len(self._sound) < step + self.lookahead:
            return None
        frames = np.zeros((self.chunk_frames, self.size, self.size, 3), np.uint8)
        after = self._sound[step : step + self.lookahead]
        for number, frame in enumerate(frames):
            frame[0, 0] = self._count % 256
            frame[0, 1] = round(200 * abs(np.median(self._sound[640 * number :][:640])))
            frame[1, 0] = self._mode == "speak"
            frame[1, 1] = round(200 * abs(np.median(after)))
            self._count += 1
        self._sound = self._sound[step:]
        return session.Chunk(frames, self._count - self.chunk_frames, {}, self._mode == "speak")


@pytest.fixture
def fake():
    return Session()


@pytest.fixture
def make_fake():
    return Session
