"""Gives memory that was freed back to the system.

The C library keeps what threads have freed for later; after uploads and many calls that is
tens of megabytes which no other process can use.
"""

import ctypes
import functools


@functools.cache
def _trim():
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):  # Another C library than glibc.
        return None


def give_back() -> bool:
    """Returns freed memory to the system, where the C library can; takes milliseconds."""
    trim = _trim()
    return trim is not None and bool(trim(0))
