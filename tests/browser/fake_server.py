"""A server of docs/protocol.md without a model, for the tests of the page.

Each frame carries its number as 24 black and white blocks that a test reads back from the
canvas. Once a second the picture flashes and the sound has a burst that begin together.
Answers to `/control` change its behaviour; `/log` tells what clients sent.
"""

import argparse
import asyncio
import io
import json
import pathlib
import secrets
import time

from aiohttp import web
import numpy as np
from PIL import Image
from PIL import ImageDraw

from tm_jax.serving.transport import codec
from tm_jax.serving.transport import messages
from tm_jax.serving.transport import protocol

_PAGE = pathlib.Path(__file__).parents[2] / "tm_jax" / "serving" / "page"
_SIZE = 256
_FPS = 25
_SAMPLES = protocol.SAMPLE_RATE // _FPS
_BLOCK = 8  # Pixels of one bit.
_LEFT = 32  # Of the first bit.
_BITS = 24
BURST_EVERY = 25  # Frames between two bursts.
BURST_FRAMES = 3
_TONE_HZ = 1000
_PICTURE_BYTES = 300_000
_OPTIONS = {"full": False, "audible": False, "stall_s": 0.0, "token": ""}
_FACES = {"ada": ("Ada", (88, 132, 190)), "ben": ("Ben", (196, 120, 84)), "cleo": ("Cleo", (96, 160, 120))}
_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; media-src 'self' blob:; worker-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)


def portrait(colour, mouth: int = 2) -> Image.Image:
    """A plain face; `mouth` is its opening in pixels."""
    image = Image.new("RGB", (_SIZE, _SIZE), colour)
    draw = ImageDraw.Draw(image)
    draw.ellipse((-40, 190, 296, 420), fill=(60, 64, 84))
    draw.ellipse((66, 48, 190, 214), fill=(240, 206, 178))
    draw.pieslice((60, 34, 196, 190), 180, 360, fill=(58, 42, 36))
    for x in (102, 154):
        draw.ellipse((x - 9, 118, x + 9, 136), fill="white")
        draw.ellipse((x - 4, 123, x + 5, 132), fill=(40, 52, 70))
    draw.ellipse((104, 172 - mouth, 152, 174 + mouth), fill=(150, 56, 62))
    return image


def numbered(base: Image.Image, number: int, flash: bool) -> bytes:
    """The JPEG of one frame: `base` with its number below, and a white square in a flash."""
    image = base.copy()
    draw = ImageDraw.Draw(image)
    for bit in range(_BITS):
        value = 255 * (number >> bit & 1)
        left = _LEFT + bit * _BLOCK
        draw.rectangle((left, 208, left + _BLOCK - 1, 223), fill=(value,) * 3)
    draw.rectangle((32, 32, 55, 55), fill=(255,) * 3 if flash else (0,) * 3)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=85)
    return data.getvalue()


def bursts(first_sample: int, count: int) -> np.ndarray:
    """Samples of the tone that sounds in the first frames of every second, int16 [count]."""
    n = np.arange(first_sample, first_sample + count)
    on = n % (BURST_EVERY * _SAMPLES) < BURST_FRAMES * _SAMPLES
    return (12000 * on * np.sin(2 * np.pi * _TONE_HZ * n / protocol.SAMPLE_RATE)).astype("<i2")


class Session:
    """One caller: sends frames at their time."""

    def __init__(self, start: messages.Start):
        self.id = secrets.token_hex(4)
        self.secret = secrets.token_hex(8)
        self.mode, self.character, self.agent = start.mode, start.character or "ada", start.agent
        self.generation = self.frame = self.heard = self.spoken = 0
        self.quiet_until = -1
        self.socket = None

    def message(self, server: "Server") -> bytes:
        """The next frame."""
        number, pts = self.frame, self.frame * _SAMPLES
        flash = number % BURST_EVERY < BURST_FRAMES
        quiet = number < self.quiet_until
        pcm = np.zeros(_SAMPLES, "<i2") if quiet else bursts(pts, _SAMPLES)
        source = protocol.NO_SOURCE
        if self.mode == "mirror" and self.heard > 2400:
            source = self.heard - 2400
        self.frame += 1
        return codec.frames_to_bytes(messages.Frames(
            generation=self.generation, frame=number, pts=pts, source=source,
            first=number % 12 == 0, speaking=flash and not quiet,
            own_voice=self.mode == "mirror" and not server.options["audible"],
            pcm=pcm.tobytes(), jpegs=(numbered(server.base(self.character, flash), number, flash),),
        ))  # fmt: skip

    def interrupt(self) -> None:
        """Silence for two seconds, in a new generation."""
        self.generation += 1
        self.quiet_until = self.frame + 2 * _FPS


