"""One call: a stream, the voice that drives it, and whoever is connected at the moment.

Lives in the event loop. It depends on no transport: a `Connection` takes messages and chunks.
"""

import asyncio
from collections.abc import Callable, Coroutine
import math
import secrets
import time
from typing import Protocol

import numpy as np

from tm_jax.serving import config as config_lib
from tm_jax.serving.calls import voice as voice_lib
from tm_jax.serving.calls import voicing
from tm_jax.serving.runtime import engine as engine_lib
from tm_jax.serving.runtime import metrics as metrics_lib
from tm_jax.serving.runtime import pacing
from tm_jax.serving.runtime import stream as stream_lib
from tm_jax.serving.transport import messages
from tm_jax.serving.transport import pictures
from tm_jax.serving.transport import protocol

_TICK_S = 0.1  # Utterances that were heard out are noticed within this time.
_STATS_S = 2.0
_SLOW_VOICE_S = 5.0  # Sound that waits for a slow voice; more is dropped.
_LOUD = 0.01  # Root mean square of sound that counts as somebody being there.
_HEAVY = 0.5, 3.0  # New characters and resets a second, and at once: devices work for them.
_COMPLAIN_S = 5.0  # The same complaint is not repeated sooner.


class Connection(Protocol):
    """What carries a call to its client."""

    def send(self, message: messages.Message) -> None:
        """Queues a message of `protocol`; never waits."""

    def show(self, chunk: stream_lib.Chunk, own_voice: bool) -> None:
        """Queues a chunk; never waits."""

    def flush(self, generation: int) -> None:
        """Stops sound of older generations, where the connection plays it by itself."""

    def close(self, code: int) -> None:
        """Ends the connection after what is queued; never waits."""

    @property
    def dropped(self) -> int:
        """Frames that the client was too slow for."""


