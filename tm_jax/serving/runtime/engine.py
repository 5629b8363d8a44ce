"""The thread that owns the devices, and the order in which it serves streams.

Streams sit in the slots of lanes. A lane steps once in the duration of a chunk, all its
streams together; each lane has its own phase, so a host with two lanes makes the chunk of
one while that of the other is shown. What is due first is dispatched first; another thread
waits for the frames and hands them to the encoders, so that chunk i is decoded and encoded
while chunk i+1 is computed.
"""

import collections
from collections.abc import Callable
import concurrent.futures
import queue
import secrets
import threading
import time

from absl import logging
import numpy as np

from tm_jax.serving.runtime import backend as backend_lib
from tm_jax.serving.runtime import pacing
from tm_jax.serving.runtime import stream as stream_lib
from tm_jax.serving.transport import pictures

_MOST_WAIT_S = 0.5  # Longest sleep of the thread when there is nothing to do.
_FAILURES = 3  # Broken steps in a row after which the devices are given up.


class Full(RuntimeError):
    """All slots are taken."""


class _Lane:
    """A batch of slots.

    Attributes:
      handle: The backend's lane.
      streams: One for each slot, None where it is free.
      ready: Streams whose state is in the batch.
      due_s: When the next chunk is dispatched.
      hurried_s: When a chunk was last made early.
    """

    def __init__(self, handle, batch: int):
        self.handle = handle
        self.streams: list[stream_lib.Stream | None] = [None] * batch
        self.ready: set[stream_lib.Stream] = set()
        self.due_s = 0.0
        self.hurried_s = -1e9

    def active(self) -> list[tuple[int, stream_lib.Stream]]:
        """Slots and streams that want a chunk."""
        return [(i, s) for i, s in enumerate(self.streams) if s in self.ready and s.active]


