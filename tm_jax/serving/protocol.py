"""Reads and writes the messages of a call, without any input or output of its own.

docs/protocol.md is the description for people who write another client.
"""

import dataclasses
import json
import math
import struct
import types
import typing

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

FIRST, SPEAKING, OWN_VOICE = 1, 2, 4  # Flags of a frame message.

# Error code -> close code of the connection; 0 leaves it open.
ERRORS = {
    "bad_message": 0, "bad_state": 0, "bad_version": 4002, "unauthorized": 4001,
    "full": 4009, "too_many_sessions": 4009, "unknown_session": 0, "unknown_character": 0,
    "unknown_agent": 0, "bad_picture": 0, "too_large": 0, "too_fast": 0, "agent_failed": 0,
    "draining": 4012, "idle": 1000, "lifetime": 1000, "slow": 4008, "internal": 1011,
}  # fmt: skip
CLOSE_BAD_MESSAGES = 4000
CLOSE_TAKEN_OVER = 4003

_MAGIC = 0x54
_FRAMES, _SOUND = 1, 2
_HEAD = struct.Struct("<BBBB")
_SOUND_HEAD = struct.Struct("<BBBBIII")
_FRAMES_HEAD = struct.Struct("<BBBBIIIIHHI")
_TEXT = 4096  # Longest string in a message of a client.
_WORD = 256  # Longest identifier.


class ProtocolError(ValueError):
    """A message that cannot be accepted.

    Attributes:
      code: One of `ERRORS`.
    """

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


def _word(default=dataclasses.MISSING, choices=None, longest=_WORD):
    return dataclasses.field(
        default=default, metadata={"choices": choices, "longest": longest}
    )


