"""Callers who do everything that a caller should not do, chosen at random.

Each visit is one coroutine that takes a `World` and returns a word for what happened.
"""

import asyncio
import dataclasses
import io
import os
import random
import socket
import struct
import urllib.parse
import zlib

import aiohttp
import numpy as np
import PIL.Image

from tm_jax.serving import client
from tm_jax.serving.transport import messages
from tm_jax.serving.transport import protocol


@dataclasses.dataclass
class World:
    """What visitors share.

    Attributes:
      url: The server.
      speech: What they say, int16 [n] at 24 kHz.
      random: Source of chance.
    """

    url: str
    speech: np.ndarray
    random: random.Random

    def sound(self, seconds: float) -> bytes:
        """A piece of the speech."""
        count = int(seconds * protocol.SAMPLE_RATE)
        at = self.random.randrange(max(1, len(self.speech) - count))
        return self.speech[at : at + count].astype("<i2").tobytes()


async def _talk(call: client.Call, world: World, seconds: float) -> None:
    """Speaks, and reads what comes."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + seconds
    while loop.time() < end_s:
        await call.send_sound(world.sound(0.02))
        try:
            await asyncio.wait_for(call.receive(), 0.02)
        except TimeoutError:
            pass


def _cut(call: client.Call) -> None:
    """Breaks the connection as a network would."""
    call._socket._response.connection.transport.abort()


async def hang_up(world: World) -> str:
    """An ordinary call."""
    async with client.connect(world.url) as call:
        await call.start(mode=world.random.choice(("mirror", "file")))
        await _talk(call, world, world.random.uniform(0.2, 4))
        await call.stop()
    return "served"


async def vanish(world: World) -> str:
    """The network breaks and nobody comes back."""
    async with client.connect(world.url) as call:
        await call.start()
        await _talk(call, world, world.random.uniform(0, 2))
        _cut(call)
    return "served"


async def come_back(world: World) -> str:
    """The network breaks and the caller goes on."""
    async with client.connect(world.url) as call:
        started = await call.start()
        await _talk(call, world, 0.5)
        _cut(call)
    await asyncio.sleep(world.random.uniform(0, 2))
    async with client.connect(world.url, resume=started.resume) as call:
        await _talk(call, world, 1)
        await call.stop()
    return "served"


async def interrupt(world: World) -> str:
    """Interrupts, changes mode, pose and character all the time."""
    async with client.connect(world.url) as call:
        await call.start(mode="file")
        await call.send_sound(world.sound(2.0))
        wishes = (
            messages.Interrupt(), messages.Mode(mode="mirror"), messages.Mode(mode="file"),
            messages.Avatar(avatar="speak"), messages.Avatar(avatar="auto"), messages.Reset(),
            messages.Character(character="ada"), messages.SpeechEnd(),
        )  # fmt: skip
        for _ in range(20):
            await call.send(world.random.choice(wishes))
            await _talk(call, world, 0.1)
        await call.stop()
    return "served"


async def garbage(world: World) -> str:
    """Sends what no client sends."""
    async with client.connect(world.url) as call:
        await call.start()
        for _ in range(30):
            noise = os.urandom(world.random.randrange(1, 3000))
            if world.random.random() < 0.5:
                await call._socket.send_bytes(b"T\x01\x02\x00" * (noise[0] % 2) + noise)
            else:
                await call._socket.send_str(noise.decode("latin-1"))
        async for _ in call:
            pass
    return "served"


async def too_large(world: World) -> str:
    """Sends a message of megabytes."""
    async with client.connect(world.url) as call:
        await call.start()
        await call._socket.send_bytes(bytes(4_000_000))
        async for _ in call:
            pass
    return "served"


async def too_fast(world: World) -> str:
    """Sends minutes of sound at once."""
    async with client.connect(world.url) as call:
        await call.start(mode=world.random.choice(("mirror", "file")))
        for _ in range(60):
            await call.send_sound(world.sound(1.0))
        await _talk(call, world, 1)
        await call.stop()
    return "served"


async def deaf(world: World) -> str:
    """Reads nothing for a while, then goes without a word."""
    async with client.connect(world.url) as call:
        await call.start()
        call._socket._response.connection.transport.pause_reading()
        await asyncio.sleep(world.random.uniform(1, 12))
        _cut(call)
    return "served"


async def silent(world: World) -> str:
    """Connects and never says hello."""
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect(world.url + "/ws") as quiet:
            await asyncio.wait_for(quiet.receive(), 30)
    return "closed"


async def half_open(world: World) -> str:
    """Leaves sockets behind that ask for nothing."""
    parts = urllib.parse.urlsplit(world.url)
    held = [socket.create_connection((parts.hostname, parts.port)) for _ in range(5)]
    held[0].sendall(b"GET /ws HTTP/1.1\r\nHost: loc")
    await asyncio.sleep(world.random.uniform(0, 8))
    for one in held:
        if world.random.random() < 0.5:  # A reset instead of an orderly end.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.close()
    return "closed"


def _picture(world: World) -> bytes:
    file = io.BytesIO()
    side = world.random.randrange(10, 1200)
    PIL.Image.new("RGB", (side, side), (90, 120, 150)).save(file, "JPEG")
    return file.getvalue()


def _bomb() -> bytes:
    def block(kind, data):
        end = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + end

    head = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + block(b"IHDR", head) + block(b"IDAT", zlib.compress(bytes(99)))


async def upload(world: World) -> str:
    """Uploads a picture, a bomb, too much, or noise; calls what was taken."""
    bodies = (_picture(world), _bomb(), bytes(9_000_000), os.urandom(5000))
    async with aiohttp.ClientSession() as session:
        url = world.url + "/api/pictures"
        async with session.post(url, data=world.random.choice(bodies)) as answer:
            fields = await answer.json()
            if answer.status != 201:
                return fields["error"]["code"]
    async with client.connect(world.url) as call:
        await call.start(character=fields["character"])
        await _talk(call, world, 1)
        await call.stop()
    return "served"


VISITS = (
    hang_up, vanish, come_back, interrupt, garbage, too_large, too_fast, deaf, silent,
    half_open, upload,
)  # fmt: skip


async def visit(world: World) -> tuple[str, str]:
    """One random visit: its name, and what happened."""
    chosen = world.random.choice(VISITS)
    try:
        return chosen.__name__, await asyncio.wait_for(chosen(world), 60)
    except protocol.ProtocolError as error:
        return chosen.__name__, error.code
    except (aiohttp.ClientError, ConnectionError, client.Closed) as error:
        return chosen.__name__, type(error).__name__
    except TimeoutError:
        return chosen.__name__, "timeout"
