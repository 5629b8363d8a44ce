"""Calls over the WebSocket with fake devices: course, isolation, refusal, reconnection."""

import asyncio
import gc
import os

import numpy as np
import pytest

from tm_jax.serving import config
from tm_jax.serving import messages
from tm_jax.serving import protocol
from tm_jax.serving import voice

pytest.importorskip("aiohttp")
from tm_jax.serving import client  # noqa: E402  Needs the extra.


def tone(seconds, level=5000):
    return np.full(int(seconds * 24000), level, "<i2").tobytes()


async def frames(call, count):
    """The next frames of a call."""
    return [await call.wait_for(messages.Frames) for _ in range(count)]


async def talk(call, seconds, level=5000):
    """Sends sound as a microphone does."""
    loop = asyncio.get_running_loop()
    start_s = loop.time()
    for index in range(round(seconds / 0.02)):
        await asyncio.sleep(start_s + 0.02 * index - loop.time())
        await call.send_sound(tone(0.02, level))


def loud(message):
    return np.abs(np.frombuffer(message.pcm, "<i2")).max() > 100


def test_a_call_from_hello_to_ended(net):
    async def go():
        async with net.serve() as server, client.connect(server.url) as call:
            welcome = call.welcome
            assert (welcome.width, welcome.height, welcome.fps) == (16, 16, 25)
            assert welcome.modes == ["mirror", "file"] and welcome.sample_rate == 24000
            started = await call.start(mode="mirror", character="bob")
            assert (started.character, started.resumed) == ("bob", False)
            shown = await frames(call, 6)
            assert [f.frame for f in shown] == list(range(6))
            assert [f.pts for f in shown] == [960 * i for i in range(6)]
            assert [f.first for f in shown] == [True, False] * 3
            assert all(len(f.pcm) == 1920 and f.jpegs[0][:2] == b"\xff\xd8" for f in shown)
            timing = await call.wait_for(messages.Timing)
            assert set(timing.spans) == set(protocol.SPANS) - {"playout"}
            stats = await call.wait_for(messages.Stats)
            assert (stats.sessions, stats.capacity) == (1, 2)
            await call.stop()
            assert (await call.wait_for(messages.Ended)).reason == "stopped"
            with pytest.raises(client.Closed) as closed:
                while True:
                    await call.receive()
            assert closed.value.code == 1000
            await net.until(lambda: server.sessions == 0)
            assert server.exchange.engine.sessions == 0

    net.run(go())


def test_the_mirror_speaks_what_it_hears_and_says_where_it_comes_from(net):
    async def go():
        async with net.serve() as server, client.connect(server.url) as call:
            await call.start(mode="mirror")
            talking = asyncio.create_task(talk(call, 1.0))
            found = await frames(call, 25)
            await talking
            spoken = [f for f in found if loud(f)]
            assert len(spoken) > 8
            assert all(f.own_voice for f in spoken)
            sources = [f.source for f in spoken[1:-1] if f.source != protocol.NO_SOURCE]
            steps = np.diff(sources)
            assert (steps >= 0).all() and (steps == 960).mean() > 0.7

    net.run(go())


def test_a_file_is_spoken_whole_and_ahead_of_time(net):
    async def go():
        async with net.serve() as server, client.connect(server.url) as call:
            await call.start(mode="file")
            await call.send_sound(tone(0.8))
            await call.send(messages.SpeechEnd())
            found = await frames(call, 30)
            spoken = [i for i, f in enumerate(found) if loud(f)]
            assert len(spoken) in (20, 21) and spoken[-1] - spoken[0] == len(spoken) - 1
            assert not any(f.own_voice for f in found) and found[spoken[3]].speaking

    net.run(go())


def test_callers_do_not_hear_each_other(net):
    async def go():
        async with net.serve(lanes=1, batch=3) as server:
            async with client.connect(server.url) as one, client.connect(server.url) as two:
                await one.start(mode="file", character="ann")
                await two.start(mode="file", character="bob")
                await one.send_sound(tone(0.5))
                first, second = await asyncio.gather(frames(one, 20), frames(two, 20))
                assert any(map(loud, first)) and not any(map(loud, second))

    net.run(go())


def test_an_interruption_silences_and_raises_the_generation(net):
    async def go():
        async with net.serve() as server, client.connect(server.url) as call:
            await call.start(mode="file")
            await call.send_sound(tone(3.0))
            while not loud(await call.wait_for(messages.Frames)):
                pass
            await call.send(messages.Interrupt())
            told = await call.wait_for(messages.Interrupted)
            assert (told.generation, told.reason) == (1, "client")
            while (frame := await call.wait_for(messages.Frames)).generation == 0:
                pass
            assert not any(map(loud, [frame, *await frames(call, 8)]))

    net.run(go())


