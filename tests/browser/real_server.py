"""The project's own server with devices that compute nothing, in a process of its own.

The upper half of the picture is as bright as the sound that the frame belongs to.
"""

import argparse
import asyncio

import numpy as np

from tm_jax.serving import app as app_lib
from tm_jax.serving import config
from tm_jax.serving import security
from tm_jax.serving.calls import exchange as exchange_lib
from tm_jax.serving.runtime import engine as engine_lib
from tm_jax.serving.runtime import fake
from tm_jax.serving.transport import pictures

_SIDE = 64


def _site(webrtc: bool) -> app_lib.Site:
    engine = engine_lib.Engine(fake.FakeBackend(_SIDE, step_s=0.05), lanes=4, batch=1)
    faces = [
        pictures.character(name.lower(), name, np.full((_SIDE, _SIDE, 3), level, np.uint8))
        for name, level in (("Ada", 60), ("Ben", 160))
    ]
    gallery = pictures.Gallery(faces, _SIDE, _SIDE)
    exchange = exchange_lib.Exchange(engine, gallery, [], config.Limits())
    peers = None
    if webrtc:
        from tm_jax.serving.transport import webrtc as webrtc_lib

        peers = webrtc_lib.Peers(exchange, loopback=True)
    return app_lib.Site(exchange=exchange, guard=security.Guard(), preset="fake", webrtc=peers)


async def _serve(port: int, webrtc: bool) -> None:
    await app_lib.start(app_lib.build(_site(webrtc)), "127.0.0.1", port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--webrtc", action="store_true")
    arguments = parser.parse_args()
    asyncio.run(_serve(arguments.port, arguments.webrtc))
