"""Measures a running server with headless callers and writes JSON.

  python launch/serve.py &
  python launch/bench_server.py --callers=2 --seconds=60 --out=bench.json
"""

from typing import Any
import asyncio
import json
import os
import pathlib
import platform
import sys

from absl import flags

try:
    from launch import common
except ModuleNotFoundError as error:
    if error.name not in ("launch", "launch.common"):
        raise
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    from launch import common

_URL = flags.DEFINE_string("url", "http://127.0.0.1:8080", "The server.")
_CALLERS = flags.DEFINE_integer("callers", 1, "Calls at the same time.", 1, 1000)
_SECONDS = flags.DEFINE_float("seconds", 30, "Length of each call.", 1)
_STAGGER = flags.DEFINE_float("stagger_s", 0.5, "Time between the beginnings of calls.", 0)
_BUFFER = flags.DEFINE_float("buffer_s", 0.1, "Play-out buffer of a caller.", 0, 2)
_MODE = flags.DEFINE_enum("mode", "mirror", ["mirror", "agent", "file"], "What drives the avatar.")
_AUDIO = flags.DEFINE_string("audio", None, "What callers say; a bundled recording by default.")
_OUT = flags.DEFINE_string("out", None, "JSON file to write.")


def main() -> None:
    """Measures, prints the main figures and writes all of them."""
    from tm_jax.serving.runtime import load

    said = load.speech(_AUDIO.value)
    figures = asyncio.run(
        load.storm(
            _URL.value, said, _SECONDS.value, _CALLERS.value,
            token=os.environ.get("TM_JAX_TOKEN"), mode=_MODE.value,
            stagger_s=_STAGGER.value, buffer_s=_BUFFER.value,
        )
    )
    figures: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores", "mode": _MODE.value,
        "seconds": _SECONDS.value, "buffer_ms_set": 1000 * _BUFFER.value, **figures,
    }
    text = json.dumps(figures, indent=1)
    if _OUT.value:
        pathlib.Path(_OUT.value).write_text(text + "\n", encoding="utf-8")
    print(text)
    if not figures["served"]:
        raise OSError(f"no caller was served: {'; '.join(figures['errors'])}")


if __name__ == "__main__":
    common.run("bench_server", main)
