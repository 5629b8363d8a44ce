"""The HTTP side of the server: the page, the interface below /api/, health and metrics."""

import asyncio
import collections
import dataclasses
import json
import ssl
import time
import typing
import weakref

from absl import logging
from aiohttp import web

from tm_jax.serving import page_files
from tm_jax.serving import security
from tm_jax.serving.calls import exchange as exchange_lib
from tm_jax.serving.runtime import metrics as metrics_lib
from tm_jax.serving.transport import codec
from tm_jax.serving.transport import pictures
from tm_jax.serving.transport import protocol
from tm_jax.serving.transport import websocket

if typing.TYPE_CHECKING:  # Needs aiortc, which may be missing.
    from tm_jax.serving.transport import webrtc as webrtc_lib

_JSON_BYTES = 256 * 1024  # A WebRTC offer has 10 KB or so.
_BODY_S = 30.0  # Time for a request to deliver its body.
_DECODERS = 2  # Pictures that are decoded at the same time.
_UPLOADS = 16  # Pictures that are received at the same time.
_SPARE_SOCKETS = 64  # WebSockets beyond four for every call that is served.
_SILENT_S = 20.0  # A connection that has asked for nothing until then is closed.
_STATUS = {
    "unauthorized": 401, "forbidden": 403, "unknown_session": 404, "unknown_character": 404,
    "unknown_agent": 404, "not_found": 404, "method": 405, "too_large": 413,
    "bad_picture": 422, "too_many_sessions": 429, "too_fast": 429, "full": 503,
    "draining": 503, "internal": 500, "no_webrtc": 501,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Site:
    """What the handlers share.

    Attributes:
      exchange: All calls.
      guard: Who may talk to us.
      preset: Name of the models.
      ice_servers: STUN and TURN servers, as browsers take them.
      webrtc: `webrtc.Peers`, or None where aiortc is not installed.
      page: Files of the page.
    """

    exchange: exchange_lib.Exchange
    guard: security.Guard
    preset: str = ""
    ice_servers: tuple[dict, ...] = ()
    webrtc: "webrtc_lib.Peers | None" = None
    page: dict = dataclasses.field(default_factory=page_files.read)


SITE = web.AppKey("site", Site)
_DECODING = web.AppKey("decoding", asyncio.Semaphore)
_SEEN = web.AppKey("seen", weakref.WeakSet)
_OPEN = web.AppKey("open", collections.Counter)


class Refused(Exception):
    """A request that is answered with an error.

    Attributes:
      code: An error code of the protocol or of `_STATUS`.
    """

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


def build(site: Site) -> web.Application:
    """Makes the application."""
    app = web.Application(middlewares=[_answers, _guards], client_max_size=_JSON_BYTES)
    app[SITE] = site
    app[_DECODING] = asyncio.Semaphore(_DECODERS)
    app[_SEEN] = weakref.WeakSet()
    app[_OPEN] = collections.Counter()
    app.add_routes([
        web.get("/", _index), web.get("/page/{name:.+}", _file), web.get("/ws", _socket),
        web.get("/api/info", _info), web.get("/api/characters", _characters),
        web.get("/api/characters/{id}/picture.jpg", _picture),
        web.get("/api/characters/{id}.jpg", _preview),
        web.post("/api/pictures", _upload), web.post("/api/sessions", _create),
        web.delete("/api/sessions/{id}", _delete), web.post("/api/webrtc", _offer),
        web.get("/healthz", _health), web.get("/readyz", _ready), web.get("/metrics", _metrics),
    ])  # fmt: skip
    app.on_shutdown.append(_shut)
    return app


class Running:
    """A server that listens.

    Attributes:
      port: Its port.
    """

    def __init__(self, runner: web.AppRunner, sweeper: asyncio.Task):
        """See `start`."""
        self._runner, self._sweeper = runner, sweeper
        self.port = runner.addresses[0][1]

    async def close(self) -> None:
        """Ends all connections and listens no more."""
        self._sweeper.cancel()
        await self._runner.cleanup()


async def start(
    app: web.Application, host: str, port: int, tls: ssl.SSLContext | None = None
) -> Running:
    """Listens on an address, with TLS if there is a context; port 0 takes any free one."""
    runner = web.AppRunner(
        app, access_log=None, keepalive_timeout=15, shutdown_timeout=2, handle_signals=False
    )
    await runner.setup()
    await web.TCPSite(runner, host, port, backlog=64, ssl_context=tls).start()
    sweeper = asyncio.get_running_loop().create_task(_sweep(runner, app[_SEEN]))
    return Running(runner, sweeper)


async def _sweep(runner: web.AppRunner, seen: weakref.WeakSet) -> None:
    """Closes connections that never ask for anything; `seen` are transports that did."""
    first: dict = {}
    while True:
        await asyncio.sleep(_SILENT_S / 4)
        now_s = time.monotonic()
        connections = runner.server.connections if runner.server else ()
        silent = [c for c in connections if c.transport is not None and c.transport not in seen]
        first = {c: first.get(c, now_s) for c in silent}
        for connection, since_s in first.items():
            if now_s - since_s > _SILENT_S:
                connection.force_close()


async def _shut(app: web.Application) -> None:
    site = app[SITE]
    for call in list(site.exchange.calls.values()):
        call.end("draining")
    if site.webrtc is not None:
        await site.webrtc.close()


@web.middleware
async def _answers(request: web.Request, handler):
    """Turns errors into JSON and adds the headers of `security.HEADERS`."""
    if request.transport is not None:
        request.app[_SEEN].add(request.transport)
    try:
        response = await handler(request)
    except Refused as error:
        response = _error(error.code, str(error))
    except protocol.ProtocolError as error:
        response = _error(error.code, str(error))
    except web.HTTPRequestEntityTooLarge:
        response = _error("too_large", f"The body may have {_JSON_BYTES} bytes.")
    except web.HTTPNotFound:
        response = _error("not_found", "There is nothing here.")
    except web.HTTPMethodNotAllowed:
        response = _error("method", "This cannot be asked of it.")
    except web.HTTPException as error:
        response = _error("bad_message", error.reason, error.status)
    except TimeoutError:
        response = _error("bad_message", "The request did not come in time.", 408)
    except (ConnectionError, asyncio.CancelledError):
        raise
    except Exception:  # A defect of one handler must not show its inside.
        logging.exception("A request failed.")
        response = _error("internal", "The server has a defect; try again.")
    if not response.prepared:
        response.headers.update(security.HEADERS)
        response.headers.setdefault("Cache-Control", "no-store")
    return response


def _error(code: str, message: str, status: int | None = None) -> web.Response:
    body = {"error": {"code": code, "message": message}}
    response = web.json_response(body, status=status or _STATUS.get(code, 400))
    if response.status == 503:
        response.headers["Retry-After"] = "5"
    return response


@web.middleware
async def _guards(request: web.Request, handler):
    """Checks host, origin, token and rates."""
    guard, path = request.app[SITE].guard, request.path
    if path in ("/healthz", "/readyz"):
        return await handler(request)
    if not guard.allowed_host(request.host):
        raise Refused("forbidden", "This server is called by another name.")
    if not guard.allowed_origin(request.headers.get("Origin"), request.host):
        raise Refused("forbidden", "Pages of that origin may not use this server.")
    if (path.startswith("/api/") or path == "/metrics") and not guard.authorized(request.headers):
        if not guard.within_rate("request", _address(request)):
            raise Refused("too_fast", "Too many requests; wait a minute.")
        raise Refused("unauthorized", "The access token is missing or wrong.")
    return await handler(request)


def _address(request: web.Request) -> str:
    return request.app[SITE].guard.address(request.remote, request.headers)


def _limited(request: web.Request, kind: str) -> None:
    if not request.app[SITE].guard.within_rate(kind, _address(request)):
        raise Refused("too_fast", "Too many requests; wait a minute.")


# The page.


async def _index(request: web.Request) -> web.Response:
    return _from_memory(request, "index.html")


async def _file(request: web.Request) -> web.Response:
    return _from_memory(request, request.match_info["name"])


def _from_memory(request: web.Request, name: str) -> web.Response:
    file = request.app[SITE].page.get(name)
    if file is None:
        raise web.HTTPNotFound
    headers = {"Cache-Control": "no-cache", "ETag": f'"{file.tag}"'}
    if request.headers.get("If-None-Match") == headers["ETag"]:
        return web.Response(status=304, headers=headers)
    charset = "utf-8" if file.content_type.startswith(("text/", "image/svg")) else None
    return web.Response(
        body=file.body, content_type=file.content_type, charset=charset, headers=headers
    )


async def _socket(request: web.Request) -> web.StreamResponse:
    _limited(request, "request")
    site, open_now = request.app[SITE], request.app[_OPEN]
    if open_now["sockets"] >= 4 * site.exchange.engine.capacity + _SPARE_SOCKETS:
        raise Refused("full", "Too many connections; try again later.")
    open_now["sockets"] += 1
    try:
        return await websocket.serve(request, site.exchange, site.guard, _address(request))
    finally:
        open_now["sockets"] -= 1


# The interface.


async def _info(request: web.Request) -> web.Response:
    site = request.app[SITE]
    exchange = site.exchange
    return web.json_response({
        **vars(exchange.welcome()), "preset": site.preset,
        "capacity": exchange.capacity, "sessions": len(exchange.calls),
        "transports": ["websocket"] + ["webrtc"] * (site.webrtc is not None),
        "ice_servers": list(site.ice_servers),
    })  # fmt: skip


async def _characters(request: web.Request) -> web.Response:
    bundled = request.app[SITE].exchange.gallery.bundled
    return web.json_response({"characters": [_describe(c) for c in bundled]})


def _describe(character) -> dict:
    return {
        "id": character.id, "name": character.name,
        "preview": f"/api/characters/{character.id}.jpg",
        "picture": f"/api/characters/{character.id}/picture.jpg",
    }


async def _preview(request: web.Request) -> web.Response:
    found = request.app[SITE].exchange.gallery.get(request.match_info["id"])
    return web.Response(
        body=found.preview, content_type="image/jpeg",
        headers={"Cache-Control": "private, max-age=3600"},
    )


async def _picture(request: web.Request) -> web.Response:
    found = request.app[SITE].exchange.gallery.get(request.match_info["id"])
    return web.Response(
        body=pictures.to_jpeg(found.picture), content_type="image/jpeg",
        headers={"Cache-Control": "private, max-age=3600"},
    )


async def _upload(request: web.Request) -> web.Response:
    _limited(request, "upload")
    exchange, open_now = request.app[SITE].exchange, request.app[_OPEN]
    uploads = exchange.metrics.uploads
    if open_now["uploads"] >= _UPLOADS:
        raise Refused("too_fast", "Too many uploads at once; try again in a moment.")
    open_now["uploads"] += 1
    try:
        data = await _body(request, exchange.limits.picture_bytes)
        async with request.app[_DECODING]:
            added = await asyncio.to_thread(exchange.gallery.add, data)
    except (Refused, protocol.ProtocolError) as error:
        uploads.labels(error.code).inc()
        raise
    finally:
        open_now["uploads"] -= 1
    uploads.labels("taken").inc()
    described = _describe(added)
    body = {
        "character": described["id"], "preview": described["preview"],
        "picture": described["picture"], "expires_s": exchange.gallery.expires_s,
    }
    return web.json_response(body, status=201)


async def _body(request: web.Request, most: int) -> bytes:
    """Reads a body of at most that many bytes, without holding more."""
    refused = Refused("too_large", f"A picture may have {most} bytes.")
    if (request.content_length or 0) > most:
        raise refused
    parts, size = [], 0
    async with asyncio.timeout(_BODY_S):
        async for part in request.content.iter_chunked(65536):
            size += len(part)
            if size > most:
                raise refused
            parts.append(part)
    return b"".join(parts)


async def _json(request: web.Request) -> dict:
    try:
        async with asyncio.timeout(_BODY_S):
            fields = json.loads(await request.text()) if request.can_read_body else {}
    except (ValueError, RecursionError, LookupError) as error:
        raise Refused("bad_message", "The body is not JSON.") from error
    if not isinstance(fields, dict):
        raise Refused("bad_message", "The body is not a JSON object.")
    return fields


async def _create(request: web.Request) -> web.Response:
    _limited(request, "session")
    site = request.app[SITE]
    wanted = codec.start_from(await _json(request))
    call = site.exchange.open(wanted, _address(request))
    return web.json_response({"session": call.id, "resume": call.secret}, status=201)


async def _delete(request: web.Request) -> web.Response:
    exchange = request.app[SITE].exchange
    call = exchange.resume(request.headers.get("X-Resume", ""))
    if call.id != request.match_info["id"]:
        raise Refused("unknown_session", "That secret belongs to another session.")
    call.end("stopped")
    return web.Response(status=204)


async def _offer(request: web.Request) -> web.Response:
    _limited(request, "session")
    site = request.app[SITE]
    if site.webrtc is None:
        raise Refused("no_webrtc", "This server has no WebRTC; use the WebSocket.")
    answer = await site.webrtc.answer(await _json(request), _address(request))
    return web.json_response(answer, status=201)


# For machines.


async def _health(request: web.Request) -> web.Response:
    healthy = request.app[SITE].exchange.engine.healthy
    return web.json_response({"healthy": healthy}, status=200 if healthy else 500)


async def _ready(request: web.Request) -> web.Response:
    exchange = request.app[SITE].exchange
    ready = exchange.engine.healthy and not exchange.draining
    body = {"ready": ready, "sessions": len(exchange.calls), "capacity": exchange.capacity}
    return web.json_response(body, status=200 if ready else 503)


async def _metrics(request: web.Request) -> web.Response:
    text = request.app[SITE].exchange.metrics.text()
    return web.Response(body=text, headers={"Content-Type": metrics_lib.CONTENT_TYPE})
