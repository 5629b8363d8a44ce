"""A session as frameworks use it: speech goes in by the sentence, frames come out for ever.

The consumer sets the pace: frames are made when it comes near to the end of those that it
has, so what it does not ask for costs nothing. While there is speech every frame brings its
sound; without any the avatar listens and frames come without sound.
"""

import asyncio
import collections
from collections.abc import AsyncIterator
import concurrent.futures
import dataclasses
import time
from typing import Any

import numpy as np

from tm_jax.media import resampling

_MODEL_RATE = 16000
_LONGEST_S = 120.0  # Speech that may wait before `push` does.
_RECENT = 4  # Chunks whose durations predict that of the next one.


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Piece:
    """One frame.

    Attributes:
      generation: Interruptions before it.
      frame: uint8 [H, W, 3].
      sound: int16 [samples of one frame], or None while the avatar listens.
      ended: Utterances that end with it.
    """

    generation: int
    frame: np.ndarray
    sound: np.ndarray | None
    ended: int


@dataclasses.dataclass(frozen=True, eq=False)
class _Filling:
    """What the next chunk is made of.

    Attributes:
      generation: Interruptions before it.
      window: Input of the models, float32 [n] at 16 kHz.
      sound: What is played, int16 [samples of a chunk].
      speech: Samples of `sound` that were pushed; the rest is silence.
      open: Whether more of the same utterance will come.
      other: Sound of the other party meanwhile, float32 [samples of a chunk] at 16 kHz; None
        if it was silent.
    """

    generation: int
    window: np.ndarray
    sound: np.ndarray
    speech: int
    open: bool
    other: np.ndarray | None


class _Samples:
    """A queue of samples."""

    def __init__(self):
        self._parts: collections.deque[np.ndarray] = collections.deque()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, samples: np.ndarray) -> None:
        self._parts.append(samples)
        self._count += len(samples)

    def peek(self, count: int) -> np.ndarray:
        """Returns the first samples, fewer than `count` if there are no more."""
        taken, parts = 0, []
        for part in self._parts:
            parts.append(part[: count - taken])
            taken += len(parts[-1])
            if taken == count:
                break
        return np.concatenate(parts or [np.zeros(0, np.float32)])

    def drop(self, count: int) -> None:
        """Removes the first samples, all if there are fewer."""
        self._count -= min(count, self._count)
        while self._parts and count >= len(self._parts[0]):
            count -= len(self._parts.popleft())
        if self._parts and count:
            self._parts[0] = self._parts[0][count:]

    def clear(self) -> None:
        self._parts.clear()
        self._count = 0


