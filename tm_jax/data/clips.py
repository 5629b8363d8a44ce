"""Cuts a video file into clips of one face with its sound, as a stream.

A clip has 1 + 12 n frames at the preset's rate and size (frame 0 is its reference picture), the
sound that goes with them, and marks of speech. Every clip is cropped once, around the face that
`faces` chooses from frames that a second pass over the file samples in advance; a frame is
cropped as it is decoded, so that memory holds the clips under way and no more.
"""

import collections
from collections.abc import Callable, Iterator
import dataclasses
import functools
import math
import os
from typing import NamedTuple

import numpy as np
from PIL import Image

from tm_jax.core import timing as timing_lib
from tm_jax.data import faces
from tm_jax.media import footage
from tm_jax.media import vad

FACE = ("require", "optional", "none")
PARTNER = ("none", "right")
_LOOKED_AT = 640  # Longer side of the picture in which faces are detected.
_CONTEXT_S = 1  # Sound on both sides of a clip by which its speech is judged.
_LATE_S = 0.5  # Frames that may follow the end of the sound.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """How files become clips.

    Attributes:
      height: Height of the clips in pixels.
      width: Width of the clips in pixels.
      chunks: Chunks of a full clip; the last clip of a file may be shorter.
      least_chunks: Chunks of the shortest clip; what is shorter is left out.
      overlap_chunks: Chunks that a clip shares with the next.
      face: "require" refuses clips without exactly one face; "optional" takes the middle of the
        picture for them; "none" runs no detector and takes the middle.
      zoom: Height of a clip over that of its face (brows to chin).
      partner: "right": the left channel is the character's voice, the right one the other
        party's; "none": all channels are the character's voice.
      voice_activity: Network that marks speech, a name of `vad.NETWORKS`.
      before: Frames of sound before frame 0 that a clip carries for the encoders.
      after: Frames of sound after the last frame.
      timing: Clocks.
    """

    height: int
    width: int
    chunks: int = 10
    least_chunks: int = 4
    overlap_chunks: int = 0
    face: str = "require"
    zoom: float = 3.0
    partner: str = "none"
    voice_activity: str = "silero"
    before: int = 0
    after: int = 0
    timing: timing_lib.Timing = timing_lib.Timing()

    def __post_init__(self):
        for name, valid in (
            ("face", FACE), ("partner", PARTNER), ("voice_activity", tuple(vad.NETWORKS))
        ):
            if getattr(self, name) not in valid:
                raise ValueError(
                    f"{name} must be one of {', '.join(valid)}, got {getattr(self, name)!r}."
                )
        if not 1 <= self.least_chunks <= self.chunks:
            raise ValueError(
                f"expected 1 <= least_chunks <= chunks, got {self.least_chunks} and {self.chunks}."
            )
        if not 0 <= self.overlap_chunks < self.chunks:
            raise ValueError(
                f"overlap_chunks must be in 0..{self.chunks - 1}, got {self.overlap_chunks}."
            )
        if min(self.height, self.width) < 16 or self.zoom < 1 or min(self.before, self.after) < 0:
            raise ValueError(
                f"expected height and width of at least 16, zoom of at least 1 and before and "
                f"after of at least 0, got {self}."
            )

    @property
    def frames(self) -> int:
        """Frames of a full clip."""
        return 1 + self.chunks * self.timing.frames_per_chunk

    @property
    def step(self) -> int:
        """Frames from the start of a clip to that of the next."""
        return (self.chunks - self.overlap_chunks) * self.timing.frames_per_chunk


class Clip(NamedTuple):
    """A stretch of one file.

    Attributes:
      start: Number of frame 0 in the file, at the preset's rate.
      frames: uint8 [1 + 4 T, H, W, 3].
      sound: float32 at 16 kHz, [(before + 1 + 4 T + after) * samples_per_frame]; that of
        frame 0 begins at `before * samples_per_frame`. Silence where the file has none.
      partner: The other party's sound, of the same shape; None if the file has none of it.
      active: Whether the character speaks in each frame, bool [1 + 4 T].
      face: Box that holds the face in all frames, in 0..1 of the clip's picture; None if
        no face was detected.
    """

    start: int
    frames: np.ndarray
    sound: np.ndarray
    partner: np.ndarray | None
    active: np.ndarray
    face: faces.Box | None

    def mode(self, timing: timing_lib.Timing) -> np.ndarray:
        """1 where the character speaks in at least half of a latent's frames, int8 [T]."""
        each = self.active[1:].reshape(-1, timing.frames_per_latent)
        return (each.mean(1) >= 0.5).astype(np.int8)


