"""One avatar in real time: the session interface, fed and emptied from any thread.

It offers what `inference.session.Session` offers, but a chunk comes out by the clock, sound
or no sound: where sound is missing the avatar listens.
"""

import collections
from collections.abc import Callable
import dataclasses
import threading

import numpy as np

from tm_jax.media import partner
from tm_jax.media import resampling
from tm_jax.serving.calls import hearing
from tm_jax.serving.runtime import backend as backend_lib
from tm_jax.serving.runtime import pacing
from tm_jax.serving.transport import protocol

_POSES = {
    "auto": backend_lib.AUTO, "listen": backend_lib.LISTEN, "speak": backend_lib.SPEAK
}
_RATE = 16000  # Of the other party's sound.
_SPARE_FRAMES = 5  # Of the other party's sound that may wait beyond the next chunk.
_MOST_CHUNKS = 4  # Finished chunks that wait for `pull`; older ones are dropped.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chunk:
    """Frames with their sound.

    Attributes:
      generation: Grows with every interruption.
      frame: Number of the first frame.
      pts: Its presentation time in samples of 24 kHz.
      source: Position of the caller's sample heard at its start, or `protocol.NO_SOURCE`.
      speaking: Whether the avatar speaks.
      pcm: int16 [samples], all of the chunk.
      frames: uint8 [F, H, W, 3] for a raw stream, else None.
      jpegs: Encoded frames; empty for a raw stream.
      spans: Milliseconds by name, of `protocol.SPANS`, up to "encode".
    """

    generation: int
    frame: int
    pts: int
    source: int
    speaking: bool
    pcm: np.ndarray
    frames: np.ndarray | None = None
    jpegs: tuple[bytes, ...] = ()
    spans: dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ticket:
    """What a chunk in the making knows about itself.

    Attributes:
      index: Chunks of the stream before it.
      epoch: Resets of the stream before it.
      generation: Generation at its dispatch.
      frame: Number of its first frame.
      pts: Presentation time.
      window: What the models hear, float32 [n].
      other: Sound of the other party, as `Backend.step` takes it, float32 [n].
      pose: One of `AUTO`, `LISTEN`, `SPEAK`.
      clear: Whether speech before it was interrupted.
      taken: Its sound.
      queue_s: How long its sound waited for the devices.
    """

    index: int
    epoch: int
    generation: int
    frame: int
    pts: int
    window: np.ndarray
    other: np.ndarray
    pose: int
    clear: bool
    taken: pacing.Taken
    queue_s: float


