"""Queues and drop rules of a call, without sockets, threads or devices; clocks come in.

Sound of the avatar waits in a `SoundQueue` at 24 kHz until a chunk takes its part; finished
frames wait in an `Outbox` until the client takes them.
"""

import collections
from collections.abc import Callable
import dataclasses
import math
from typing import NamedTuple

import numpy as np

from tm_jax.serving.transport import protocol

RATE = protocol.SAMPLE_RATE

_STALLED_S = 0.25  # No more sound is expected after a pause of this length.
_WATCHED = 6  # Chunks whose least surplus is the delay that is not needed.
_SPARE_S = 0.02  # Surplus that is kept.
_TRIM_QUIET_S, _TRIM_S = 0.04, 0.2  # Surplus that is cut: in silence, in any case.
_MOST_LIVE_S = 1.0  # Beyond this a live queue is cut at once.
_QUIET = 0.01  # Root mean square, full scale 1, below which a cut is not heard.


class Heard(NamedTuple):
    """A stretch of an utterance within a chunk.

    Attributes:
      pts: Presentation time of its first sample, on the avatar's clock.
      samples: Its length.
      item: Utterance.
      offset: Samples of the utterance before it.
    """

    pts: int
    samples: int
    item: str
    offset: int


class Taken(NamedTuple):
    """The sound of one chunk.

    Attributes:
      pcm: int16 [step].
      ahead: Sound after it, int16 [after], silence where nothing is known.
      source: Position of the caller's sample at the start, or `protocol.NO_SOURCE`.
      heard: Utterances in it.
      audio_wait_s: From the arrival of its first sample to that of its last.
      lookahead_s: From then to the arrival of the last sample of `ahead`.
      complete_s: Clock time at which all of it was there; None without sound.
    """

    pcm: np.ndarray
    ahead: np.ndarray
    source: int
    heard: tuple[Heard, ...]
    audio_wait_s: float
    lookahead_s: float
    complete_s: float | None


@dataclasses.dataclass
class _Piece:
    """Sound that came at once.

    Attributes:
      pcm: int16 [n].
      arrived_s: Clock time.
      item: Utterance; empty for none.
      offset: Samples of the utterance before it.
      source: Position in the caller's sound, or `protocol.NO_SOURCE`.
    """

    pcm: np.ndarray
    arrived_s: float
    item: str
    offset: int
    source: int

    def split(self, samples: int) -> "_Piece":
        """Takes the first samples off and returns them."""
        first = dataclasses.replace(self, pcm=self.pcm[:samples])
        self.pcm = self.pcm[samples:]
        self.offset += samples
        if self.source != protocol.NO_SOURCE:
            self.source += samples
        return first