class Call:
    """One caller and his avatar.

    Attributes:
      id: Public identifier.
      secret: What `hello.resume` must name.
      address: Where the caller comes from; for limits only.
      mode: What drives it, of `protocol.MODES`.
      started_s: When it began.
      lost_s: Since when nobody is connected, or None.
      ended: Why it ended, or None.
    """

    def __init__(
        self, address: str, limits: config_lib.Limits, gallery: pictures.Gallery,
        agents: dict[str, voice_lib.Agent], metrics: metrics_lib.Metrics,
        load: Callable[[], tuple[int, int]], clock: Callable[[], float] = time.monotonic,
    ):
        """Makes a call without a stream yet; see `begin`.

        Args:
          address: Where the caller comes from.
          limits: What he may use.
          gallery: Characters.
          agents: Voices for mode "agent", by identifier.
          metrics: Where figures go.
          load: Returns how many callers there are, and how many there can be.
          clock: Seconds.
        """
        self.id, self.secret = secrets.token_urlsafe(9), secrets.token_urlsafe(24)
        self.address = address
        self._limits, self._gallery, self._agents = limits, gallery, agents
        self._metrics, self._load, self._clock = metrics, load, clock
        self._stream: stream_lib.Stream | None = None
        self.mode, self._character = "mirror", ""
        self._agent: voice_lib.Agent | None = None
        self.started_s = self._alive_s = clock()
        self.lost_s: float | None = self.started_s
        self.ended: str | None = None
        self.on_end: Callable[[Call], None] = lambda call: None
        self._connection: Connection | None = None
        self._voicing = voicing.Voicing(self)
        self._tasks: set[asyncio.Task] = set()
        self._sound = pacing.Bucket(limits.sound_rate, limits.sound_burst_s, clock)
        self._heavy = pacing.Bucket(*_HEAVY, clock)
        self._complained: dict[str, float] = {}
        self._latencies = pacing.Latencies(256)
        self._shown = pacing.Window(64)
        self._stats_s = 0.0
        self._warned_of: str | None = None
        self._chunk_frames = 1

    @property
    def stream(self) -> stream_lib.Stream:
        """The avatar; there is one from `begin` on."""
        assert self._stream is not None, "the call has not begun"
        return self._stream

    # Its course.

    def begin(self, engine: engine_lib.Engine, start: messages.Start, raw: bool = False) -> None:
        """Opens the stream and starts the voice.

        Args:
          engine: The engine.
          start: What the caller asked for.
          raw: Whether the connection takes frames as arrays.

        Raises:
          engine.Full: No slot is free.
          protocol.ProtocolError: No such character or agent.
        """
        character = self._gallery.get(start.character)
        agent = self._choose(start.mode, start.agent)
        loop = asyncio.get_running_loop()

        def notify():
            try:
                loop.call_soon_threadsafe(self._collect)
            except RuntimeError:  # The loop has ended; so has the call.
                pass

        self._stream = engine.open(
            character.picture, mode=start.avatar, raw=raw, notify=notify
        )
        self._character = character.id
        self.mode, self._agent = start.mode, agent
        self.spawn(self._voicing.switch(self._make))
        self.spawn(self._voicing.listen())
        self.spawn(self._watch())

    def attach(self, connection: Connection, resumed: bool) -> None:
        """Connects a client; one that was connected before is sent away."""
        if self._connection is not None:
            self._connection.close(protocol.CLOSE_TAKEN_OVER)
        self._connection = connection
        generation = self.stream.generation
        if resumed:
            generation = self.stream.go_on()
            self._metrics.resumed.inc()
        self.lost_s = None
        self.touch()
        connection.send(
            messages.Started(
                session=self.id, resume=self.secret, resumed=resumed,
                generation=generation, mode=self.mode, character=self._character,
                agent=self._agent.id if self._agent else None,
            )
        )

    def detach(self, connection: Connection) -> None:
        """Notes that a connection was lost; the call waits for another one."""
        if connection is self._connection and self.ended is None:
            self._connection = None
            self.lost_s = self._clock()
            self.stream.pause()

    def end(self, reason: str) -> None:
        """Ends the call for good; may be called twice."""
        if self.ended is not None:
            return
        self.ended = reason
        if self._connection is not None:
            self._connection.send(messages.Ended(reason=reason))
            self._connection.close(protocol.ERRORS.get(reason, 1000) or 1000)
            self._connection = None
        if self._stream is not None:
            self._stream.close()
        for task in self._tasks:
            task.cancel()
        self._farewell = asyncio.get_running_loop().create_task(self._voicing.close())
        self.on_end(self)

    # Messages of the client.

    def receive(self, message: messages.Message) -> None:
        """Does what a message of the client asks.

        Raises:
          protocol.ProtocolError: It cannot be done.
        """
        if not isinstance(message, (messages.Ping, messages.Played)):
            self.touch()
        if isinstance(message, (messages.Character, messages.Reset)) and not self._heavy.take(1):
            raise protocol.ProtocolError("too_fast", "That was asked for too often; wait a moment.")
        match message:
            case messages.Stop():
                self.end("stopped")
            case messages.Interrupt():
                self.spawn(self._voicing.interrupted(self.interrupt("client")))
            case messages.Mode():
                agent = self._choose(message.mode, message.agent)
                self.mode, self._agent = message.mode, agent
                self.spawn(self._voicing.switch(self._make, "mode"))
                self.send(message)
            case messages.Avatar():
                self.stream.set_mode(message.avatar)
                self.send(message)
            case messages.Character():
                chosen = self._gallery.get(message.character)
                self.stream.set_character(chosen.picture)
                self._character = chosen.id
                self.send(message)
            case messages.SpeechEnd():
                self._voicing.hear(None)
            case messages.Reset():
                generation = self.stream.reset()
                self._flush(generation, "reset")
            case messages.Played():
                self._played(message)
            case messages.Ping():
                self.send(messages.Pong(t=message.t))
            case _:
                raise protocol.ProtocolError("bad_state", "The session has started already.")

    def _choose(self, mode: str, agent: str | None) -> voice_lib.Agent | None:
        if mode != "agent":
            return None
        if agent is None and self._agents:
            return next(iter(self._agents.values()))
        if agent is None or agent not in self._agents:
            known = ", ".join(self._agents) or "none is installed on this server"
            raise protocol.ProtocolError(
                "unknown_agent", f"No such voice agent; there is: {known}."
            )
        return self._agents[agent]

    def hear(self, sound: messages.Sound) -> None:
        """Takes sound of the client."""
        seconds = len(sound.pcm) / 2 / protocol.SAMPLE_RATE
        waiting_s = self._voicing.waiting_s
        if self.mode == "file":
            most_s = self._limits.ahead_s + 2
            allowed = self.stream.queued_s + waiting_s + seconds < most_s
        else:
            allowed = waiting_s < _SLOW_VOICE_S and self._sound.take(seconds)
        if not allowed:
            self._metrics.sound_dropped.inc()
            self._complain("too_fast", "Sound came faster than it can be played; it was dropped.")
            return
        level = np.frombuffer(sound.pcm, "<i2").astype(np.float32) / 32768
        if math.sqrt(float(np.mean(level * level))) > _LOUD:
            self.touch()
        if self.mode == "agent":  # Else the caller's voice is the avatar's own.
            self.stream.push_other(level, protocol.SAMPLE_RATE)
        self._voicing.hear(sound)

    def _played(self, message: messages.Played) -> None:
        if message.generation == self.stream.generation:
            self.stream.report_frame(message.frame)
        spans = {"playout": max(0.0, message.playout_ms)}
        self._latencies.add(spans)
        self._metrics.add_spans(spans)
        self._metrics.client(self.id, message)

    # What the voice does.

    def _make(self) -> voice_lib.Voice:
        if self.mode == "agent":
            assert self._agent is not None  # `_choose` has found one.
            return self._agent.make()
        return voice_lib.Mirror() if self.mode == "mirror" else voice_lib.Player()

    def spawn(self, work: Coroutine) -> None:
        """Runs something beside the call; it is cancelled when the call ends."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def touch(self) -> None:
        """Notes that somebody is there."""
        self._alive_s = self._clock()

    def interrupt(self, reason: str) -> voice_lib.Played:
        """Flushes speech and tells the client."""
        item, milliseconds = self.stream.current()
        self._voicing.forget()
        self._flush(self.stream.interrupt(), reason)
        self._metrics.interrupts.labels(reason).inc()
        return voice_lib.Played(item=item, audio_end_ms=milliseconds)

    def _flush(self, generation: int, reason: str) -> None:
        if self._connection is not None:
            self._connection.flush(generation)
        self.send(messages.Interrupted(generation=generation, reason=reason))

    # What goes to the client.

    def send(self, message: messages.Message) -> None:
        """Sends a message if somebody is connected."""
        if self._connection is not None:
            self._connection.send(message)

    def _complain(self, code: str, message: str) -> None:
        now_s = self._clock()
        if now_s - self._complained.get(code, -math.inf) > _COMPLAIN_S:
            self._complained[code] = now_s
            self.send(messages.Error(code=code, message=message))

    def _collect(self) -> None:
        """Sends finished chunks; called in the loop whenever there may be one."""
        if self.ended is not None:
            return
        if self.stream.error is not None:
            self.send(
                messages.Error(code="internal", message="The devices failed.", fatal=True)
            )
            self.end("internal")
            return
        while (chunk := self.stream.pull()) is not None:
            if self._connection is None:
                continue
            self._connection.show(chunk, self._voicing.echo)

    def sent(self, chunk: stream_lib.Chunk, send_ms: float) -> None:
        """Called by the connection when a chunk has left."""
        spans = {**chunk.spans, "send": send_ms}
        self._latencies.add(spans)
        self._metrics.add_spans(spans)
        frames = len(chunk.jpegs if chunk.frames is None else chunk.frames)
        self._metrics.frames.inc(frames)
        self._shown.add(self._clock())
        self._chunk_frames = frames
        self.send(
            messages.Timing(
                generation=chunk.generation, frame=chunk.frame, speaking=chunk.speaking,
                queued_ms=round(1000 * self.stream.queued_s, 1),
                spans={name: round(value, 2) for name, value in spans.items()},
            )
        )

    async def _watch(self) -> None:
        """Notices heard utterances, sends figures, ends what has lasted too long."""
        while True:
            await asyncio.sleep(_TICK_S)
            await self._voicing.notice()
            now_s = self._clock()
            if now_s - self._stats_s >= _STATS_S:
                self._stats_s = now_s
                self._send_stats(now_s)
            self._expire(now_s)

    def _send_stats(self, now_s: float) -> None:
        if self._connection is None:
            return
        times = [t for t in self._shown.values() if now_s - t < 2 * _STATS_S]
        fps = 0.0
        if len(times) > 1:
            fps = (len(times) - 1) * self._chunk_frames / max(times[-1] - times[0], 1e-3)
        sessions, capacity = self._load()
        self.send(
            messages.Stats(
                spans=self._latencies.percentiles(), fps=round(fps, 2),
                dropped=self._connection.dropped, sessions=sessions, capacity=capacity,
            )
        )

    def _expire(self, now_s: float) -> None:
        limits = self._limits
        if self.lost_s is not None:
            if now_s - self.lost_s > limits.resume_s:
                self.end("lost")
            return
        left = {
            "idle": limits.idle_s - (now_s - self._alive_s),
            "lifetime": limits.lifetime_s - (now_s - self.started_s),
        }
        reason = min(left, key=lambda name: left[name])
        if left[reason] <= 0:
            message = {
                "idle": "Nothing was heard for a long time, so the call has ended.",
                "lifetime": "The longest duration of a call has been reached.",
            }[reason]
            self.send(messages.Error(code=reason, message=message, fatal=True))
            self.end(reason)
        elif left[reason] <= limits.notice_s:
            self.warn(reason, left[reason])
        else:
            self._warned_of = None

    def warn(self, reason: str, in_s: float) -> None:
        """Tells the caller once that the call will end."""
        if self._warned_of != reason:
            self._warned_of = reason
            self.send(messages.Ending(reason=reason, in_s=round(in_s, 1)))
