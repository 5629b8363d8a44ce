"""The page and the project's own server together, over both transports."""

import contextlib
import importlib.util
import pathlib
import re
import subprocess
import sys
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


_NEEDS_WEBRTC = pytest.mark.skipif(not _WEBRTC, reason="needs the package aiortc")
# Not every browser hands the frames of a track to the page: then an element plays them.
_BY_ELEMENT = "delete window.MediaStreamTrackProcessor;"
_WAYS = pytest.mark.parametrize("transport, init", [
    pytest.param("websocket", "", id="websocket"),
    pytest.param("webrtc", "", marks=_NEEDS_WEBRTC, id="webrtc"),
    pytest.param("webrtc", _BY_ELEMENT, marks=_NEEDS_WEBRTC, id="webrtc_by_element"),
])  # fmt: skip

# Three callers who talk as long as the server lives.
_CROWD = """
import asyncio, sys
from tm_jax.serving.runtime import load
print(asyncio.run(load.storm(sys.argv[1], load.speech(), 120, 3, stagger_s=0.05))["errors"])
"""


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


def _open(visit, server, transport, init):
    return visit(f"{server.url}/?transport={transport}", init=f"measured.paused = true; {init}")


def _dial(page):
    page.wait_for_selector(".face img")
    page.click("#call")
    page.wait_for_selector(_LIVE)


def _moves(page):
    """Whether the picture follows the recorded voice: bright in words, dark between them."""
    values = page.evaluate(_BRIGHTNESS, 4)
    return max(values) > 60 and min(values) < 30


@_WAYS
def test_the_voice_moves_the_picture(own_server, visit, on_time, transport, init):
    page = _open(visit, own_server, transport, init)
    _dial(page)
    assert page.is_visible("#remote" if init else "#video")
    assert _moves(page)
    page.click("#figures-toggle")
    page.wait_for_selector("#spans tr th:has-text('Transformer')")
    rate = float(page.inner_text("#f-fps"))
    with on_time():
        assert 23 < rate < 27
    page.click("#hangup")
    page.wait_for_selector("body[data-state=idle]")
    _eventually(lambda: _sessions(own_server) == 0)


def _sessions(server):
    return server.json("/api/info")["sessions"]


@contextlib.contextmanager
def _crowd(server):
    """Other callers on the line."""
    command = [sys.executable, "-c", _CROWD, server.url]
    with subprocess.Popen(command, cwd=_HERE.parents[1], stdout=subprocess.PIPE) as callers:
        try:
            yield callers
        finally:
            callers.kill()


def _eventually(condition, timeout_s=60.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@_WAYS
def test_a_server_killed_under_load_is_found_again(own_server, visit, transport, init):
    page = _open(visit, own_server, transport, init)
    _dial(page)
    with _crowd(own_server) as callers:
        _eventually(lambda: _sessions(own_server) == 4)  # All places are taken.
        own_server.kill()
        page.wait_for_selector("body[data-state=lost]")
        callers.wait(60)  # They have noticed, too.
    own_server.start(timeout_s=60)
    page.wait_for_selector(_LIVE)
    assert _moves(page)
    page.click("#hangup")


def _break_off(page):
    """The network goes away and comes back."""
    page.context.set_offline(True)
    page.wait_for_selector("body[data-state=lost]")
    page.context.set_offline(False)
    page.wait_for_selector(_LIVE)


# The control channel brings `started` later than the tracks bring frames.
_TOLD_LATE = """
  const make = RTCPeerConnection.prototype.createDataChannel;
  RTCPeerConnection.prototype.createDataChannel = function (...wanted) {
    const channel = make.apply(this, wanted);
    Object.defineProperty(channel, "onmessage", { set(handler) {
      channel.addEventListener("message", (event) => {
        if (window.told || JSON.parse(event.data).type !== "started") handler(event);
      });
    } });
    return channel;
  };
"""


@_NEEDS_WEBRTC
def test_a_break_before_the_first_message_resumes_the_same_session_too(own_server, visit):
    page = _open(visit, own_server, "webrtc", _TOLD_LATE)
    _eventually(lambda: _sessions(own_server) == 0)
    _dial(page)
    page.evaluate("window.told = true")
    _break_off(page)
    assert _sessions(own_server) == 1
    page.click("#hangup")
    _eventually(lambda: _sessions(own_server) == 0)


@_WAYS
def test_a_network_break_resumes_the_same_session(own_server, visit, transport, init):
    page = _open(visit, own_server, transport, init)
    _eventually(lambda: _sessions(own_server) == 0)
    _dial(page)
    _break_off(page)
    figures = own_server.read("/metrics").decode()
    resumed = re.search(r"^tm_jax_sessions_resumed_total (\S+)$", figures, re.MULTILINE)
    assert float(resumed[1]) >= 1 and _sessions(own_server) == 1
    assert _moves(page)
    page.click("#hangup")
    _eventually(lambda: _sessions(own_server) == 0)