class SoundQueue:
    """Sound that waits for the avatar, and its cut into chunks.

    A chunk also needs the sound just after it. When that is not there yet, but is still
    coming, silence goes before what waits: it is said a little later, and whole. When nothing
    more is coming, silence follows. So the queue finds the delay that the network needs, and
    a live one gives it back when it is needed no more.
    """

    def __init__(self, step: int, after: int, *, live: bool, most_s: float = 180.0):
        """Makes an empty queue.

        Args:
          step: Samples of a chunk.
          after: Samples that must be known after it.
          live: Whether sound comes at the pace of speaking.
          most_s: Longest sound that waits; more is refused.
        """
        self._step, self._after = step, after
        self.live = live
        self._most = int(most_s * RATE)
        self.clear()

    def clear(self) -> None:
        """Discards all sound that waits."""
        self._pieces: collections.deque[_Piece] = collections.deque()
        self._samples = 0
        self._offsets: dict[str, int] = {}
        self._finished = True
        self._arrived_s = -math.inf
        self._surplus: collections.deque[int] = collections.deque(maxlen=_WATCHED)

    def __len__(self) -> int:
        return self._samples

    def push(
        self, pcm: np.ndarray, now_s: float, item: str = "", source: int = protocol.NO_SOURCE
    ) -> bool:
        """Appends sound, int16 [n]; returns False if there was no room."""
        if self._samples + len(pcm) > self._most:
            return False
        offset = self._offsets.get(item, 0)
        if item:
            self._offsets[item] = offset + len(pcm)
        self._pieces.append(_Piece(pcm, now_s, item, offset, source))
        self._samples += len(pcm)
        self._finished = False
        self._arrived_s = now_s
        if self.live:
            self._drop(self._samples - self._step - self._after - int(_MOST_LIVE_S * RATE))
        return True

    def finish(self) -> None:
        """Marks the end of an utterance after what waits."""
        self._finished = True

    def take(self, now_s: float, pts: int) -> Taken:
        """Cuts off the next chunk; `pts` is its presentation time."""
        need = self._step + self._after
        lacking = max(0, need - self._samples)
        coming = not self._finished and now_s - self._arrived_s < _STALLED_S
        front = min(lacking, self._step) if coming and self._samples else 0
        if self.live:
            self._give_back(lacking, need)
        parts = self._cut(self._step - front)
        ahead = self._peek(self._after)
        return self._taken(parts, ahead, front, pts)

    def _cut(self, samples: int) -> list[_Piece]:
        parts = []
        while samples and self._pieces:
            part = self._pieces[0].split(min(samples, len(self._pieces[0].pcm)))
            if not len(self._pieces[0].pcm):
                self._pieces.popleft()
            samples -= len(part.pcm)
            self._samples -= len(part.pcm)
            parts.append(part)
        return parts

    def _drop(self, samples: int) -> None:
        if samples > 0:
            self._cut(samples)

    def _peek(self, samples: int) -> list[_Piece]:
        parts = []
        for piece in self._pieces:
            if samples <= 0:
                break
            parts.append(dataclasses.replace(piece, pcm=piece.pcm[:samples]))
            samples -= len(parts[-1].pcm)
        return parts

    def _give_back(self, lacking: int, need: int) -> None:
        """Cuts delay that no chunk has needed lately."""
        self._surplus.append(-lacking if lacking else self._samples - need)
        if len(self._surplus) < _WATCHED:
            return
        spare = min(self._surplus) - int(_SPARE_S * RATE)
        if spare <= _TRIM_QUIET_S * RATE:
            return
        start = np.concatenate([p.pcm for p in self._peek(spare)]).astype(np.float32)
        quiet = math.sqrt(float(np.mean(np.square(start / 32768)))) < _QUIET
        if quiet or spare > _TRIM_S * RATE:
            self._drop(spare)
            self._surplus.clear()

    def _taken(self, parts, ahead, front: int, pts: int) -> Taken:
        pcm = np.zeros(self._step, np.int16)
        heard, at = [], front
        for part in parts:
            end = at + len(part.pcm)
            pcm[at:end] = part.pcm
            if part.item:
                heard.append(Heard(pts + at, len(part.pcm), part.item, part.offset))
            at = end
        after = np.zeros(self._after, np.int16)
        known = np.concatenate([np.zeros(0, np.int16), *[p.pcm for p in ahead]])
        after[: len(known)] = known
        source = protocol.NO_SOURCE
        if parts and parts[0].source != protocol.NO_SOURCE:
            # Silence in front delays the caller's sound: count back from there.
            start = parts[0].source - front
            source = start & 0xFFFFFFFF if start >= 0 else protocol.NO_SOURCE
        if not parts:
            return Taken(pcm, after, source, (), 0.0, 0.0, None)
        complete_s = max(p.arrived_s for p in (*parts, *ahead))
        return Taken(
            pcm, after, source, tuple(heard), parts[-1].arrived_s - parts[0].arrived_s,
            max(0.0, complete_s - parts[-1].arrived_s), complete_s,
        )


class Transcript:
    """Which utterances were heard, and how far: the memory that barge-in needs."""

    def __init__(self, keep: int = 64):
        """Remembers the last `keep` stretches of speech."""
        self._heard: collections.deque[Heard] = collections.deque(maxlen=keep)
        self._report: tuple[float, int] | None = None  # Clock time, presentation time.
        self._sent: tuple[float, int] | None = None
        self._ends: dict[str, int | None] = {}

    def sent(self, now_s: float, pts: int, samples: int, heard: tuple[Heard, ...]) -> None:
        """Notes a chunk that goes to the client."""
        self._heard.extend(heard)
        self._sent = now_s, pts + samples
        if self._report is None:
            self._report = now_s, pts

    def report(self, now_s: float, pts: int) -> None:
        """Notes the presentation time that the client has reached."""
        self._report = now_s, pts

    def restart(self) -> None:
        """Forgets the client's clock, for a client that begins to play anew."""
        self._report = self._sent = None

    def played(self, now_s: float) -> int:
        """Presentation time that the client has reached, as far as can be known."""
        if self._report is None:
            return 0
        at_s, pts = self._report
        pts += round((now_s - at_s) * RATE)
        return min(pts, self._sent[1]) if self._sent else pts

    def current(self, now_s: float) -> tuple[str | None, int]:
        """The utterance being heard, or the last one heard, and its milliseconds so far."""
        pts = self.played(now_s)
        item, samples = None, 0
        for part in self._heard:
            if part.pts < pts:
                item = part.item
                samples = part.offset + min(part.samples, pts - part.pts)
        return item, samples * 1000 // RATE

    def end_of(self, item: str) -> int | None:
        """Presentation time of the end of what was sent of an utterance."""
        ends = [h.pts + h.samples for h in self._heard if h.item == item]
        return max(ends) if ends else None

    def end(self) -> int:
        """Presentation time of the end of all speech that was sent."""
        return max((h.pts + h.samples for h in self._heard), default=0)

    def forget(self) -> None:
        """Forgets all utterances, after an interruption."""
        self._heard.clear()


