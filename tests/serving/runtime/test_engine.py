"""The engine with fake devices: pace, order, lanes, interruption, failures."""

import threading
import time

import numpy as np
import pytest

from tm_jax.serving.runtime import capacity
from tm_jax.serving.runtime import engine as engine_lib
from tm_jax.serving.runtime import fake
from tm_jax.serving.transport import protocol

CHUNK_S = 0.08  # Two frames: tests need not wait half a second for a chunk.


def backend(**arguments):
    return fake.FakeBackend(side=16, chunk_frames=2, **arguments)


@pytest.fixture
def make():
    """Makes engines that are closed at the end."""
    made = []

    def new(devices=None, **arguments):
        made.append(engine_lib.Engine(devices or backend(), **arguments))
        return made[-1]

    yield new
    for engine in made:
        engine.close()


def picture(level=0):
    return np.full((16, 16, 3), level, np.uint8)


class Sink:
    """Opens a stream and collects its chunks with their times."""

    def __init__(self, engine, level=0, **arguments):
        self.chunks, self.times, self.event = [], [], threading.Event()
        arguments.setdefault("raw", True)
        self.stream = None
        self.stream = engine.open(picture(level), notify=self.notify, **arguments)

    def notify(self):
        while self.stream is not None and (chunk := self.stream.pull()) is not None:
            self.chunks.append(chunk)
            self.times.append(time.monotonic())
            self.event.set()

    def wait(self, count, timeout_s=5.0):
        end_s = time.monotonic() + timeout_s
        while len(self.chunks) < count:
            assert time.monotonic() < end_s, f"{len(self.chunks)} of {count} chunks came"
            self.event.wait(0.01)
            self.event.clear()
        return self.chunks


def test_chunks_come_at_the_pace_of_time_and_in_order(make):
    sink = Sink(make())
    chunks = sink.wait(8)
    assert [c.frame for c in chunks[:8]] == list(range(0, 16, 2))
    assert [c.pts for c in chunks[:8]] == list(range(0, 16 * 960, 2 * 960))
    assert {c.generation for c in chunks} == {0}
    assert 6 * CHUNK_S < sink.times[7] - sink.times[0] < 9 * CHUNK_S
    assert not any(c.speaking or c.pcm.any() for c in chunks)  # It listens, it never stops.


def test_sound_is_spoken_once_and_with_its_frames(make):
    sink = Sink(make())
    sink.wait(1)
    tone = np.full(4 * 1920, 3000, "<i2")
    sink.stream.push_pcm(tone.tobytes(), "a")
    sink.stream.end_audio()
    chunks = sink.wait(9)
    pcm = np.concatenate([c.pcm for c in chunks])
    assert pcm.astype(np.int64).sum() == tone.astype(np.int64).sum()
    assert np.ptp(np.flatnonzero(pcm)) == len(tone) - 1  # In one piece.
    shown = np.concatenate([c.frames[:, 0, 0, 0] for c in chunks])
    heard = np.abs(pcm.reshape(-1, 960)).mean(1) > 1000
    np.testing.assert_array_equal(shown[: len(heard)] > 20, heard)


@pytest.mark.parametrize("rate", [8000, 16000, 48000])
def test_sound_of_any_rate_lasts_as_long(make, rate):
    sink = Sink(make())
    sink.wait(1)
    for part in np.array_split(np.full(int(0.4 * rate), 0.5, np.float32), 7):
        assert sink.stream.push_audio(part, rate)
    sink.stream.end_audio()
    pcm = np.concatenate([c.pcm for c in sink.wait(9)])
    assert abs((pcm > 8000).sum() - 0.4 * 24000) < 0.02 * 24000  # The filter holds 15 ms back.


def test_one_more_than_capacity_is_refused_and_a_slot_comes_back(make):
    engine = make(batch=2, lanes=2, most=3)
    sinks = [Sink(engine, level) for level in (10, 20, 30)]
    with pytest.raises(engine_lib.Full, match="3 calls"):
        Sink(engine)
    sinks[1].stream.close()
    sinks[1].stream.close()
    assert engine.sessions == 2
    fourth = Sink(engine, 40)
    fourth.wait(2)
    assert {c.frames[0, -1, 0, 0] for c in fourth.chunks} == {40}
    count = len(sinks[1].chunks)
    sinks[0].wait(len(sinks[0].chunks) + 3)
    assert len(sinks[1].chunks) <= count + 1