class Avatar:
    """One character in real time. All methods are called in one event loop."""

    def __init__(
        self, session: Any, lookahead_s: float, *, rate: int = 24000, hears: bool = True
    ):
        """Takes a session over; a thread of the avatar's own calls it from now on.

        Args:
          session: An `inference.session.Session`, or whatever has its methods.
          lookahead_s: Sound beyond a chunk that the session needs.
          rate: Samples per second, in and out; a multiple of the frame rate.
          hears: Whether the session takes another party's sound.

        Raises:
          ValueError: A rate of which no whole number of samples fits a frame.
        """
        if rate % session.fps:
            raise ValueError(f"rate={rate} is not a multiple of {session.fps} frames/s.")
        self.rate, self.fps = rate, session.fps
        self.samples_per_frame = rate // session.fps
        self._session = session
        self._frames = session.chunk_frames
        self._step = self._frames * self.samples_per_frame
        self._model_step = self._frames * (_MODEL_RATE // session.fps)
        self._model_window = self._model_step + round(lookahead_s * _MODEL_RATE)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "tm_jax_avatar")
        self._resampler = resampling.Resampler(rate, _MODEL_RATE)
        self._sound, self._heard = _Samples(), _Samples()  # for people, for the models
        self._hears, self._other, self._other_rate = hears, _Samples(), 0
        self._room = asyncio.Event()
        self._room.set()
        self._took_s: collections.deque[float] = collections.deque([0.0], maxlen=_RECENT)
        self._generation = 0
        self._forget()
        self._making: asyncio.Task | None = None
        self._closed = False

    @classmethod
    def open(
        cls, pipeline: Any, picture: np.ndarray, *, seed: int = 0, rate: int = 24000
    ) -> "Avatar":
        """Starts a session of its own.

        Args:
          pipeline: From `tm_jax.load`.
          picture: uint8 [H, W, 3] in the preset's size.
          seed: Seed of the noise.
          rate: Samples per second, in and out.
        """
        from tm_jax.inference import session  # Brings JAX in.

        live = session.Session(pipeline, picture, seed=seed)
        return cls(live, live.lookahead_s, rate=rate, hears=pipeline.functions.partner)

    # Speech in.

    def hear(self, samples: np.ndarray, rate: int) -> None:
        """Appends live sound of the other party, to whom the avatar reacts while it listens.

        A chunk takes the newest sound, as much as it is long; what is older is dropped. Presets
        that take no sound of another party ignore it.

        Args:
          samples: float32 [n] in -1..1, mono; any n.
          rate: Samples per second; may change at any time.
        """
        if self._closed or not self._hears:
            return
        if rate != self._other_rate:
            self._other_resampler = resampling.Resampler(rate, _MODEL_RATE)
            self._other_rate = rate
        self._other.append(self._other_resampler.push(samples))
        self._other.drop(max(0, len(self._other) - self._model_step))

    async def push(self, samples: np.ndarray) -> None:
        """Appends speech; waits while minutes of it are waiting.

        Args:
          samples: float32 [n] in -1..1, mono at `rate`; any n.
        """
        generation = self._generation
        while self.queued_s > _LONGEST_S and not self._closed:
            self._room.clear()
            await self._room.wait()
            if generation != self._generation:
                return  # It was interrupted while it waited.
        if self._closed or not len(samples):
            return
        self._sound.append(np.asarray(samples, np.float32))
        self._heard.append(self._resampler.push(samples))
        self._pushed += len(samples)
        self._open = True

    def end(self) -> None:
        """Completes the utterance; a later piece marks its end."""
        self._heard.append(self._resampler.push(np.zeros(0, np.float32), last=True))
        self._ends.append(self._pushed)
        self._open = False

    def clear(self) -> int:
        """Discards all speech that was not given out; returns the new generation."""
        self._generation += 1
        self._forget()
        self._room.set()
        return self._generation

    def _forget(self) -> None:
        self._sound.clear()
        self._heard.clear()
        self._resampler.reset()
        self._ends: collections.deque[int] = collections.deque()
        self._pushed = self._given = 0  # samples of speech
        self._open = self._speaking = self._waited = False

    @property
    def generation(self) -> int:
        """Interruptions so far."""
        return self._generation

    @property
    def queued_s(self) -> float:
        """Seconds of speech that were not given out yet."""
        return (self._pushed - self._given) / self.rate

    async def set_character(self, picture: np.ndarray) -> None:
        """Goes on with another picture, uint8 [H, W, 3].

        Raises:
          ValueError: Wrong picture size or type.
        """
        await self._call(self._session.set_character, picture)

    async def warm_up(self) -> tuple[int, int]:
        """Compiles what has to be compiled, then starts at the picture again.

        Returns:
          Height and width of a frame.
        """
        silence = np.zeros(self._model_window, np.float32)
        for _ in range(2):
            started = time.monotonic()
            frames = await self._call(self._make, silence, False)
        self._took_s.append(time.monotonic() - started)  # Without compilation.
        await self._call(self._session.reset)
        return frames.shape[1:3]

    # Frames out.

    async def pieces(self) -> AsyncIterator[Piece]:
        """Gives frames for ever, or until `close`; for one consumer."""
        while not self._closed:
            making = self._making or self._begin()
            self._making = None
            filling, frames = await making
            for number, frame in enumerate(frames):
                if self._closed or (filling.speech and filling.generation != self._generation):
                    break  # Old speech is not shown; an old pose can be.
                left_s = (len(frames) - number) / self.fps
                if self._making is None and left_s <= self._lead_s:
                    self._begin()
                yield self._piece(filling, number, frame)

    async def close(self) -> None:
        """Gives the session back; `pieces` ends."""
        if self._closed:
            return
        self._closed = True
        self._room.set()
        if self._making is not None:
            await asyncio.gather(self._making, return_exceptions=True)
        await asyncio.get_running_loop().run_in_executor(self._thread, self._session.close)
        self._thread.shutdown(wait=False)

    @property
    def _lead_s(self) -> float:
        """How long before the end of a chunk the next one must be begun."""
        return 1.5 * max(self._took_s) + 2 / self.fps

    def _piece(self, filling: _Filling, number: int, frame: np.ndarray) -> Piece:
        start = number * self.samples_per_frame
        spoken = start < filling.speech or (filling.open and filling.speech)
        sound = filling.sound[start : start + self.samples_per_frame] if spoken else None
        self._given += max(0, min(self.samples_per_frame, filling.speech - start))
        ended = 0
        while self._ends and self._ends[0] <= self._given:
            self._ends.popleft()
            ended += 1
        return Piece(generation=self._generation, frame=frame, sound=sound, ended=ended)

    def _begin(self) -> asyncio.Task:
        self._making = asyncio.create_task(self._chunk(self._fill()))
        return self._making

    async def _chunk(self, filling: _Filling) -> tuple[_Filling, np.ndarray]:
        started = time.monotonic()
        frames = await self._call(
            self._make, filling.window, filling.speech > 0, filling.other
        )
        self._took_s.append(time.monotonic() - started)
        return filling, frames

    def _fill(self) -> _Filling:
        """Takes the sound of the next chunk; what is not there yet is silence.

        An utterance that begins waits for a whole chunk of it, but not longer than one chunk.
        """
        wait = self._open and not (self._speaking or self._waited)
        self._waited = bool(wait and len(self._sound) and len(self._heard) < self._model_step)
        speech = 0 if self._waited else min(self._step, len(self._sound))
        if self._open:  # The models' input lags a little: a filter holds sound back.
            speech = min(speech, len(self._heard) * self.rate // _MODEL_RATE)
        sound = self._sound.peek(speech)
        window = self._heard.peek(self._model_window if speech else 0)
        self._sound.drop(speech)
        self._heard.drop(speech * _MODEL_RATE // self.rate)
        if not (self._open or len(self._sound)):
            self._heard.clear()  # What rounding left over.
        self._room.set()
        self._speaking = speech > 0 and (self._open or len(self._sound) > 0)
        pcm = np.frombuffer(resampling.to_pcm16(sound), "<i2")
        other = self._other.peek(self._model_step)
        self._other.clear()
        return _Filling(
            self._generation, np.pad(window, (0, self._model_window - len(window))),
            np.pad(pcm, (0, self._step - len(pcm))), speech, self._speaking,
            np.pad(other, (self._model_step - len(other), 0)) if len(other) else None,
        )

    def _make(
        self, window: np.ndarray, speaking: bool, other: np.ndarray | None = None
    ) -> np.ndarray:
        """Runs the session on one chunk; called in the avatar's thread."""
        session = self._session
        session.set_mode("speak" if speaking else "listen")
        session.interrupt()  # The look-ahead of the last chunk is replaced by the real sound.
        session.push_audio(window)
        if other is not None:
            session.push_other(other)
        chunk = session.pull()
        if chunk is None:
            raise RuntimeError(
                f"the session needs more than {len(window)} samples for a chunk; lookahead_s "
                "is too small."
            )
        return chunk.frames

    async def _call(self, function, *args):
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)
