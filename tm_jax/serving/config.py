"""Settings of a server: limits and lifetimes, with the reasons for their values."""

import dataclasses

from tm_jax.serving.transport import protocol

VERSION = "tm_jax 0.1.0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What one caller may use.

    Attributes:
      picture_bytes: Largest upload.
      per_address: Sessions from one address.
      uploads_per_minute: Pictures from one address.
      requests_per_minute: Connections and refused requests from one address.
      sessions_per_minute: New sessions from one address; devices work for each.
      messages_per_s: Text messages of a connection, on average.
      bad_messages: Unreadable messages after which a connection is closed.
      sound_rate: Microphone sound per real time.
      sound_burst_s: Sound that may come at once.
      ahead_s: Sound of a file that may wait on the server.
      idle_s: A call ends when nothing was said and pressed for so long.
      lifetime_s: Longest call.
      resume_s: How long a lost client is waited for.
      hello_s: How long a connection may wait before `hello` and `start`.
      send_s: How long one message may take to leave.
      notice_s: How long before its end a caller is told.
    """

    picture_bytes: int = 8 * 1024 * 1024
    per_address: int = 4
    uploads_per_minute: int = 20
    requests_per_minute: int = 120
    sessions_per_minute: int = 30
    messages_per_s: float = 30.0
    bad_messages: int = 20
    sound_rate: float = 1.25
    sound_burst_s: float = 2.0
    ahead_s: float = 30.0
    idle_s: float = 300.0
    lifetime_s: float = 3600.0
    resume_s: float = 10.0
    hello_s: float = 10.0
    send_s: float = 10.0
    notice_s: float = 10.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) <= 0:
                raise ValueError(
                    f"{field.name} must be above 0, got {getattr(self, field.name)}."
                )

    def public(self) -> dict:
        """The fields of `welcome`."""
        return {
            "json_bytes": protocol.JSON_BYTES, "sound_bytes": protocol.SOUND_BYTES,
            "picture_bytes": self.picture_bytes, "ahead_s": self.ahead_s,
        }
