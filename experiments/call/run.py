"""Starts a server, makes ordinary and impossible calls, and writes what was measured.

  python -m experiments.call.run --part=bench --call_seconds=300
  python -m experiments.call.run --part=screen --transport=webrtc --call_seconds=300
  python -m experiments.call.run --part=soak --minutes=30
"""

import asyncio
import collections
import contextlib
import json
import os
import pathlib
import platform
import random
import signal
import subprocess
import sys
import time
import urllib.request

from absl import app
from absl import flags

from experiments.call import chaos
from experiments.call import host
from experiments.call import screen
from tm_jax.serving.runtime import load

_PART = flags.DEFINE_enum("part", "bench", ["bench", "screen", "soak"], "What to measure.")
_TRANSPORT = flags.DEFINE_enum(
    "transport", "websocket", ["websocket", "webrtc"], "What the browser of part screen calls over."
)
_CALL_S = flags.DEFINE_float("call_seconds", 300, "Length of the measured call.")
_OUT = flags.DEFINE_string(
    "out", None, "JSON to write; results/PART.json or results/screen_TRANSPORT.json by default."
)
_MINUTES = flags.DEFINE_float("minutes", 30, "Length of the soak.")
_VISITORS = flags.DEFINE_integer("visitors", 3, "Impossible callers at a time.")
_WHICH = flags.DEFINE_string("preset", "nano", "Which model.")
_URL = flags.DEFINE_string("url", None, "A running server, instead of one that is started.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the visits.")

_HERE = pathlib.Path(__file__).parent
_ROOT = _HERE.parent.parent
_SETTLE_S = 45.0  # Lost calls, silent connections and uploads are let go by then.


_SERVER = ("launch/serve.py", "--port=0", "--per_address=100", "--sessions_per_minute=100000")
_MARKED_SERVER = ("-m", "experiments.call.marked_server")


@contextlib.contextmanager
def server(*command):
    """A server in a process of its own; yields its address."""
    command = [sys.executable, *command, f"--preset={_WHICH.value}"]
    with subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                if line.startswith("Ready: "):
                    break
            else:
                raise RuntimeError("The server did not start.")
            yield line.split()[1]
        finally:
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGINT)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def figures(url: str) -> dict[str, float]:
    """Values of /metrics without labels."""
    with urllib.request.urlopen(url + "/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line and line[0] != "#" and "{" not in line)
    return {name.removeprefix("tm_jax_"): float(value) for name, value in pairs}


async def bench(url: str) -> dict:
    """One caller alone, then as many as the server takes, then one more."""
    speech = load.speech()
    capacity = int(figures(url)["capacity"])
    found = {
        "capacity": capacity,
        "one_caller": await load.storm(url, speech, _CALL_S.value, 1),
    }
    if capacity > 1:
        found["full"] = await load.storm(url, speech, 30, capacity)
    found["one_too_many"] = await load.storm(url, speech, 5, capacity + 1)
    return found


async def soak(url: str) -> dict:
    """A good caller all the time, and impossible ones beside it."""
    world = chaos.World(url, load.speech(), random.Random(_SEED.value))
    outcomes: collections.Counter = collections.Counter()

    async def visitor(end_s):
        while time.monotonic() < end_s:
            name, outcome = await chaos.visit(world)
            outcomes[f"{name}: {outcome}"] += 1

    async def crowd(seconds):
        end_s = time.monotonic() + seconds
        await asyncio.gather(*(visitor(end_s) for _ in range(_VISITORS.value)))

    await crowd(min(120.0, 12 * _MINUTES.value))  # Everything has been used once.
    await asyncio.sleep(_SETTLE_S)
    before = figures(url)
    outcomes.clear()
    seconds = 60 * _MINUTES.value
    good = asyncio.create_task(load.storm(url, world.speech, seconds, 1))
    await asyncio.sleep(2)
    await crowd(seconds)
    good = await good
    await asyncio.sleep(_SETTLE_S)
    after = figures(url)
    names = ("resident_bytes", "open_files", "sessions")
    return {
        "minutes": _MINUTES.value, "visits": sum(outcomes.values()),
        "outcomes": dict(sorted(outcomes.items())), "good_caller": good,
        "before": {n: before[n] for n in names}, "after": {n: after[n] for n in names},
        "memory_growth": round(after["resident_bytes"] / before["resident_bytes"] - 1, 4),
    }


def look(url: str) -> dict:
    """One caller, then two for a minute, in a real browser."""
    return {
        f"callers_{callers}": screen.watch(url, _TRANSPORT.value, callers, seconds)
        for callers, seconds in ((1, _CALL_S.value), (2, min(60.0, _CALL_S.value)))
    }


def main(argv: list[str]) -> None:
    """Runs one part and writes its results."""
    del argv
    name = _PART.value if _PART.value != "screen" else f"screen_{_TRANSPORT.value}"
    before = host.ticks()
    command = _MARKED_SERVER if _PART.value == "screen" else _SERVER
    with contextlib.nullcontext(_URL.value) if _URL.value else server(*command) as url:
        if _PART.value == "screen":
            found = look(url)
        else:
            found = asyncio.run({"bench": bench, "soak": soak}[_PART.value](url))
        alive = figures(url)["ready"] == 1
        with urllib.request.urlopen(url + "/api/info", timeout=30) as answer:
            preset = json.load(answer)["preset"]
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores", "server_ready": alive,
        "load_average_at_end": os.getloadavg()[0],
        "taken_by_the_host": host.taken(before), "preset": preset,
        **found,
    }
    path = pathlib.Path(_OUT.value or _HERE / "results" / f"{name}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    app.run(main)
