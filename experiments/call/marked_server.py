"""The server of a call, with marks in its frames, for one measurement on this machine.

  python -m experiments.call.marked_server --preset=nano
"""

import asyncio

from absl import app
from absl import flags

from experiments.call import marks
from tm_jax.inference import loading
from tm_jax.serving import app as app_lib
from tm_jax.serving import config
from tm_jax.serving import security
from tm_jax.serving.calls import exchange as exchange_lib
from tm_jax.serving.runtime import capacity
from tm_jax.serving.runtime import devices
from tm_jax.serving.runtime import engine as engine_lib
from tm_jax.serving.runtime import fake
from tm_jax.serving.runtime import memory
from tm_jax.serving.transport import pictures
from tm_jax.serving.transport import webrtc

_WHICH = flags.DEFINE_string("preset", "nano", "Which model; `fake` computes nothing.")
_CALLERS = flags.DEFINE_integer("callers", 2, "Calls at a time at the most.", 1)


def _engine() -> engine_lib.Engine:
    """Models, or none, measured as the server does it."""
    if _WHICH.value == "fake":
        motor = marks.Marked(fake.FakeBackend(256, step_s=0.05))
        return engine_lib.Engine(motor, lanes=_CALLERS.value)
    motor = marks.Marked(devices.PipelineBackend(loading.load(_WHICH.value)))
    plan = capacity.plan(motor, most=_CALLERS.value)
    lanes = max(plan.lanes, -(-_CALLERS.value // plan.batch))
    return engine_lib.Engine(motor, batch=plan.batch, lanes=lanes, begin_s=plan.begin_s)


async def _serve(engine: engine_lib.Engine) -> None:
    size = engine.backend.height, engine.backend.width
    gallery = pictures.Gallery(pictures.from_folder(*size), *size)
    exchange = exchange_lib.Exchange(engine, gallery, [], config.Limits())
    peers = webrtc.Peers(exchange, loopback=True)
    site = app_lib.Site(
        exchange=exchange, guard=security.Guard(), preset=_WHICH.value, webrtc=peers
    )
    running = await app_lib.start(app_lib.build(site), "127.0.0.1", 0)
    print(f"Ready: http://127.0.0.1:{running.port}", flush=True)
    await asyncio.Event().wait()


def main(argv: list[str]) -> None:
    """Serves until it is killed."""
    del argv
    engine = _engine()
    memory.settle()
    asyncio.run(_serve(engine))


if __name__ == "__main__":
    app.run(main)
