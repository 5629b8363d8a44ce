"""What answers a caller: takes events of the Realtime client, gives events of the server."""

from typing import Protocol


class Lost(ConnectionError):
    """The endpoint has gone away; another `open` may bring it back."""


class Refused(ConnectionError):
    """The endpoint will not serve this client, however often it asks."""


class Endpoint(Protocol):
    """One conversation at a Realtime endpoint, on this computer or elsewhere."""

    async def open(self) -> None:
        """Begins, or begins again after `Lost`; `session.created` comes first.

        Raises:
          Lost: It cannot be reached now.
          Refused: It never will be with these settings; the text gives the reason.
        """

    async def send(self, event: dict) -> None:
        """Sends an event of the client.

        Raises:
          Lost: The connection is gone.
        """

    async def receive(self) -> dict:
        """Waits for the next event of the server; its `type` is the new name.

        Raises:
          Lost: The connection is gone.
        """

    async def close(self) -> None:
        """Ends; nothing is sent or received after it. May be called twice."""