class Rejected(NamedTuple):
    """A stretch of a file that is no example, or the whole file.

    Attributes:
      start: First frame of the stretch; None for the whole file.
      reason: Why, in a few words.
    """

    start: int | None
    reason: str


class Note(NamedTuple):
    """Something about a file that was used only in part.

    Attributes:
      text: A few words.
    """

    text: str


def read(
    path: str | os.PathLike, config: Config, detector: faces.FaceDetector | None,
    choice: faces.Choice = faces.Choice(),
) -> Iterator[Clip | Rejected | Note]:
    """Cuts one file; a bad file gives a reason rather than an error.

    Args:
      path: Video file with sound.
      config: How to cut.
      detector: Finds faces; not used with `config.face` "none".
      choice: Which faces are one face.

    Yields:
      Clips and rejected stretches in order of time, then notes.
    """
    try:
        source = footage.Footage(path, config.timing.fps)
        if config.partner == "right" and source.channels < 2:
            raise ValueError("one channel of sound, and partner=right needs two")
    except ValueError as error:
        yield Rejected(None, str(error))
        return
    any_clip = False
    cutter = _Cutter(source, config, detector, choice)
    for found in cutter:
        any_clip = True
        yield found
    seconds = cutter.frames_read / config.timing.fps
    if not any_clip:
        least = config.least_chunks * config.timing.chunk_s
        reason = f"too short ({seconds:.2f} s of frames with sound, at least {least:.2f} s needed)"
        yield Rejected(None, "; ".join([reason, *source.notes]))
        return
    for text in source.notes + cutter.notes:
        yield Note(text)


@dataclasses.dataclass(frozen=True)
class MakeReader:
    """Makes the function that cuts one file, in whatever process.

    Attributes:
      config: How to cut.
      detector: Makes the face detector, once in each process.
    """

    config: Config
    detector: Callable[[], faces.FaceDetector]

    def __call__(self) -> Callable[[str], Iterator[Clip | Rejected | Note]]:
        """Returns `read` of these settings."""
        detector = None if self.config.face == "none" else self.detector()
        return functools.partial(read, config=self.config, detector=detector)


class _Cutter:
    """The streams of one file, side by side."""

    def __init__(self, source, config, detector, choice):
        self._source, self._config = source, config
        self._scout = None
        if config.face != "none":
            self._scout = _Scout(source.frames(), detector, config.timing.frames_per_chunk)
        self._choice = choice
        self._context = _CONTEXT_S * config.timing.fps
        channels = 2 if config.partner == "right" else 1
        self._sound = _Sound(source.sound(channels), channels, config)
        self.frames_read = 0
        self.notes: list[str] = []

    def __iter__(self) -> Iterator[Clip | Rejected]:
        config, under_way = self._config, collections.deque()
        for index, frame in enumerate(self._source.frames()):
            if self._sound.ended_before(index):
                end = index / config.timing.fps
                self.notes.append(f"sound ends before {end:.2f} s: later frames are left out")
                break
            if index % config.step == 0:
                under_way.append(self._plan(index, frame.aspect))
                self._sound.forget(under_way[0].start - max(self._context, config.before))
            for plan in under_way:
                plan.add(frame)
            if under_way and under_way[0].count == config.frames:
                yield self._finish(under_way.popleft(), config.chunks)
            self.frames_read += 1
        for plan in under_way:
            chunks = (plan.count - 1) // config.timing.frames_per_chunk
            # What an earlier clip holds already is no clip of its own.
            known = config.overlap_chunks if plan.start else 0
            if chunks >= config.least_chunks and chunks > known:
                yield self._finish(plan, chunks)

    def _plan(self, start: int, aspect: float) -> "_Plan":
        config, middle, around, reason = self._config, None, None, ""
        if self._scout is not None:
            seen = self._scout.boxes(start, start + config.frames)
            middle, around, reason = self._choice(seen)
            if config.face == "optional":
                reason = ""
        target = config.width / config.height
        part = faces.crop(middle, aspect, target, config.zoom)
        face = faces.within(around, part) if around is not None else None
        return _Plan(start, (config.width, config.height), part, face, reason)

    def _finish(self, plan: "_Plan", chunks: int) -> Clip | Rejected:
        if plan.reason:
            return Rejected(plan.start, plan.reason)
        timing, config = self._config.timing, self._config
        count = 1 + chunks * timing.frames_per_chunk
        begin, end = plan.start - config.before, plan.start + count + config.after
        sound = self._sound.between(begin, end)
        partner = sound[1] if config.partner == "right" else None
        context = self._context
        judged = self._sound.between(plan.start - context, plan.start + count + context)[0]
        network = vad.NETWORKS[config.voice_activity]()
        active = vad.voice_activity(judged, network, timing)[context:-context]
        return Clip(
            plan.start, np.stack(plan.frames[:count]), sound[0], partner, active, plan.face
        )


