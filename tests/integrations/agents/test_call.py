"""A whole call with the scripted agent: server, sockets, fake devices, barge-in in real time."""

import asyncio
import concurrent.futures
import time

import numpy as np
import pytest

for _package in ("aiohttp", "prometheus_client"):
    pytest.importorskip(_package)

from tm_jax.integrations.agents import conversation
from tm_jax.integrations.agents import dialogue
from tm_jax.integrations.agents import offline
from tm_jax.media import resampling  # noqa: E402
from tm_jax.serving import app as app_lib  # noqa: E402
from tm_jax.serving import client  # noqa: E402
from tm_jax.serving import config  # noqa: E402
from tm_jax.serving import page_files  # noqa: E402
from tm_jax.serving import security  # noqa: E402
from tm_jax.serving.calls import exchange as exchange_lib
from tm_jax.serving.calls import voice
from tm_jax.serving.runtime import engine as engine_lib
from tm_jax.serving.runtime import fake
from tm_jax.serving.transport import messages
from tm_jax.serving.transport import pictures


@pytest.fixture
def agent():
    """Loudness is a voice, which always asks for a story; a sentence lasts two seconds."""
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        parts = offline.Parts(
            transcribe=lambda samples: "Tell me a story.",
            speak=lambda text, rate: np.full(2 * rate, 0.1, np.float32),
            detect=lambda: lambda window: float(np.abs(window).max() > 0.2), threads=threads,
        )
        yield voice.Agent(
            id="offline", name="Script",
            make=lambda: conversation.Conversation(offline.Offline(parts)),
        )


async def _serve(agent, work):
    engine = engine_lib.Engine(fake.FakeBackend(side=16, chunk_frames=2), lanes=1, batch=1)
    face = pictures.character("ann", "Ann", np.full((16, 16, 3), 40, np.uint8))
    exchange = exchange_lib.Exchange(
        engine, pictures.Gallery([face], 16, 16), [agent], config.Limits()
    )
    page = {"index.html": page_files.File(b"", "text/html", "1")}
    site = app_lib.Site(exchange=exchange, guard=security.Guard(), preset="fake", page=page)
    running = await app_lib.start(app_lib.build(site), "127.0.0.1", 0)
    try:
        async with asyncio.timeout(40):
            async with client.connect(f"http://127.0.0.1:{running.port}") as call:
                await work(call)
    finally:
        await running.close()
        await asyncio.get_running_loop().run_in_executor(None, engine.close)


class _Microphone:
    """Sends 20 ms of sound every 20 ms at a level that may be changed.

    Attributes:
      level: Amplitude from now on.
      loud_s: When the first loud sound was sent.
    """

    def __init__(self, call):
        self._call, self.level, self.loud_s = call, 0.0, None

    async def run(self):
        begin, count = time.monotonic(), 0
        while True:
            pcm = resampling.to_pcm16(np.full(480, self.level, np.float32))
            if self.level and self.loud_s is None:
                self.loud_s = time.monotonic()
            await self._call.send_sound(pcm)
            count += 1
            await asyncio.sleep(max(0.0, begin + 0.02 * count - time.monotonic()))


def _loud(message):
    return isinstance(message, messages.Frames) and any(message.pcm)


async def _next(call, condition):
    async for message in call:
        if condition(message):
            return message
    raise AssertionError("the server closed the connection")


def test_it_greets_stops_for_the_caller_and_answers(agent):
    async def work(call):
        assert call.welcome.agents == [{"id": "offline", "name": "Script"}]
        await call.start(mode="agent")
        microphone = _Microphone(call)
        sending = asyncio.create_task(microphone.run())
        said = lambda m: isinstance(m, messages.Caption) and m.final  # noqa: E731
        greeting = await _next(call, lambda m: said(m) and m.role == "avatar")
        assert greeting.text == dialogue.GREETING
        await _next(call, _loud)
        await asyncio.sleep(0.5)

        microphone.level = 0.5  # The caller begins to speak over it.
        stopped = await _next(call, lambda m: isinstance(m, messages.Interrupted))
        took = time.monotonic() - microphone.loud_s
        assert stopped.reason == "barge_in"
        cut = await _next(call, lambda m: said(m) and m.role == "avatar")
        assert cut.item == greeting.item and cut.text.endswith("…")
        shown = await _next(call, lambda m: isinstance(m, messages.Frames) and m.generation == stopped.generation)
        assert not any(shown.pcm)
        print(f"stopped {1000 * took:.0f} ms after the voice began")
        assert took < 0.1 + 0.3  # Three windows of 32 ms until it is detected.

        microphone.level = 0.0
        heard = await _next(call, lambda m: said(m) and m.role == "caller")
        assert heard.text == "Tell me a story."
        story = await _next(call, lambda m: said(m) and m.role == "avatar")
        assert story.text.startswith("Once upon a time")
        await _next(call, _loud)
        sending.cancel()

    asyncio.run(_serve(agent, work))