def test_modes_characters_poses_and_reset(net):
    async def go():
        async with net.serve() as server, client.connect(server.url) as call:
            await call.start()
            for message in (
                messages.Mode(mode="file"), messages.Avatar(avatar="speak"),
                messages.Character(character="bob"),
            ):
                await call.send(message)
                assert await call.wait_for(type(message)) == message
            await asyncio.sleep(0.2)
            while not (await call.wait_for(messages.Frames)).speaking:
                pass
            await call.send(messages.Reset())
            told = await call.wait_for(messages.Interrupted)
            assert told.reason == "reset"
            while (frame := await call.wait_for(messages.Frames)).generation < told.generation:
                pass
            assert (frame.frame, frame.pts) == (0, 0)
            await call.send(messages.Ping(t=5.0))
            assert (await call.wait_for(messages.Pong)).t == 5.0

    net.run(go())


@pytest.mark.parametrize(
    "fields,code",
    [
        ({"character": "../../etc/passwd"}, "unknown_character"),
        ({"mode": "agent"}, "unknown_agent"),
        ({"mode": "agent", "agent": "nobody"}, "unknown_agent"),
    ],
)
def test_wishes_that_cannot_be_met_leave_the_connection_usable(net, fields, code):
    async def go():
        async with net.serve() as server, client.connect(server.url) as call:
            with pytest.raises(protocol.ProtocolError) as error:
                await call.start(**fields)
            assert error.value.code == code
            await call.start()
            await frames(call, 2)
            assert server.exchange.engine.sessions == 1

    net.run(go())


def test_one_more_than_capacity_is_refused_with_words(net):
    async def go():
        async with net.serve(lanes=1) as server:
            async with client.connect(server.url) as one, client.connect(server.url) as two:
                await one.start()
                with pytest.raises(protocol.ProtocolError, match="1 calls in real time") as error:
                    await two.start()
                assert error.value.code == "full"
                with pytest.raises(client.Closed) as closed:
                    await two.receive()
                assert closed.value.code == 4009
                await frames(one, 4)

    net.run(go())


def test_an_address_gets_only_so_many_calls(net):
    async def go():
        limits = config.Limits(per_address=1)
        async with net.serve(lanes=3, limits=limits) as server:
            async with client.connect(server.url) as one, client.connect(server.url) as two:
                await one.start()
                with pytest.raises(protocol.ProtocolError, match="Your address") as error:
                    await two.start()
                assert error.value.code == "too_many_sessions"

    net.run(go())


def test_a_broken_connection_goes_on_where_it_was(net):
    async def go():
        async with net.serve() as server:
            async with client.connect(server.url) as call:
                started = await call.start(mode="file", character="bob")
                last = (await frames(call, 4))[-1]
                net.cut(call)
            await net.until(lambda: all(c.lost_s is not None for c in server.exchange.calls.values()))
            assert server.sessions == 1
            async with client.connect(server.url, resume=started.resume) as again:
                now = again.started
                assert (now.resumed, now.session) == (True, started.session)
                assert (now.mode, now.character) == ("file", "bob")
                assert now.generation > 0
                frame = (await frames(again, 1))[0]
                assert frame.generation == now.generation and frame.frame > last.frame

    net.run(go())


def test_a_lost_caller_is_given_up_after_a_while(net):
    async def go():
        async with net.serve(limits=config.Limits(resume_s=0.2)) as server:
            async with client.connect(server.url) as call:
                started = await call.start()
                net.cut(call)
            await net.until(lambda: server.sessions == 0)
            with pytest.raises(protocol.ProtocolError) as error:
                async with client.connect(server.url, resume=started.resume):
                    pass
            assert error.value.code == "unknown_session"

    net.run(go())


def test_a_lost_call_gives_way_to_a_new_one_of_its_address(net):
    async def go():
        async with net.serve(lanes=1) as server:
            async with client.connect(server.url) as call:
                await call.start()
                net.cut(call)
            await net.until(lambda: all(c.lost_s is not None for c in server.exchange.calls.values()))
            async with client.connect(server.url) as again:
                await again.start()
                await frames(again, 2)
                assert server.sessions == 1

    net.run(go())


def test_a_newer_connection_takes_over(net):
    async def go():
        async with net.serve() as server, client.connect(server.url) as old:
            started = await old.start()
            async with client.connect(server.url, resume=started.resume) as new:
                with pytest.raises(client.Closed) as closed:
                    while True:
                        await old.receive()
                assert closed.value.code == protocol.CLOSE_TAKEN_OVER
                await frames(new, 3)
                assert server.sessions == 1

    net.run(go())


