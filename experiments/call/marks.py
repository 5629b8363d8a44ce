"""Marks in the picture that tell which frame it is and how loud its own sound is.

A frame is 32 squares wide. From the fifth square of the fifth row on there is one as bright as
the sound of the frame's 40 ms, and then the frame's number in binary. They survive JPEG, VP8
and the soft edges of the page, so a browser can read from its screen what it shows, whatever
models made the rest of the picture.
"""

import numpy as np

from tm_jax.serving.runtime import backend as backend_lib

ACROSS = 32  # Squares in the width of a frame.
PLACE = 4  # Squares on the left of the marks, and above.
BITS = 12  # Of the number, which begins again at 0.
_LOUDEST = 0.15  # Mean of the absolute samples that gives white.


def draw(frames: np.ndarray, first: int, levels: np.ndarray) -> None:
    """Draws into frames.

    Args:
      frames: uint8 [F, H, W, 3]; changed.
      first: Number of the first one.
      levels: Loudness of each, [F], mean of the absolute samples.
    """
    square = frames.shape[2] // ACROSS
    top = slice(PLACE * square, (PLACE + 1) * square)
    for index, (frame, level) in enumerate(zip(frames, levels)):
        shades = [255 * min(1.0, float(level) / _LOUDEST)]
        shades += [255 * ((first + index) >> bit & 1) for bit in range(BITS)]
        for place, shade in enumerate(shades, PLACE):
            frame[top, place * square : (place + 1) * square] = round(shade)


class Marked:
    """A backend whose frames carry marks; see `backend.Backend`."""

    def __init__(self, backend: backend_lib.Backend):
        """Takes the backend that makes the frames."""
        if backend.width % ACROSS:
            raise ValueError(
                f"marks need frames of a multiple of {ACROSS} pixels, got {backend.width}."
            )
        self._backend = backend
        self.height, self.width, self.fps = backend.height, backend.width, backend.fps
        self.chunk_frames, self.depth = backend.chunk_frames, backend.depth
        self.before, self.after = backend.before, backend.after
        self._numbers: dict[int, int] = {}  # Of the next frame of a lane.

    def lane(self, batch: int):
        """See `backend.Backend`."""
        return self._backend.lane(batch)

    def begin(self, lane, slot: int, picture: np.ndarray, seed: int, chunk: int):
        """See `backend.Backend`."""
        return self._backend.begin(lane, slot, picture, seed, chunk)

    def step(self, lane, sounds, poses, clear, others=None):
        """See `backend.Backend`."""
        own = sounds[:, self.before : sounds.shape[1] - self.after]
        levels = np.abs(own.reshape(len(own), self.chunk_frames, -1)).mean(-1)  # [B, F]
        first = self._numbers.get(id(lane), 0)
        self._numbers[id(lane)] = first + self.chunk_frames
        return _Job(self._backend.step(lane, sounds, poses, clear, others), first, levels)


class _Job:
    """See `backend.Job`."""

    def __init__(self, job, first: int, levels: np.ndarray):
        self._job, self._first, self._levels = job, first, levels

    def wait(self) -> backend_lib.Result:
        """Draws as soon as the frames are there."""
        result = self._job.wait()
        frames = np.array(result.frames)
        for stream, levels in zip(frames, self._levels):
            draw(stream, self._first, levels)
        return result._replace(frames=frames)