class Stream:
    """One avatar; made by `Engine.open`.

    Attributes:
      raw: Whether chunks hold frames as arrays instead of JPEGs.
      error: Why the stream broke down, or None.
      played_chunks: Chunks that were made since the start, resets included.
    """

    def __init__(
        self, engine, picture: np.ndarray, *, seed: int, mode: str, live: bool, raw: bool,
        notify: Callable[[], None], clock: Callable[[], float],
    ):
        """See `Engine.open`."""
        self._engine, self._clock, self._notify = engine, clock, notify
        back = engine.backend
        self._frame_samples = pacing.RATE // back.fps
        self._chunk_frames = back.chunk_frames
        self._step = self._frame_samples * back.chunk_frames
        after = hearing.ahead_samples(back.after)
        self._lock = threading.Lock()
        self._sound = pacing.SoundQueue(self._step, after, live=live)
        self._hearing = hearing.Hearing(back.before, back.after)
        self._transcript = pacing.Transcript()
        self._out: collections.deque[Chunk] = collections.deque(maxlen=_MOST_CHUNKS)
        self._resampler: resampling.Resampler | None = None
        self._rate = 0
        self._other = partner.PartnerQueue(
            _RATE // back.fps, back.before + back.after, _SPARE_FRAMES
        )
        self._other_resampler = resampling.Resampler(_RATE, _RATE)
        self._other_rate = _RATE
        self.picture, self.seed, self.raw = picture, seed, raw
        self.error: Exception | None = None
        self.played_chunks = 0
        self._generation = self._index = self._epoch = 0
        self._clear = self._paused = self._closed = False
        self.set_mode(mode)

    # The session interface.

    def push_audio(self, samples: np.ndarray, rate: int = 16000) -> bool:
        """Appends sound that the avatar shall speak.

        Args:
          samples: float32 [n] in -1..1, mono; any n.
          rate: Samples per second, 4000 to 192000; may change at any time.

        Returns:
          False if it was dropped because minutes of sound wait already.

        Raises:
          ValueError: Not a one-dimensional array of finite numbers, or no such rate.
        """
        samples = _checked_sound(samples)
        with self._lock:
            if self._resampler is None or rate != self._rate:
                self._resampler = resampling.Resampler(rate, pacing.RATE)
                self._rate = rate
            pcm = self._resampler.push(samples)
            return self._push(_int16(pcm), "", protocol.NO_SOURCE)

    def push_other(self, samples: np.ndarray, rate: int = 16000) -> None:
        """Appends live sound of the other party, which the avatar answers while it listens.

        A chunk hears what has come since the chunk before it. More than a fraction of a
        second does not wait, so an answer never comes late for long.

        Args:
          samples: float32 [n] in -1..1, mono; any n.
          rate: Samples per second, 4000 to 192000; may change at any time.

        Raises:
          ValueError: Not a one-dimensional array of finite numbers, or no such rate.
        """
        samples = _checked_sound(samples)
        with self._lock:
            if rate != self._other_rate:
                self._other_resampler = resampling.Resampler(rate, _RATE)
                self._other_rate = rate
            if self.active:
                self._other.push(self._other_resampler.push(samples))

    def push_pcm(self, pcm: bytes, item: str = "", source: int = protocol.NO_SOURCE) -> bool:
        """Appends sound at 24 kHz, 16 bits.

        Args:
          pcm: Whole samples.
          item: Utterance that it belongs to.
          source: Position of its start in the caller's sound, where it is the caller's.

        Returns:
          False if it was dropped because minutes of sound wait already.
        """
        with self._lock:
            return self._push(np.frombuffer(pcm, "<i2"), item, source)

    def _push(self, pcm, item, source) -> bool:
        if self._closed or self._paused or not len(pcm):
            return not self._closed
        return self._sound.push(pcm, self._clock(), item, source)

    def end_audio(self) -> None:
        """Says that what waits is the end of an utterance."""
        with self._lock:
            if self._resampler is not None:
                rest = self._resampler.push(np.zeros(0, np.float32), last=True)
                self._push(_int16(rest), "", protocol.NO_SOURCE)
            self._sound.finish()

    def pull(self) -> Chunk | None:
        """The next finished chunk, or None; `notify` tells when there is one."""
        with self._lock:
            return self._out.popleft() if self._out else None

    def set_mode(self, mode: str) -> None:
        """Sets the pose from the next chunk on: "auto", "speak" or "listen"."""
        if mode not in _POSES:
            raise ValueError(f"mode must be one of {', '.join(_POSES)}, got {mode!r}.")
        self._pose = _POSES[mode]

    def set_live(self, live: bool) -> None:
        """Sets whether sound comes at the pace of speaking; what waits is forgotten."""
        with self._lock:
            self._sound.clear()
            self._sound.live = live

    def set_character(self, picture: np.ndarray) -> None:
        """Goes on with another picture, uint8 [H, W, 3], from the next chunk."""
        self.picture = self._engine.checked(picture)
        self._engine.restart(self)

    def interrupt(self) -> int:
        """Forgets sound that was not shown; returns the new generation.

        The next chunk is made at once, if no other stream shares the lane.
        """
        with self._lock:
            self._forget()
            generation = self._generation
        self._engine.hurry(self)
        return generation

    def _forget(self) -> None:
        self._sound.clear()
        self._resampler = None
        self._transcript.forget()
        self._generation += 1
        self._clear = True

    def reset(self) -> int:
        """Starts again from the picture at frame 0; returns the new generation."""
        with self._lock:
            self._forget()
            self._index = 0
            self._epoch += 1
            self._out.clear()
            self._hearing.forget()
            self._other.clear()
            self._transcript.restart()
            generation = self._generation
        self._engine.restart(self)
        return generation

    def close(self) -> None:
        """Gives the slot back; may be called twice."""
        with self._lock:
            closed, self._closed = self._closed, True
            self._sound.clear()
            self._out.clear()
        if not closed:
            self._engine.release(self)

    # Beyond it.

    @property
    def generation(self) -> int:
        """The present generation."""
        return self._generation

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    @property
    def active(self) -> bool:
        """Whether chunks are wanted."""
        return not (self._closed or self._paused)

    def pause(self) -> None:
        """Makes no chunks until `go_on`; sound is not taken."""
        with self._lock:
            self._paused = True
            self._sound.clear()
            self._other.clear()
            self._out.clear()

    def go_on(self) -> int:
        """Makes chunks again; returns the new generation."""
        with self._lock:
            self._paused = False
            self._forget()
            self._transcript.restart()
            generation = self._generation
        self._engine.hurry(self)
        return generation

    @property
    def queued_s(self) -> float:
        """Seconds of sound that wait for their chunk."""
        return len(self._sound) / pacing.RATE

    def report(self, pts: int) -> None:
        """Notes the presentation time that the client has reached."""
        with self._lock:
            self._transcript.report(self._clock(), pts)

    def report_frame(self, frame: int) -> None:
        """Notes the last frame that the client has shown."""
        self.report((frame + 1) * self._frame_samples)

    def current(self) -> tuple[str | None, int]:
        """The utterance being heard, or heard last, and its milliseconds so far."""
        with self._lock:
            return self._transcript.current(self._clock())

    @property
    def speaking(self) -> bool:
        """Whether sound waits, or an utterance is being heard."""
        with self._lock:
            playing = self._transcript.end() > self._transcript.played(self._clock())
            return bool(len(self._sound)) or playing

    def heard_out(self, item: str) -> bool:
        """Whether all sound that waits has been played, as far as can be known."""
        with self._lock:
            if len(self._sound):
                return False
            end = self._transcript.end_of(item)
            return end is None or self._transcript.played(self._clock()) >= end

    # For the engine.

    def take(self, now_s: float, due_s: float) -> Ticket:
        """Cuts the sound of the next chunk."""
        with self._lock:
            pts = self._index * self._step
            taken = self._sound.take(now_s, pts)
            window = self._hearing.window(taken.pcm, taken.ahead)
            ticket = Ticket(
                index=self._index, epoch=self._epoch, generation=self._generation,
                frame=self._index * self._chunk_frames, pts=pts, window=window,
                other=self._other.take(self._chunk_frames), pose=self._pose,
                clear=self._clear, taken=taken,
                queue_s=self._queue_s(taken, now_s, due_s),
            )
            self._clear = False
            self._index += 1
            self.played_chunks += 1
            return ticket

    def _queue_s(self, taken: pacing.Taken, now_s: float, due_s: float) -> float:
        begins = not taken.heard or taken.heard[0].offset == 0
        if taken.complete_s is not None and (self._sound.live or begins):
            return max(0.0, now_s - taken.complete_s)
        return max(0.0, now_s - due_s)  # The chunk before it was still being shown.

    def emit(self, ticket: Ticket, chunk: Chunk) -> None:
        """Hands out a finished chunk; called in the order of the tickets."""
        with self._lock:
            if not self.active or ticket.epoch != self._epoch:
                return
            if ticket.generation == self._generation:
                self._transcript.sent(
                    self._clock(), ticket.pts, self._step, ticket.taken.heard
                )
            self._out.append(chunk)
        self._notify()

    def fail(self, error: Exception) -> None:
        """Notes that the devices failed; the stream makes no more chunks."""
        self.error = error
        self._notify()


def _checked_sound(samples) -> np.ndarray:
    samples = np.asarray(samples, np.float32)
    if samples.ndim != 1 or not np.isfinite(samples).all():
        raise ValueError(f"samples: expected finite float32 [n], got shape {samples.shape}.")
    return samples


def _int16(samples: np.ndarray) -> np.ndarray:
    return np.frombuffer(resampling.to_pcm16(samples), "<i2")
