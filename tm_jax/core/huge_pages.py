"""Large pages of memory for what XLA allocates on a CPU."""

import os
import platform
import sys

_VARIABLE, _TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
_MODE = "/sys/kernel/mm/transparent_hugepage/enabled"
_SINCE = (2, 35)  # Of glibc.


def environment() -> dict[str, str]:
    """What a process needs in its environment to get large pages; empty where nothing helps.

    XLA takes the memory of a program's intermediate values anew at every run. In pages of 4 KiB,
    the default, the kernel hands out hundreds of thousands of them in a training step: a quarter
    to a third of its time. A chunk of a stream is small, and gains nothing. Where large pages are
    given on request only, as on most Linux systems, glibc requests them if it is told so as the
    process starts.
    """
    if sys.platform != "linux" or _TUNABLE in os.environ.get(_VARIABLE, ""):
        return {}
    library, version = platform.libc_ver()
    if library != "glibc" or tuple(int(n) for n in version.split(".")[:2]) < _SINCE:
        return {}
    try:
        with open(_MODE, encoding="ascii") as file:
            on_request = "[madvise]" in file.read()
    except OSError:
        return {}
    if not on_request:
        return {}
    given = os.environ.get(_VARIABLE)
    return {_VARIABLE: f"{given}:{_TUNABLE}=1" if given else f"{_TUNABLE}=1"}


def restart() -> None:
    """Runs the program again, from its start, with `environment`; does nothing if it is empty.

    Call it first: what the process has done until then is lost, its number stays.
    """
    more = environment()
    if more:
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | more)
