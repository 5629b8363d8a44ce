"""A call over a WebSocket: frames and sound as binary messages, control as text."""

import asyncio
import time

from absl import logging
import aiohttp
from aiohttp import web

from tm_jax.serving import security
from tm_jax.serving.calls import call as call_lib
from tm_jax.serving.calls import exchange as exchange_lib
from tm_jax.serving.runtime import pacing
from tm_jax.serving.runtime import stream as stream_lib
from tm_jax.serving.transport import codec
from tm_jax.serving.transport import messages
from tm_jax.serving.transport import protocol

_LARGEST = 64 * 1024  # Bytes of a message of a client.
_HEARTBEAT_S = 5.0  # A client that does not answer within half of it is gone.
_CLOSE_S = 2.0


class WebSocketConnection:
    """See `call.Connection`. What waits for a slow client is bounded by an `Outbox`."""

    def __init__(self, socket: web.WebSocketResponse, transport, send_s: float):
        """Takes a prepared socket; `run` sends until it is closed."""
        self._socket, self._transport, self._send_s = socket, transport, send_s
        self._outbox = pacing.Outbox()
        self._wake = asyncio.Event()
        self._closing: int | None = None
        self.call: call_lib.Call | None = None

    @property
    def dropped(self) -> int:
        """See `call.Connection`."""
        return self._outbox.dropped

    @property
    def closing(self) -> bool:
        """Whether nothing more is taken or given."""
        return self._closing is not None

    def send(self, message: messages.Message) -> None:
        """See `call.Connection`."""
        if self._closing is None:
            self._outbox.push_text(codec.to_text(message))
            self._wake.set()

    def show(self, chunk: stream_lib.Chunk, own_voice: bool) -> None:
        """See `call.Connection`."""
        samples = len(chunk.pcm) // len(chunk.jpegs)
        shown_s = time.perf_counter()
        for index, jpeg in enumerate(chunk.jpegs):
            at = index * samples
            source = chunk.source
            if source != protocol.NO_SOURCE:
                source = (source + at) & 0xFFFFFFFF
            message = messages.Frames(
                generation=chunk.generation, frame=chunk.frame + index, pts=chunk.pts + at,
                source=source, first=index == 0, speaking=chunk.speaking,
                own_voice=own_voice, pcm=chunk.pcm[at : at + samples].tobytes(),
                jpegs=(jpeg,),
            )
            done = None
            if index == len(chunk.jpegs) - 1:
                done = self._reporter(chunk, shown_s)
            data = codec.frames_to_bytes(message)
            self._outbox.push_frame(chunk.generation, index == 0, data, done)
        self._wake.set()

    def _reporter(self, chunk, shown_s: float):
        def report():
            if self.call is not None:
                self.call.sent(chunk, 1000 * (time.perf_counter() - shown_s))

        return report

    def flush(self, generation: int) -> None:
        """See `call.Connection`: the client does it."""

    def close(self, code: int) -> None:
        """See `call.Connection`."""
        if self._closing is None:
            self._closing = code
            self._wake.set()

    async def run(self) -> None:
        """Sends what waits until the connection is closed or the client is too slow."""
        try:
            while self._closing is None or len(self._outbox):
                if (entry := self._outbox.pop()) is None:
                    await self._wake.wait()
                    self._wake.clear()
                    continue
                message, done = entry
                async with asyncio.timeout(self._send_s):
                    if isinstance(message, str):
                        await self._socket.send_str(message)
                    else:
                        await self._socket.send_bytes(message)
                if done is not None:
                    done()
                if self._outbox.overflowed:
                    raise TimeoutError
            async with asyncio.timeout(_CLOSE_S):
                await self._socket.close(code=self._closing)
        except TimeoutError:
            if self._closing is None:
                logging.info("A client was too slow.")
                self._closing = protocol.ERRORS["slow"]
            self._abort()
        except (ConnectionError, RuntimeError, aiohttp.ClientError):
            self._abort()  # The client has gone; the reader notices.

    def _abort(self) -> None:
        """Cuts the line: a close message would wait behind what cannot be sent."""
        if self._transport is not None:
            self._transport.abort()


