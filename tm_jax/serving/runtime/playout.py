"""Plays chunks in real time on the server, for transports that send media as it is shown.

One clock serves picture and sound: tick n, at t0 + n / fps, releases one frame with the sound
that belongs to it. When nothing waits, sound goes on in silence and the picture holds, so both
stay together whatever was late. Plain code without sockets; the transport calls `tick`.
"""

import collections
from collections.abc import Callable
import dataclasses

import av
import numpy as np

_START_FRAMES = 1  # Frames that wait before the first one is shown.
# Frames that are left over when a chunk comes are delay. What was left over before each of the
# recent chunks is not needed, but for a reserve; beyond the most, nothing but the reserve is.
_RECENT = 8
_MOST_LEFT = 5
_RESERVE, _MOST_RESERVE = 1, 5
_CALM = 128  # Chunks in time, after which the reserve is a frame less again.
_MOST = 75  # Frames that may wait at all.
_CONTEXT = 32  # Samples; FFmpeg's filter holds back 16.
_QUIET = 160  # Largest sample of sound that can be cut out.


@dataclasses.dataclass
class Item:
    """A frame with its sound.

    Attributes:
      generation: Generation of its chunk.
      frame: Its number.
      image: uint8 [H, W, 3].
      pcm: int16 [samples].
      done: Called when it is released, or None.
    """

    generation: int
    frame: int
    image: np.ndarray
    pcm: np.ndarray
    done: Callable[[], None] | None = None


class Playout:
    """Frames that wait for their tick.

    Attributes:
      dropped: Frames that were never released.
      held: Ticks without a frame, since the first one.
    """

    def __init__(self):
        """Begins empty."""
        self._items: collections.deque[Item] = collections.deque()
        self._left: collections.deque[int] = collections.deque(maxlen=_RECENT)
        self._reserve, self._calm = _RESERVE, 0
        self._started = False
        self.dropped = self.held = 0

    def push(self, items: list[Item]) -> None:
        """Appends the frames of a chunk."""
        generation = items[0].generation
        if self._items and self._items[0].generation < generation:
            self._drop(lambda item: item.generation < generation)
        else:
            self._give_back()
        self._items.extend(items)
        while len(self._items) > _MOST:
            self._items.popleft()
            self.dropped += 1

    def _drop(self, unwanted) -> None:
        kept = collections.deque(i for i in self._items if not unwanted(i))
        self.dropped += len(self._items) - len(kept)
        self._items = kept

    def _give_back(self) -> None:
        """Cuts silent frames when more are left over than the network needs."""
        left = len(self._items)
        self._left.append(left)
        self._calm += 1
        if self._calm == _CALM:
            self._reserve, self._calm = max(_RESERVE, self._reserve - 1), 0
        spare = min(self._left) if len(self._left) == _RECENT else 0
        for _ in range((left if left > _MOST_LEFT else spare) - self._reserve):
            if np.abs(self._items[0].pcm).max(initial=0) > _QUIET:
                return
            self._items.popleft()
            self.dropped += 1
            self._left = collections.deque((n - 1 for n in self._left), _RECENT)

    def _ran_dry(self) -> None:
        if len(self._left) == _RECENT:  # Not at the start, and once for a row of ticks.
            self._reserve, self._calm = min(_MOST_RESERVE, self._reserve + 1), 0
            self._left.clear()

    def flush(self, generation: int) -> None:
        """Silences all frames of older generations; they fill the time until newer ones."""
        for item in self._items:
            if item.generation < generation:
                item.pcm = np.zeros_like(item.pcm)

    def tick(self) -> Item | None:
        """The frame to show now; None to hold the last one."""
        if not self._started:
            if len(self._items) <= _START_FRAMES:
                return None
            self._started = True
        if not self._items:
            self._ran_dry()
            self.held += 1
            return None
        return self._items.popleft()


class Packets:
    """Cuts a stream of sound into packets of another rate, without seams; 1.3 ms late."""

    def __init__(self, source_rate: int, rate: int, samples: int):
        """Begins in silence.

        Args:
          source_rate: Samples per second that come in.
          rate: Samples per second of a packet.
          samples: Length of a packet.
        """
        self._source_rate = source_rate
        self._resampler = av.AudioResampler("s16", "mono", rate, samples)
        # Else each packet waited for the few samples that the filter holds back.
        self.push(np.zeros(_CONTEXT, np.int16))

    def push(self, pcm: np.ndarray) -> list[av.AudioFrame]:
        """Returns the packets that are full now that int16 [n] has come."""
        frame = av.AudioFrame.from_ndarray(pcm[None], "s16", "mono")
        frame.sample_rate = self._source_rate
        return self._resampler.resample(frame)
