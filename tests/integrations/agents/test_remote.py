"""Connections to a Realtime server on this machine: addresses, refusals, losses."""

import asyncio

import pytest

pytest.importorskip("aiohttp")

from tm_jax.integrations.agents import endpoint
from tm_jax.integrations.agents import remote


@pytest.mark.parametrize(
    "url, address",
    [
        ("https://api.openai.com/v1", "wss://api.openai.com/v1/realtime?model=gpt-realtime"),
        ("http://localhost:8765", "ws://localhost:8765/realtime?model=gpt-realtime"),
        ("ws://127.0.0.1:1/v1/realtime/", "ws://127.0.0.1:1/v1/realtime?model=gpt-realtime"),
        ("wss://h/realtime?model=a%20b&x=1", "wss://h/realtime?model=a+b&x=1"),
    ],
)
def test_addresses(url, address):
    assert remote.Config(url=url).address == address


def test_no_model_is_asked_for_where_there_is_only_one():
    assert remote.Config(url="ws://localhost/v1", model=None).address == (
        "ws://localhost/v1/realtime"
    )


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/", "wss://", ""])
def test_what_is_no_address_is_explained(url):
    with pytest.raises(ValueError, match="agent_url must look like"):
        remote.Config(url=url)


def test_keys_stay_secret(monkeypatch):
    monkeypatch.setenv(remote.KEY, "sk-secret")
    with pytest.raises(ValueError, match="unencrypted"):
        remote.Config.from_environment("http://example.com/v1")
    for url in ("https://example.com/v1", "http://127.0.0.1:9/v1", "ws://[::1]:9/v1"):
        config = remote.Config.from_environment(url)
        assert config.key == "sk-secret" and "secret" not in repr(config)
    with pytest.raises(ValueError, match="not in the address"):
        remote.Config(url="https://user:word@example.com/v1")
    monkeypatch.delenv(remote.KEY)
    assert remote.Config.from_environment("http://example.com/v1").key is None


def test_events_travel_both_ways_under_their_new_names(make_server):
    async def run():
        async with make_server() as server:
            far = remote.Remote(remote.Config(url=server.url, model="m", key="sk-1"))
            await far.open()
            assert (await far.receive())["type"] == "session.created"
            await far.send({"type": "response.create"})
            await server.say("no json", '["list"]', '{"no": "type"}', {"type": 3})
            await server.say({"type": "response.audio.delta", "delta": ""})
            assert await far.receive() == {"type": "response.output_audio.delta", "delta": ""}
            path, headers = server.requests[0]
            assert path == "/v1/realtime?model=m"
            assert headers["Authorization"] == "Bearer sk-1"
            await far.close()
            await far.close()
            assert server.of("response.create")

    asyncio.run(run())


def test_a_closed_connection_is_lost_and_can_be_opened_again(make_server):
    async def run():
        async with make_server() as server:
            far = remote.Remote(remote.Config(url=server.url))
            await far.open()
            await far.receive()
            await server.hang_up()
            with pytest.raises(endpoint.Lost, match="127.0.0.1.*closed the connection"):
                await far.receive()
            with pytest.raises(endpoint.Lost):
                await far.send({"type": "response.create"})
            await far.open()
            assert (await far.receive())["type"] == "session.created"
            await far.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    "status, kind, words",
    [
        (401, endpoint.Refused, "OPENAI_API_KEY"), (403, endpoint.Refused, "may not use"),
        (404, endpoint.Refused, "no Realtime endpoint"), (429, endpoint.Lost, "status 429"),
        (503, endpoint.Lost, "status 503"),
    ],
)
def test_refusals_say_why(make_server, status, kind, words):
    async def run():
        async with make_server() as server:
            server.status = status
            with pytest.raises(kind, match=words):
                await remote.Remote(remote.Config(url=server.url, key="sk-1")).open()

    asyncio.run(run())


def test_nobody_there_is_lost(make_server):
    async def run():
        async with make_server() as server:
            url = server.url
        with pytest.raises(endpoint.Lost, match="cannot be reached"):
            await remote.Remote(remote.Config(url=url)).open()

        async def silent(reader, writer):
            await reader.read(10000)
            await asyncio.sleep(5)

        listener = await asyncio.start_server(silent, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        config = remote.Config(url=f"http://127.0.0.1:{port}", connect_s=0.2)
        with pytest.raises(endpoint.Lost, match="no answer in 0 s|cannot be reached"):
            await remote.Remote(config).open()
        listener.close()

    asyncio.run(run())
