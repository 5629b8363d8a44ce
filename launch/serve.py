"""Serves calls with a talking character to browsers.

  python launch/serve.py                      # then open http://127.0.0.1:8080
  TM_JAX_TOKEN=... python launch/serve.py --host=0.0.0.0

The access token and the key of a voice agent come from the environment (TM_JAX_TOKEN and
OPENAI_API_KEY), never from flags, which other users of a machine can read.
"""

import asyncio
import json
import os
import pathlib
import signal
import ssl
import sys
import time

from absl import flags
from absl import logging

try:
    from launch import common
except ModuleNotFoundError as error:
    if error.name not in ("launch", "launch.common"):
        raise
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    from launch import common
from launch import weights

_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to bind; others need TM_JAX_TOKEN.")
_PORT = flags.DEFINE_integer("port", 8080, "Port; 0 takes any free one.", 0, 65535)
_PRESET = flags.DEFINE_string("preset", "nano", "Which model.")
_WEIGHTS = flags.DEFINE_string(
    "weights", None, "Folder of weights to use instead of the preset's own, or "
    "hf:OWNER/NAME[/PATH][@REVISION] of the Hugging Face Hub.",
)
_PROMPT = flags.DEFINE_string("prompt", None, "wan-1.3b, tm-18b: what the video shows.")
_DECODER = flags.DEFINE_enum(
    "decoder", None, ["wan", "tiny"], "wan-1.3b, tm-18b: Wan's own decoder (default), or the "
    "tiny one.",
)
_ATTENTION = common.attention_flag()
_MATRICES = common.matrices_flag()
_ASPECT = flags.DEFINE_string(
    "aspect", None, "wan-1.3b, tm-18b: WIDTH:HEIGHT, such as 9:16, of the same area."
)
_CHARACTERS = flags.DEFINE_string("characters", None, "Folder of pictures to offer instead.")
_PLACEMENT = flags.DEFINE_enum(
    "placement", "self-contained", ["self-contained", "disaggregated"],
    "Whether the last device only decodes.",
)
_SEQUENCE = flags.DEFINE_integer("sequence", 1, "Devices that share the tokens of a chunk.", 1)
_MESH = common.mesh_flag()
_DEVICES = flags.DEFINE_integer("devices", 0, "Devices to use; as many as needed by default.", 0)
_BATCHES = flags.DEFINE_list("batches", None, "Batch sizes to measure; 1 on a CPU, else 1,2,4,8.")
_MOST = flags.DEFINE_integer("max_sessions", 16, "Most calls at a time, if as many fit.", 1, 1024)
_UTILISATION = flags.DEFINE_float(
    "utilisation", 0.8, "Part of the time that devices and processors may work.", 0.1, 1.0
)
_AGENT_URL = flags.DEFINE_string("agent_url", None, "Realtime endpoint of a voice agent.")
_AGENT_MODEL = flags.DEFINE_string("agent_model", "gpt-realtime", "Model of that endpoint.")
_ORIGINS = flags.DEFINE_list("origins", [], "Origins of other pages that may use the server.")
_PROXY = flags.DEFINE_bool("behind_proxy", False, "Trust X-Forwarded-For of a proxy of ours.")
_WEBRTC = flags.DEFINE_bool("webrtc", True, "Offer WebRTC, where aiortc is installed.")
_LOOPBACK = flags.DEFINE_bool("webrtc_loopback", False, "WebRTC on 127.0.0.1 alone.")
_ICE = flags.DEFINE_string(
    "ice_servers", None, 'STUN and TURN servers as JSON, e.g. [{"urls": "stun:host:3478"}].'
)
_TLS_CERT = flags.DEFINE_string(
    "tls_cert", None, "Certificate chain (PEM): browsers give microphones to https only."
)
_TLS_KEY = flags.DEFINE_string("tls_key", None, "Its private key (PEM).")
_PER_MINUTE = flags.DEFINE_integer("sessions_per_minute", 30, "New calls from one address.", 1)
_PER_ADDRESS = flags.DEFINE_integer("per_address", 4, "Calls from one address.", 1)
_IDLE_S = flags.DEFINE_float("idle_s", 300, "A silent call ends after this time.", 1)
_LIFETIME_S = flags.DEFINE_float("lifetime_s", 3600, "Longest call.", 1)
_DRAIN_S = flags.DEFINE_float("drain_s", 20, "Time that calls get when the server stops.", 0)
_VERBOSE = flags.DEFINE_bool("verbose", False, "Log what happens.")


