"""Turns the messages of a call into text and bytes, and back, without input or output."""

import dataclasses
import json
import math
import struct
import types
import typing
from typing import Any

from tm_jax.serving.transport import messages
from tm_jax.serving.transport import protocol

_MAGIC = 0x54
_FRAMES, _SOUND = 1, 2
_FIRST, _SPEAKING, _OWN_VOICE = 1, 2, 4  # Flags of a frame message.
_HEAD = struct.Struct("<BBBB")
_SOUND_HEAD = struct.Struct("<BBBBIII")
_FRAMES_HEAD = struct.Struct("<BBBBIIIIHHI")

_TYPES = {kind: name for name, kind in {**messages.FROM_CLIENT, **messages.FROM_SERVER}.items()}
_HINTS = {kind: typing.get_type_hints(kind) for kind in _TYPES}


def to_text(message: messages.Message) -> str:
    """A message of `messages` as JSON; fields that are None are left out."""
    fields = {k: v for k, v in vars(message).items() if v is not None}
    return json.dumps(
        {"type": _TYPES[type(message)], **fields}, ensure_ascii=False, allow_nan=False
    )


def from_client(text: str) -> messages.Message:
    """Reads a text message of a client.

    Raises:
      ProtocolError: Not a message of the protocol; the text says why, in one line.
    """
    most = protocol.JSON_BYTES
    if len(text) > most or len(text.encode("utf-8", "replace")) > most:
        raise protocol.ProtocolError(
            "too_large", f"A text message may have {most} bytes, got more."
        )
    return _parse(text, messages.FROM_CLIENT)


def from_server(text: str) -> messages.Message:
    """Reads a text message of the server; raises `ProtocolError`."""
    return _parse(text, messages.FROM_SERVER)


def start_from(fields: Any) -> messages.Start:
    """Reads the fields of `Start` out of a JSON object; raises `ProtocolError`."""
    if not isinstance(fields, dict):
        raise protocol.ProtocolError(
            "bad_message", "Expected a JSON object with the fields of start."
        )
    return _build("start", messages.Start, fields)


def _refuse_constant(name):
    raise ValueError(f"{name} is not a number")


