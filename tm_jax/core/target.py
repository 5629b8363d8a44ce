"""The kind of device that programs are traced for: this process's own, or one that is planned for.

A few layers are written in another way for CPUs. Whoever compiles for devices that are not
there says so with `tracing_for`; everybody else gets the backend of the process.
"""

from collections.abc import Iterator
import contextlib
import contextvars

import jax

_PLATFORM: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


def platform() -> str:
    """Platform that is traced for: "cpu", "gpu" or "tpu"."""
    return _PLATFORM.get() or jax.default_backend()


@contextlib.contextmanager
def tracing_for(name: str) -> Iterator[None]:
    """Programs that are traced within are written for platform `name`.

    A function that `jax.jit` has traced before is not traced again: make it within.
    """
    token = _PLATFORM.set(name)
    try:
        yield
    finally:
        _PLATFORM.reset(token)