class Engine:
    """Serves streams in real time.

    Attributes:
      backend: The devices.
      capacity: Streams that it can serve.
      slips: Chunks that came more than their own duration too late.
      late_s: Delays of the dispatch, lately.
      busy: Part of the time in which the devices worked, lately.
    """

    def __init__(
        self, backend: backend_lib.Backend, *, batch: int = 1, lanes: int = 1,
        most: int | None = None, begin_s: float = 0.1, encoders: int = 2,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Makes the lanes and starts the threads.

        Args:
          backend: The devices.
          batch: Slots of a lane.
          lanes: Lanes.
          most: Most streams, if fewer than there are slots.
          begin_s: About how long `backend.begin` takes: chunks that are due sooner go first.
          encoders: Threads that make JPEGs.
          clock: Seconds, of any beginning.
        """
        self.backend = backend
        self.capacity = min(batch * lanes, most or batch * lanes)
        self.slips = 0
        self.late_s = pacing.Window()
        self.busy = 0.0
        self._clock, self._begin_s = clock, begin_s
        self._chunk_s = backend.chunk_frames / backend.fps
        self._lanes = [_Lane(backend.lane(batch), batch) for _ in range(lanes)]
        self._commands: collections.deque = collections.deque()
        self._changed = threading.Condition()
        self._flying = 0
        self._failures = 0
        self._stopping = False
        self._finished: queue.SimpleQueue = queue.SimpleQueue()
        self._encoders = [
            concurrent.futures.ThreadPoolExecutor(1, f"encode{i}") for i in range(encoders)
        ]
        self._threads = [
            threading.Thread(target=self._run, name="devices", daemon=True),
            threading.Thread(target=self._finish, name="frames", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    # For everybody, in any thread.

    @property
    def sessions(self) -> int:
        """Streams that have a slot."""
        return sum(s is not None for lane in self._lanes for s in lane.streams)

    @property
    def healthy(self) -> bool:
        """Whether devices and threads work."""
        return self._failures < _FAILURES and all(t.is_alive() for t in self._threads)

    def open(
        self, picture: np.ndarray, *, seed: int | None = None, mode: str = "auto",
        live: bool = False, raw: bool = False, notify: Callable[[], None] = lambda: None,
    ) -> stream_lib.Stream:
        """Begins a stream; its first chunk is made at once.

        Args:
          picture: uint8 [H, W, 3] of the backend's size.
          seed: Seed of the noise; random if left out.
          mode: Pose, "auto", "speak" or "listen".
          live: Whether its sound will come at the pace of speaking.
          raw: Whether frames stay arrays.
          notify: Called in some thread when `pull` has something, or the stream failed.

        Returns:
          The stream.

        Raises:
          Full: No slot is free.
          ValueError: Wrong picture or mode.
        """
        picture = self.checked(picture)
        stream = stream_lib.Stream(
            self, picture, seed=secrets.randbits(32) if seed is None else seed, mode=mode,
            live=live, raw=raw, notify=notify, clock=self._clock,
        )
        with self._changed:
            if self.sessions >= self.capacity:
                raise Full(
                    f"This host serves {self.capacity} calls in real time and all of them "
                    "are taken; try again later."
                )
            # Full lanes first: a step costs the same for one stream as for all its slots.
            lane = max(
                (lane for lane in self._lanes if None in lane.streams),
                key=lambda lane: sum(s is not None for s in lane.streams),
            )
            lane.streams[lane.streams.index(None)] = stream
            self._command(self._begin, stream)
        return stream

    def checked(self, picture: np.ndarray) -> np.ndarray:
        """Returns a picture of the right size and type, or raises `ValueError`."""
        picture = np.asarray(picture)
        expected = (self.backend.height, self.backend.width, 3)
        if picture.shape != expected or picture.dtype != np.uint8:
            raise ValueError(
                f"picture: expected uint8 {expected}, got {picture.dtype} {picture.shape}."
            )
        return picture

    def restart(self, stream: stream_lib.Stream) -> None:
        """Begins the models' stream anew, from the stream's picture."""
        with self._changed:
            if not any(waiting is stream for _, _, waiting in self._commands):
                self._command(self._begin, stream)

    def hurry(self, stream: stream_lib.Stream) -> None:
        """Makes the next chunk at once, unless others share the lane or it was just done."""
        with self._changed:
            lane = self._lane_of(stream)
            now_s = self._clock()
            if lane is None or now_s - lane.hurried_s < self._chunk_s:
                return
            if all(other is stream for _, other in lane.active()):
                lane.due_s = lane.hurried_s = now_s
            self._changed.notify_all()

    def release(self, stream: stream_lib.Stream) -> None:
        """Frees the slot of a stream."""
        with self._changed:
            lane = self._lane_of(stream)
            if lane is not None:
                lane.streams[lane.streams.index(stream)] = None
                lane.ready.discard(stream)
            self._changed.notify_all()

    def close(self) -> None:
        """Closes all streams and ends the threads."""
        for lane in self._lanes:
            for stream in list(lane.streams):
                if stream is not None:
                    stream.close()
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._threads[0].join(30)
        self._finished.put(None)
        self._threads[1].join(30)
        for pool in self._encoders:
            pool.shutdown()

    def _lane_of(self, stream) -> _Lane | None:
        return next((lane for lane in self._lanes if stream in lane.streams), None)

    def _command(self, work, stream) -> None:
        self._commands.append((self._clock(), work, stream))
        self._changed.notify_all()

    # The thread of the devices.

    def _run(self) -> None:
        while True:
            with self._changed:
                work = self._next()
                while work is None:
                    work = self._next()
                if work is _STOP:
                    return
            work()

    def _next(self):
        """What to do now; None after a wait. Called with the lock."""
        if self._stopping:
            return _STOP
        now_s = self._clock()
        lanes = [lane for lane in self._lanes if lane.active()]
        lane = min(lanes, key=lambda lane: lane.due_s, default=None)
        due_s = now_s + _MOST_WAIT_S if lane is None else lane.due_s
        if self._commands:
            asked_s, work, stream = self._commands[0]
            # In the gap between chunks, or when it has waited for long enough.
            if due_s - now_s > self._begin_s or now_s - asked_s > self._chunk_s:
                self._commands.popleft()
                return lambda: work(stream)
        if lane is not None and self._flying < self.backend.depth:
            if due_s <= now_s:
                return lambda: self._step(lane)
        elif lane is not None:
            due_s = now_s + _MOST_WAIT_S  # A finished chunk wakes this thread.
        if self._commands:
            due_s = min(due_s, self._commands[0][0] + self._chunk_s + 0.001)
        self._changed.wait(max(0.0, due_s - now_s))
        return None

    def _begin(self, stream: stream_lib.Stream) -> None:
        lane = self._lane_of(stream)
        if lane is None:
            return
        slot = lane.streams.index(stream)
        started_s = self._clock()
        try:
            self.backend.begin(
                lane.handle, slot, stream.picture, stream.seed, stream.played_chunks
            )
        except Exception as error:  # Whatever a device does, other streams go on.
            self._failed(lane, error)
            return
        now_s = self._clock()
        self._begin_s += 0.3 * (now_s - started_s - self._begin_s)
        with self._changed:
            idle = not lane.active()
            if lane.streams[slot] is stream:
                lane.ready.add(stream)
            if idle:
                lane.due_s = now_s

    def _step(self, lane: _Lane) -> None:
        active = lane.active()
        if not active:
            return
        now_s, due_s = self._clock(), lane.due_s
        late_s = max(0.0, now_s - due_s)
        self.late_s.add(late_s)
        if late_s > self._chunk_s:  # Too late to catch up: the clients have run dry.
            self.slips += 1
            due_s = now_s
        lane.due_s = due_s + self._chunk_s
        batch = len(lane.streams)
        tickets = [(slot, s, s.take(now_s, due_s)) for slot, s in active]
        sounds = np.zeros((batch, len(tickets[0][2].window)), np.float32)
        poses = np.full(batch, backend_lib.LISTEN, np.int32)
        clear = np.zeros(batch, bool)
        others = np.zeros_like(sounds)
        for slot, _, ticket in tickets:
            sounds[slot], poses[slot], clear[slot] = ticket.window, ticket.pose, ticket.clear
            others[slot] = ticket.other
        try:
            job = self.backend.step(lane.handle, sounds, poses, clear, others)
        except Exception as error:  # Whatever a device does, other lanes go on.
            self._failed(lane, error)
            return
        with self._changed:
            self._flying += 1
        self._finished.put((lane, job, tickets, self._clock()))

    def _failed(self, lane: _Lane, error: Exception) -> None:
        """Ends the streams of a lane whose state cannot be trusted any more."""
        logging.exception("The devices failed.")
        with self._changed:
            self._failures += 1
            streams = [s for s in lane.streams if s is not None]
            lane.handle = self.backend.lane(len(lane.streams))
        for stream in streams:
            stream.fail(error)

    # The thread that waits for frames.

    def _finish(self) -> None:
        while (entry := self._finished.get()) is not None:
            lane, job, tickets, started_s = entry
            try:
                result = job.wait()
            except Exception as error:  # As in `_step`.
                self._landed(started_s)
                self._failed(lane, error)
                continue
            self._landed(started_s)
            self._failures = 0
            for slot, stream, ticket in tickets:
                encoder = self._encoders[id(stream) // 64 % len(self._encoders)]
                encoder.submit(
                    _encode, stream, ticket, result.frames[slot], bool(result.speaking[slot]),
                    result.spans,
                )

    def _landed(self, started_s: float) -> None:
        with self._changed:
            self._flying -= 1
            share = min(1.0, (self._clock() - started_s) / self._chunk_s)
            self.busy += 0.1 * (share - self.busy)
            self._changed.notify_all()


_STOP = object()


def _encode(stream, ticket, frames, speaking: bool, spans: dict[str, float]) -> None:
    """Makes JPEGs of one stream's chunk and hands it out; runs in an encoder's thread."""
    try:
        started_s = time.perf_counter()
        jpegs = () if stream.raw else tuple(map(pictures.to_jpeg, frames))
        encode_s = time.perf_counter() - started_s
        taken = ticket.taken
        seconds = {
            "audio_wait": taken.audio_wait_s, "lookahead": taken.lookahead_s,
            "queue": ticket.queue_s, **spans, "encode": encode_s,
        }
        chunk = stream_lib.Chunk(
            generation=ticket.generation, frame=ticket.frame, pts=ticket.pts,
            source=taken.source, speaking=speaking, pcm=taken.pcm,
            frames=np.array(frames) if stream.raw else None, jpegs=jpegs,
            spans={name: 1000 * value for name, value in seconds.items()},
        )
        stream.emit(ticket, chunk)
    except Exception as error:  # A frame that cannot be encoded must not end the thread.
        logging.exception("A chunk could not be encoded.")
        stream.fail(error)