def _parse(text: str, table: dict):
    try:
        fields = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise protocol.ProtocolError("bad_message", f"Not JSON: {str(error)[:100]}.") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("type"), str):
        raise protocol.ProtocolError("bad_message", "Expected a JSON object with a string `type`.")
    kind = table.get(fields["type"])
    if kind is None:
        raise protocol.ProtocolError(
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
            raise protocol.ProtocolError(
                "bad_message", f"{name}: the field `{field.name}` is missing."
            )
    return kind(**values)


def _checked(where: str, value, hint, metadata):
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return None
    wanted = next(k for k in kinds if k is not type(None))
    if wanted is float and type(value) is int and abs(value) < 2**53:
        value = float(value)
    if type(value) is not wanted or (wanted is float and not math.isfinite(value)):
        raise protocol.ProtocolError(
            "bad_message", f"{where}: expected {wanted.__name__}, got {str(value)[:40]!r}."
        )
    choices, longest = metadata.get("choices"), metadata.get("longest")
    if choices and value not in choices:
        raise protocol.ProtocolError(
            "bad_message", f"{where}: expected one of {', '.join(choices)}, got {value[:40]!r}."
        )
    if longest and len(value) > longest:
        raise protocol.ProtocolError("bad_message", f"{where}: longer than {longest} characters.")
    least, most = metadata.get("least", -(2**53)), metadata.get("most", 2**53)
    if wanted is int and not least <= value <= most:
        raise protocol.ProtocolError("bad_message", f"{where}: {value} is out of range.")
    return value


# Binary messages.


def sound_to_bytes(sound: messages.Sound) -> bytes:
    """A sound message as bytes."""
    head = _SOUND_HEAD.pack(
        _MAGIC, protocol.VERSION, _SOUND, 0, sound.sequence & 0xFFFFFFFF,
        sound.position & 0xFFFFFFFF, sound.captured_ms & 0xFFFFFFFF,
    )  # fmt: skip
    return head + sound.pcm


def sound_from_bytes(data: bytes) -> messages.Sound:
    """Reads a sound message.

    Raises:
      ProtocolError: Damaged, or more than `SOUND_BYTES` of sound.
    """
    _check_head(data, _SOUND, _SOUND_HEAD.size)
    *_, sequence, position, captured_ms = _SOUND_HEAD.unpack_from(data)
    pcm = bytes(data[_SOUND_HEAD.size :])
    if len(pcm) > protocol.SOUND_BYTES:
        raise protocol.ProtocolError(
            "too_large",
            f"A message may hold {protocol.SOUND_BYTES} bytes of sound, got {len(pcm)}.",
        )
    if not pcm or len(pcm) % 2:
        raise protocol.ProtocolError(
            "bad_message", f"Sound is pairs of bytes, at least one; got {len(pcm)} bytes."
        )
    return messages.Sound(sequence=sequence, position=position, captured_ms=captured_ms, pcm=pcm)


def frames_to_bytes(frames: messages.Frames) -> bytes:
    """A frame message as bytes."""
    count = len(frames.jpegs)
    if not 1 <= count <= protocol.MAX_GROUP:
        raise ValueError(f"jpegs: expected 1 to {protocol.MAX_GROUP} of them, got {count}.")
    flags = _FIRST * frames.first | _SPEAKING * frames.speaking | _OWN_VOICE * frames.own_voice
    head = _FRAMES_HEAD.pack(
        _MAGIC, protocol.VERSION, _FRAMES, flags, frames.generation & 0xFFFFFFFF,
        frames.frame & 0xFFFFFFFF, frames.pts & 0xFFFFFFFF, frames.source, count, 0,
        len(frames.pcm),
    )  # fmt: skip
    lengths = struct.pack(f"<{count}I", *map(len, frames.jpegs))
    return b"".join((head, lengths, frames.pcm, *frames.jpegs))


def frames_from_bytes(data: bytes) -> messages.Frames:
    """Reads a frame message; raises `ProtocolError` if it is damaged."""
    _check_head(data, _FRAMES, _FRAMES_HEAD.size)
    fields = _FRAMES_HEAD.unpack_from(data)
    flags, generation, frame, pts, source, count, _, pcm_bytes = fields[3:]
    at = _FRAMES_HEAD.size + 4 * count
    if not 1 <= count <= protocol.MAX_GROUP or len(data) < at:
        raise protocol.ProtocolError("bad_message", f"A message cannot hold {count} frames.")
    lengths = struct.unpack_from(f"<{count}I", data, _FRAMES_HEAD.size)
    if at + pcm_bytes + sum(lengths) != len(data):
        raise protocol.ProtocolError("bad_message", "The parts of a frame message do not add up.")
    pcm, at = bytes(data[at : at + pcm_bytes]), at + pcm_bytes
    jpegs = []
    for length in lengths:
        jpegs.append(bytes(data[at : at + length]))
        at += length
    return messages.Frames(
        generation=generation, frame=frame, pts=pts, source=source,
        first=bool(flags & _FIRST), speaking=bool(flags & _SPEAKING),
        own_voice=bool(flags & _OWN_VOICE), pcm=pcm, jpegs=tuple(jpegs),
    )  # fmt: skip


def _check_head(data: bytes, kind: int, size: int) -> None:
    if len(data) < size:
        raise protocol.ProtocolError(
            "bad_message", f"A binary message has at least {size} bytes, got {len(data)}."
        )
    magic, version, got, _ = _HEAD.unpack_from(data)
    if magic != _MAGIC or got != kind:
        raise protocol.ProtocolError("bad_message", "Not a binary message of this protocol.")
    if version != protocol.VERSION:
        raise protocol.ProtocolError(
            "bad_version", f"Binary message of version {version}, expected {protocol.VERSION}."
        )