class Server:
    """All callers, and what tests want to know of them."""

    def __init__(self):
        self.sessions = {}
        self.uploads = {}
        self.log = []
        self.options = dict(_OPTIONS)
        self._bases = {}

    def base(self, character: str, flash: bool) -> Image.Image:
        """The picture of a character without its number."""
        if (character, flash) not in self._bases:
            if character in self.uploads:
                image = self.uploads[character].copy()
            else:
                image = portrait(_FACES[character][1], 11 if flash else 2)
            self._bases[character, flash] = image
        return self._bases[character, flash]

    # HTTP.

    async def page(self, request):
        """A file of the page."""
        name = request.match_info.get("name", "index.html")
        path = (_PAGE / name).resolve()
        if not path.is_relative_to(_PAGE) or not path.is_file():
            raise web.HTTPNotFound
        return web.FileResponse(path, headers={"Content-Security-Policy": _CSP, "Cache-Control": "no-store"})

    def _refused(self, request):
        token = self.options["token"]
        if token and request.headers.get("Authorization") != f"Bearer {token}":
            return _error(401, "unauthorized", "A token is needed.")
        return None

    async def health(self, _):
        """Says that it works."""
        return web.Response(text="ok")

    async def info(self, request):
        """What the server offers."""
        return self._refused(request) or web.json_response({
            **vars(_welcome()), "preset": "fake", "capacity": 4, "sessions": len(self.sessions),
            "transports": ["websocket"], "ice_servers": [],
        })

    async def characters(self, request):
        """The bundled characters."""
        return self._refused(request) or web.json_response({"characters": [
            {"id": id_, "name": name, "preview": f"/api/characters/{id_}.jpg"}
            for id_, (name, _) in _FACES.items()
        ]})

    async def preview(self, request):
        """The picture of one."""
        data = io.BytesIO()
        portrait(_FACES[request.match_info["id"]][1]).resize((128, 128)).save(data, "JPEG")
        return self._refused(request) or web.Response(body=data.getvalue(), content_type="image/jpeg")

    async def upload(self, request):
        """Takes a picture."""
        data = await request.read()
        if len(data) > _PICTURE_BYTES:
            return _error(413, "too_large", "The picture is too large.")
        try:
            image = Image.open(io.BytesIO(data)).convert("RGB").resize((_SIZE, _SIZE))
        except OSError:
            return _error(422, "bad_picture", "This is not a picture that can be read.")
        id_ = f"up-{secrets.token_hex(4)}"
        self.uploads[id_] = image
        return web.json_response({"character": id_, "preview": "", "expires_s": 60}, status=201)

    async def control(self, request):
        """Changes options; `drop` cuts every connection."""
        changes = await request.json()
        if changes.pop("reset", False):
            self.log.clear()
            self.sessions.clear()
            self.options.update(_OPTIONS)
        if changes.pop("drop", False):
            for session in self.sessions.values():
                if session.socket is not None:
                    session.socket._writer.transport.abort()
        self.options.update(changes)
        return web.json_response(self.options)

    async def read_log(self, request):
        """Messages of the clients, oldest first."""
        return web.json_response(self.log)

    # The call.

    async def call(self, request):
        """One WebSocket."""
        socket = web.WebSocketResponse(protocols=(protocol.SUBPROTOCOL,), max_msg_size=1 << 20)
        await socket.prepare(request)
        session = sender = None
        async for message in socket:
            if message.type is web.WSMsgType.BINARY:
                sound = codec.sound_from_bytes(message.data)
                session.heard = sound.position + len(sound.pcm) // 2
                peak = int(np.abs(np.frombuffer(sound.pcm, "<i2").astype(int)).max())
                self.log.append({"type": "sound", "position": sound.position, "samples": len(sound.pcm) // 2, "peak": peak, "at": time.monotonic()})
                continue
            self.log.append(json.loads(message.data))
            event = codec.from_client(message.data)
            begun = await self._answer(socket, session, event)
            if begun is not None:
                session, session.socket = begun, socket
                sender = asyncio.create_task(self._send(socket, session))
        if sender:
            sender.cancel()
        return socket

    async def _answer(self, socket, session, event):
        """Reacts to one message; returns the session that begins with it, or None."""

        async def say(message):
            await socket.send_str(codec.to_text(message))

        kind = type(event)
        if kind is messages.Hello:
            await say(_welcome())
            if event.resume in self.sessions:
                old = self.sessions[event.resume]
                old.generation += 1
                await say(_started(old, True))
                return old
            if event.resume:
                await say(messages.Error(code="unknown_session", message="Nothing to resume."))
        elif kind is messages.Start:
            return await self._start(socket, say, event)
        elif kind is messages.Ping:
            await say(messages.Pong(t=event.t))
        elif kind is messages.Stop:
            self.sessions.pop(session.secret if session else None, None)
            await socket.close()
        elif kind is messages.Interrupt:
            session.interrupt()
            await say(messages.Interrupted(generation=session.generation, reason="client"))
        elif kind is messages.Character:
            session.character = event.character
            await say(event)
        elif kind is messages.Mode:
            session.mode = event.mode
            await say(event)
        return None

    async def _start(self, socket, say, event):
        if self.options["full"]:
            await say(messages.Error(code="full", message="Every place is taken.", fatal=True))
            await socket.close(code=4009)
            return None
        if event.character and event.character not in (*_FACES, *self.uploads):
            await say(messages.Error(code="unknown_character", message="No such character."))
            return None
        session = Session(event)
        self.sessions[session.secret] = session
        await say(_started(session, False))
        return session

    async def _send(self, socket, session):
        begun, first = time.monotonic(), session.frame
        await socket.send_str(codec.to_text(messages.State(state="listening")))
        while not socket.closed:
            wait = begun + (session.frame - first) / _FPS - time.monotonic()
            await asyncio.sleep(max(0.0, wait) + self.options["stall_s"])
            self.options["stall_s"] = 0.0
            await socket.send_bytes(session.message(self))
            await self._tell(socket, session)

    async def _tell(self, socket, session):
        """Captions and figures, now and then."""
        told = []
        if session.frame % 50 == 10:
            told.append(messages.Caption(role="caller", item=f"c{session.frame}", text="Can you hear me?", final=True))
        if session.frame % 50 == 20:
            told.append(messages.Caption(role="avatar", item=f"a{session.frame}", text="Loud and clear. <b>Ask me anything</b>.", final=True))
        if session.frame % 50 == 5:
            spans = dict(zip(protocol.SPANS, (240.0, 80.0, 12.0, 96.0, 0.4, 34.0, 21.0, 3.0, 140.0)))
            table = {k: {"p50": v, "p95": 1.3 * v, "p99": 1.5 * v} for k, v in spans.items()}
            told.append(messages.Stats(spans=table, fps=25.0, dropped=0, sessions=1, capacity=4))
        for message in told:
            await socket.send_str(codec.to_text(message))


def _welcome():
    return messages.Welcome(
        version=1, server="fake 1", fps=_FPS, width=_SIZE, height=_SIZE, sample_rate=24000,
        modes=list(protocol.MODES),
        agents=[{"id": "echo", "name": "Echo"}, {"id": "story", "name": "Story teller"}],
        limits={"json_bytes": 16384, "sound_bytes": 48000, "picture_bytes": _PICTURE_BYTES, "ahead_s": 2},
        resume_s=20, idle_s=60, lifetime_s=600,
    )  # fmt: skip


def _started(session, resumed):
    return messages.Started(
        session=session.id, resume=session.secret, resumed=resumed,
        generation=session.generation, mode=session.mode, character=session.character,
        agent=session.agent,
    )


def _error(status, code, message):
    return web.json_response({"error": {"code": code, "message": message}}, status=status)


def application() -> web.Application:
    """The server as an aiohttp application."""
    server = Server()
    app = web.Application(client_max_size=32 << 20)
    app.add_routes([
        web.get("/", server.page), web.get("/page/{name:.+}", server.page),
        web.get("/api/info", server.info), web.get("/api/characters", server.characters),
        web.get("/api/characters/{id}.jpg", server.preview),
        web.post("/api/pictures", server.upload), web.get("/ws", server.call),
        web.get("/healthz", server.health), web.post("/control", server.control), web.get("/log", server.read_log),
    ])
    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    web.run_app(application(), host="127.0.0.1", port=parser.parse_args().port, print=None)
