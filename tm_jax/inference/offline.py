"""Makes a whole clip: a picture and a sound file in, a video file out, as a stream.

Sound is read as the session asks for it, and a worker thread encodes one chunk while
the session computes the next, so memory does not grow with the length.
"""

import collections
from collections.abc import Callable, Iterator
import concurrent.futures
import dataclasses
import math
import os
import time
from typing import Any

import numpy as np

from tm_jax.media import audio as audio_files
from tm_jax.media import picture as picture_files
from tm_jax.media import video as video_files

MODES = ("auto", "speak", "listen")
_MAX_UNENCODED = 2  # Chunks that wait for the worker thread.
_SILENCE_RATE = 48000  # Rate of the sound track of a clip without sound.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What a generation made, and how fast.

    Attributes:
      frames: Frames of the video.
      seconds: Duration of the video.
      wall_s: Time from the call to the finished file.
      first_frame_s: Time from the call until the first chunk could be shown. Holds the
        compilation of the models.
      first_chunk_frames: Frames of that first chunk.
      audio_s: Time of the audio encoder in all chunks.
      score_s: Time of the denoiser in all chunks.
      decode_s: Time of the pixel decoder in all chunks.
      encode_s: Time of the video encoder, which runs beside the others.
    """

    frames: int
    seconds: float
    wall_s: float
    first_frame_s: float
    first_chunk_frames: int
    audio_s: float
    score_s: float
    decode_s: float
    encode_s: float

    @property
    def frames_per_second(self) -> float:
        """Frames made in a second of wall time, all included."""
        return self.frames / self.wall_s

    @property
    def real_time_factor(self) -> float:
        """Wall time for a second of video, the first chunk left out if others follow.

        Below 1 the models keep up with the video.
        """
        frames = self.frames - self.first_chunk_frames
        if not frames:
            return self.wall_s / self.seconds
        return (self.wall_s - self.first_frame_s) / (self.seconds * frames / self.frames)

    def line(self) -> str:
        """Returns the figures in one line."""
        return (
            f"{self.frames} frames ({self.seconds:.2f} s) in {self.wall_s:.1f} s: "
            f"{self.frames_per_second:.1f} frames/s, first frame after "
            f"{self.first_frame_s:.2f} s, then real-time factor {self.real_time_factor:.2f} "
            f"(audio {self.audio_s:.1f} s, score {self.score_s:.1f} s, "
            f"decode {self.decode_s:.1f} s, encode {self.encode_s:.1f} s)"
        )


def generate(
    pipeline: Any,
    picture: str | os.PathLike | np.ndarray,
    audio: str | os.PathLike | None,
    out: str | os.PathLike,
    *,
    seed: int = 0,
    mode: str = "auto",
    seconds: float | None = None,
    progress: Callable[[int, int | None], None] | None = None,
    session_factory: Callable[..., Any] | None = None,
    other_audio: str | os.PathLike | None = None,
) -> Report:
    """Writes an MP4 in which the character of a picture speaks a recording.

    Args:
      pipeline: Preset and weights, from `loading.load`.
      picture: A picture file, or uint8 RGB of the preset's size, [H, W, 3].
      audio: A sound file; None makes a clip that only listens and needs `seconds` or
        `other_audio`.
      out: The .mp4 file to write. It appears when it is complete, or not at all.
      seed: Seed of the noise.
      mode: "speak", "listen", or "auto", which follows the sound.
      seconds: Duration; the rest of a longer recording is left out, after a shorter one
        the character listens. Without it the clip is as long as the recording, or as
        `other_audio` where there is none.
      progress: Called after each chunk with the frames made and the frames expected,
        which is None where the sound file does not state its duration.
      session_factory: Makes the session; `session.Session` if left out.
      other_audio: A sound file with the voice of the other party, which begins with the
        first frame; the character reacts to it while it listens. The sound of the clip is that
        of `audio`; without it, this one.

    Returns:
      What was made, and how fast.

    Raises:
      ValueError, FileNotFoundError, OSError: An input cannot be used or the file cannot
        be written; the text says why, in one line.
    """
    start_s = time.perf_counter()
    check(picture, audio, out, mode, seconds, other_audio)
    if seconds is None and audio is None:
        assert other_audio is not None  # See `check`.
        seconds = _duration_s(other_audio)
    if session_factory is None:
        from tm_jax.inference import session  # Brings JAX in, which the rest can do without.

        session_factory = session.Session
    preset = pipeline.preset
    fps = preset.timing.fps
    if not isinstance(picture, np.ndarray):
        picture = picture_files.load(picture, preset.height, preset.width)
    with _Other(other_audio) as other, _Sound(
        audio, fps, seconds, other
    ) as sound, video_files.Writer(
        out, fps, preset.height, preset.width, sound.sample_rate, sound.channels
    ) as writer:
        session = session_factory(pipeline, picture, seed=seed, mode=mode)
        try:
            totals = _stream(session, sound, other, writer, progress, start_s)
        finally:
            session.close()
        writer.close()
        return Report(
            frames=writer.frames,
            seconds=writer.frames / fps,
            wall_s=time.perf_counter() - start_s,
            **totals,
        )


def check(
    picture: str | os.PathLike | np.ndarray,
    audio: str | os.PathLike | None,
    out: str | os.PathLike,
    mode: str = "auto",
    seconds: float | None = None,
    other_audio: str | os.PathLike | None = None,
) -> None:
    """Raises what `generate` would raise for arguments that are wrong at first sight."""
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}.")
    if seconds is not None and not 0 < seconds < math.inf:
        raise ValueError(f"seconds must be above 0, got {seconds}.")
    if audio is None and other_audio is None and seconds is None:
        raise ValueError("name a sound file, or say with seconds how long to listen.")
    sources = {}
    if not isinstance(picture, np.ndarray):
        sources["image"] = picture_files.check_path(picture)
    if audio is not None:
        sources["audio"] = audio_files.check_path(audio)
    if other_audio is not None:
        sources["other_audio"] = _as_other(audio_files.check_path, other_audio)
    path = video_files.check_path(out)
    for name, source in sources.items():
        if path.exists() and path.samefile(source):
            raise ValueError(f"video: {out} would replace the {name} that it is made from.")


def _as_other(read: Callable[..., Any], path: str | os.PathLike) -> Any:
    """Calls a function of `media.audio`; its errors name the other party's file."""
    try:
        return read(path)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(str(error).replace("audio:", "other_audio:", 1)) from error


