"""Keeps the memory of a long-lived server flat, and gives back what was freed.

Callers leave objects behind that refer to each other. Python looks for those once they are a
quarter of all objects, and the models' programs are hundreds of thousands: it would look after
thousands of calls, and for half a second. What exists before the first call is therefore set
aside; afterwards a search takes milliseconds and can follow every call.

The C library keeps what threads have freed for later; after uploads and many calls that is
tens of megabytes which no other process can use.
"""

import ctypes
import functools
import gc


@functools.cache
def _trim():
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):  # Another C library than glibc.
        return None


def settle() -> None:
    """Sets aside all that lives now; call it once, before the first caller."""
    gc.collect()
    gc.freeze()


def give_back() -> bool:
    """Frees what callers left behind, and returns it to the system where the C library can.

    Takes milliseconds after `settle`.
    """
    gc.collect()
    trim = _trim()
    return trim is not None and bool(trim(0))
