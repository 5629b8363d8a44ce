"""What the host of a virtual machine takes for other guests."""

import pathlib

_FIELDS = 8  # Of /proc/stat that count: user, nice, system, idle, iowait, irq, softirq, steal.
_STAT = pathlib.Path("/proc/stat")


def ticks() -> tuple[int, int]:
    """Processor time since the start: in all, and what others were given; 0, 0 if unknown."""
    if not _STAT.exists():
        return 0, 0
    fields = [int(value) for value in _STAT.read_text(encoding="utf-8").split()[1 : 1 + _FIELDS]]
    return sum(fields), fields[-1]


def taken(before: tuple[int, int]) -> float | None:
    """Part of the processors that others were given since `before`; None if unknown."""
    total, stolen = (now - then for now, then in zip(ticks(), before))
    return round(stolen / total, 4) if total else None
