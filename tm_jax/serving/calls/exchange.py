"""All calls of a server: who may begin one, who goes on, and how all of them end."""

import asyncio
import collections
from collections.abc import Callable, Sequence
import hmac
import time

from tm_jax.serving import config as config_lib
from tm_jax.serving.calls import call as call_lib
from tm_jax.serving.calls import processors as processors_lib
from tm_jax.serving.calls import voice as voice_lib
from tm_jax.serving.runtime import engine as engine_lib
from tm_jax.serving.runtime import memory
from tm_jax.serving.runtime import metrics as metrics_lib
from tm_jax.serving.transport import messages
from tm_jax.serving.transport import pictures
from tm_jax.serving.transport import protocol

_TRIM_S = 10.0  # After the end of a call, its memory goes back to the system.


class Exchange:
    """Connects callers with avatars; used in the event loop only.

    Attributes:
      engine: The engine.
      gallery: Characters.
      agents: Voices for mode "agent", by identifier.
      limits: What one caller may use.
      metrics: Figures.
      calls: Calls by identifier.
      draining: Whether no more calls are taken.
      processors: What calls cost them, or None if that does not matter.
    """

    def __init__(
        self, engine: engine_lib.Engine, gallery: pictures.Gallery,
        agents: Sequence[voice_lib.Agent] = (), limits: config_lib.Limits | None = None,
        metrics: metrics_lib.Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
        processors: processors_lib.Processors | None = None,
    ):
        """Makes an exchange without calls."""
        self.engine, self.gallery = engine, gallery
        self.agents = {agent.id: agent for agent in agents}
        self.limits = limits or config_lib.Limits()
        self.metrics = metrics or metrics_lib.Metrics()
        self._clock = clock
        self.processors = processors
        self.calls: dict[str, call_lib.Call] = {}
        self._by_secret: dict[str, call_lib.Call] = {}
        self._per_address: collections.Counter[str] = collections.Counter()
        self.draining = False
        self._trimming: asyncio.Task | None = None
        self.metrics.watch(self._gauges)

    @property
    def modes(self) -> list[str]:
        """Modes that work on this server."""
        return [m for m in protocol.MODES if m != "agent" or self.agents]

    def welcome(self) -> messages.Welcome:
        """The server's first message to a new connection."""
        backend, limits = self.engine.backend, self.limits
        return messages.Welcome(
            version=protocol.VERSION, server=config_lib.VERSION, fps=backend.fps,
            width=backend.width, height=backend.height, sample_rate=protocol.SAMPLE_RATE,
            modes=self.modes, agents=[{"id": a.id, "name": a.name} for a in self.agents.values()],
            limits=limits.public(), resume_s=limits.resume_s, idle_s=limits.idle_s,
            lifetime_s=limits.lifetime_s,
        )

    def open(self, start: messages.Start, address: str, raw: bool = False) -> call_lib.Call:
        """Begins a call; somebody has to attach to it within `resume_s`.

        Raises:
          protocol.ProtocolError: `draining`, `too_many_sessions`, `full`,
            `unknown_character` or `unknown_agent`.
        """
        try:
            return self._open(start, address, raw)
        except protocol.ProtocolError as error:
            self.metrics.refused.labels(error.code).inc()
            raise

    def _open(self, start, address, raw) -> call_lib.Call:
        if self.draining:
            raise protocol.ProtocolError("draining", "This server is about to stop; try again.")
        crowded = self._per_address[address] >= self.limits.per_address
        full = self.engine.sessions >= self.engine.capacity
        if crowded or full or len(self.calls) >= self.capacity:
            self._give_way(address)
        if self._per_address[address] >= self.limits.per_address:
            raise protocol.ProtocolError(
                "too_many_sessions",
                f"Your address has {self.limits.per_address} calls already; end one of them.",
            )
        if self.capacity <= len(self.calls) < self.engine.capacity:
            raise protocol.ProtocolError(
                "full",
                f"The processors of this host have time for {self.capacity} calls at once and all "
                "of them are taken; try again later.",
            )
        call = call_lib.Call(
            address, self.limits, self.gallery, self.agents, self.metrics,
            lambda: (len(self.calls), self.capacity), self._clock,
        )
        try:
            call.begin(self.engine, start, raw)
        except engine_lib.Full as error:
            raise protocol.ProtocolError("full", str(error)) from error
        self.calls[call.id] = call
        self._by_secret[call.secret] = call
        self._per_address[address] += 1
        call.on_end = self._forget
        self.metrics.opened.inc()
        self._count()
        return call

    @property
    def capacity(self) -> int:
        """Calls that the devices serve in real time, and the processors, as far as is known."""
        found = self.processors.capacity() if self.processors else None
        return min(self.engine.capacity, found or self.engine.capacity)

    def _count(self) -> None:
        if self.processors is not None:
            self.processors.change(len(self.calls))

    def _give_way(self, address: str) -> None:
        """Ends the oldest lost call of an address: its caller has come back anew."""
        lost = [c for c in self.calls.values() if c.address == address and c.lost_s is not None]
        if lost:
            min(lost, key=lambda c: c.lost_s or 0.0).end("lost")

    def resume(self, secret: str) -> call_lib.Call:
        """The call that a secret names.

        Raises:
          protocol.ProtocolError: `unknown_session`.
        """
        call = self._by_secret.get(secret)
        if call is None or not hmac.compare_digest(call.secret.encode(), secret.encode()):
            self.metrics.refused.labels("unknown_session").inc()
            raise protocol.ProtocolError(
                "unknown_session", "That call has ended; a new one can be started."
            )
        return call

    def _forget(self, call: call_lib.Call) -> None:
        del self.calls[call.id], self._by_secret[call.secret]
        self._per_address[call.address] -= 1
        if self._per_address[call.address] <= 0:
            del self._per_address[call.address]
        self.metrics.ended.labels(call.ended).inc()
        self.metrics.forget(call.id)
        self._count()
        if self._trimming is None or self._trimming.done():
            self._trimming = asyncio.get_running_loop().create_task(_give_back())

    async def drain(self, grace_s: float) -> None:
        """Takes no more calls, tells the callers, and ends what is left after a while."""
        self.draining = True
        end_s = self._clock() + grace_s
        for call in list(self.calls.values()):
            call.warn("draining", grace_s)
        while self.calls and self._clock() < end_s:
            await asyncio.sleep(min(0.1, max(0.01, end_s - self._clock())))
        for call in list(self.calls.values()):
            call.end("draining")
        await asyncio.sleep(0.2)  # Last messages leave.

    def _gauges(self) -> dict[str, tuple[str, float]]:
        engine = self.engine
        late = engine.late_s.percentiles()
        return {
            "sessions": ("Calls at present.", len(self.calls)),
            "capacity": ("Calls that are served in real time.", self.capacity),
            "load": ("Calls per capacity.", len(self.calls) / self.capacity),
            "ready": ("Whether calls are taken.", float(engine.healthy and not self.draining)),
            "slips": ("Chunks that came far too late.", engine.slips),
            "processors_busy": (
                "Part of the processors, or of the event loop if that is more, that calls need.",
                self.processors.needed(len(self.calls)) if self.processors else 0.0,
            ),
            "devices_busy": ("Part of the time that the devices work.", engine.busy),
            "dispatch_late_p95_seconds": ("Lateness of chunks at dispatch.", late["p95"]),
            "uploads_kept": ("Uploaded pictures in memory.", len(self.gallery)),
        }


async def _give_back() -> None:
    """Returns the memory of ended calls, once for all that end at about the same time."""
    await asyncio.sleep(_TRIM_S)
    await asyncio.to_thread(memory.give_back)
