"""Headless callers that measure a running server as a browser would see it.

A caller plays what arrives on a clock of its own, with the play-out buffer of the page, and
measures from the capture of a sample to the frame that moves with it.
"""

import asyncio
import dataclasses
import os
import pathlib
import time

import numpy as np

from tm_jax.media import audio
from tm_jax.media import resampling
from tm_jax.serving import client
from tm_jax.serving.runtime import pacing
from tm_jax.serving.transport import messages
from tm_jax.serving.transport import protocol

_PIECE_S = 0.02  # Sound of a microphone in one message.
_PLAYED_S = 1.0


@dataclasses.dataclass
class Report:
    """What one caller measured; times in milliseconds.

    Attributes:
      connect_ms: Until `welcome`.
      first_frame_ms: From `start` to the first frame.
      frames: Frames that arrived.
      late: Frames that arrived after their time.
      missing: Frames that never arrived.
      underruns: Times that the play-out stood still.
      seconds: From the first frame to the last one.
      voice_to_lips: Capture of a sample to its frame, play-out included.
      buffer: Sound that was ready when a chunk arrived.
      spans: Of the server, by name.
      error: Why the call failed, or None.
    """

    connect_ms: float = 0.0
    first_frame_ms: float = 0.0
    frames: int = 0
    late: int = 0
    missing: int = 0
    underruns: int = 0
    seconds: float = 0.0
    voice_to_lips: list = dataclasses.field(default_factory=list)
    buffer: list = dataclasses.field(default_factory=list)
    spans: dict = dataclasses.field(default_factory=dict)
    error: str | None = None


class Player:
    """Plays frames on a clock that starts with the first one and waits when it runs dry."""

    def __init__(self, fps: int, buffer_s: float):
        """Begins before the first frame."""
        self._frame_s, self._buffer_s = 1 / fps, buffer_s
        self._anchor: tuple[float, int] | None = None  # Clock time, presentation time.
        self._generation = 0
        self._next = None
        self.late = self.missing = self.underruns = 0

    def play(self, frames: messages.Frames, now_s: float) -> float:
        """Takes a frame; returns the clock time at which it is shown."""
        if self._anchor is None or frames.generation > self._generation:
            self._anchor = now_s + self._buffer_s, frames.pts
            self._generation = frames.generation
        elif self._next is not None and frames.frame > self._next:
            self.missing += frames.frame - self._next
        self._next = frames.frame + 1
        at_s, pts = self._anchor
        due_s = at_s + (frames.pts - pts) / protocol.SAMPLE_RATE
        if now_s > due_s + self._frame_s:  # Shown more than a frame too late.
            self.late += 1
        if now_s > due_s:  # The sound has run dry: everything moves back.
            self.underruns += 1
            self._anchor = now_s + self._buffer_s / 2, frames.pts
            return now_s
        return due_s


def speech(path: str | os.PathLike | None = None) -> np.ndarray:
    """A sound file, or a bundled recording, as int16 [n] at 24 kHz."""
    if path is None:
        path = pathlib.Path(__file__).parents[2] / "assets" / "voices" / "dashwood_leisure.flac"
    with audio.open_speech(path) as blocks:
        samples = np.concatenate([block.speech for block in blocks])
    resampler = resampling.Resampler(audio.SPEECH_RATE, protocol.SAMPLE_RATE)
    pcm = resampling.to_pcm16(resampler.push(samples, last=True))
    return np.frombuffer(pcm, "<i2")


async def visit(
    url: str, speech: np.ndarray, seconds: float, *, token: str | None = None,
    mode: str = "mirror", buffer_s: float = 0.1,
) -> Report:
    """Makes one call and measures it.

    Args:
      url: Address of the server.
      speech: Sound that the caller sends, int16 [n] at 24 kHz; repeated.
      seconds: Length of the call.
      token: Access token of the server.
      mode: "mirror", or another one of `protocol.MODES`.
      buffer_s: Play-out buffer.

    Returns:
      What the caller measured; `error` is set if the server refused or broke off.
    """
    report = Report()
    started_s = time.monotonic()
    try:
        async with client.connect(url, token) as call:
            report.connect_ms = 1000 * (time.monotonic() - started_s)
            started_s = time.monotonic()
            await call.start(mode=mode)
            captured: dict[int, float] = {}
            speaker = asyncio.create_task(_speak(call, speech, seconds, captured))
            try:
                await _watch(call, report, seconds, started_s, captured, buffer_s)
            finally:
                speaker.cancel()
            await call.stop()
    except (OSError, protocol.ProtocolError) as error:
        report.error = f"{getattr(error, 'code', type(error).__name__)}: {error}"
    return report


