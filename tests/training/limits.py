"""A full disk for tests: files of this process cannot grow."""

import contextlib
import resource


@contextlib.contextmanager
def small_files(limit: int = 1 << 15):
    """Inside, writing past `limit` bytes of a file fails, in every thread."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
