"""The page and the project's own server together, over both transports."""

import importlib.util
import pathlib
import time

import pytest

_HERE = pathlib.Path(__file__).parent
_LIVE = "body[data-state=live]"
_WEBRTC = importlib.util.find_spec("aiortc") is not None

# Brightness of the upper half, which follows the sound, every 40 ms for some seconds.
_BRIGHTNESS = """(seconds) => new Promise((done) => {
  const paint = new OffscreenCanvas(8, 8).getContext("2d", { willReadFrequently: true });
  const values = [];
  const timer = setInterval(() => {
    const shown = document.querySelector("#video:not([hidden]), #remote:not([hidden])");
    paint.drawImage(shown, 0, 0, 8, 8);
    values.push(paint.getImageData(4, 1, 1, 1).data[0]);
    if (values.length >= seconds * 25) { clearInterval(timer); done(values); }
  }, 40);
})"""


@pytest.fixture(scope="module")
def own_server(process):
    """The project's server, with WebRTC where aiortc is installed."""
    pytest.importorskip("aiohttp", reason="needs the package aiohttp")
    pytest.importorskip("prometheus_client", reason="needs the package prometheus_client")
    extra = ["--webrtc"] if _WEBRTC else []
    server = process((_HERE / "real_server.py", "--port", "{port}", *extra), ready="/readyz")
    server.start(timeout_s=60)
    yield server
    server.kill()


def _dial(page):
    page.wait_for_selector(".face img")
    page.click("#call")
    page.wait_for_selector(_LIVE)


def _moves(page):
    """Whether the picture follows the recorded voice: bright in words, dark between them."""
    values = page.evaluate(_BRIGHTNESS, 4)
    return max(values) > 60 and min(values) < 30


@pytest.mark.parametrize("transport", [
    "websocket",
    pytest.param("webrtc", marks=pytest.mark.skipif(not _WEBRTC, reason="needs the package aiortc")),
])  # fmt: skip
def test_the_voice_moves_the_picture(own_server, visit, on_time, transport):
    page = visit(f"{own_server.url}/?transport={transport}", init="measured.paused = true;")
    _dial(page)
    assert page.is_visible("#video" if transport == "websocket" else "#remote")
    assert _moves(page)
    page.click("#figures-toggle")
    page.wait_for_selector("#spans tr th:has-text('Transformer')")
    rate = float(page.inner_text("#f-fps"))
    with on_time():
        assert 23 < rate < 27
    page.click("#hangup")
    page.wait_for_selector("body[data-state=idle]")
    end = time.monotonic() + 10
    while own_server.json("/api/info")["sessions"] and time.monotonic() < end:
        time.sleep(0.05)
    assert own_server.json("/api/info")["sessions"] == 0


@pytest.mark.parametrize("transport", [
    "websocket",
    pytest.param("webrtc", marks=pytest.mark.skipif(not _WEBRTC, reason="needs the package aiortc")),
])  # fmt: skip
def test_a_killed_server_is_found_again(own_server, visit, transport):
    page = visit(f"{own_server.url}/?transport={transport}", init="measured.paused = true;")
    _dial(page)
    own_server.kill()
    page.wait_for_selector("body[data-state=lost]")
    own_server.start(timeout_s=60)
    page.wait_for_selector(_LIVE)
    assert _moves(page)
    page.click("#hangup")