def test_silent_and_endless_calls_end_with_a_warning(net):
    async def go(limits, reason):
        async with net.serve(limits=limits) as server, client.connect(server.url) as call:
            await call.start()
            talking = asyncio.create_task(talk(call, 2.0, 5000 if reason == "lifetime" else 10))
            assert (await call.wait_for(messages.Ending)).reason == reason
            with pytest.raises(protocol.ProtocolError) as error:
                await call.wait_for(messages.Ended)
            assert error.value.code == reason
            assert (await call.wait_for(messages.Ended)).reason == reason
            talking.cancel()
            await net.until(lambda: server.sessions == 0)

    net.run(go(config.Limits(idle_s=0.6, notice_s=0.3), "idle"))
    net.run(go(config.Limits(lifetime_s=0.6, notice_s=0.3), "lifetime"))


def test_draining_tells_the_callers_and_takes_no_more(net):
    async def go():
        async with net.serve() as server:
            async with client.connect(server.url) as call, client.connect(server.url) as late:
                await call.start()
                drain = asyncio.create_task(server.exchange.drain(0.5))
                ending = await call.wait_for(messages.Ending)
                assert (ending.reason, ending.in_s) == ("draining", 0.5)
                with pytest.raises(protocol.ProtocolError) as error:
                    await late.start()
                assert error.value.code == "draining"
                await frames(call, 3)  # The call itself goes on for a while.
                assert (await call.wait_for(messages.Ended)).reason == "draining"
                with pytest.raises(client.Closed) as closed:
                    await call.receive()
                assert closed.value.code == 4012
                await drain
                assert server.sessions == 0

    net.run(go())


def test_garbage_is_answered_and_too_much_of_it_ends_the_connection(net):
    async def go():
        limits = config.Limits(bad_messages=8)
        async with net.serve(limits=limits) as server:
            async with client.connect(server.url) as good, client.connect(server.url) as bad:
                await good.start(), await bad.start()
                rubbish = ["", "{", "[]", '{"type":"nothing"}', '{"type":"mode","mode":7}',
                           b"\x00", b"T\x01\x02\x00" + b"\xff" * 11, os.urandom(500)]
                for data in rubbish:
                    send = bad._socket.send_str if isinstance(data, str) else bad._socket.send_bytes
                    await send(data)
                errors = []
                with pytest.raises(client.Closed) as closed:
                    while True:
                        message = await bad.receive()
                        if isinstance(message, messages.Error):
                            errors.append(message.code)
                assert errors == ["bad_message"] * 8
                assert closed.value.code == protocol.CLOSE_BAD_MESSAGES
                await frames(good, 4)

    net.run(go())


def test_a_message_that_is_too_large_closes_only_its_connection(net):
    async def go():
        async with net.serve() as server:
            async with client.connect(server.url) as good, client.connect(server.url) as bad:
                await good.start(), await bad.start()
                await bad._socket.send_bytes(b"T\x01\x02\x00" + bytes(200_000))
                with pytest.raises(client.Closed) as closed:
                    while True:
                        await bad.receive()
                assert closed.value.code == 1009
                await frames(good, 4)

    net.run(go())


def test_a_microphone_faster_than_time_is_told_so(net):
    async def go():
        async with net.serve() as server, client.connect(server.url) as call:
            await call.start(mode="mirror")
            await call.send_sound(tone(4.0))
            with pytest.raises(protocol.ProtocolError) as error:
                await call.wait_for(messages.Ended)
            assert error.value.code == "too_fast"
            await frames(call, 2)

    net.run(go())


def test_a_client_that_does_not_read_is_dropped_and_others_see_nothing_of_it(net):
    async def go():
        limits = config.Limits(per_address=9, send_s=0.5)
        async with net.serve(limits=limits) as server:
            async with client.connect(server.url) as good, client.connect(server.url) as stuck:
                await good.start(mode="file")
                await stuck.start(mode="file")
                call = server.exchange.calls[stuck.started.session]
                stuck._socket._response.connection.transport.pause_reading()
                connection = call._connection
                big = b"\xff\xd8" + bytes(300_000)  # Fills the buffers of a local socket.
                times, loop = [], asyncio.get_running_loop()
                for index in range(60):
                    connection._outbox.push_frame(0, index % 2 == 0, big)
                    connection._wake.set()
                    await frames(good, 1)
                    times.append(loop.time())
                assert connection.dropped > 0
                assert len(connection._outbox) <= 60
                assert np.diff(times).max() < 0.3  # Nobody else waits.
                await net.until(lambda: call.lost_s is not None)
                net.cut(stuck)

    net.run(go())


