"""One process of several that train a toy: what test_hosts.py starts.

  python hosts_program.py HOST:PORT,COUNT,INDEX DEVICES WORKDIR STEPS [term|kill INDEX AT]

With `term` or `kill` the process INDEX gets that signal before batch AT, when the checkpoint
before it is on disk.
"""

import os
import signal
import sys
import time

import jax

from tests.training import hosts_toy
from tm_jax.parallel import hosts
from tm_jax.training import loop


class _Signalling:
    """Input that sends its own process a signal."""

    def __init__(self, inner, number, at, folder):
        self._inner, self._number, self._at, self._folder = iter(inner), number, at, folder
        self.get_state, self.set_state = self._inner.get_state, self._set_state
        self._count = 0

    def _set_state(self, state):
        self._inner.set_state(state)
        self._count = int(sorted(n for n in os.listdir(self._folder) if n.isdecimal())[-1])

    def __iter__(self):
        return self

    def __next__(self):
        if self._count == self._at:
            deadline = time.monotonic() + 60
            while not os.path.isdir(os.path.join(self._folder, str(self._at))):
                assert time.monotonic() < deadline, os.listdir(self._folder)
                time.sleep(0.05)
            os.kill(os.getpid(), self._number)
        self._count += 1
        return next(self._inner)


def main(place, devices, workdir, steps, what=None, index=None, at=None):
    """Trains and says what came of it."""
    jax.config.update("jax_num_cpu_devices", int(devices))
    hosts.start(place, {})
    stage = hosts_toy.stage()
    if what and int(index) == jax.process_index():
        folder = os.path.join(workdir, stage.name, "checkpoints")
        number = signal.SIGTERM if what == "term" else signal.SIGKILL
        plain = stage.batches
        object.__setattr__(
            stage, "batches",
            lambda seed, rows=None: _Signalling(plain(seed, rows), number, int(at), folder),
        )
    try:
        result = loop.run(stage, workdir, int(steps), hosts_toy.LOOP)
    except OSError as error:
        sys.exit(f"lost: {error}")
    print("read", sorted(hosts_toy.READ), flush=True)
    print("stopped" if result is None else "finished", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
