"""What calls cost the processors and the event loop, measured while they go on.

Devices are measured before the first call (`capacity.py`). What else a call costs depends on its
transport and on the host: codecs in threads, packets in the event loop, which is one thread.
"""

from collections.abc import Callable
import os
import pathlib
import time

_LEAST_S = 2.0  # A shorter time measures nothing,
_MOST_S = 10.0  # and a longer one is over.
_QUOTA = pathlib.Path("/sys/fs/cgroup/cpu.max")


def cores() -> float:
    """Processors that this process may use, with the quota of its container."""
    try:
        there = float(len(os.sched_getaffinity(0)))
    except AttributeError:  # Not on every system.
        there = float(os.cpu_count() or 1)
    try:
        quota, period = _QUOTA.read_text(encoding="ascii").split()
        return min(there, int(quota) / int(period))
    except (OSError, ValueError):  # No such file, or no limit: "max 100000".
        return there


class Processors:
    """Learns what one call costs; used in the event loop's thread only."""

    def __init__(
        self, utilisation: float, count: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        process: Callable[[], float] = time.process_time,
        loop: Callable[[], float] = time.thread_time,
    ):
        """Begins without calls.

        Args:
          utilisation: Part of the processors, and of the event loop, that may be in use.
          count: Processors; those of this process by default.
          clock: Time, s.
          process: Processor time of the process so far, s.
          loop: Processor time of the event loop's thread so far, s.
        """
        self._utilisation, self._count = utilisation, count or cores()
        self._clock, self._process, self._loop = clock, process, loop
        self._calls, self._call = 0, 0.0
        self._call_s = 0.0  # Time of all calls together since `_start`, up to `_last_s`.
        self._begin()

    def _begin(self) -> None:
        self._start = self._clock(), self._process(), self._loop()
        self._last_s, self._call_s = self._start[0], 0.0

    def _learn(self) -> None:
        now = self._clock(), self._process(), self._loop()
        self._call_s += self._calls * (now[0] - self._last_s)
        self._last_s = now[0]
        seconds, process, loop = (b - a for a, b in zip(self._start, now))
        if self._calls and seconds >= _LEAST_S:
            self._call = max(process / self._count, loop) / self._call_s
        if seconds > _MOST_S:
            self._begin()

    def change(self, calls: int) -> None:
        """Sets how many calls there are from now on."""
        self._learn()
        if not self._calls:
            self._begin()  # What went on before the first one was not for calls.
        self._calls = calls

    def needed(self, calls: int) -> float:
        """Part of the processors, or of the event loop if more; 0 while nothing is known."""
        self._learn()
        return calls * self._call

    def capacity(self) -> int | None:
        """Calls that leave enough to spare, at least one; None while nothing is known."""
        self._learn()
        return max(1, int(self._utilisation / self._call)) if self._call else None
