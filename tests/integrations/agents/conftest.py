"""A line that plays on a clock of the test's own, and a small Realtime server."""

import asyncio
import base64
import json

import pytest

from tm_jax.serving.calls import voice

try:  # The extra `serve`; tests that need it skip themselves.
    from aiohttp import web
except ModuleNotFoundError:
    web = None


class Line:
    """Plays what a voice says when the test lets time pass; writes everything down.

    Attributes:
      log: What happened, in order, as tuples.
    """

    def __init__(self):
        self.log = []
        self.failed = None
        self._parts = []  # [item, milliseconds, heard milliseconds, complete]

    def _part(self, item):
        for part in self._parts:
            if part[0] == item:
                return part
        self._parts.append([item, 0, 0, False])
        return self._parts[-1]

    def speak(self, pcm, item=""):
        assert len(pcm) % 2 == 0
        self._part(item)[1] += len(pcm) / 48
        self.log.append(("speak", item, len(pcm) // 48))
        return True

    def finish(self, item=""):
        self._part(item)[3] = True
        self.log.append(("finish", item))

    def interrupt(self, reason="barge_in"):
        current = self._parts[0] if self._parts else None
        self._parts.clear()
        played = voice.Played(
            item=current and current[0], audio_end_ms=int(current[2]) if current else 0
        )
        self.log.append(("interrupt", reason, played.item, played.audio_end_ms))
        return played

    def caption(self, role, item, text, final):
        self.log.append(("caption", role, item, text, final))

    def state(self, state):
        self.log.append(("state", state))

    def fail(self, message):
        self.failed = message
        self.log.append(("fail", message))

    @property
    def speaking(self):
        return bool(self._parts)

    @property
    def queued_s(self):
        return sum(part[1] - part[2] for part in self._parts) / 1000

    async def play(self, spoken, milliseconds):
        """Lets time pass; tells the voice what was heard to its end."""
        while self._parts and milliseconds > 0:
            part = self._parts[0]
            step = min(milliseconds, part[1] - part[2])
            part[2] += step
            milliseconds -= step
            if part[2] < part[1] or not part[3]:
                return
            self._parts.pop(0)
            await spoken.finished(part[0])

    def of(self, kind):
        """What happened of one kind."""
        return [entry[1:] for entry in self.log if entry[0] == kind]


class Server:
    """A Realtime server that does what the test says.

    Attributes:
      received: Events of the client, in order, over all connections.
      requests: Path with query and headers of every connection that was asked for.
      session: The session of `session.created`; decides the generation of the protocol.
      status: HTTP status that refuses connections; 0 accepts them.
    """

    def __init__(self):
        self.received, self.requests = [], []
        self.session = {"type": "realtime", "model": "test"}
        self.status = 0
        self._sockets = []

    async def __aenter__(self):
        app = web.Application()
        app.router.add_get("/{path:.*}", self._serve)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        return self

    async def __aexit__(self, *error):
        await self.hang_up()
        await self._runner.cleanup()

    async def _serve(self, request):
        self.requests.append((request.path_qs, dict(request.headers)))
        if self.status:
            return web.Response(status=self.status)
        socket = web.WebSocketResponse(protocols=("realtime",))
        await socket.prepare(request)
        self._sockets.append(socket)
        await socket.send_json({"type": "session.created", "session": self.session})
        async for message in socket:
            self.received.append(json.loads(message.data))
        return socket

    async def say(self, *events):
        """Sends events to the client that came last."""
        for event in events:
            text = event if isinstance(event, str) else json.dumps(event)
            await self._sockets[-1].send_str(text)

    async def hang_up(self):
        for socket in self._sockets:
            await socket.close()

    def of(self, kind):
        """Received events of one type."""
        return [event for event in self.received if event["type"] == kind]


async def until(condition, timeout=5.0):
    """Waits until something is true, and returns it."""
    async with asyncio.timeout(timeout):
        while not (value := condition()):
            await asyncio.sleep(0.002)
    return value


@pytest.fixture
def line():
    return Line()


@pytest.fixture
def make_server():
    pytest.importorskip("aiohttp")
    return Server


@pytest.fixture
def wait_until():
    return until


@pytest.fixture
def answer_events():
    """Function (response, item, milliseconds, old names) -> events of a whole answer."""

    def make(response="r1", item="i1", milliseconds=1000, old=False, text="Hello there caller"):
        where = {"response_id": response, "item_id": item, "output_index": 0, "content_index": 0}
        name = "audio" if old else "output_audio"
        sound = base64.b64encode(bytes(48 * milliseconds // 4)).decode()
        return [
            {"type": "response.created", "response": {"id": response, "status": "in_progress"}},
            {"type": f"response.{name}_transcript.delta", "delta": text[:5], **where},
            *[{"type": f"response.{name}.delta", "delta": sound, **where} for _ in range(4)],
            {"type": f"response.{name}_transcript.delta", "delta": text[5:], **where},
            {"type": f"response.{name}.done", **where},
            {"type": f"response.{name}_transcript.done", "transcript": text, **where},
            {"type": "response.done", "response": {"id": response, "status": "completed"}},
        ]

    return make