class Conversation:
    """The text and binary messages of one connection, in their order of states."""

    def __init__(
        self, exchange: exchange_lib.Exchange, guard: security.Guard, address: str,
        connection: WebSocketConnection, authorized: bool,
    ):
        """Begins before `hello`.

        Args:
          exchange: All calls.
          guard: Knows the token.
          address: Where the client comes from.
          connection: What answers.
          authorized: Whether a header has shown the token already.
        """
        self._exchange, self._guard, self._address = exchange, guard, address
        self._connection, self._authorized = connection, authorized
        self._greeted = False
        limits = exchange.limits
        self._texts = pacing.Bucket(
            limits.messages_per_s, 4 * limits.messages_per_s, time.monotonic
        )
        self._bad = 0
        self.call: call_lib.Call | None = None

    def text(self, data: str) -> None:
        """Takes a text message."""
        if self._connection.closing:
            return
        try:
            if not self._texts.take(1):
                raise protocol.ProtocolError("bad_message", "Too many messages at once.")
            self._take(codec.from_client(data))
        except protocol.ProtocolError as error:
            self._refuse(error)

    def binary(self, data: bytes) -> None:
        """Takes a binary message."""
        if self._connection.closing:
            return
        try:
            sound = codec.sound_from_bytes(data)
            if self.call is None:
                raise protocol.ProtocolError("bad_state", "Sound can be sent after `started`.")
            self.call.hear(sound)
        except protocol.ProtocolError as error:
            self._refuse(error)

    def _take(self, message) -> None:
        if not self._greeted:
            if not isinstance(message, messages.Hello):
                raise protocol.ProtocolError("bad_state", "The first message is `hello`.")
            self._greet(message)
        elif self.call is None:
            if not isinstance(message, messages.Start):
                raise protocol.ProtocolError("bad_state", "The session begins with `start`.")
            if not self._guard.within_rate("session", self._address):
                raise protocol.ProtocolError("too_many_sessions", "Too many calls in a minute.")
            self._attach(self._exchange.open(message, self._address), False)
        else:
            self.call.receive(message)

    def _greet(self, hello: messages.Hello) -> None:
        if hello.version != protocol.VERSION:
            raise protocol.ProtocolError(
                "bad_version",
                f"This server speaks version {protocol.VERSION}, not {hello.version}; "
                "load the page again.",
            )
        if not (self._authorized or self._guard.knows(hello.token)):
            raise protocol.ProtocolError("unauthorized", "The access token is missing or wrong.")
        self._greeted = True
        self._connection.send(self._exchange.welcome())
        if hello.resume is not None:
            self._attach(self._exchange.resume(hello.resume), True)

    def _attach(self, call: call_lib.Call, resumed: bool) -> None:
        self.call = self._connection.call = call
        call.attach(self._connection, resumed)

    def _refuse(self, error: protocol.ProtocolError) -> None:
        code = protocol.ERRORS[error.code]
        self._connection.send(
            messages.Error(code=error.code, message=str(error), fatal=bool(code))
        )
        if code:
            self._connection.close(code)
        if error.code in ("bad_message", "bad_state", "too_large"):
            self._exchange.metrics.bad_messages.inc()
            self._bad += 1
            if self._bad >= self._exchange.limits.bad_messages:
                self._connection.close(protocol.CLOSE_BAD_MESSAGES)


async def serve(
    request: web.Request, exchange: exchange_lib.Exchange, guard: security.Guard, address: str
) -> web.WebSocketResponse:
    """Handles one WebSocket from its upgrade to its end."""
    socket = web.WebSocketResponse(
        protocols=(protocol.SUBPROTOCOL,), heartbeat=_HEARTBEAT_S, max_msg_size=_LARGEST,
        compress=False, timeout=_CLOSE_S,
    )
    await socket.prepare(request)
    limits = exchange.limits
    connection = WebSocketConnection(socket, request.transport, limits.send_s)
    conversation = Conversation(
        exchange, guard, address, connection, guard.authorized(request.headers)
    )
    loop = asyncio.get_running_loop()
    sender = loop.create_task(connection.run())

    def hurry():
        if conversation.call is None:
            connection.close(4000)

    timer = loop.call_later(limits.hello_s, hurry)
    try:
        async for message in socket:
            if message.type is aiohttp.WSMsgType.TEXT:
                conversation.text(message.data)
            elif message.type is aiohttp.WSMsgType.BINARY:
                conversation.binary(message.data)
            await asyncio.sleep(0)  # A client that sends without end is not alone here.
    except (ConnectionError, asyncio.IncompleteReadError) as error:
        logging.info("A connection broke: %s.", error)
    finally:
        timer.cancel()
        if conversation.call is not None:
            if socket.close_code == aiohttp.WSCloseCode.GOING_AWAY and not connection.closing:
                conversation.call.end("stopped")  # The page was left or loaded again.
            conversation.call.detach(connection)
        connection.close(1000)
        try:
            async with asyncio.timeout(_CLOSE_S):
                await sender
        except TimeoutError:
            sender.cancel()
        exchange.metrics.dropped.inc(connection.dropped)
    return socket
