"""The voice agents that a server can offer."""

from absl import logging

from tm_jax.integrations.agents import conversation
from tm_jax.integrations.agents import events
from tm_jax.serving.calls import voice


def offline(speaker: str = "auto") -> voice.Agent:
    """Loads the scripted agent that needs no network.

    Args:
      speaker: Which speech synthesiser, of `synthesizer.NAMES`.

    Raises:
      ModuleNotFoundError: The extra `agent` is not installed.
    """
    from tm_jax.integrations.agents import offline as offline_lib

    parts = offline_lib.load(speaker)
    return voice.Agent(
        id="offline", name="Scripted demo (offline)",
        make=lambda: conversation.Conversation(offline_lib.Offline(parts)),
    )


def remote(
    url: str, model: str | None = "gpt-realtime", persona: events.Persona = events.Persona()
) -> voice.Agent:
    """Takes an endpoint by its address, with the key of the environment.

    Args:
      url: Address of a server that speaks the OpenAI Realtime protocol.
      model: Name of the model there.
      persona: How the voice shall be.

    Raises:
      ValueError: The address cannot be used; the text gives the reason.
    """
    from tm_jax.integrations.agents import remote as remote_lib

    config = remote_lib.Config.from_environment(url, model)
    return voice.Agent(
        id="remote", name=model or "Voice agent",
        make=lambda: conversation.Conversation(remote_lib.Remote(config), persona),
    )


def available(
    url: str | None = None, model: str | None = "gpt-realtime", speaker: str = "auto"
) -> list[voice.Agent]:
    """Returns the agents that work here: that of an address first, then the offline one.

    Args:
      url: Address of a Realtime endpoint, if there is one.
      model: Name of the model there.
      speaker: Which speech synthesiser the offline agent uses.

    Raises:
      ValueError: The address cannot be used.
    """
    entries = [remote(url, model)] if url else []
    try:
        entries.append(offline(speaker))
    except ModuleNotFoundError as error:
        logging.warning("No offline voice agent: %s", error)
    return entries