def _duration_s(path: str | os.PathLike) -> float:
    """Duration of the other party's sound, counted: a file may announce a wrong one."""
    with _as_other(audio_files.open_speech, path) as reader:
        return sum(len(block.speech) for block in reader) / audio_files.SPEECH_RATE


class _Other:
    """The other party's sound, given to a session just before the chunk that it belongs to.

    Attributes:
      reader: The file, or None if there is none.
      ended: Whether there is no more.
    """

    def __init__(self, path: str | os.PathLike | None):
        self.reader = None if path is None else _as_other(audio_files.open_speech, path)
        self.ended = self.reader is None
        self._blocks = iter(self.reader or ())
        self._given = 0
        self._track: list[np.ndarray] = []

    def __enter__(self) -> "_Other":
        return self

    def __exit__(self, *unused) -> None:
        if self.reader is not None:
            self.reader.close()

    def feed(self, session: Any, samples: int) -> None:
        """Gives the session at least the first `samples` samples of the clip."""
        while not self.ended and self._given < samples:
            block = next(self._blocks, None)
            if block is None:
                # Silence fills the chunk: a shorter rest would be taken for late sound.
                session.push_other(np.zeros(samples - self._given, np.float32))
                self.ended = True
                return
            self._given += len(block.speech)
            self._track.append(block.sound)
            session.push_other(block.speech)

    def take(self) -> list[np.ndarray]:
        """Returns the sound that was fed since the last call, at the reader's rate."""
        track, self._track = self._track, []
        return track


