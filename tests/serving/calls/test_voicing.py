"""Voice agents in a call with fake devices: heard, interrupted, broken, closed."""

import asyncio

import numpy as np
import pytest

from tm_jax.serving.calls import voice
from tm_jax.serving.transport import messages
from tm_jax.serving.transport import protocol

pytest.importorskip("aiohttp")
from tm_jax.serving import client  # noqa: E402  Needs the extra.

_WORDS = np.full(9600, 5000, "<i2").tobytes()  # 0.4 s.


class Echoing(voice.Silent):
    """Answers the first sound with a little speech; says what it is told."""

    made = []

    def __init__(self):
        self.told = []
        Echoing.made.append(self)

    async def start(self, line):
        self.line = line
        self.told.append("start")

    async def hear(self, pcm):
        if not self.line.speaking and "spoke" not in self.told:
            self.told.append("spoke")
            self.line.state("speaking")
            self.line.caption("avatar", "i1", "Hello", True)
            self.line.speak(_WORDS, "i1")
            self.line.finish("i1")

    async def finished(self, item):
        self.told.append(f"finished {item}")

    async def interrupted(self, played):
        self.told.append(("interrupted", played))

    async def close(self):
        self.told.append("close")


class Broken(voice.Silent):
    async def start(self, line):
        raise OSError("no key in the environment")


AGENTS = (
    voice.Agent(id="echo", name="Echo", make=Echoing),
    voice.Agent(id="broken", name="Broken", make=Broken),
)


@pytest.mark.parametrize("mode", ["agent", "mirror"])
def test_only_an_agent_listens_to_the_caller(net, mode):
    """In a mirror the caller's voice is the avatar's own."""

    async def go():
        loudest = 0.0
        async with net.serve(agents=AGENTS) as server, client.connect(server.url) as call:
            await call.start(mode=mode)
            for _ in range(30):
                await call.send_sound(net.tone(0.02))
                await asyncio.sleep(0.02)
                if server.devices.others is not None:
                    loudest = max(loudest, float(server.devices.others.max()))
        return loudest

    loudest = net.run(go())
    assert loudest > 0.1 if mode == "agent" else loudest == 0


def test_an_agent_speaks_is_told_what_was_heard_and_is_closed(net):
    async def go():
        async with net.serve(agents=AGENTS) as server, client.connect(server.url) as call:
            assert call.welcome.agents[0] == {"id": "echo", "name": "Echo"}
            started = await call.start(mode="agent")
            assert started.agent == "echo"
            await asyncio.sleep(0.05)
            await call.send_sound(net.tone(0.02))
            caption = await call.wait_for(messages.Caption)
            assert (caption.role, caption.text, caption.final) == ("avatar", "Hello", True)
            agent = Echoing.made[-1]
            while "finished i1" not in agent.told:
                await call.wait_for(messages.Frames)
            await call.send(messages.Mode(mode="mirror"))
            await call.wait_for(messages.Mode)
            await net.until(lambda: "close" in agent.told)
            assert not agent.line.speak(net.tone(0.1), "late")  # Its line is cut.

    net.run(go())


def test_an_interrupted_agent_learns_how_much_was_heard(net):
    async def go():
        async with net.serve(agents=AGENTS) as server, client.connect(server.url) as call:
            await call.start(mode="agent", agent="echo")
            await asyncio.sleep(0.05)
            await call.send_sound(net.tone(0.02))
            while not net.loud(frame := await call.wait_for(messages.Frames)):
                pass
            await net.frames(call, 1)
            await call.send(messages.Played(generation=0, frame=frame.frame + 1))
            await call.send(messages.Interrupt())
            agent = Echoing.made[-1]
            await net.until(lambda: any(t[0] == "interrupted" for t in agent.told))
            played = agent.told[-1][1]
            assert played.item == "i1" and 20 <= played.audio_end_ms <= 200

    net.run(go())


def test_an_agent_that_cannot_start_leaves_a_listening_avatar(net):
    async def go():
        async with net.serve(agents=AGENTS) as server, client.connect(server.url) as call:
            await call.start(mode="agent", agent="broken")
            with pytest.raises(protocol.ProtocolError, match="no key") as error:
                await call.wait_for(messages.Ended)
            assert error.value.code == "agent_failed"
            assert not any(map(net.loud, await net.frames(call, 4)))

    net.run(go())
