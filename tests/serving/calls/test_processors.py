"""What calls cost a host, on clocks that are set by hand, and who is refused for it."""

import pytest

from tm_jax.serving.calls import processors
from tm_jax.serving.transport import messages
from tm_jax.serving.transport import protocol


class Clocks:
    """Time, and the time that processors and the event loop have worked."""

    def __init__(self):
        self.now = self.process = self.loop = 0.0

    def go_on(self, seconds, process, loop=0.0):
        self.now += seconds
        self.process += process * seconds
        self.loop += loop * seconds

    def make(self, utilisation=0.8, count=2.0):
        return processors.Processors(
            utilisation, count, lambda: self.now, lambda: self.process, lambda: self.loop
        )


def test_a_call_costs_what_calls_cost_of_late():
    clocks = Clocks()
    busy = clocks.make()
    clocks.go_on(100, 2.0)  # Warming up is no call.
    assert busy.capacity() is None  # Nothing is known yet.
    busy.change(1)
    clocks.go_on(1, 0.5)
    assert busy.capacity() is None
    busy.change(2)  # They come one after the other.
    clocks.go_on(3, 1.0)
    assert busy.needed(1) == pytest.approx(0.25)
    assert busy.needed(2) == pytest.approx(0.5) and busy.capacity() == 3
    busy.change(3)  # What was learnt holds for the new one until more is known.
    assert busy.needed(3) == pytest.approx(0.75)
    clocks.go_on(20, 1.2)
    busy.needed(3)
    clocks.go_on(5, 1.2)  # What was long ago counts no more.
    assert busy.needed(3) == pytest.approx(0.6) and busy.capacity() == 4
    busy.change(0)
    clocks.go_on(60, 2.0)
    busy.change(1)  # Nor does what was done without calls.
    assert busy.needed(1) == pytest.approx(0.2)


def test_one_thread_of_packets_fills_up_before_many_processors():
    clocks = Clocks()
    busy = clocks.make(count=64)
    busy.change(8)
    clocks.go_on(5, 4.0, loop=0.7)
    assert busy.needed(8) == pytest.approx(0.7)
    assert busy.capacity() == 9


def test_one_call_is_never_too_many():
    clocks = Clocks()
    busy = clocks.make(count=1)
    busy.change(1)
    clocks.go_on(5, 1.0)
    assert busy.capacity() == 1


def test_the_quota_of_a_container_counts(tmp_path, monkeypatch):
    there = processors.cores()
    monkeypatch.setattr(processors, "_QUOTA", tmp_path / "cpu.max")
    assert processors.cores() >= there
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert processors.cores() == 0.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert processors.cores() >= there


def test_the_caller_whom_the_processors_have_no_time_for_is_refused_in_words(net):
    clocks = Clocks()

    async def go():
        async with net.serve(most=4) as server:
            exchange = server.exchange
            exchange.processors = clocks.make(count=1)
            exchange.open(messages.Start(), "a")
            assert exchange.capacity == 2
            clocks.go_on(5, 0.5)
            with pytest.raises(protocol.ProtocolError, match="processors .* time for 1") as refused:
                exchange.open(messages.Start(), "b")
            assert refused.value.code == "full"
            assert exchange._gauges()["processors_busy"][1] == pytest.approx(0.5)
            next(iter(exchange.calls.values())).end("stopped")
            exchange.open(messages.Start(), "b")

    net.run(go(), 30)