class _Sound:
    """The sound of one clip: feeds a session and hands out the track of the result.

    Attributes:
      frames: Frames that the clip has; None until the end of the sound is found.
      expected_frames: A guess of `frames` from the start on, or None.
      sample_rate: Samples per second of the track.
      channels: Channels of the track.
    """

    def __init__(
        self, path: str | os.PathLike | None, fps: int, seconds: float | None, other: _Other
    ):
        self._fps = fps
        # Without speech of the character the track is the other party's sound.
        self._other = other if path is None and other.reader is not None else None
        self._reader = None if path is None else audio_files.open_speech(path)
        self._blocks = iter(self._reader or ())
        self._heard = 0  # Speech samples given to the session.
        self._track: list[np.ndarray] = []
        self._ended = False
        self.frames = None if seconds is None else self._frames_of(seconds)
        self.expected_frames = self.frames
        self.sample_rate, self.channels = _SILENCE_RATE, 1
        if self._other is not None:
            reader = self._other.reader
            assert reader is not None
            self.sample_rate, self.channels = reader.sample_rate, reader.channels
        if self._reader is not None:
            self.sample_rate, self.channels = self._reader.sample_rate, self._reader.channels
            if self.frames is None and self._reader.seconds:
                self.expected_frames = self._frames_of(self._reader.seconds)

    def __enter__(self) -> "_Sound":
        return self

    def __exit__(self, *unused) -> None:
        if self._reader is not None:
            self._reader.close()

    def _frames_of(self, seconds: float) -> int:
        return max(1, math.ceil(seconds * self._fps - 1e-6))

    def feed(self, session: Any) -> None:
        """Gives the next block to the session, or ends its sound."""
        if self._ended:
            raise RuntimeError("The session gave no chunk after the end of the sound.")
        block = next(self._blocks, None)
        if block is not None:
            self._heard += len(block.speech)
            self._track.append(block.sound)
            if len(block.speech):
                session.push_audio(block.speech)
            return
        self._ended = True
        if self.frames is None:
            self.frames = self._frames_of(self._heard / audio_files.SPEECH_RATE)
        session.end_audio()

    def take(self, frames: int) -> list[np.ndarray]:
        """Returns track to go with that many more frames, or more than that."""
        track, self._track = self._track, []
        if self._other is not None:
            track += self._other.take()
        if self._ended and (self._other is None or self._other.ended):
            # Silence keeps pace with the frames when the sound is over.
            samples = math.ceil(frames * self.sample_rate / self._fps)
            track.append(np.zeros((samples, self.channels), np.float32))
        return track


def _chunks(session: Any, sound: _Sound, other: _Other, rate: int) -> Iterator[Any]:
    """Yields chunks, the last one cut to the length of the clip.

    `rate` is samples of speech per frame.
    """
    made = 0
    while sound.frames is None or made < sound.frames:
        if not other.ended:
            other.feed(session, (made + session.chunk_frames) * rate)
        chunk = session.pull()
        if chunk is None:
            sound.feed(session)
            continue
        if not len(chunk.frames):
            raise RuntimeError("The session gave a chunk without frames.")
        if sound.frames is not None:
            chunk = chunk._replace(frames=chunk.frames[: sound.frames - made])
        made += len(chunk.frames)
        yield chunk


def _stream(session, sound, other, writer, progress, start_s) -> dict[str, Any]:
    """Generates and encodes all chunks; returns the measured part of the report."""
    totals = dict.fromkeys(("audio_s", "score_s", "decode_s", "encode_s"), 0.0)
    made = 0
    rate = audio_files.SPEECH_RATE // writer.fps
    pending = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(1, "encode") as worker:
        for index, chunk in enumerate(_chunks(session, sound, other, rate)):
            if not index:
                totals["first_frame_s"] = time.perf_counter() - start_s
                totals["first_chunk_frames"] = len(chunk.frames)
            for stage in ("audio", "score", "decode"):
                totals[f"{stage}_s"] += chunk.seconds.get(stage, 0.0)
            while len(pending) >= _MAX_UNENCODED:
                totals["encode_s"] += pending.popleft().result()
            track = sound.take(len(chunk.frames))
            pending.append(worker.submit(_encode, writer, chunk.frames, track))
            made += len(chunk.frames)
            if progress is not None:
                progress(made, sound.frames or sound.expected_frames)
        for encoded in pending:
            totals["encode_s"] += encoded.result()
    return totals


def _encode(writer: video_files.Writer, frames: np.ndarray, track: list[np.ndarray]) -> float:
    start_s = time.perf_counter()
    for sound in track:
        writer.write_sound(sound)
    writer.write_frames(frames)
    return time.perf_counter() - start_s