def _count(default=dataclasses.MISSING):
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

    mode: str = _word("mirror", MODES)
    character: str | None = _word(None)
    agent: str | None = _word(None)
    avatar: str = _word("auto", AVATARS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mode:
    """Changes what drives the avatar; the server answers with the same.

    Attributes:
      mode: One of `MODES`.
      agent: Identifier of a voice agent, for mode "agent".
    """

    mode: str = _word(choices=MODES)
    agent: str | None = _word(None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Avatar:
    """Sets the pose; the server answers with the same.

    Attributes:
      avatar: One of `AVATARS`.
    """

    avatar: str = _word(choices=AVATARS)


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

    state: str = _word(choices=STATES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Caption:
    """What was said, so far.

    Attributes:
      role: One of `ROLES`.
      item: Which utterance; a later caption of the same one replaces its text.
      text: All of it so far.
      final: Whether it is complete.
    """

    role: str = _word(choices=ROLES)
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
    reason: str = _word(choices=REASONS)


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


def _table(*kinds):
    names = ["".join("_" * c.isupper() + c.lower() for c in k.__name__)[1:] for k in kinds]
    return dict(zip(names, kinds))


FROM_CLIENT = _table(
    Hello, Start, Mode, Avatar, Character, Interrupt, SpeechEnd, Reset, Played, Ping, Stop
)
FROM_SERVER = _table(
    Welcome, Started, Mode, Avatar, Character, State, Caption, Interrupted, Timing, Stats,
    Pong, Ending, Ended, Error,
)  # fmt: skip
_TYPES = {kind: name for name, kind in {**FROM_CLIENT, **FROM_SERVER}.items()}
_HINTS = {kind: typing.get_type_hints(kind) for kind in _TYPES}


def to_text(message) -> str:
    """One of the messages above as JSON; fields that are None are left out."""
    fields = {k: v for k, v in vars(message).items() if v is not None}
    return json.dumps(
        {"type": _TYPES[type(message)], **fields}, ensure_ascii=False, allow_nan=False
    )


def from_client(text: str):
    """Reads a text message of a client.

    Raises:
      ProtocolError: Not a message of the protocol; the text says why, in one line.
    """
    if len(text) > JSON_BYTES or len(text.encode("utf-8", "replace")) > JSON_BYTES:
        raise ProtocolError(
            "too_large", f"A text message may have {JSON_BYTES} bytes, got more."
        )
    return _parse(text, FROM_CLIENT)


def from_server(text: str):
    """Reads a text message of the server; raises `ProtocolError`."""
    return _parse(text, FROM_SERVER)


def start_from(fields) -> Start:
    """Reads the fields of `Start` out of a JSON object; raises `ProtocolError`."""
    if not isinstance(fields, dict):
        raise ProtocolError("bad_message", "Expected a JSON object with the fields of start.")
    return _build("start", Start, fields)


def _refuse_constant(name):
    raise ValueError(f"{name} is not a number")


def _parse(text: str, table: dict):
    try:
        fields = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("bad_message", f"Not JSON: {str(error)[:100]}.") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("type"), str):
        raise ProtocolError("bad_message", "Expected a JSON object with a string `type`.")
    kind = table.get(fields["type"])
    if kind is None:
        raise ProtocolError(
            "bad_message",
            f"Unknown type {fields['type'][:40]!r}; known are {', '.join(table)}.",
        )
    return _build(fields["type"], kind, fields)


def _build(name: str, kind, fields: dict):
    values = {}
    for field in dataclasses.fields(kind):
        if field.name in fields:
            where = f"{name}.{field.name}"
            values[field.name] = _checked(
                where, fields[field.name], _HINTS[kind][field.name], field.metadata
            )
        elif field.default is dataclasses.MISSING:
            raise ProtocolError("bad_message", f"{name}: the field `{field.name}` is missing.")
    return kind(**values)


def _checked(where: str, value, hint, metadata):
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return None
    wanted = next(k for k in kinds if k is not type(None))
    if wanted is float and type(value) is int and abs(value) < 2**53:
        value = float(value)
    if type(value) is not wanted or (wanted is float and not math.isfinite(value)):
        raise ProtocolError(
            "bad_message", f"{where}: expected {wanted.__name__}, got {str(value)[:40]!r}."
        )
    choices, longest = metadata.get("choices"), metadata.get("longest")
    if choices and value not in choices:
        raise ProtocolError(
            "bad_message", f"{where}: expected one of {', '.join(choices)}, got {value[:40]!r}."
        )
    if longest and len(value) > longest:
        raise ProtocolError("bad_message", f"{where}: longer than {longest} characters.")
    if wanted is int and not metadata.get("least", -(2**53)) <= value <= metadata.get("most", 2**53):
        raise ProtocolError("bad_message", f"{where}: {value} is out of range.")
    return value


# Binary messages.


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
    source: int = NO_SOURCE
    first: bool = False
    speaking: bool = False
    own_voice: bool = False
    pcm: bytes
    jpegs: tuple[bytes, ...]


def sound_to_bytes(sound: Sound) -> bytes:
    """A sound message as bytes."""
    head = _SOUND_HEAD.pack(
        _MAGIC, VERSION, _SOUND, 0, sound.sequence & 0xFFFFFFFF,
        sound.position & 0xFFFFFFFF, sound.captured_ms & 0xFFFFFFFF,
    )  # fmt: skip
    return head + sound.pcm


def sound_from_bytes(data: bytes) -> Sound:
    """Reads a sound message.

    Raises:
      ProtocolError: Damaged, or more than `SOUND_BYTES` of sound.
    """
    _check_head(data, _SOUND, _SOUND_HEAD.size)
    *_, sequence, position, captured_ms = _SOUND_HEAD.unpack_from(data)
    pcm = bytes(data[_SOUND_HEAD.size :])
    if len(pcm) > SOUND_BYTES:
        raise ProtocolError(
            "too_large", f"A message may hold {SOUND_BYTES} bytes of sound, got {len(pcm)}."
        )
    if not pcm or len(pcm) % 2:
        raise ProtocolError(
            "bad_message", f"Sound is pairs of bytes, at least one; got {len(pcm)} bytes."
        )
    return Sound(sequence=sequence, position=position, captured_ms=captured_ms, pcm=pcm)


def frames_to_bytes(frames: Frames) -> bytes:
    """A frame message as bytes."""
    count = len(frames.jpegs)
    if not 1 <= count <= MAX_GROUP:
        raise ValueError(f"jpegs: expected 1 to {MAX_GROUP} of them, got {count}.")
    flags = FIRST * frames.first | SPEAKING * frames.speaking | OWN_VOICE * frames.own_voice
    head = _FRAMES_HEAD.pack(
        _MAGIC, VERSION, _FRAMES, flags, frames.generation & 0xFFFFFFFF,
        frames.frame & 0xFFFFFFFF, frames.pts & 0xFFFFFFFF, frames.source, count, 0,
        len(frames.pcm),
    )  # fmt: skip
    lengths = struct.pack(f"<{count}I", *map(len, frames.jpegs))
    return b"".join((head, lengths, frames.pcm, *frames.jpegs))


def frames_from_bytes(data: bytes) -> Frames:
    """Reads a frame message; raises `ProtocolError` if it is damaged."""
    _check_head(data, _FRAMES, _FRAMES_HEAD.size)
    fields = _FRAMES_HEAD.unpack_from(data)
    flags, generation, frame, pts, source, count, _, pcm_bytes = fields[3:]
    at = _FRAMES_HEAD.size + 4 * count
    if not 1 <= count <= MAX_GROUP or len(data) < at:
        raise ProtocolError("bad_message", f"A message cannot hold {count} frames.")
    lengths = struct.unpack_from(f"<{count}I", data, _FRAMES_HEAD.size)
    if at + pcm_bytes + sum(lengths) != len(data):
        raise ProtocolError("bad_message", "The parts of a frame message do not add up.")
    pcm, at = bytes(data[at : at + pcm_bytes]), at + pcm_bytes
    jpegs = []
    for length in lengths:
        jpegs.append(bytes(data[at : at + length]))
        at += length
    return Frames(
        generation=generation, frame=frame, pts=pts, source=source,
        first=bool(flags & FIRST), speaking=bool(flags & SPEAKING),
        own_voice=bool(flags & OWN_VOICE), pcm=pcm, jpegs=tuple(jpegs),
    )  # fmt: skip


def _check_head(data: bytes, kind: int, size: int) -> None:
    if len(data) < size:
        raise ProtocolError(
            "bad_message", f"A binary message has at least {size} bytes, got {len(data)}."
        )
    magic, version, got, _ = _HEAD.unpack_from(data)
    if magic != _MAGIC or got != kind:
        raise ProtocolError("bad_message", "Not a binary message of this protocol.")
    if version != VERSION:
        raise ProtocolError(
            "bad_version", f"Binary message of version {version}, expected {VERSION}."
        )