def test_streams_of_one_batch_hear_and_show_only_themselves(make):
    engine = make(batch=4, lanes=1)
    sinks = [Sink(engine, level) for level in (50, 100, 150)]
    for sink in sinks:
        sink.wait(2)
    sinks[1].stream.push_pcm(np.full(24000, 5000, "<i2").tobytes())
    for sink in sinks:
        sink.wait(8)
    for sink, level in zip(sinks, (50, 100, 150)):
        assert {f[-1, 0, 0] for c in sink.chunks for f in c.frames} == {level}
    loud = [any(c.pcm.any() for c in s.chunks) for s in sinks]
    moved = [any(c.frames[:, 0].any() for c in s.chunks) for s in sinks]
    assert loud == moved == [False, True, False]


def test_an_interruption_is_silent_at_once_and_raises_the_generation(make):
    sink = Sink(make(backend(step_s=0.01)))
    sink.wait(1)
    sink.stream.push_pcm(np.full(48000, 4000, "<i2").tobytes(), "a")
    count = len(sink.chunks)
    sink.wait(count + 3)
    asked_s = time.monotonic()
    generation = sink.stream.interrupt()
    assert generation == 1 and sink.stream.queued_s == 0
    sink.wait(len(sink.chunks) + 3)
    first = next(i for i, c in enumerate(sink.chunks) if c.generation == 1)
    assert sink.times[first] - asked_s < CHUNK_S  # Well within a chunk.
    assert not any(c.pcm.any() for c in sink.chunks[first:])
    assert any(c.pcm.any() for c in sink.chunks[:first])
    frames = [c.frame for c in sink.chunks]
    assert frames == list(range(0, 2 * len(frames), 2))  # The clock goes on.


def test_many_interruptions_do_not_make_more_than_a_few_chunks(make):
    devices = backend()
    sink = Sink(make(devices))
    sink.wait(1)
    before, started_s = devices.steps, time.monotonic()
    while time.monotonic() - started_s < 5 * CHUNK_S:
        sink.stream.interrupt()
        time.sleep(0.001)
    assert devices.steps - before <= 13


def test_the_other_party_is_heard_in_the_next_chunks_and_never_long_after(make):
    heard = []

    class Watched(fake.FakeBackend):
        def step(self, lane, sounds, poses, clear, others=None):
            sound = others[0, self.before + self.after :].reshape(-1, 640)
            heard.append(np.abs(sound).mean(1))  # Level of each frame.
            return super().step(lane, sounds, poses, clear, others)

    devices = Watched(side=16, chunk_frames=2)
    sink = Sink(make(devices))
    sink.wait(2)
    tone = 0.1 * np.ones(16000, np.float32)  # A second at once: most of it is let go.
    sink.stream.push_other(tone[:333], 16000)
    sink.stream.push_other(tone[333:], 16000)
    sink.wait(12)
    sink.stream.pause()
    levels = np.concatenate(heard)
    loud = np.flatnonzero(levels > 0.01)
    # The next chunk and what may wait for it; a broken frame at either end.
    assert 6 <= len(loud) <= 9 and np.ptp(loud) <= 9
    np.testing.assert_allclose(levels[loud[1:6]], 0.1, atol=0.01)
    assert not any(chunk.pcm.any() or chunk.speaking for chunk in sink.chunks)
    sink.stream.push_other(tone)  # Nobody is there to hear it.
    heard.clear()
    count = len(sink.chunks)
    sink.stream.go_on()
    sink.wait(count + 3)
    assert not np.any(heard)
    with pytest.raises(ValueError, match="finite float32"):
        sink.stream.push_other(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="4000 to 192000"):
        sink.stream.push_other(tone, 100)


def test_a_paused_stream_makes_no_chunks_and_goes_on(make):
    devices = backend()
    sink = Sink(make(devices))
    sink.wait(2)
    sink.stream.pause()
    time.sleep(0.02)
    before = devices.steps
    time.sleep(3 * CHUNK_S)
    assert devices.steps <= before
    assert sink.stream.go_on() == 1
    count = len(sink.chunks)
    assert sink.wait(count + 1)[count].generation == 1


