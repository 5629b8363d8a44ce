"""How many streams a host serves in real time, by measurement before the first call."""

import dataclasses
import statistics
import time

from absl import logging
import numpy as np

from tm_jax.serving.runtime import backend as backend_lib

_WARM, _TIMED = 2, 5  # Chunks before and in a measurement.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How streams are laid out.

    Attributes:
      batch: Slots of a lane.
      lanes: Lanes.
      step_s: Time from the dispatch of a lane's chunk to its frames.
      period_s: Time for a lane's chunk when one follows the other.
      begin_s: Time to begin a stream.
      real_time: Whether even one stream is served in real time.
    """

    batch: int
    lanes: int
    step_s: float
    period_s: float
    begin_s: float
    real_time: bool

    @property
    def capacity(self) -> int:
        """Streams at the same time."""
        return self.batch * self.lanes


def measure(backend: backend_lib.Backend, batch: int) -> tuple[float, float, float]:
    """Compiles and times a lane.

    Args:
      backend: The devices.
      batch: Slots of the lane.

    Returns:
      Seconds from dispatch to frames, seconds a chunk in a row, seconds of a new stream.
    """
    picture = np.full((backend.height, backend.width, 3), 128, np.uint8)
    step = 16000 * backend.chunk_frames // backend.fps
    noise = np.random.default_rng(0).normal(0, 0.1, (batch, backend.before + step + backend.after))
    sounds = noise.astype(np.float32)
    poses, clear = np.full(batch, backend_lib.AUTO, np.int32), np.zeros(batch, bool)
    lane = backend.lane(batch)
    for slot in (*range(batch), 0):  # The last one is put into a running batch.
        started_s = time.perf_counter()
        backend.begin(lane, slot, picture, slot, 0)
        for _ in range(_WARM):
            backend.step(lane, sounds, poses, clear).wait()
    started_s = time.perf_counter()
    backend.begin(lane, 0, picture, 0, 0)
    first_s = time.perf_counter()
    backend.step(lane, sounds, poses, clear).wait()
    times = [time.perf_counter()]
    for _ in range(_TIMED):
        backend.step(lane, sounds, poses, clear).wait()
        times.append(time.perf_counter())
    alone_s = statistics.median(np.diff(times).tolist())
    # What a new stream costs beyond its first chunk; `begin` itself does not wait.
    begin_s = max(first_s - started_s, times[0] - started_s - alone_s)
    jobs, row_s = [], time.perf_counter()
    for _ in range(_TIMED):
        jobs.append(backend.step(lane, sounds, poses, clear))
        if len(jobs) >= backend.depth:
            jobs.pop(0).wait()
    for job in jobs:
        job.wait()
    period_s = (time.perf_counter() - row_s) / _TIMED
    return alone_s, period_s, begin_s


def plan(
    backend: backend_lib.Backend, batches: tuple[int, ...] = (1,), *, most: int = 32,
    utilisation: float = 0.8,
) -> Plan:
    """Measures batch sizes and chooses the layout that serves most streams.

    Of layouts that serve equally many the one with the smaller batch is taken: its chunks
    are done sooner.

    Args:
      backend: The devices.
      batches: Sizes to try, growing; a size that is slower than real time ends the search.
      most: Streams that are wanted at most.
      utilisation: Part of the time that the devices may work.

    Returns:
      The plan; of one stream if not even that is served in real time.
    """
    if not batches:
        raise ValueError("batches: expected at least one batch size, got none.")
    budget_s = utilisation * backend.chunk_frames / backend.fps
    best = None
    for batch in sorted(set(batches)):
        step_s, period_s, begin_s = measure(backend, batch)
        # A lane also has to be done before its next chunk.
        lanes = 0 if step_s > budget_s else int(budget_s / max(period_s, 1e-6))
        lanes = min(lanes, -(-most // batch))
        found = Plan(
            batch=batch, lanes=max(1, lanes), step_s=step_s, period_s=period_s,
            begin_s=begin_s, real_time=lanes > 0,
        )
        logging.info("Batch of %d: %s.", batch, found)
        better = best is None or min(found.capacity, most) > min(best.capacity, most)
        if best is None or (lanes and better):
            best = found
        if not lanes or best.capacity >= most:
            break
    assert best is not None  # The first batch is taken.
    if not best.real_time:
        logging.warning(
            "A chunk of %.2f s takes %.2f s here: even one call will stutter.",
            backend.chunk_frames / backend.fps, best.step_s,
        )
    return best