def test_a_hundred_hang_ups_and_drops_leave_nothing_behind(net):
    async def go():
        limits = config.Limits(per_address=1000, resume_s=0.05)
        async with net.serve(lanes=4, limits=limits) as server:
            async def visit(index):
                async with client.connect(server.url) as call:
                    await call.start(mode="file" if index % 2 else "mirror")
                    await call.send_sound(tone(0.1))
                    await frames(call, 1 + index % 3)
                    if index % 3 == 0:
                        await call.send(messages.Interrupt())
                    if index % 2:
                        net.cut(call)
                    else:
                        await call.stop()

            async def settle():
                await net.until(lambda: server.sessions == 0)
                await asyncio.sleep(0.1)
                gc.collect()

            for index in range(4):
                await visit(index)
            await settle()
            files, tasks = len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())
            streams = sum(type(o).__name__ == "Stream" for o in gc.get_objects())
            for start in range(0, 100, 4):
                await asyncio.gather(*(visit(start + i) for i in range(4)))
                await net.until(lambda: server.sessions == 0)
            await settle()
            assert len(os.listdir("/proc/self/fd")) <= files + 1
            assert len(asyncio.all_tasks()) <= tasks
            assert sum(type(o).__name__ == "Stream" for o in gc.get_objects()) <= streams
            assert server.exchange.engine.sessions == 0

    net.run(go(), timeout_s=60)


class Echoing(voice.Silent):
    """Answers every sound with a second of speech; says what it is told."""

    made = []

    def __init__(self):
        self.told = []
        Echoing.made.append(self)

    async def start(self, line):
        self.line = line
        self.told.append("start")

    async def hear(self, pcm):
        if not self.line.speaking and "spoke" not in self.told:
            self.told.append("spoke")
            self.line.state("speaking")
            self.line.caption("avatar", "i1", "Hello", True)
            self.line.speak(tone(0.4), "i1")
            self.line.finish("i1")

    async def finished(self, item):
        self.told.append(f"finished {item}")

    async def interrupted(self, played):
        self.told.append(("interrupted", played))

    async def close(self):
        self.told.append("close")


class Broken(voice.Silent):
    async def start(self, line):
        raise OSError("no key in the environment")


AGENTS = (
    voice.Agent(id="echo", name="Echo", make=Echoing),
    voice.Agent(id="broken", name="Broken", make=Broken),
)


def test_an_agent_speaks_is_told_what_was_heard_and_is_closed(net):
    async def go():
        async with net.serve(agents=AGENTS) as server, client.connect(server.url) as call:
            assert call.welcome.agents[0] == {"id": "echo", "name": "Echo"}
            started = await call.start(mode="agent")
            assert started.agent == "echo"
            await asyncio.sleep(0.05)
            await call.send_sound(tone(0.02))
            caption = await call.wait_for(messages.Caption)
            assert (caption.role, caption.text, caption.final) == ("avatar", "Hello", True)
            agent = Echoing.made[-1]
            while "finished i1" not in agent.told:
                await call.wait_for(messages.Frames)
            await call.send(messages.Mode(mode="mirror"))
            await call.wait_for(messages.Mode)
            await net.until(lambda: "close" in agent.told)
            assert not agent.line.speak(tone(0.1), "late")  # Its line is cut.

    net.run(go())


def test_an_interrupted_agent_learns_how_much_was_heard(net):
    async def go():
        async with net.serve(agents=AGENTS) as server, client.connect(server.url) as call:
            await call.start(mode="agent", agent="echo")
            await asyncio.sleep(0.05)
            await call.send_sound(tone(0.02))
            while not loud(frame := await call.wait_for(messages.Frames)):
                pass
            await frames(call, 1)
            await call.send(messages.Played(generation=0, frame=frame.frame + 1))
            await call.send(messages.Interrupt())
            agent = Echoing.made[-1]
            await net.until(lambda: any(t[0] == "interrupted" for t in agent.told))
            played = agent.told[-1][1]
            assert played.item == "i1" and 20 <= played.audio_end_ms <= 200

    net.run(go())


def test_an_agent_that_cannot_start_leaves_a_listening_avatar(net):
    async def go():
        async with net.serve(agents=AGENTS) as server, client.connect(server.url) as call:
            await call.start(mode="agent", agent="broken")
            with pytest.raises(protocol.ProtocolError, match="no key") as error:
                await call.wait_for(messages.Ended)
            assert error.value.code == "agent_failed"
            assert not any(map(loud, await frames(call, 4)))

    net.run(go())


def test_failing_devices_end_the_call_with_words(net):
    async def go():
        async with net.serve() as server, client.connect(server.url) as call:
            await call.start()
            await frames(call, 2)
            server.devices.fail = RuntimeError("secret inside")
            with pytest.raises(protocol.ProtocolError, match="devices failed") as error:
                await call.wait_for(messages.Ended)
            assert error.value.code == "internal" and "secret" not in str(error.value)

    net.run(go())
