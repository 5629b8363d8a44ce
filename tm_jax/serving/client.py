"""A small client of the server's WebSocket, for programs, tests and measurements.

  async with client.connect("http://127.0.0.1:8080") as call:
      await call.start(mode="mirror")
      await call.send_sound(pcm)
      async for event in call:
          ...
"""

import asyncio
from collections.abc import AsyncIterator
import contextlib
import time
from typing import Any, TypeVar
import urllib.parse

import aiohttp

from tm_jax.serving.transport import codec
from tm_jax.serving.transport import messages
from tm_jax.serving.transport import protocol

Kind = TypeVar("Kind")


class Closed(ConnectionError):
    """The connection has ended.

    Attributes:
      code: Close code of the WebSocket.
    """

    def __init__(self, code: int | None):
        super().__init__(f"The server closed the connection with code {code}.")
        self.code = code


class Call:
    """One connection to a server.

    Attributes:
      welcome: What the server offers.
      started: The session; None before `start`.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse):
        """Takes an open socket; see `connect`."""
        self._socket = socket
        self._sequence = self._position = 0
        self.welcome: messages.Welcome | None = None
        self.started: messages.Started | None = None

    async def send(self, message: messages.Message) -> None:
        """Sends a message of `messages.FROM_CLIENT`."""
        await self._socket.send_str(codec.to_text(message))

    async def send_sound(self, pcm: bytes, captured_ms: int | None = None) -> int:
        """Sends sound of 16 bits at 24 kHz; returns the position of its first sample."""
        if captured_ms is None:
            captured_ms = int(time.monotonic() * 1000)
        for start in range(0, len(pcm), protocol.SOUND_BYTES):
            part = pcm[start : start + protocol.SOUND_BYTES]
            sound = messages.Sound(
                sequence=self._sequence, position=self._position, captured_ms=captured_ms,
                pcm=part,
            )
            await self._socket.send_bytes(codec.sound_to_bytes(sound))
            self._sequence += 1
            self._position += len(part) // 2
        return self._position - len(pcm) // 2

    async def receive(self) -> messages.Message:
        """The next message: one of `messages.FROM_SERVER`, or `messages.Frames`.

        Raises:
          Closed: The connection has ended.
          protocol.ProtocolError: The server does not speak this protocol.
        """
        message = await self._socket.receive()
        if message.type is aiohttp.WSMsgType.BINARY:
            return codec.frames_from_bytes(message.data)
        if message.type is aiohttp.WSMsgType.TEXT:
            return codec.from_server(message.data)
        raise Closed(self._socket.close_code)

    async def __aiter__(self) -> AsyncIterator:
        """Yields messages until the connection ends."""
        with contextlib.suppress(Closed):
            while True:
                yield await self.receive()

    async def wait_for(self, kind: type[Kind], timeout_s: float = 10.0) -> Kind:
        """The next message of a class; others are skipped.

        Raises:
          protocol.ProtocolError: An error of the server came first.
          TimeoutError: Nothing of the kind came in time.
        """
        async with asyncio.timeout(timeout_s):
            while True:
                message = await self.receive()
                if isinstance(message, kind):
                    return message
                if isinstance(message, messages.Error):
                    raise protocol.ProtocolError(message.code, message.message)

    async def start(self, **fields: Any) -> messages.Started:
        """Begins a session; the fields are those of `messages.Start`."""
        await self.send(messages.Start(**fields))
        self.started = await self.wait_for(messages.Started)
        return self.started

    async def stop(self) -> None:
        """Hangs up."""
        await self.send(messages.Stop())

    async def close(self) -> None:
        """Closes the connection."""
        await self._socket.close()


@contextlib.asynccontextmanager
async def connect(
    url: str, token: str | None = None, resume: str | None = None, name: str = "python",
    version: int = protocol.VERSION,
) -> AsyncIterator[Call]:
    """Connects to a server and says hello.

    Args:
      url: Address of the server, http or https.
      token: Its access token.
      resume: Secret of a session to go on with; `started` is then set.
      name: Name of the program, for the server's log.
      version: Protocol version.

    Yields:
      The connection.

    Raises:
      protocol.ProtocolError: The server refuses.
      aiohttp.ClientError, OSError: There is no such server.
    """
    parts = urllib.parse.urlsplit(url)
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    path = parts.path.rstrip("/") + "/ws"
    address = urllib.parse.urlunsplit((scheme, parts.netloc, path, "", ""))
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect(
            address, protocols=(protocol.SUBPROTOCOL,), max_msg_size=1 << 24
        ) as socket:
            call = Call(socket)
            await call.send(
                messages.Hello(version=version, token=token, resume=resume, client=name)
            )
            call.welcome = await call.wait_for(messages.Welcome)
            if resume is not None:
                call.started = await call.wait_for(messages.Started)
            yield call
