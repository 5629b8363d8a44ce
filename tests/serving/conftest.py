"""A server with fake devices, in the event loop of the test."""

import asyncio
import contextlib
import types

import numpy as np
import pytest

from tm_jax.serving import config
from tm_jax.serving import security
from tm_jax.serving.runtime import engine as engine_lib
from tm_jax.serving.runtime import fake
from tm_jax.serving.transport import messages
from tm_jax.serving.transport import pictures

try:  # The extra `serve`; tests that need it skip themselves.
    from tm_jax.serving import app as app_lib
except ModuleNotFoundError:
    app_lib = None

SIDE = 16


class Server:
    """A running server: `url`, `exchange`, `devices`, `port`."""

    def __init__(self, app, exchange, devices, port):
        self.app, self.exchange, self.devices = app, exchange, devices
        self.port = port
        self.app_peers = app[app_lib.SITE].webrtc
        self.url = f"http://127.0.0.1:{port}"

    @property
    def sessions(self):
        return len(self.exchange.calls)


@contextlib.asynccontextmanager
async def serve(
    *, lanes=2, batch=1, most=None, limits=None, agents=(), token=None, origins=(),
    chunk_frames=2, step_s=0.0, webrtc=False, requests=100000, uploads=100000,
):
    """Starts a server; chunks last 80 ms so that tests are quick."""
    from tm_jax.serving.calls import exchange as exchange_lib

    devices = fake.FakeBackend(side=SIDE, chunk_frames=chunk_frames, step_s=step_s)
    engine = engine_lib.Engine(devices, lanes=lanes, batch=batch, most=most)
    faces = [
        pictures.character(name, name.title(), np.full((SIDE, SIDE, 3), level, np.uint8))
        for name, level in (("ann", 40), ("bob", 120))
    ]
    limits = limits or config.Limits(per_address=100)
    gallery = pictures.Gallery(faces, SIDE, SIDE)
    exchange = exchange_lib.Exchange(engine, gallery, list(agents), limits)
    guard = security.Guard(
        token, origins, requests_per_minute=requests, sessions_per_minute=requests,
        uploads_per_minute=uploads,
    )
    peers = None
    if webrtc:
        from tm_jax.serving.transport import webrtc as webrtc_lib

        peers = webrtc_lib.Peers(exchange, loopback=True)
    page = {"index.html": app_lib.page_files.File(b"<p>page</p>", "text/html", "1")}
    site = app_lib.Site(exchange=exchange, guard=guard, preset="fake", webrtc=peers, page=page)
    app = app_lib.build(site)
    running = await app_lib.start(app, "127.0.0.1", 0)
    try:
        yield Server(app, exchange, devices, running.port)
    finally:
        await running.close()
        await asyncio.get_running_loop().run_in_executor(None, engine.close)


def run(coroutine, timeout_s=30.0):
    """Runs a test's coroutine with a limit, and leaves no task behind."""

    async def limited():
        async with asyncio.timeout(timeout_s):
            return await coroutine

    return asyncio.run(limited())


async def until(condition, timeout_s=5.0):
    """Waits until something is true."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


def cut(call):
    """Breaks a client's connection as a network would."""
    call._socket._response.connection.transport.abort()


async def lose(server, call):
    """Breaks a client's connection and waits until the server has noticed."""
    cut(call)
    callers = server.exchange.calls.values()
    await until(lambda: all(c.lost_s is not None for c in callers))


def tone(seconds, level=5000):
    """Loud sound of a client."""
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
    """Whether a frame is heard."""
    return np.abs(np.frombuffer(message.pcm, "<i2")).max() > 100


@pytest.fixture
def net():
    """The helpers of this file."""
    pytest.importorskip("aiohttp")
    pytest.importorskip("prometheus_client")
    helpers = serve, run, until, cut, lose, tone, frames, talk, loud
    return types.SimpleNamespace(**{helper.__name__: helper for helper in helpers})