async def _speak(call: client.Call, speech, seconds: float, captured: dict) -> None:
    """Sends sound in real time and notes when each piece was captured."""
    piece = int(_PIECE_S * protocol.SAMPLE_RATE)
    start_s = time.monotonic()
    for index in range(int(seconds / _PIECE_S) + 100):
        # A piece leaves when its last sample has been captured.
        await asyncio.sleep(start_s + (index + 1) * _PIECE_S - time.monotonic())
        at = index * piece % max(1, len(speech) - piece)
        captured[index] = start_s + index * _PIECE_S
        captured.pop(index - 1500, None)
        await call.send_sound(speech[at : at + piece].astype("<i2").tobytes())


async def _watch(call, report, seconds, started_s, captured, buffer_s) -> None:
    player = Player(call.welcome.fps, buffer_s)
    piece = int(_PIECE_S * protocol.SAMPLE_RATE)
    first_s = reported_s = None
    while first_s is None or time.monotonic() - first_s < seconds:
        message = await asyncio.wait_for(call.receive(), 15)
        now_s = time.monotonic()
        if isinstance(message, messages.Stats):
            report.spans = message.spans
        if not isinstance(message, messages.Frames):
            continue
        if first_s is None:
            first_s = reported_s = now_s
            report.first_frame_ms = 1000 * (now_s - started_s)
        shown_s = player.play(message, now_s)
        report.frames += len(message.jpegs)
        if message.first:
            report.buffer.append(1000 * (shown_s - now_s))
        began_s = captured.get(message.source // piece)
        if message.source != protocol.NO_SOURCE and began_s is not None:
            sample_s = began_s + message.source % piece / protocol.SAMPLE_RATE
            report.voice_to_lips.append(1000 * (shown_s - sample_s))
        if reported_s is None or now_s - reported_s > _PLAYED_S:
            reported_s = now_s
            await call.send(messages.Played(
                generation=message.generation, frame=max(0, message.frame - 3),
                late=player.late, dropped=player.missing,
                playout_ms=1000 * (shown_s - now_s),
                voice_to_lips_ms=report.voice_to_lips[-1] if report.voice_to_lips else None,
            ))  # fmt: skip
        report.late, report.missing = player.late, player.missing
        report.underruns, report.seconds = player.underruns, now_s - first_s


def summary(reports: list[Report]) -> dict:
    """Percentiles over all callers, as plain numbers."""

    def percentiles(values):
        window = pacing.Window(10**7)
        for value in values:
            window.add(value)
        return {k: round(v, 1) for k, v in window.percentiles().items()}

    served = [r for r in reports if r.error is None]
    frames = sum(r.frames for r in served)
    late = sum(r.late + r.missing for r in served)
    seconds = sum(r.seconds for r in served)
    return {
        "callers": len(reports),
        "served": len(served),
        "errors": sorted({r.error for r in reports if r.error is not None}),
        "frames": frames,
        "frames_per_second": round((frames - len(served)) / seconds, 2) if seconds else 0.0,
        "late_frames": late,
        "late_share": round(late / frames, 5) if frames else 0.0,
        "underruns": sum(r.underruns for r in served),
        "connect_ms": percentiles(r.connect_ms for r in served),
        "first_frame_ms": percentiles(r.first_frame_ms for r in served),
        "voice_to_lips_ms": percentiles(v for r in served for v in r.voice_to_lips),
        "buffer_ms": percentiles(v for r in served for v in r.buffer),
        "spans_ms": _worst([r.spans for r in served]),
    }


def _worst(tables: list[dict]) -> dict:
    """The largest value of every percentile over the callers."""
    found: dict = {}
    for table in tables:
        for span, values in table.items():
            best = found.setdefault(span, {})
            for name, value in values.items():
                best[name] = max(value, best.get(name, 0.0))
    return found


async def storm(
    url: str, speech: np.ndarray, seconds: float, callers: int, *, token: str | None = None,
    mode: str = "mirror", stagger_s: float = 0.5, buffer_s: float = 0.1,
) -> dict:
    """Makes calls at the same time, one begun after the other; returns `summary`."""

    async def one(index):
        await asyncio.sleep(index * stagger_s)
        return await visit(url, speech, seconds, token=token, mode=mode, buffer_s=buffer_s)

    return summary(await asyncio.gather(*(one(i) for i in range(callers))))
