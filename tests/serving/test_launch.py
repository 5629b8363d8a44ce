"""The launcher: one-line refusals, and a process that stops in good order."""

import asyncio
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from tm_jax.serving.transport import messages

pytest.importorskip("aiohttp")
from tm_jax.serving import client  # noqa: E402  Needs the extra.

_ROOT = pathlib.Path(__file__).parent.parent.parent
_SERVER = """
import asyncio, sys
import numpy as np
from launch import serve
from tm_jax.serving import app, security
from tm_jax.serving.calls import exchange
from tm_jax.serving.runtime import engine, fake
from tm_jax.serving.transport import pictures
devices = fake.FakeBackend(16, chunk_frames=2)
face = pictures.character("ann", "Ann", np.zeros((16, 16, 3), np.uint8))
motor = engine.Engine(devices)
calls = exchange.Exchange(motor, pictures.Gallery([face], 16, 16))
site = app.Site(exchange=calls, guard=security.Guard())
asyncio.run(serve.serve(site, "127.0.0.1", 0, float(sys.argv[1])))
motor.close()
print("Left in good order", flush=True)
"""


def _environment(**more):
    return {**os.environ, "PYTHONPATH": str(_ROOT), **more}


@pytest.mark.parametrize(
    "flags,token,message",
    [
        (["--host=0.0.0.0"], "", "needs a token"),
        (["--host=0.0.0.0"], "short", "at least 16"),
        (["--ice_servers=[1]"], "", "--ice_servers"),
        (["--tls_cert=x.pem"], "", "belong together"),
    ],
)
def test_what_cannot_be_served_is_told_in_one_line_at_once(flags, token, message):
    ran = subprocess.run(
        [sys.executable, "launch/serve.py", *flags], cwd=_ROOT, capture_output=True, text=True,
        env=_environment(TM_JAX_TOKEN=token), timeout=60,
    )  # fmt: skip
    assert ran.returncode == 1 and ran.stdout == ""
    assert ran.stderr.startswith("serve: ") and message in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def test_a_signal_lets_the_callers_finish():
    async def call(url, process):
        async with client.connect(url) as caller:
            await caller.start()
            await caller.wait_for(messages.Frames)
            process.send_signal(signal.SIGTERM)
            assert (await caller.wait_for(messages.Ending)).reason == "draining"
            await caller.wait_for(messages.Frames)
            await caller.stop()
            assert (await caller.wait_for(messages.Ended)).reason == "stopped"

    with subprocess.Popen(
        [sys.executable, "-c", _SERVER, "30"], cwd=_ROOT, stdout=subprocess.PIPE, text=True,
        env=_environment(),
    ) as process:
        try:
            first = process.stdout.readline()
            assert first.startswith("Ready: http://127.0.0.1:")
            asyncio.run(call(first.split()[1], process))
            out, _ = process.communicate(timeout=15)  # Long before the 30 s are over.
            assert process.returncode == 0 and "Left in good order" in out
        finally:
            process.kill()


def test_a_second_signal_is_not_patient():
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER, "60"], cwd=_ROOT, stdout=subprocess.PIPE, text=True,
        env=_environment(),
    ) as process:
        try:
            url = process.stdout.readline().split()[1]

            async def call():
                async with client.connect(url) as caller:
                    await caller.start()
                    process.send_signal(signal.SIGTERM)
                    await caller.wait_for(messages.Ending)
                    process.send_signal(signal.SIGTERM)
                    assert (await caller.wait_for(messages.Ended)).reason == "draining"

            asyncio.run(call())
            assert process.wait(15) == 0
        finally:
            process.kill()
