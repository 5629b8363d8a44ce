"""A browser with a recorded voice as its microphone, and servers for the page."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest

from experiments.call import chromium
from experiments.call import host

_ROOT = pathlib.Path(__file__).parent.parent.parent
_HERE = pathlib.Path(__file__).parent


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Process:
    """A server in a process of its own, that can be killed and started again."""

    def __init__(self, command, ready="/"):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [sys.executable, *(str(part).format(port=self.port) for part in command)]
        self._ready = ready
        self._process = None

    def start(self, timeout_s=20.0):
        """Starts it and waits until it answers."""
        environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
        self._process = subprocess.Popen(self._command, cwd=_ROOT, env=environment)
        end = time.monotonic() + timeout_s
        while True:
            try:
                return self.read(self._ready)
            except OSError:
                if self._process.poll() is not None or time.monotonic() > end:
                    raise
            time.sleep(0.05)

    def kill(self):
        """Ends it without a word, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def read(self, path) -> bytes:
        """Body of GET `path`."""
        with urllib.request.urlopen(self.url + path, timeout=5) as answer:
            return answer.read()

    def json(self, path):
        """JSON of GET `path`."""
        return json.loads(self.read(path))

    def control(self, **options):
        """Changes the behaviour of the server without a model."""
        request = urllib.request.Request(f"{self.url}/control", json.dumps(options).encode(), method="POST")
        urllib.request.urlopen(request, timeout=5).close()

    def sent(self, kind) -> list[dict]:
        """What clients sent of one type to the server without a model."""
        return [message for message in self.json("/log") if message["type"] == kind]


class _Pulse(threading.Thread):
    """Measures how late this process wakes up: a sign of a machine that does other things."""

    def __init__(self):
        super().__init__(daemon=True)
        self.late = []
        self.running = True

    def run(self):
        while self.running:
            began = time.perf_counter()
            time.sleep(0.01)
            self.late.append(time.perf_counter() - began - 0.01)


@pytest.fixture
def on_time():
    """`with on_time(): assert ...`: a failed assertion about time counts on a calm machine only.

    A machine is busy when more than one wake-up in fifty comes 20 ms too late, when more than two
    programs want each of its cores, or when its host takes more than one part in fifty of them.
    """
    pulse = _Pulse()
    before = host.ticks()
    pulse.start()

    @contextlib.contextmanager
    def guard():
        try:
            yield
        except AssertionError:
            late = sum(value > 0.02 for value in pulse.late) / max(1, len(pulse.late))
            load = os.getloadavg()[0] / os.cpu_count()
            taken = host.taken(before) or 0.0
            if late < 0.02 and load < 2 and taken < 0.02:
                raise
            pytest.skip(
                f"this machine is too busy to keep time: {late:.0%} of its wake-ups were late, "
                f"{load:.1f} programs a core, {taken:.0%} taken by its host"
            )

    yield guard
    pulse.running = False
    pulse.join()


@pytest.fixture(scope="session")
def process():
    """The class `Process`."""
    return Process


@pytest.fixture(scope="session")
def voice_wav(tmp_path_factory):
    """A recorded human voice as 16-bit WAV at 48 kHz."""
    pytest.importorskip("av")
    path = tmp_path_factory.mktemp("voice") / "voice.wav"
    chromium.write_voice(path)
    return path


@pytest.fixture(scope="module")
def browser(voice_wav):
    """Chromium without a window. While it is open this thread has a running event loop, which
    tests outside of this folder must not meet."""
    pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    if chromium.executable() is None:
        pytest.skip("needs a browser: apt-get install chromium")
    with chromium.launch(voice_wav) as running:
        yield running


@pytest.fixture(scope="session")
def _fake_server():
    pytest.importorskip("aiohttp", reason="needs the package aiohttp")
    process = Process((_HERE / "fake_server.py", "--port", "{port}"), ready="/healthz")
    process.start()
    yield process
    process.kill()


@pytest.fixture
def server(_fake_server):
    """The server without a model, with an empty log."""
    _fake_server.control(reset=True)
    return _fake_server


@pytest.fixture
def visit(browser):
    """Opens the page: `visit(url, microphone=True, width=…, height=…, scheme="light", init="")`.

    Complaints of the console fail the test, and so do violations of the content policy.
    """
    contexts, complaints = [], []

    def open_page(url, *, microphone=True, width=1000, height=700, scheme="light", init=""):
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme,
            permissions=["microphone"] if microphone else [],
        )
        contexts.append(context)
        context.set_default_timeout(30000)
        context.add_init_script(path=_HERE / "measure.js")
        if init:
            context.add_init_script(init)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    # A refused or broken connection is reported by the browser itself.
    own = [text for text in complaints if "Failed to load resource" not in text and "WebSocket" not in text]
    assert not own
