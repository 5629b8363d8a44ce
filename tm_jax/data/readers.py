"""Reads many files in processes of their own, and hands on what they hold in the files' order.

What comes out does not depend on the number of processes. A file whose reader crashes (decoders
are C code) costs that file and nothing else. A reader is never more than one item ahead of its
consumer, so that memory does not grow with the files.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import multiprocessing
from multiprocessing import connection
from multiprocessing import process
import os
import signal
from typing import Any, NamedTuple

Read = Callable[[str], Iterator[Any]]


class Failed(NamedTuple):
    """Takes the place of the rest of a file that could not be read on.

    Attributes:
      reason: Why, in a few words.
    """

    reason: str


class _End(NamedTuple):
    pass


def in_order(
    paths: Sequence[str | os.PathLike], make: Callable[[], Read], workers: int
) -> Iterator[Iterator[Any]]:
    """Reads files.

    Args:
      paths: Files.
      make: Makes the function that reads one file; picklable, called once in each process.
      workers: Processes; 0 reads in this one.

    Yields:
      For each file an iterator over its items, perhaps with `Failed` as the last; to be used
      up before the next.
    """
    if workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}.")
    files = [os.fspath(path) for path in paths]
    if not workers:
        read = make()
        for file in files:
            yield _safely(read, file)
        return
    with contextlib.ExitStack() as stack:
        count = min(workers, len(files))
        pool = [stack.enter_context(_Worker(files[i::count], make)) for i in range(count)]
        for index in range(len(files)):
            yield pool[index % count].next_file()


def _safely(read: Read, path: str) -> Iterator[Any]:
    """Items of a file; an error of its reader becomes the last one."""
    try:
        yield from read(path)
    except Exception as error:  # Whatever is wrong with one file must not stop the others.
        yield Failed(f"reading failed: {type(error).__name__}: {' '.join(str(error).split())}")


class _Worker:
    """One process and the files it reads; replaced by another when it dies."""

    # Of the process that runs now; `_start` sets both.
    _process: process.BaseProcess
    _pipe: connection.Connection

    def __init__(self, paths: Sequence[str], make: Callable[[], Read]):
        self._paths, self._make, self._at = list(paths), make, 0

    def __enter__(self) -> "_Worker":
        self._start()
        return self

    def __exit__(self, *unused) -> None:
        self._stop()

    def next_file(self) -> Iterator[Any]:
        """Items of the next file."""
        while True:
            try:
                item = self._pipe.recv()
            except (EOFError, OSError):
                self._stop()
                code = self._process.exitcode
                self._at += 1
                if self._at < len(self._paths):
                    self._start()
                yield Failed(f"the decoder crashed (exit code {code})")
                return
            if isinstance(item, _End):
                self._at += 1
                return
            yield item

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # A fork would copy locks of JAX.
        self._pipe, end = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_work, args=(self._paths[self._at :], self._make, end), daemon=True
        )
        self._process.start()
        end.close()  # The other side's alone: its death is the end of the pipe.

    def _stop(self) -> None:
        self._pipe.close()
        self._process.join(1)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()


def _work(paths: Sequence[str], make: Callable[[], Read], pipe) -> None:
    """Runs in a process: sends the items of its files, one file after the other."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle.
    try:
        read = make()
        for path in paths:
            for item in _safely(read, path):
                pipe.send(item)
            pipe.send(_End())
    except (BrokenPipeError, ConnectionResetError):
        pass  # The reader has stopped.
