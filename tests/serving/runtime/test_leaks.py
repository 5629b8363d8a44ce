"""Hundreds of calls that end in every way leave no object, task or open file behind."""

import asyncio
import collections
import gc
import io
import os
import socket
import weakref

import PIL.Image
import pytest

from tm_jax.serving import config
from tm_jax.serving.runtime import memory
from tm_jax.serving.transport import messages

aiohttp = pytest.importorskip("aiohttp")
from tm_jax.serving import client  # noqa: E402  Needs the extra.

_CALLS = 300
_SPARE = 20  # Objects of a type that may be there by chance; every kind of visit comes 37 times.
# The event loop keeps up to a hundred cancelled timers, which hold nothing else; abstract
# classes keep a set with weak references for each class that they were asked about.
_KEPT = (
    "asyncio.events.TimerHandle", "_contextvars.Context", "weakref.ReferenceType",
    "builtins.builtin_function_or_method", "builtins.set",
)  # fmt: skip



async def _hang_up(net, server):
    async with client.connect(server.url) as call:
        await call.start(mode="file")
        await call.send_sound(net.tone(0.1))
        await net.frames(call, 2)
        await call.stop()
        await call.wait_for(messages.Ended)


async def _vanish(net, server):
    async with client.connect(server.url) as call:
        await call.start()
        await call.send_sound(net.tone(0.1))
        await net.frames(call, 1)
        net.cut(call)


async def _come_back(net, server):
    async with client.connect(server.url) as call:
        started = await call.start()
        net.cut(call)
    async with client.connect(server.url, resume=started.resume) as call:
        await net.frames(call, 1)
        await call.stop()


async def _interrupt(net, server):
    async with client.connect(server.url) as call:
        await call.start(mode="file")
        await call.send_sound(net.tone(0.5))
        wishes = (
            messages.Interrupt(), messages.Mode(mode="mirror"), messages.Reset(),
            messages.Character(character="bob"), messages.SpeechEnd(),
        )  # fmt: skip
        for wish in wishes:
            await call.send(wish)
        await net.frames(call, 2)
        await call.stop()


async def _garbage(net, server):
    async with client.connect(server.url) as call:
        await call.start()
        for _ in range(server.exchange.limits.bad_messages):
            await call._socket.send_str("{")
        async for _ in call:
            pass


async def _too_large(net, server):
    async with client.connect(server.url) as call:
        await call.start()
        await call._socket.send_bytes(bytes(200_000))
        async for _ in call:
            pass


async def _upload(net, server):
    file = io.BytesIO()
    PIL.Image.new("RGB", (40, 40)).save(file, "PNG")
    async with aiohttp.ClientSession() as session:
        for body in (file.getvalue(), b"noise"):
            async with session.post(server.url + "/api/pictures", data=body) as answer:
                await answer.read()


async def _half_open(net, server):
    held = socket.create_connection(("127.0.0.1", server.port))
    held.sendall(b"GET /ws HTTP/1.1\r\nHost: loc")
    await asyncio.sleep(0)
    held.close()


_VISITS = (
    _hang_up, _vanish, _come_back, _interrupt, _garbage, _too_large, _upload, _half_open
)


def _objects() -> collections.Counter:
    """Objects by type that Python's collector knows of."""
    gc.collect()
    names = (f"{type(o).__module__}.{type(o).__qualname__}" for o in gc.get_objects())
    return collections.Counter(name for name in names if name not in _KEPT)


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_calls_that_end_in_every_way_leave_nothing_behind(net):
    async def go():
        limits = config.Limits(per_address=1000)
        async with net.serve(lanes=4, limits=limits) as server:

            async def calls(count):
                for index in range(0, count, 4):
                    visits = (_VISITS[(index + i) % len(_VISITS)] for i in range(4))
                    await asyncio.gather(*(visit(net, server) for visit in visits))
                    for call in list(server.exchange.calls.values()):
                        await net.until(lambda: call.ended or call.lost_s is not None)
                        call.end("lost")  # As when `resume_s` is over.
                server.exchange.gallery._uploads.clear()  # As when they have expired.

            await calls(2 * len(_VISITS))  # Everything has been imported and cached.
            files, tasks, before = _open_files(), len(asyncio.all_tasks()), _objects()
            await calls(_CALLS)
            for _ in range(40):  # The heartbeat of a closed socket is forgotten after 8 s.
                grown = {k: n - before[k] for k, n in _objects().items()}
                grown = {k: n for k, n in grown.items() if n > _SPARE}
                if not grown:
                    break
                await asyncio.sleep(0.25)
            assert not grown
            assert _open_files() <= files + 1
            assert len(asyncio.all_tasks()) <= tasks
            assert server.exchange.engine.sessions == 0

    net.run(go(), timeout_s=120)


def test_what_lived_before_the_first_caller_is_set_aside():
    class Node:
        pass

    count = len(gc.get_objects())
    try:
        memory.settle()
        assert gc.get_freeze_count() > 0.9 * count
        left = Node()
        left.itself = left
        seen = weakref.ref(left)
        gc.disable()
        del left
        assert seen() is not None
        memory.give_back()
        assert seen() is None
    finally:
        gc.enable()
        gc.unfreeze()