class Outbox:
    """What waits to be sent to one client; never grows beyond its bounds.

    Text goes first. When more frames wait than `most_frames`, all but those of the newest
    chunk are dropped. When more text waits than `most_texts`, the client is given up.
    """

    def __init__(self, most_frames: int = 48, most_texts: int = 256):
        """Makes an empty outbox."""
        self._texts: collections.deque[str] = collections.deque()
        self._frames: collections.deque = collections.deque()
        self._most_frames, self._most_texts = most_frames, most_texts
        self.dropped = 0
        self.overflowed = False

    def __len__(self) -> int:
        return len(self._texts) + len(self._frames)

    def push_text(self, text: str) -> None:
        """Appends a text message."""
        if len(self._texts) >= self._most_texts:
            self.overflowed = True
            return
        self._texts.append(text)

    def push_frame(
        self, generation: int, first: bool, data: bytes,
        done: Callable[[], None] | None = None,
    ) -> None:
        """Appends a frame message.

        Args:
          generation: Its generation.
          first: Whether it begins a chunk.
          data: The message.
          done: Handed out with it, to be called when it has left.
        """
        if len(self._frames) >= self._most_frames:
            self._drop_to_newest(first)
        self._frames.append((generation, first, data, done))

    def _drop_to_newest(self, starts_chunk: bool) -> None:
        kept = collections.deque()
        while self._frames and not starts_chunk:
            kept.appendleft(self._frames.pop())
            starts_chunk = kept[0][1]
        if len(kept) >= self._most_frames:  # One endless chunk: nothing can be kept.
            self.dropped += len(kept)
            kept.clear()
        self.dropped += len(self._frames)
        self._frames = kept

    def clear(self) -> None:
        """Empties it, for a new connection."""
        self._texts.clear()
        self._frames.clear()
        self.overflowed = False

    def pop(self) -> tuple[str | bytes, Callable[[], None] | None] | None:
        """The next message and what to call when it has left; None if nothing waits."""
        if self._texts:
            return self._texts.popleft(), None
        return self._frames.popleft()[2:] if self._frames else None


class Bucket:
    """A rate limit: `rate` units a second on average, `burst` at once."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]):
        """Begins full."""
        self._rate, self._burst, self._clock = rate, burst, clock
        self._level, self._at_s = burst, clock()

    def take(self, units: float) -> bool:
        """Takes units if there are enough, else none."""
        now_s = self._clock()
        self._level = min(self._burst, self._level + (now_s - self._at_s) * self._rate)
        self._at_s = now_s
        if units > self._level:
            return False
        self._level -= units
        return True


class Window:
    """The last values of a measure and their percentiles."""

    def __init__(self, size: int = 512):
        """Makes an empty window."""
        self._values: collections.deque[float] = collections.deque(maxlen=size)

    def add(self, value: float) -> None:
        """Appends a value."""
        self._values.append(value)

    def __len__(self) -> int:
        return len(self._values)

    def values(self) -> list[float]:
        """All values, oldest first."""
        return list(self._values)

    def percentiles(self) -> dict[str, float]:
        """p50, p95 and p99; zeros if there is no value."""
        values = list(self._values) or [0.0]
        p50, p95, p99 = np.percentile(values, (50, 95, 99))
        return {"p50": float(p50), "p95": float(p95), "p99": float(p99)}


class Latencies:
    """Percentiles of all spans, in milliseconds."""

    def __init__(self, size: int = 512):
        """Begins without values; `size` of them count."""
        self._windows = {name: Window(size) for name in protocol.SPANS}

    def add(self, spans: dict[str, float]) -> None:
        """Adds the spans of one chunk, in milliseconds by name."""
        for name, value in spans.items():
            self._windows[name].add(value)

    def percentiles(self) -> dict[str, dict[str, float]]:
        """p50, p95 and p99 of each span that has values."""
        return {
            name: {k: round(v, 2) for k, v in window.percentiles().items()}
            for name, window in self._windows.items() if len(window)
        }
