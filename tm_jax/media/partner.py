"""The other party's sound on its way to a listener: a queue that chunks are cut from."""

import numpy as np


class PartnerQueue:
    """Sound of the other party that no chunk has taken yet.

    Sound that comes too late for its chunk is used late rather than never: silence goes
    before it. What then waits makes up for the unevenness of a network.
    """

    def __init__(self, samples_per_frame: int, before: int = 0, most_frames: int | None = None):
        """Begins in silence.

        Args:
          samples_per_frame: Samples of one video frame.
          before: Samples before a chunk's own that `take` returns with them.
          most_frames: Most frames that may wait beyond the next chunk, for live sound: older
            ones are let go. None keeps all, for sound that is known ahead.
        """
        self._frame, self._before, self._most = samples_per_frame, before, most_frames
        self.clear()

    def clear(self) -> None:
        """Discards what waits and what was taken."""
        self._samples = np.zeros(0, np.float32)
        self._past = np.zeros(self._before, np.float32)

    def __len__(self) -> int:
        """Samples that wait."""
        return len(self._samples)

    def push(self, samples: np.ndarray) -> None:
        """Appends sound, float32 [n] in -1..1; any n."""
        self._samples = np.concatenate([self._samples, samples])

    def take(self, frames: int) -> np.ndarray:
        """Sound up to the end of the next `frames` frames.

        Returns:
          float32 [before + frames * samples_per_frame]; silence before the stream's start.
        """
        count = frames * self._frame
        if self._most is not None:
            spare = len(self._samples) - count - self._most * self._frame
            self._samples = self._samples[max(0, spare) :]
        taken, self._samples = self._samples[:count], self._samples[count:]
        window = np.concatenate([self._past, np.pad(taken, (count - len(taken), 0))])
        self._past = window[len(window) - self._before :]
        return window
