"""A Realtime endpoint elsewhere, over a WebSocket: OpenAI's, or any server that speaks alike."""

import asyncio
import dataclasses
import ipaddress
import json
import os
import urllib.parse

import aiohttp

from tm_jax.integrations.agents import endpoint
from tm_jax.integrations.agents import events

KEY = "OPENAI_API_KEY"  # Environment variable that holds the key.
_LARGEST = 32 * 2**20  # bytes of one event
_HEARTBEAT_S = 15.0  # A connection that answers no ping for this long is lost.
_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
_REFUSALS = {
    401: "the key is missing or wrong (environment variable OPENAI_API_KEY)",
    403: "the key may not use this model",
    404: "there is no Realtime endpoint at this address, or no such model",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Where an endpoint is.

    Attributes:
      url: Address: http, https, ws or wss; with or without `/realtime` at its end.
      model: Name of the model there; None for an endpoint that has only one.
      connect_s: Longest wait for a connection.
      key: Key of the caller's account; None for an endpoint that needs none.
    """

    url: str
    model: str | None = "gpt-realtime"
    connect_s: float = 10.0
    key: str | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self):
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in _SCHEMES or not parts.hostname:
            raise ValueError(
                f"agent_url must look like wss://host/v1 or http://localhost:8765/v1, got "
                f"{self.url!r}."
            )
        if parts.username or parts.password:
            raise ValueError(
                f"agent_url: give the key in the environment variable {KEY}, not in the address."
            )
        if self.key and _SCHEMES[parts.scheme] == "ws" and not _local(parts.hostname):
            raise ValueError(
                f"agent_url: {parts.hostname} would receive the key of {KEY} unencrypted; use "
                f"wss or https, or unset {KEY}."
            )

    @classmethod
    def from_environment(cls, url: str, model: str | None = "gpt-realtime") -> "Config":
        """Makes a config with the key of the environment, if there is one."""
        return cls(url=url, model=model, key=os.environ.get(KEY) or None)

    @property
    def address(self) -> str:
        """The address that is dialled."""
        parts = urllib.parse.urlsplit(self.url)
        path = parts.path.rstrip("/")
        if not path.endswith("/realtime"):
            path += "/realtime"
        query = urllib.parse.parse_qsl(parts.query)
        if self.model is not None and "model" not in dict(query):
            query.append(("model", self.model))
        return urllib.parse.urlunsplit(
            (_SCHEMES[parts.scheme], parts.netloc, path, urllib.parse.urlencode(query), "")
        )


class Remote:
    """One conversation at an address; an `endpoint.Endpoint`."""

    def __init__(self, config: Config):
        """Makes an endpoint; nothing happens before `open`."""
        self._config = config
        self._session: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None

    async def open(self) -> None:
        """Connects; raises `endpoint.Lost` or `endpoint.Refused`."""
        await self.close()
        config = self._config
        headers = {"Authorization": f"Bearer {config.key}"} if config.key else {}
        self._session = aiohttp.ClientSession()
        try:
            async with asyncio.timeout(config.connect_s):
                self._socket = await self._session.ws_connect(
                    config.address, headers=headers, protocols=("realtime",),
                    max_msg_size=_LARGEST, heartbeat=_HEARTBEAT_S,
                )
        except aiohttp.WSServerHandshakeError as error:
            await self.close()
            reason = _REFUSALS.get(error.status, f"it answered with status {error.status}")
            kind = endpoint.Lost if error.status in (408, 429) or error.status >= 500 else (
                endpoint.Refused
            )
            raise kind(f"{self._where} refused the connection: {reason}.") from error
        except (aiohttp.ClientError, OSError) as error:
            await self.close()
            reason = str(error) or f"no answer in {config.connect_s:.0f} s"
            raise endpoint.Lost(f"{self._where} cannot be reached ({reason}).") from error

    async def send(self, event: dict) -> None:
        """Sends an event."""
        if self._socket is None or self._socket.closed:
            raise endpoint.Lost(f"{self._where} has closed the connection")
        try:
            await self._socket.send_str(json.dumps(event))
        except (aiohttp.ClientError, OSError) as error:
            raise endpoint.Lost(f"{self._where} has closed the connection") from error

    async def receive(self) -> dict:
        """Waits for the next event; what is none is passed over."""
        if self._socket is None:
            raise endpoint.Lost(f"{self._where} is not connected")
        while True:
            message = await self._socket.receive()
            if message.type is aiohttp.WSMsgType.TEXT:
                event = _event(message.data)
                if event is not None:
                    return event
            elif message.type is not aiohttp.WSMsgType.BINARY:
                raise endpoint.Lost(f"{self._where} has closed the connection")

    async def close(self) -> None:
        """Hangs up."""
        socket, session = self._socket, self._session
        self._socket = self._session = None
        if socket is not None:
            await socket.close()
        if session is not None:
            await session.close()

    @property
    def _where(self) -> str:
        return f"The voice agent at {urllib.parse.urlsplit(self._config.url).netloc}"


def _event(text: str) -> dict | None:
    try:
        event = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        return None
    return {**event, "type": events.new_name(event["type"])}


def _local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