def _ice_servers() -> tuple[dict, ...]:
    """The flag and TM_JAX_TURN_CREDENTIAL as browsers take them."""
    if not _ICE.value:
        return ()
    try:
        servers = json.loads(_ICE.value)
    except ValueError as error:
        raise ValueError(f"--ice_servers is not JSON: {error}.") from error
    if not isinstance(servers, list) or not all(
        isinstance(s, dict) and "urls" in s and set(s) <= {"urls", "username", "credential"}
        for s in servers
    ):
        raise ValueError("--ice_servers: expected a list of {urls, username?, credential?}.")
    secret = os.environ.get("TM_JAX_TURN_CREDENTIAL")
    if secret:
        servers = [{**s, "credential": secret} if "username" in s else s for s in servers]
    return tuple(servers)


def _engine():
    """Loads and warms up the models, and measures how many calls fit."""
    import jax

    from tm_jax.inference import loading
    from tm_jax.inference import pipeline
    from tm_jax.serving.runtime import capacity
    from tm_jax.serving.runtime import devices as devices_lib
    from tm_jax.serving.runtime import engine as engine_lib

    placement = pipeline.Placement(
        mode=_PLACEMENT.value, sequence=_SEQUENCE.value, mesh=common.mesh_sizes(_MESH.value)
    )
    devices = jax.devices()[: _DEVICES.value] if _DEVICES.value else None
    models = loading.load(
        _PRESET.value, weights.local(_WEIGHTS.value), placement=placement, devices=devices,
        prompt=_PROMPT.value, decoder=_DECODER.value, aspect=common.aspect(_ASPECT.value),
        attention=_ATTENTION.value, matrices=_MATRICES.value,
    )
    backend = devices_lib.PipelineBackend(models)
    batches = _BATCHES.value or (["1"] if jax.default_backend() == "cpu" else ["1", "2", "4", "8"])
    try:
        sizes = tuple(int(size) for size in batches)
    except ValueError as error:
        raise ValueError(f"--batches: expected numbers, got {batches}.") from error
    plan = capacity.plan(
        backend, sizes, most=_MOST.value, utilisation=_UTILISATION.value
    )
    most = min(_MOST.value, plan.capacity)
    engine = engine_lib.Engine(
        backend, batch=plan.batch, lanes=plan.lanes, most=most, begin_s=plan.begin_s
    )
    return backend, plan, engine


def _agents() -> list:
    """Voice agents that work here."""
    try:
        from tm_jax.integrations.agents import catalog
    except ModuleNotFoundError as error:
        if _AGENT_URL.value:
            raise ValueError(f"--agent_url needs the extra `agent` ({error}).") from error
        logging.warning("No voice agents: %s.", error)
        return []
    return catalog.available(_AGENT_URL.value, _AGENT_MODEL.value)


def _peers(exchange, servers):
    """WebRTC, where aiortc is installed."""
    if not _WEBRTC.value:
        return None
    try:
        from tm_jax.serving.transport import webrtc
    except ModuleNotFoundError as error:
        logging.warning("No WebRTC: %s; install the extra `webrtc`.", error)
        return None
    return webrtc.Peers(exchange, servers, _LOOPBACK.value)