class _Plan:
    """A clip under way: what is cropped, and the frames so far."""

    def __init__(self, start, size, part, face, reason):
        self.start, self._size, self._part = start, size, part
        self.face, self.reason = face, reason
        self.frames: list[np.ndarray] = []
        self.count = 0

    def add(self, frame: footage.Frame) -> None:
        """Crops and keeps a frame, unless the clip is refused."""
        self.count += 1
        if self.reason:
            return
        part, (across, down) = self._part, self._size
        # Twice the size that is kept is enough of a large picture.
        height = 2 * down / (part.bottom - part.top)
        picture = Image.fromarray(frame.pixels(math.ceil(height * max(1.0, frame.aspect))))
        width, height = picture.size
        box = (part.left * width, part.top * height, part.right * width, part.bottom * height)
        small = picture.resize((across, down), Image.Resampling.LANCZOS, box)
        self.frames.append(np.asarray(small))


class _Scout:
    """Detects faces in every n-th frame, ahead of the frames that are kept."""

    def __init__(self, frames: Iterator[footage.Frame], detector, every: int):
        self._frames, self._detector, self._every = frames, detector, every
        self._next, self._found = 0, {}

    def boxes(self, start: int, stop: int) -> list[list[faces.Box]]:
        """Boxes of the frames start, start + every, ... before stop or the file's end."""
        while self._next < stop:
            frame = next(self._frames, None)
            if frame is None:
                break
            if self._next % self._every == 0:
                self._found[self._next] = self._detector(frame.pixels(_LOOKED_AT))
            self._next += 1
        self._found = {at: boxes for at, boxes in self._found.items() if at >= start}
        return [self._found[at] for at in sorted(self._found) if at < stop]


class _Sound:
    """Sound of a file by frame numbers; silence before its start and after its end."""

    def __init__(self, blocks: Iterator[np.ndarray], channels: int, config: Config):
        self._blocks, self._per_frame = blocks, config.timing.samples_per_frame
        self._late = round(_LATE_S * config.timing.sample_rate)
        self._kept = np.zeros((channels, 0), np.float32)
        self._first = 0  # Number of the first sample that is kept.
        self._ended = False

    def ended_before(self, frame: int) -> bool:
        """Whether the sound ended clearly before a frame begins."""
        end = self._pull((frame + 1) * self._per_frame)
        return self._ended and end + self._late < frame * self._per_frame

    def between(self, start: int, stop: int) -> np.ndarray:
        """Sound of the frames start ... stop - 1, float32 [channels, samples]."""
        first, last = start * self._per_frame, stop * self._per_frame
        end = self._pull(last)
        inside = self._kept[:, max(0, first - self._first) : max(0, last - self._first)]
        before = max(0, self._first - first)
        return np.pad(inside, ((0, 0), (before, max(0, last - max(end, first + before)))))

    def forget(self, frame: int) -> None:
        """Lets go of the sound before a frame."""
        drop = max(0, min(frame * self._per_frame - self._first, self._kept.shape[1]))
        self._kept, self._first = self._kept[:, drop:].copy(), self._first + drop

    def _pull(self, samples: int) -> int:
        """Reads on until so many samples are there; returns where the known sound ends."""
        parts, end = [self._kept], self._first + self._kept.shape[1]
        while end < samples and not self._ended:
            block = next(self._blocks, None)
            if block is None:
                self._ended = True
                break
            parts.append(block)
            end += block.shape[1]
        if len(parts) > 1:
            self._kept = np.concatenate(parts, 1)
        return end
