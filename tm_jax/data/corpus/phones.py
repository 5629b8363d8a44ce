"""Phones in time: names of a source become ids, and their times tile the sound.

Everywhere the result is a list of (start_s, end_s, phone id) without gaps.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from tm_jax.data.corpus import speech

Phone = tuple[float, float, int]  # Start and end in seconds, id.
SHORT_GAP_S = 0.03  # An unnamed stretch that is shorter belongs to its neighbours.
SIL = speech.PHONE_ID["SIL"]


class Unalignable(ValueError):
    """A text or a recording from which no phone times can be had."""


def ids(name: str, table: Mapping[str, str], source: str) -> list[int]:
    """Returns the phone ids of one source name; an unknown name is an error."""
    if name not in table:
        raise ValueError(f"{source}: unknown phone {name!r}; add it to its table.")
    return [speech.PHONE_ID[part] for part in table[name].split()]


def segments(
    ends: Iterable[tuple[str, float]], seconds: float, phones_of: Callable[[str], Sequence[int]]
) -> list[Phone]:
    """Phones that follow one another without a gap.

    Args:
      ends: (name, end in seconds) of every segment, in order.
      seconds: Length of the sound.
      phones_of: Function (name) -> ids, of which one segment may be several phones.

    Returns:
      Rows (start, end, id) that cover the sound.
    """
    phones, start = [], 0.0
    for name, end in ends:
        end = min(end, seconds)
        if end > start:
            phones += divide(start, end, phones_of(name))
            start = end
    return tile(phones, seconds)


def divide(start: float, end: float, found: Sequence[int]) -> list[Phone]:
    """Parts of equal length from `start` to `end`, one for each phone id of `found`."""
    edges = np.linspace(start, end, len(found) + 1)
    return [(float(s), float(e), p) for s, e, p in zip(edges, edges[1:], found)]


def tile(phones: Iterable[Phone], duration: float) -> list[Phone]:
    """Makes phones cover [0, duration] without gaps: small gaps close, others are SIL."""
    result, clock = [], 0.0
    for start, end, phone in phones:
        start, end = max(start, clock), min(end, duration)
        if end - start < 1e-3:
            continue
        if start - clock >= SHORT_GAP_S or (not result and start > clock):
            result.append((clock, start, SIL))
        elif result:
            result[-1] = (result[-1][0], start, result[-1][2])
        if result and result[-1][2] == SIL == phone:
            result[-1] = (result[-1][0], end, SIL)
        else:
            result.append((start, end, phone))
        clock = end
    if duration - clock > 1e-3:
        if result and result[-1][2] == SIL:
            result[-1] = (result[-1][0], duration, SIL)
        else:
            result.append((clock, duration, SIL))
    return result
