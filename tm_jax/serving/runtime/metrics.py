"""Figures of a server in the format of Prometheus."""

from collections.abc import Callable, Iterator
import os
import time

import prometheus_client
from prometheus_client import core

from tm_jax.serving.runtime import pacing
from tm_jax.serving.transport import messages

_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0)
CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST


class Metrics:
    """Counters and distributions; used in the event loop only.

    Attributes:
      opened: Sessions that began.
      refused: Sessions and requests that were refused, by error code.
      ended: Sessions that ended, by reason.
      resumed: Connections that went on with a session.
      frames: Frames that left.
      dropped: Frames that a client was too slow for.
      late: Frames that clients showed too late.
      interrupts: Interruptions by reason.
      sound_dropped: Messages of sound that were dropped.
      bad_messages: Messages that could not be read.
      uploads: Uploaded pictures by result.
      spans: Seconds a chunk spent in each stage.
      voice_to_lips: Seconds from a caller's voice to the lips that move with it.
    """

    def __init__(self):
        """Makes a registry of its own: several servers may live in one process."""
        self._registry = registry = prometheus_client.CollectorRegistry()

        def counter(name, text, labels=()):
            return prometheus_client.Counter(
                f"tm_jax_{name}", text, labels, registry=registry
            )

        def histogram(name, text, labels=()):
            return prometheus_client.Histogram(
                f"tm_jax_{name}", text, labels, buckets=_BUCKETS, registry=registry
            )

        self.opened = counter("sessions_opened", "Sessions that began.")
        self.refused = counter("refused", "What was refused, by error code.", ("code",))
        self.ended = counter("sessions_ended", "Sessions that ended, by reason.", ("reason",))
        self.resumed = counter("sessions_resumed", "Connections that went on.")
        self.frames = counter("frames_sent", "Frames that left.")
        self.dropped = counter("frames_dropped", "Frames that a client was too slow for.")
        self.late = counter("frames_late", "Frames that clients showed too late.")
        self.interrupts = counter("interrupts", "Interruptions of speech.", ("reason",))
        self.sound_dropped = counter("sound_dropped", "Messages of sound that were dropped.")
        self.bad_messages = counter("bad_messages", "Messages that could not be read.")
        self.uploads = counter("uploads", "Uploaded pictures.", ("result",))
        self.spans = histogram("span_seconds", "Time of a chunk in each stage.", ("span",))
        self.voice_to_lips = histogram("voice_to_lips_seconds", "From voice to lips.")
        self._latencies = pacing.Latencies(2048)
        self._late: dict[str, int] = {}
        self._gauges = None
        registry.register(self)

    def watch(self, gauges: Callable[[], dict[str, tuple[str, float]]]) -> None:
        """Sets the function that returns present values: name -> (text, value)."""
        self._gauges = gauges

    def add_spans(self, spans: dict[str, float]) -> None:
        """Adds the spans of a chunk, in milliseconds."""
        self._latencies.add(spans)
        for name, value in spans.items():
            self.spans.labels(name).observe(value / 1000)

    def client(self, session: str, played: messages.Played) -> None:
        """Adds what a client reports; counts of its own only ever grow."""
        before = self._late.get(session, 0)
        if played.late > before:
            self.late.inc(min(played.late - before, 1000))
            self._late[session] = played.late
        if played.voice_to_lips_ms is not None and 0 <= played.voice_to_lips_ms < 60000:
            self.voice_to_lips.observe(played.voice_to_lips_ms / 1000)

    def forget(self, session: str) -> None:
        """Drops the figures of a session that has ended."""
        self._late.pop(session, None)

    def percentiles(self) -> dict[str, dict[str, float]]:
        """Spans of all sessions lately, in milliseconds."""
        return self._latencies.percentiles()

    def text(self) -> bytes:
        """All figures."""
        return prometheus_client.generate_latest(self._registry)

    def collect(self) -> Iterator[core.Metric]:
        """Called by the registry: present values and quantiles."""
        quantiles = core.GaugeMetricFamily(
            "tm_jax_span_quantile_seconds", "Quantiles of the last chunks.",
            labels=("span", "quantile"),
        )
        for span, values in self._latencies.percentiles().items():
            for name, value in values.items():
                quantiles.add_metric((span, f"0.{name[1:]}"), value / 1000)
        yield quantiles
        for name, (text, value) in (self._gauges() if self._gauges else {}).items():
            yield core.GaugeMetricFamily(f"tm_jax_{name}", text, value=value)
        for name, (text, value) in process().items():
            yield core.GaugeMetricFamily(f"tm_jax_{name}", text, value=value)


_STARTED_S = time.time()


def process() -> dict[str, tuple[str, float]]:
    """Memory, open files and age of this process; without /proc only its age."""
    found = {"uptime_seconds": ("Age of the process.", time.time() - _STARTED_S)}
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[1])
        resident = pages * os.sysconf("SC_PAGE_SIZE")
        found["resident_bytes"] = ("Memory of the process.", float(resident))
        count = float(len(os.listdir("/proc/self/fd")))
        found["open_files"] = ("Open file descriptors.", count)
    except OSError:
        pass
    return found
