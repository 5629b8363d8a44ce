"""What client and server say to each other in a call, message by message."""

from collections.abc import Collection
import dataclasses
from typing import Any, TypeAlias

from tm_jax.serving.transport import protocol

_TEXT = 4096  # Longest string in a message of a client.
_WORD = 256  # Longest identifier.


def _word(
    default: Any = dataclasses.MISSING, choices: Collection[str] | None = None,
    longest: int = _WORD,
) -> Any:
    return dataclasses.field(
        default=default, metadata={"choices": choices, "longest": longest}
    )


def _count(default: Any = dataclasses.MISSING) -> Any:
    return dataclasses.field(default=default, metadata={"least": 0, "most": 0xFFFFFFFF})


# Messages of the client.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hello:
    """First message of a connection.

    Attributes:
      version: Protocol version.
      token: Access token, where the server has one.
      resume: Secret of the session to go on with.
      client: Name of the program, for the log.
    """

    version: int
    token: str | None = _word(None, longest=_TEXT)
    resume: str | None = _word(None)
    client: str | None = _word(None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """Begins a session.

    Attributes:
      mode: One of `MODES`.
      character: Identifier of a character; the first one if left out.
      agent: Identifier of a voice agent, for mode "agent".
      avatar: One of `AVATARS`.
    """

    mode: str = _word("mirror", protocol.MODES)
    character: str | None = _word(None)
    agent: str | None = _word(None)
    avatar: str = _word("auto", protocol.AVATARS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mode:
    """Changes what drives the avatar; the server answers with the same.

    Attributes:
      mode: One of `MODES`.
      agent: Identifier of a voice agent, for mode "agent".
    """

    mode: str = _word(choices=protocol.MODES)
    agent: str | None = _word(None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Avatar:
    """Sets the pose; the server answers with the same.

    Attributes:
      avatar: One of `AVATARS`.
    """

    avatar: str = _word(choices=protocol.AVATARS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Character:
    """Changes the character; the server answers with the same.

    Attributes:
      character: Identifier.
    """

    character: str = _word()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interrupt:
    """Stops the avatar's speech."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechEnd:
    """Says that no more sound of a file will come."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reset:
    """Starts again from the picture."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Played:
    """What the client has shown.

    Attributes:
      generation: Generation of the last shown frame.
      frame: Its number.
      late: Frames shown too late since the start.
      dropped: Frames never shown since the start.
      buffer_ms: Sound that is ready to be played.
      playout_ms: From arrival to the screen.
      voice_to_lips_ms: From the capture of a sample to the frame that moves with it.
    """

    generation: int = _count()
    frame: int = _count()
    late: int = _count(0)
    dropped: int = _count(0)
    buffer_ms: float = 0.0
    playout_ms: float = 0.0
    voice_to_lips_ms: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ping:
    """Asks for a `Pong`.

    Attributes:
      t: Any number; comes back.
    """

    t: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stop:
    """Hangs up."""


# Messages of the server.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Welcome:
    """What the server offers.

    Attributes:
      version: Protocol version.
      server: Name and version of the program.
      fps: Frames per second.
      width: Width of a frame.
      height: Height of a frame.
      sample_rate: Samples per second, both ways.
      modes: What can drive the avatar.
      agents: Voice agents, each with `id` and `name`.
      limits: Sizes in bytes and the longest queue of sound in seconds.
      resume_s: How long a session waits for a lost client.
      idle_s: How long a silent client is kept.
      lifetime_s: Longest call.
    """

    version: int
    server: str
    fps: int
    width: int
    height: int
    sample_rate: int
    modes: list
    agents: list
    limits: dict
    resume_s: float
    idle_s: float
    lifetime_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Started:
    """The session is live.

    Attributes:
      session: Public identifier.
      resume: Secret for `Hello.resume`.
      resumed: Whether it is an old session.
      generation: Generation of the frames to come.
      mode: One of `MODES`.
      character: Identifier.
      agent: Identifier of the voice agent, or None.
    """

    session: str
    resume: str
    resumed: bool
    generation: int
    mode: str
    character: str
    agent: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """What the voice does.

    Attributes:
      state: One of `STATES`.
    """

    state: str = _word(choices=protocol.STATES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Caption:
    """What was said, so far.

    Attributes:
      role: One of `ROLES`.
      item: Which utterance; a later caption of the same one replaces its text.
      text: All of it so far.
      final: Whether it is complete.
    """

    role: str = _word(choices=protocol.ROLES)
    item: str = _word()
    text: str
    final: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interrupted:
    """Speech was stopped.

    Attributes:
      generation: The new generation.
      reason: One of `REASONS`.
    """

    generation: int
    reason: str = _word(choices=protocol.REASONS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """Where the time of one chunk went.

    Attributes:
      generation: Its generation.
      frame: Number of its first frame.
      speaking: Whether the avatar speaks in it.
      queued_ms: Sound that waits on the server.
      spans: Milliseconds by name, of `SPANS`.
    """

    generation: int
    frame: int
    speaking: bool
    queued_ms: float
    spans: dict


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stats:
    """Where the time went lately.

    Attributes:
      spans: By name of `SPANS`, a dictionary of p50, p95 and p99 in milliseconds.
      fps: Frames sent per second.
      dropped: Frames that the client was too slow for.
      sessions: Callers on this server.
      capacity: How many it can serve.
    """

    spans: dict
    fps: float
    dropped: int
    sessions: int
    capacity: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pong:
    """Answer to `Ping`.

    Attributes:
      t: The number that came.
    """

    t: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ending:
    """The session will end.

    Attributes:
      reason: Code of `ERRORS`.
      in_s: Seconds until then.
    """

    reason: str
    in_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ended:
    """Last message of a session.

    Attributes:
      reason: Code of `ERRORS`, or "stopped".
    """

    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Error:
    """Something was refused or went wrong.

    Attributes:
      code: One of `ERRORS`.
      message: One sentence for people.
      fatal: Whether the server closes the connection.
    """

    code: str
    message: str
    fatal: bool = False


# Sound and pictures.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sound:
    """Sound from the client.

    Attributes:
      sequence: Number of the message.
      position: Samples sent before.
      captured_ms: The client's clock.
      pcm: Mono, 16 bits, `SAMPLE_RATE`.
    """

    sequence: int
    position: int
    captured_ms: int
    pcm: bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frames:
    """Frames that follow each other, with their sound.

    Attributes:
      generation: Grows with every interruption.
      frame: Number of the first one.
      pts: Its presentation time in samples.
      source: Position of the caller's sample heard at its start, or `NO_SOURCE`.
      first: Whether a chunk begins with it.
      speaking: Whether the avatar speaks.
      own_voice: Whether the sound is the caller's.
      pcm: Sound of all of them.
      jpegs: One picture a frame.
    """

    generation: int
    frame: int
    pts: int
    source: int = protocol.NO_SOURCE
    first: bool = False
    speaking: bool = False
    own_voice: bool = False
    pcm: bytes
    jpegs: tuple[bytes, ...]


def _table(*kinds):
    names = ["".join("_" * c.isupper() + c.lower() for c in k.__name__)[1:] for k in kinds]
    return dict(zip(names, kinds))


Message: TypeAlias = (
    Hello | Start | Mode | Avatar | Character | Interrupt | SpeechEnd | Reset | Played | Ping
    | Stop | Welcome | Started | State | Caption | Interrupted | Timing | Stats | Pong | Ending
    | Ended | Error | Sound | Frames
)  # fmt: skip
FROM_CLIENT = _table(
    Hello, Start, Mode, Avatar, Character, Interrupt, SpeechEnd, Reset, Played, Ping, Stop
)
FROM_SERVER = _table(
    Welcome, Started, Mode, Avatar, Character, State, Caption, Interrupted, Timing, Stats,
    Pong, Ending, Ended, Error,
)  # fmt: skip
