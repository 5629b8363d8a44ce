"""The HTTP side: token, origin, host, uploads, sessions, headers, metrics."""

import asyncio
import io
import socket
import struct
import zlib

import numpy as np
import PIL.Image
import pytest

from tm_jax.serving import config
from tm_jax.serving import security
from tm_jax.serving.transport import messages
from tm_jax.serving.transport import pictures
from tm_jax.serving.transport import protocol

aiohttp = pytest.importorskip("aiohttp")
from tm_jax.serving import client  # noqa: E402  Needs the extra.
from tm_jax.serving import page_files  # noqa: E402

TOKEN = "0123456789abcdef-token"


def png(width=32, height=32):
    file = io.BytesIO()
    PIL.Image.new("RGB", (width, height), (200, 10, 10)).save(file, "PNG")
    return file.getvalue()


def bomb(side=60000):
    """A PNG of a few bytes that claims to have billions of pixels."""

    def block(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + block(b"IHDR", head) + block(b"IDAT", zlib.compress(b"")) + block(b"IEND", b"")


async def ask(server, method, path, **arguments):
    """Status, body (JSON if it is) and headers of one request."""
    async with aiohttp.ClientSession() as session:
        async with session.request(method, server.url + path, **arguments) as answer:
            json = answer.content_type == "application/json"
            return answer.status, await (answer.json() if json else answer.read()), answer.headers


def test_the_page_and_its_headers(net):
    async def go():
        async with net.serve() as server:
            status, body, headers = await ask(server, "GET", "/")
            assert (status, body) == (200, b"<p>page</p>")
            for name, value in security.HEADERS.items():
                assert headers[name] == value
            assert "unsafe" not in headers["Content-Security-Policy"]
            tag = {"If-None-Match": headers["ETag"]}
            assert (await ask(server, "GET", "/page/index.html", headers=tag))[0] == 304

    net.run(go())


@pytest.mark.parametrize(
    "path", ["/page/../app.py", "/page/%2e%2e/app.py", "/page//etc/passwd", "/page/..%2fapp.py",
             "/page/nothing.js", "/etc/passwd", "/api/characters/..%2f..%2fx.jpg"],
)  # fmt: skip
def test_no_path_leads_to_the_file_system(net, path):
    async def go():
        async with net.serve() as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            answer = await reader.read()
            writer.close()
            assert answer.split()[1] == b"404"

    net.run(go())


def test_the_page_of_the_package_is_in_memory():
    files = page_files.read()
    assert "index.html" in files and files["index.html"].content_type == "text/html"
    assert all(f.content_type == "text/javascript" for n, f in files.items() if n.endswith(".js"))
    assert not any(name.endswith(".py") for name in files)


def test_without_the_token_nothing_is_told(net):
    async def go():
        async with net.serve(token=TOKEN) as server:
            for method, path in (
                ("GET", "/api/info"), ("GET", "/api/characters"), ("POST", "/api/sessions"),
                ("POST", "/api/pictures"), ("POST", "/api/webrtc"), ("GET", "/metrics"),
                ("DELETE", "/api/sessions/x"), ("GET", "/api/characters/ann.jpg"),
            ):  # fmt: skip
                for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}):
                    status, body, _ = await ask(server, method, path, headers=headers)
                    assert (status, body["error"]["code"]) == (401, "unauthorized"), path
            good = {"Authorization": f"Bearer {TOKEN}"}
            assert (await ask(server, "GET", "/api/info", headers=good))[0] == 200
            for path in ("/", "/healthz", "/readyz"):
                assert (await ask(server, "GET", path))[0] == 200

    net.run(go())


def test_a_socket_needs_the_token_in_hello(net):
    async def go():
        async with net.serve(token=TOKEN) as server:
            for wrong in (None, "wrong", TOKEN + "x"):
                with pytest.raises(protocol.ProtocolError) as error:
                    async with client.connect(server.url, wrong):
                        pass
                assert error.value.code == "unauthorized"
            async with client.connect(server.url, TOKEN) as call:
                await call.start()

    net.run(go())


def test_another_version_is_told_to_load_again(net):
    async def go():
        async with net.serve() as server:
            with pytest.raises(protocol.ProtocolError, match="load the page again") as error:
                async with client.connect(server.url, version=2):
                    pass
            assert error.value.code == "bad_version"

    net.run(go())


