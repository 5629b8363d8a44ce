"""Calls over the WebSocket with fake devices: their course, modes, and who is refused."""

import asyncio

import numpy as np
import pytest

from tm_jax.serving import config
from tm_jax.serving.transport import messages
from tm_jax.serving.transport import protocol

pytest.importorskip("aiohttp")
from tm_jax.serving import client  # noqa: E402  Needs the extra.


def test_a_call_from_hello_to_ended(net):
    async def go():
        async with net.serve() as server, client.connect(server.url) as call:
            welcome = call.welcome
            assert (welcome.width, welcome.height, welcome.fps) == (16, 16, 25)
            assert welcome.modes == ["mirror", "file"] and welcome.sample_rate == 24000
            started = await call.start(mode="mirror", character="bob")
            assert (started.character, started.resumed) == ("bob", False)
            shown = await net.frames(call, 6)
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
            talking = asyncio.create_task(net.talk(call, 1.0))
            found = await net.frames(call, 25)
            await talking
            spoken = [f for f in found if net.loud(f)]
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
            await call.send_sound(net.tone(0.8))
            await call.send(messages.SpeechEnd())
            found = await net.frames(call, 30)
            spoken = [i for i, f in enumerate(found) if net.loud(f)]
            assert len(spoken) in (20, 21) and spoken[-1] - spoken[0] == len(spoken) - 1
            assert not any(f.own_voice for f in found) and found[spoken[3]].speaking

    net.run(go())


def test_callers_do_not_hear_each_other(net):
    async def go():
        async with net.serve(lanes=1, batch=3) as server:
            async with client.connect(server.url) as one, client.connect(server.url) as two:
                await one.start(mode="file", character="ann")
                await two.start(mode="file", character="bob")
                await one.send_sound(net.tone(0.5))
                first, second = await asyncio.gather(net.frames(one, 20), net.frames(two, 20))
                assert any(map(net.loud, first)) and not any(map(net.loud, second))

    net.run(go())


def test_an_interruption_silences_and_raises_the_generation(net):
    async def go():
        async with net.serve() as server, client.connect(server.url) as call:
            await call.start(mode="file")
            await call.send_sound(net.tone(3.0))
            while not net.loud(await call.wait_for(messages.Frames)):
                pass
            await call.send(messages.Interrupt())
            told = await call.wait_for(messages.Interrupted)
            assert (told.generation, told.reason) == (1, "client")
            while (frame := await call.wait_for(messages.Frames)).generation == 0:
                pass
            assert not any(map(net.loud, [frame, *await net.frames(call, 8)]))

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
            await net.frames(call, 2)
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
                await net.frames(one, 4)

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


def test_failing_devices_end_the_call_with_words(net):
    async def go():
        async with net.serve() as server, client.connect(server.url) as call:
            await call.start()
            await net.frames(call, 2)
            server.devices.fail = RuntimeError("secret inside")
            with pytest.raises(protocol.ProtocolError, match="devices failed") as error:
                await call.wait_for(messages.Ended)
            assert error.value.code == "internal" and "secret" not in str(error.value)

    net.run(go())
