"""Connections that break, hang, lie or go away: the call goes on or ends, others notice nothing."""

import asyncio
import gc
import os

import numpy as np
import pytest

from tm_jax.serving import config
from tm_jax.serving.transport import messages
from tm_jax.serving.transport import protocol

pytest.importorskip("aiohttp")
from tm_jax.serving import client  # noqa: E402  Needs the extra.


def test_a_broken_connection_goes_on_where_it_was(net):
    async def go():
        async with net.serve() as server:
            async with client.connect(server.url) as call:
                started = await call.start(mode="file", character="bob")
                last = (await net.frames(call, 4))[-1]
                await net.lose(server, call)
            assert server.sessions == 1
            async with client.connect(server.url, resume=started.resume) as again:
                now = again.started
                assert (now.resumed, now.session) == (True, started.session)
                assert (now.mode, now.character) == ("file", "bob")
                assert now.generation > 0
                frame = (await net.frames(again, 1))[0]
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
                await net.lose(server, call)
            async with client.connect(server.url) as again:
                await again.start()
                await net.frames(again, 2)
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
                await net.frames(new, 3)
                assert server.sessions == 1

    net.run(go())


def test_silent_and_endless_calls_end_with_a_warning(net):
    async def go(limits, reason):
        async with net.serve(limits=limits) as server, client.connect(server.url) as call:
            await call.start()
            talking = asyncio.create_task(net.talk(call, 2.0, 5000 if reason == "lifetime" else 10))
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
                await net.frames(call, 3)  # The call itself goes on for a while.
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
                await net.frames(good, 4)

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
                await net.frames(good, 4)

    net.run(go())


def test_a_microphone_faster_than_time_is_told_so(net):
    async def go():
        async with net.serve() as server, client.connect(server.url) as call:
            await call.start(mode="mirror")
            await call.send_sound(net.tone(4.0))
            with pytest.raises(protocol.ProtocolError) as error:
                await call.wait_for(messages.Ended)
            assert error.value.code == "too_fast"
            await net.frames(call, 2)

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
                    await net.frames(good, 1)
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
                    await call.send_sound(net.tone(0.1))
                    await net.frames(call, 1 + index % 3)
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