def test_a_connection_that_says_nothing_is_closed(net):
    async def go():
        async with net.serve(limits=config.Limits(hello_s=0.2)) as server:
            async with aiohttp.ClientSession() as session:
                async with session.ws_connect(server.url + "/ws") as quiet:
                    message = await asyncio.wait_for(quiet.receive(), 5)
                    assert message.type is aiohttp.WSMsgType.CLOSE

    net.run(go())


@pytest.mark.parametrize(
    "headers,allowed",
    [
        ({}, True),
        ({"Origin": "http://127.0.0.1:{port}"}, True),
        ({"Origin": "https://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "http://127.0.0.1:1"}, False),
        ({"Origin": "https://friend.example"}, True),
        ({"Origin": "http://[broken"}, False),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, False),  # DNS rebinding.
    ],
)
def test_other_pages_may_not_use_the_server(net, headers, allowed):
    async def go():
        async with net.serve(origins=("https://friend.example",)) as server:
            sent = {k: v.format(port=server.port) for k, v in headers.items()}
            status, body, _ = await ask(server, "GET", "/api/info", headers=sent)
            assert status == (200 if allowed else 403)
            async with aiohttp.ClientSession() as session:
                try:
                    async with session.ws_connect(server.url + "/ws", headers=sent):
                        assert allowed
                except aiohttp.WSServerHandshakeError as error:
                    assert not allowed and error.status == 403

    net.run(go())


def test_an_uploaded_picture_becomes_a_character(net):
    async def go():
        async with net.serve() as server:
            status, body, _ = await ask(server, "POST", "/api/pictures", data=png())
            assert status == 201 and body["character"].startswith("u-")
            status, preview, headers = await ask(server, "GET", body["preview"])
            assert status == 200 and headers["Content-Type"] == "image/jpeg"
            assert PIL.Image.open(io.BytesIO(preview)).size == (pictures.PREVIEW,) * 2
            status, whole, _ = await ask(server, "GET", body["picture"])
            assert PIL.Image.open(io.BytesIO(whole)).size == (16, 16)
            status, listed, _ = await ask(server, "GET", "/api/characters")
            assert [c["id"] for c in listed["characters"]] == ["ann", "bob"]  # Not for others.
            async with client.connect(server.url) as call:
                assert (await call.start(character=body["character"])).character == body["character"]
                frame = await call.wait_for(messages.Frames)
                shown = np.asarray(PIL.Image.open(io.BytesIO(frame.jpegs[0])))
                assert abs(int(shown[-1, 0, 0]) - 200) < 12

    net.run(go())


@pytest.mark.parametrize(
    "data,status,code",
    [
        (b"", 422, "bad_picture"),
        (b"GIF89a rubbish", 422, "bad_picture"),
        (png()[:60], 422, "bad_picture"),
        (bomb(), 422, "bad_picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n(x) run", 422, "bad_picture"),
        (bytes(70_000), 413, "too_large"),
    ],
)
def test_uploads_that_are_refused_are_explained(net, data, status, code):
    async def go():
        async with net.serve(limits=config.Limits(picture_bytes=60_000)) as server:
            got, body, _ = await ask(server, "POST", "/api/pictures", data=data)
            assert (got, body["error"]["code"]) == (status, code) and body["error"]["message"]
            assert "/" not in body["error"]["message"].replace("JPEG or", "")  # No path of ours.

            async def parts():  # Without a length in the header.
                for _ in range(20):
                    yield bytes(10_000)

            got, body, _ = await ask(server, "POST", "/api/pictures", data=parts())
            assert (got, body["error"]["code"]) == (413, "too_large")
            assert len(server.exchange.gallery) == 0

    net.run(go())


def test_uploads_and_sessions_are_limited_by_rate(net):
    async def go():
        async with net.serve(uploads=2, requests=3) as server:
            found = [(await ask(server, "POST", "/api/pictures", data=png()))[0] for _ in range(3)]
            assert found == [201, 201, 429]
            found = [(await ask(server, "POST", "/api/sessions", json={"mode": 1}))[0] for _ in range(4)]
            assert found == [400, 400, 400, 429]

    net.run(go())


def test_old_uploads_make_room_and_expire():
    now = [0.0]
    faces = [pictures.character("a", "A", np.zeros((16, 16, 3), np.uint8))]
    gallery = pictures.Gallery(
        faces, 16, 16, most_uploads=2, expires_s=10, clock=lambda: now[0]
    )
    ids = [gallery.add(png()).id for _ in range(2)]
    now[0] = 5.0
    gallery.get(ids[0])  # Used again: the other one is the oldest now.
    third = gallery.add(png()).id
    with pytest.raises(protocol.ProtocolError):
        gallery.get(ids[1])
    assert gallery.get(ids[0]).id == ids[0] and gallery.get(None).id == "a"
    now[0] = 14.0
    assert gallery.get(third).id == third
    now[0] = 16.0
    with pytest.raises(protocol.ProtocolError) as error:
        gallery.get(ids[0])
    assert error.value.code == "unknown_character"


def test_characters_come_from_a_folder_and_from_the_package(tmp_path):
    bundled = pictures.from_folder(48, 40)
    assert [c.id for c in bundled] == ["ada", "bea", "carl", "dora", "eve", "finn"]
    assert all(c.picture.shape == (48, 40, 3) and c.picture.std() > 20 for c in bundled)
    (tmp_path / "my_face.png").write_bytes(png())
    (tmp_path / "notes.txt").write_text("no picture")
    found = pictures.from_folder(16, 16, tmp_path)
    assert [(c.id, c.name) for c in found] == [("my_face", "My Face")]
    with pytest.raises(ValueError, match="expected a folder"):
        pictures.from_folder(16, 16, tmp_path / "nothing")


def test_a_session_made_over_http_is_joined_and_deleted(net):
    async def go():
        async with net.serve() as server:
            status, made, _ = await ask(server, "POST", "/api/sessions", json={"character": "bob"})
            assert status == 201
            async with client.connect(server.url, resume=made["resume"]) as call:
                assert call.started.session == made["session"]
                assert call.started.character == "bob"
                await call.wait_for(messages.Frames)
                path = f"/api/sessions/{made['session']}"
                assert (await ask(server, "DELETE", path))[0] == 404
                secret = {"X-Resume": made["resume"]}
                assert (await ask(server, "DELETE", path + "x", headers=secret))[0] == 404
                assert (await ask(server, "DELETE", path, headers=secret))[0] == 204
                assert (await call.wait_for(messages.Ended)).reason == "stopped"
            assert server.sessions == 0

    net.run(go())


@pytest.mark.parametrize("body", ["", "[]", "{", '{"character": 5}', '{"mode": "x"}', "\ud800"])
def test_bodies_that_cannot_be_used(net, body):
    async def go():
        async with net.serve(lanes=1) as server:
            data = body.encode("utf-8", "surrogatepass")
            status, answer, _ = await ask(server, "POST", "/api/sessions", data=data)
            assert status == (201 if body == "" else 400), answer
            status, answer, _ = await ask(server, "POST", "/api/webrtc", data=data)
            assert status in (400, 501)

    net.run(go())


def test_figures_for_prometheus(net):
    async def go():
        async with net.serve() as server, client.connect(server.url) as call:
            await call.start()
            await call.wait_for(messages.Timing)
            await call.send(messages.Played(
                generation=0, frame=1, late=2, playout_ms=80.0, voice_to_lips_ms=700.0
            ))  # fmt: skip
            await call.send(messages.Ping(t=1))
            await call.wait_for(messages.Pong)
            status, text, headers = await ask(server, "GET", "/metrics")
            assert status == 200 and headers["Content-Type"].startswith("text/plain")
            lines = dict(
                line.rsplit(" ", 1) for line in text.decode().splitlines() if line[0] != "#"
            )
            assert float(lines["tm_jax_sessions"]) == 1 and float(lines["tm_jax_capacity"]) == 2
            assert float(lines["tm_jax_frames_late_total"]) == 2
            assert float(lines["tm_jax_frames_sent_total"]) >= 2
            for quantile in ("0.50", "0.95", "0.99"):
                assert f'tm_jax_span_quantile_seconds{{quantile="{quantile}",span="score"}}' in lines
            playout = lines['tm_jax_span_quantile_seconds{quantile="0.50",span="playout"}']
            assert float(playout) == pytest.approx(0.08)
            assert float(lines["tm_jax_voice_to_lips_seconds_sum"]) == pytest.approx(0.7)
            assert float(lines["tm_jax_resident_bytes"]) > 1e7

    net.run(go())


def test_readiness_follows_draining_and_health_the_devices(net):
    async def go():
        async with net.serve() as server:
            assert (await ask(server, "GET", "/readyz"))[:2] == (
                200, {"ready": True, "sessions": 0, "capacity": 2}
            )  # fmt: skip
            await server.exchange.drain(0)
            assert (await ask(server, "GET", "/readyz"))[0] == 503
            assert (await ask(server, "GET", "/healthz"))[0] == 200
            server.exchange.engine._failures = 3
            assert (await ask(server, "GET", "/healthz"))[0] == 500

    net.run(go())


def test_half_open_sockets_are_swept_away(net, monkeypatch):
    from tm_jax.serving import app

    monkeypatch.setattr(app, "_SILENT_S", 0.2)

    async def go():
        async with net.serve() as server, client.connect(server.url) as call:
            await call.start()
            loop = asyncio.get_running_loop()
            held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
            held[0].sendall(b"GET / HTTP/1.1\r\nHost: loc")
            for one in held:
                one.setblocking(False)
                assert await asyncio.wait_for(_ended(loop, one), 5)
                one.close()
            await call.wait_for(messages.Frames)  # A call is not swept.
            await asyncio.sleep(0.5)
            await call.wait_for(messages.Frames)

    net.run(go())


async def _ended(loop, one):
    try:
        return await loop.sock_recv(one, 1000) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize(
    "host,token,fits",
    [
        ("127.0.0.1", None, True), ("localhost", None, True), ("::1", None, True),
        ("0.0.0.0", None, False), ("192.0.2.7", None, False), ("::", None, False),
        ("example.org", None, False), ("0.0.0.0", TOKEN, True), ("127.0.0.1", "short", False),
    ],
)  # fmt: skip
def test_strangers_are_not_served_without_a_token(host, token, fits):
    if fits:
        security.check_bind(host, token)
    else:
        with pytest.raises(ValueError, match="TM_JAX_TOKEN|at least 16"):
            security.check_bind(host, token)


def test_the_address_behind_a_proxy_is_the_one_that_the_proxy_wrote():
    forged = {"X-Forwarded-For": "9.9.9.9, 203.0.113.5"}
    assert security.Guard().address("10.0.0.1", forged) == "10.0.0.1"
    assert security.Guard(behind_proxy=True).address("10.0.0.1", forged) == "203.0.113.5"


def test_the_guard_remembers_only_so_many_addresses():
    guard = security.Guard(requests_per_minute=1)
    for index in range(5000):
        assert guard.within_rate("request", str(index))
    assert len(guard._buckets) <= 4096
    assert not guard.within_rate("request", "4999")


def test_an_ipv6_caller_is_his_network():
    guard = security.Guard()
    first, second = (guard.address(f"2001:db8:1:2::{i}", {}) for i in (1, 2))
    assert first == second == "2001:db8:1:2::/64"
    assert guard.address("192.0.2.1", {}) == "192.0.2.1"


def test_damaged_pictures_raise_nothing_else():
    hypothesis = pytest.importorskip("hypothesis")
    st = pytest.importorskip("hypothesis.strategies")
    gallery = pictures.Gallery(
        [pictures.character("a", "A", np.zeros((16, 16, 3), np.uint8))], 16, 16, most_uploads=2
    )
    samples = []
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "ICO", "TGA"):
        file = io.BytesIO()
        PIL.Image.effect_noise((24, 20), 80).convert("RGB").save(file, kind)
        samples.append(file.getvalue())

    @hypothesis.settings(deadline=None, max_examples=300)
    @hypothesis.given(
        st.sampled_from(samples), st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=6),
        st.integers(0, 4000),
    )
    def check(data, changes, length):
        data = bytearray(data[: length or None])
        for at, value in changes:
            data[at % len(data)] = value
        try:
            added = gallery.add(bytes(data))
        except protocol.ProtocolError as error:
            assert error.code == "bad_picture" and "\n" not in str(error)
        else:
            assert added.picture.shape == (16, 16, 3) and added.picture.dtype == np.uint8

    check()


def test_characters_cannot_be_changed_faster_than_devices_follow(net):
    async def go():
        async with net.serve() as server, client.connect(server.url) as call:
            await call.start()
            for _ in range(6):
                await call.send(messages.Character(character="bob"))
            answers = []
            while len(answers) < 6:
                message = await call.receive()
                if isinstance(message, (messages.Character, messages.Error)):
                    answers.append(getattr(message, "code", "done"))
            assert answers == ["done"] * 3 + ["too_fast"] * 3

    net.run(go())
