"""What both sides of a call have agreed on: versions, limits, words and error codes.

docs/protocol.md is the description for people who write another client.
"""

VERSION = 1
SUBPROTOCOL = "tm-jax.v1"
SAMPLE_RATE = 24000
JSON_BYTES = 16 * 1024  # Largest text message of a client.
SOUND_BYTES = 48000  # Most sound in one message: a second.
NO_SOURCE = 0xFFFFFFFF
MAX_GROUP = 64  # Frames in one message.

MODES = ("mirror", "agent", "file")
AVATARS = ("auto", "speak", "listen")
STATES = ("listening", "thinking", "speaking")
ROLES = ("caller", "avatar")
REASONS = ("client", "barge_in", "mode", "character", "reset")
SPANS = (
    "audio_wait", "lookahead", "queue", "score", "transfer", "decode", "encode", "send",
    "playout",
)  # fmt: skip

# Error code -> close code of the connection; 0 leaves it open.
ERRORS = {
    "bad_message": 0, "bad_state": 0, "bad_version": 4002, "unauthorized": 4001,
    "full": 4009, "too_many_sessions": 4009, "unknown_session": 0, "unknown_character": 0,
    "unknown_agent": 0, "bad_picture": 0, "too_large": 0, "too_fast": 0, "agent_failed": 0,
    "draining": 4012, "idle": 1000, "lifetime": 1000, "slow": 4008, "internal": 1011,
}  # fmt: skip
CLOSE_BAD_MESSAGES = 4000
CLOSE_TAKEN_OVER = 4003


class ProtocolError(ValueError):
    """A message that cannot be accepted.

    Attributes:
      code: One of `ERRORS`.
    """

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code