def test_a_new_character_and_a_reset(make):
    sink = Sink(make(), 10)
    sink.wait(2)
    sink.stream.set_character(picture(200))
    count = len(sink.chunks)
    chunks = sink.wait(count + 3)
    assert chunks[-1].frames[0, -1, 0, 0] == 200 and chunks[-1].frame == 2 * (len(chunks) - 1)
    assert sink.stream.reset() == 1
    count = len(sink.chunks)
    chunks = sink.wait(count + 2)
    last = [c for c in chunks if c.generation == 1]
    assert [c.frame for c in last] == list(range(0, 2 * len(last), 2))
    with pytest.raises(ValueError, match="expected uint8"):
        sink.stream.set_character(np.zeros((4, 4, 3), np.uint8))


def test_a_lane_is_computed_while_another_is_shown(make):
    """Two lanes that each need 60 % of the time of a chunk would not fit one after another."""
    chunk_s = 0.4  # Long beside what a busy machine adds to it.
    devices = fake.FakeBackend(side=16, chunk_frames=10, step_s=0.6 * chunk_s, depth=2)
    engine = make(devices, lanes=2)
    sinks = [Sink(engine), Sink(engine)]
    for sink in sinks:
        sink.wait(6)
    assert all(s.times[5] - s.times[0] < 5.7 * chunk_s for s in sinks)  # 6 one after another.
    assert engine.slips == 0


def test_slow_devices_slip_instead_of_piling_up(make):
    engine = make(backend(step_s=2.5 * CHUNK_S))
    sink = Sink(engine)
    sink.wait(6)
    assert engine.slips >= 1


def test_a_failing_device_ends_its_streams_only(make):
    devices = backend()
    engine = make(devices, lanes=2)
    first, second = Sink(engine), Sink(engine)
    first.wait(2), second.wait(2)
    devices.fail = RuntimeError("out of memory")
    end_s = time.monotonic() + 3
    while first.stream.error is None and second.stream.error is None:
        assert time.monotonic() < end_s
        time.sleep(0.005)
    broken, alive = (first, second) if first.stream.error else (second, first)
    assert alive.stream.error is None and engine.healthy
    broken.stream.close()
    alive.wait(len(alive.chunks) + 3)
    again = Sink(engine)
    again.wait(2)


def test_only_one_thread_touches_the_devices(make):
    devices = backend()
    sinks = [Sink(make(devices, lanes=2)) for _ in range(1)]
    for sink in sinks:
        sink.stream.set_character(picture(3))
        sink.wait(3)
    assert len(devices.threads) == 1


def test_jpegs_and_spans(make):
    sink = Sink(make(), raw=False)
    chunk = sink.wait(2)[1]
    assert chunk.frames is None and len(chunk.jpegs) == 2
    assert all(j[:2] == b"\xff\xd8" for j in chunk.jpegs)
    assert set(chunk.spans) == set(protocol.SPANS) - {"send", "playout"}
    assert all(value >= 0 for value in chunk.spans.values())


def test_a_measurement_counts_the_time_of_the_devices():
    step_s, period_s, begin_s = capacity.measure(backend(step_s=0.02, begin_s=0.03), 2)
    assert step_s >= 0.02 and period_s >= 0.02 and begin_s >= 0.03


@pytest.mark.parametrize(
    "times,batches,most,expected",
    [
        ({1: 0.01}, (1,), 32, (1, 6)),  # A chunk lasts 0.08 s, of which 80 % may be used.
        ({1: 0.01}, (1,), 4, (1, 4)),
        ({1: 0.06}, (1,), 32, (1, 1)),
        ({1: 0.03, 2: 0.03, 4: 0.03}, (1, 2, 4), 6, (4, 2)),
        ({1: 0.01, 2: 0.01}, (1, 2), 3, (1, 3)),  # Smaller batches are done sooner.
        ({1: 0.02, 2: 0.04, 4: 0.08}, (1, 2, 4), 32, (1, 3)),  # Larger ones are no gain.
    ],
)
def test_capacity_is_what_fits_into_the_time_of_a_chunk(
    monkeypatch, times, batches, most, expected
):
    monkeypatch.setattr(capacity, "measure", lambda _, b: (times[b], times[b], 0.01))
    found = capacity.plan(backend(), batches, most=most, utilisation=0.8)
    assert (found.batch, found.lanes) == expected and found.real_time


def test_devices_that_are_too_slow_serve_one_and_say_so(monkeypatch):
    monkeypatch.setattr(capacity, "measure", lambda _, b: (0.07, 0.07, 0.01))
    found = capacity.plan(backend(), (1, 2), utilisation=0.8)
    assert found.capacity == 1 and not found.real_time
