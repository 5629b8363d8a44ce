"""Files read in processes of their own: order, crashes, an early end."""

import multiprocessing
import os

import pytest

from tm_jax.data import readers


class _Crashing:
    """Reads numbers of a file; one file kills its process, another raises."""

    def __call__(self):
        return self._read

    @staticmethod
    def _read(path):
        yield f"{path} begins"
        if path == "crash":
            os._exit(7)
        if path == "error":
            raise RuntimeError("of\nits own")
        yield f"{path} ends"




@pytest.mark.parametrize("workers", [1, 2])
def test_a_crash_costs_one_file(workers):
    paths = ["a", "crash", "b", "error", "c"]
    found = [list(stream) for stream in readers.in_order(paths, _Crashing(), workers)]
    assert found[0] == ["a begins", "a ends"] and found[2] == ["b begins", "b ends"]
    assert found[1] == ["crash begins", readers.Failed("the decoder crashed (exit code 7)")]
    assert found[3] == [
        "error begins", readers.Failed("reading failed: RuntimeError: of its own")
    ]
    assert found[4] == ["c begins", "c ends"]


def test_readers_stop_when_nobody_reads_on():
    streams = readers.in_order(["a", "b", "c"], _Crashing(), 2)
    assert next(next(streams)) == "a begins"
    streams.close()
    assert not multiprocessing.active_children()
