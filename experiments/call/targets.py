"""What strangers can send: one function for each decoder, which may refuse but never break.

Each takes any bytes and raises only where there is a defect. A test drives them with damaged
examples, `fuzz.py` with what it learns from their code.
"""

import io
import pathlib
import struct
import tempfile
import wave
import zlib

import numpy as np
import PIL.Image

from tm_jax.media import audio
from tm_jax.serving.transport import codec
from tm_jax.serving.transport import messages
from tm_jax.serving.transport import pictures
from tm_jax.serving.transport import protocol

_SIDE = 16
_MOST_S = 60.0  # Sound that is read of a file; its header may promise years.


def text(data: bytes) -> None:
    """A text message, from a client and from a server."""
    line = data.decode("utf-8", "surrogateescape")
    for read in (codec.from_client, codec.from_server):
        try:
            message = read(line)
        except protocol.ProtocolError as error:
            assert error.code in protocol.ERRORS and "\n" not in str(error)
        else:
            assert read(codec.to_text(message)) == message


def binary(data: bytes) -> None:
    """A binary message: what is taken has to come back as it was."""
    pairs = (
        (codec.sound_from_bytes, codec.sound_to_bytes),
        (codec.frames_from_bytes, codec.frames_to_bytes),
    )
    for read, write in pairs:
        try:
            message = read(data)
        except protocol.ProtocolError as error:
            assert error.code in protocol.ERRORS
        else:
            assert read(write(message)) == message


def picture(data: bytes) -> None:
    """An uploaded picture."""
    gallery = pictures.Gallery([], _SIDE, _SIDE)
    try:
        added = gallery.add(data)
    except protocol.ProtocolError as error:
        assert error.code == "bad_picture" and str(error) and "\n" not in str(error)
    else:
        assert added.picture.shape == (_SIDE, _SIDE, 3) and added.picture.dtype == np.uint8


def sound(data: bytes) -> None:
    """A sound file."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        seconds = 0.0
        try:
            with audio.open_speech(file.name) as blocks:
                for block in blocks:
                    assert np.isfinite(block.speech).all()
                    seconds += len(block.speech) / audio.SPEECH_RATE
                    if seconds > _MOST_S:
                        break
        except ValueError as error:
            assert str(error) and "\n" not in str(error)


def _saved(kind: str, **arguments) -> bytes:
    gradient = np.arange(24 * 20 * 3, dtype=np.uint8).reshape(24, 20, 3)
    file = io.BytesIO()
    PIL.Image.fromarray(gradient).save(file, kind, **arguments)
    return file.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, *chunks: bytes) -> bytes:
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = _chunk(b"IDAT", zlib.compress(bytes(width * height * 3 + height) if width < 99 else b""))
    return b"".join((b"\x89PNG\r\n\x1a\n", head, *chunks, data, _chunk(b"IEND", b"")))


def _pictures() -> list[bytes]:
    """Good pictures, animations, and pictures that claim or unpack to far too much."""
    frames = [PIL.Image.new("RGB", (20, 24), (i * 60, 0, 0)) for i in range(4)]
    moving = {"save_all": True, "append_images": frames[1:]}
    big_text = b"k\0\0" + zlib.compress(bytes(30_000_000))
    big_profile = b"p\0\0" + zlib.compress(bytes(30_000_000))
    gif = _saved("GIF")
    return [
        _saved("PNG"), _saved("JPEG"), gif, _saved("WEBP"), _saved("BMP"), _saved("TIFF"),
        _saved("GIF", **moving), _saved("WEBP", **moving), _saved("PNG", **moving),
        _png(60000, 60000), _png(2**31 - 1, 1), _png(8, 8, _chunk(b"zTXt", big_text)),
        _png(8, 8, _chunk(b"iCCP", big_profile)),
        gif[:6] + struct.pack("<HH", 65535, 65535) + gif[10:],
    ]  # fmt: skip


def _sounds() -> list[bytes]:
    """A WAV file, one that promises more than it holds, and a bundled recording."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(2)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes(np.arange(4000, dtype="<i2").tobytes())
    good = file.getvalue()
    promised = good[:40] + struct.pack("<I", 0xFFFFFFF0) + good[44:]
    voices = pathlib.Path(audio.__file__).parents[1] / "assets" / "voices"
    return [good, promised, sorted(voices.glob("*.flac"))[0].read_bytes()[:20_000]]


def examples() -> dict[str, list[bytes]]:
    """Good and evil examples for each function, to be damaged further."""
    said = [
        messages.Hello(version=1, token="t"), messages.Start(), messages.Ping(t=1.5),
        messages.Played(generation=1, frame=2), messages.Mode(mode="agent", agent="a"),
        messages.Caption(role="caller", item="i", text="words", final=True),
    ]  # fmt: skip
    heard = messages.Sound(sequence=1, position=2, captured_ms=3, pcm=bytes(8))
    shown = messages.Frames(generation=1, frame=2, pts=3, pcm=bytes(8), jpegs=(b"one", b"two"))
    return {
        "text": [*(codec.to_text(m).encode() for m in said), b"[" * 3000, b"9" * 5000],
        "binary": [codec.sound_to_bytes(heard), codec.frames_to_bytes(shown)],
        "picture": _pictures(),
        "sound": _sounds(),
    }


TARGETS = {"text": text, "binary": binary, "picture": picture, "sound": sound}