def _tls():
    """The TLS context of the flags, or None."""
    if not (_TLS_CERT.value or _TLS_KEY.value):
        return None
    if not (_TLS_CERT.value and _TLS_KEY.value):
        raise ValueError("--tls_cert and --tls_key belong together; one of them is missing.")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(_TLS_CERT.value, _TLS_KEY.value)
    except OSError as error:
        raise ValueError(f"--tls_cert, --tls_key: cannot be used ({error}).") from error
    return context


async def serve(site, host: str, port: int, drain_s: float, tls=None) -> None:
    """Serves until SIGTERM or Ctrl-C; then lets the callers finish.

    Args:
      site: What is served, `serving.app.Site`.
      host: Address to bind.
      port: Port; 0 for any free one.
      drain_s: Time that calls get to end; a second signal cuts it short.
      tls: TLS context, or None for plain HTTP.
    """
    from tm_jax.serving import app as app_lib

    running = await app_lib.start(app_lib.build(site), host, port, tls)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    name = f"[{host}]" if ":" in host else host
    print(f"Ready: http{'s' * (tls is not None)}://{name}:{running.port}", flush=True)
    await stop.wait()
    print(f"Stopping; calls get {drain_s:g} s to end.", flush=True)
    stop.clear()
    drain = loop.create_task(site.exchange.drain(drain_s))
    second = loop.create_task(stop.wait())  # A second signal ends the patience.
    await asyncio.wait((drain, second), return_when=asyncio.FIRST_COMPLETED)
    drain.cancel()
    second.cancel()
    await running.close()


def main() -> None:
    """Starts the server that the flags describe."""
    from tm_jax.serving import config
    from tm_jax.serving import security

    if _VERBOSE.value:
        logging.set_verbosity(logging.INFO)
    token = os.environ.get("TM_JAX_TOKEN") or None
    security.check_bind(_HOST.value, token)
    servers, tls = _ice_servers(), _tls()
    try:
        from tm_jax.serving import app as app_lib
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the server needs the extra `serve`: pip install '.[serve]' ({error})."
        ) from error
    from tm_jax.serving.calls import exchange as exchange_lib
    from tm_jax.serving.runtime import memory
    from tm_jax.serving.transport import pictures
    from tm_jax.serving.calls import processors

    limits = config.Limits(
        per_address=_PER_ADDRESS.value, sessions_per_minute=_PER_MINUTE.value,
        idle_s=_IDLE_S.value, lifetime_s=_LIFETIME_S.value
    )
    common.cache_compilations()
    started_s = time.monotonic()
    print(f"Loading {_PRESET.value} and measuring this host ...", flush=True)
    backend, plan, engine = _engine()
    size = backend.height, backend.width
    folder = (_CHARACTERS.value,) if _CHARACTERS.value else ()
    faces = pictures.from_folder(*size, *folder)
    exchange = exchange_lib.Exchange(
        engine, pictures.Gallery(faces, *size), _agents(), limits,
        processors=processors.Processors(_UTILISATION.value),
    )
    guard = security.Guard(
        token, tuple(_ORIGINS.value), requests_per_minute=limits.requests_per_minute,
        sessions_per_minute=limits.sessions_per_minute,
        uploads_per_minute=limits.uploads_per_minute, behind_proxy=_PROXY.value,
    )
    print(
        f"Warm after {time.monotonic() - started_s:.0f} s: a chunk of "
        f"{backend.chunk_frames / backend.fps:.2f} s takes {plan.step_s:.3f} s; "
        f"{engine.capacity} calls at a time (batch {plan.batch}, {plan.lanes} lanes).",
        flush=True,
    )
    if not plan.real_time:
        print("serve: this host is slower than real time; calls will stutter.", file=sys.stderr)
    site = app_lib.Site(
        exchange=exchange, guard=guard, preset=_PRESET.value, ice_servers=servers,
        webrtc=_peers(exchange, servers),
    )
    memory.settle()
    try:
        asyncio.run(serve(site, _HOST.value, _PORT.value, _DRAIN_S.value, tls))
    finally:
        engine.close()


if __name__ == "__main__":
    common.run("serve", main)
