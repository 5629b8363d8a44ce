"""Writes an MP4 of frames and sound as they come, and leaves no half-written file."""

import fractions
import os
import pathlib
import secrets

import av
from av import container
from av.video import reformatter
import numpy as np

_VIDEO_OPTIONS = {"preset": "veryfast", "crf": "18"}
_BT709 = 1  # The code point of ITU-T H.273 for primaries, transfer and matrix alike.
_MIN_SIDE = 16


class Writer:
    """An MP4 file with H.264 video and AAC sound, both starting at time 0.

    The file gets its name only when all is written: on any error or interruption
    within the `with` block nothing is left. Sound that runs ahead of the frames waits in
    memory, so write both in turn. At the end the sound is cut, or filled with silence,
    to last exactly as long as the frames.

    Attributes:
      path: The file to write; an existing file is replaced at the end.
      fps: Frames per second.
      height: Height of the frames in pixels, even.
      width: Width of the frames in pixels, even.
      sample_rate: Samples per second of the sound.
      channels: Channels of the sound, 1 or 2.
      frames: Frames written so far.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        fps: int,
        height: int,
        width: int,
        sample_rate: int,
        channels: int,
    ):
        if height % 2 or width % 2 or min(height, width) < _MIN_SIDE:
            raise ValueError(
                f"video: height and width must be even and at least {_MIN_SIDE}, "
                f"got {height}x{width}."
            )
        if channels not in (1, 2):
            raise ValueError(f"video: channels must be 1 or 2, got {channels}.")
        self.path = check_path(path)
        self.fps, self.height, self.width = fps, height, width
        self.sample_rate, self.channels = sample_rate, channels
        self.frames = 0
        self._samples = 0  # Sound encoded so far.
        self._waiting: list[np.ndarray] = []  # Sound ahead of the frames.
        self._part = _create_beside(self.path)
        self._container: container.OutputContainer | None = None
        try:
            self._open()
        except BaseException as error:
            self._abandon()
            raise self._explain(error) from error

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind, *unused) -> None:
        if kind is None:
            self.close()
        else:
            self._abandon()

    def write_frames(self, frames: np.ndarray) -> None:
        """Appends frames, uint8 [frames, height, width, 3]."""
        shape = (self.height, self.width, 3)
        if frames.ndim != 4 or frames.shape[1:] != shape or frames.dtype != np.uint8:
            raise ValueError(
                f"video: frames must be uint8 [F, {self.height}, {self.width}, 3], "
                f"got {frames.dtype} {list(frames.shape)}."
            )
        try:
            for pixels in frames:
                self._encode_frame(pixels)
            self._encode_waiting()
        except av.FFmpegError as error:
            raise self._explain(error) from error

    def write_sound(self, sound: np.ndarray) -> None:
        """Appends sound, float32 in -1...1, [samples, channels]."""
        if sound.ndim != 2 or sound.shape[1] != self.channels:
            raise ValueError(
                f"video: sound must be [samples, {self.channels}], got {list(sound.shape)}."
            )
        self._waiting.append(np.asarray(sound, np.float32))
        try:
            self._encode_waiting()
        except av.FFmpegError as error:
            raise self._explain(error) from error

    def close(self) -> None:
        """Completes the file and gives it its name."""
        if self._container is None:
            return
        try:
            if not self.frames:
                raise ValueError(f"video: no frame was written to {self.path}.")
            missing = self._due() - self._samples - sum(map(len, self._waiting))
            if missing > 0:
                self._waiting.append(np.zeros((missing, self.channels), np.float32))
            self._encode_waiting()
            for stream in (self._video, self._audio):
                self._container.mux(stream.encode(None))
            self._container.close()
            os.replace(self._part, self.path)
            self._container = None
        except BaseException as error:
            self._abandon()
            raise self._explain(error) from error

    def _open(self) -> None:
        self._container = file = av.open(
            str(self._part), "w", format="mp4", options={"movflags": "+faststart"}
        )
        self._video = file.add_stream("libx264", self.fps, _VIDEO_OPTIONS)
        self._video.width, self._video.height = self.width, self.height
        self._video.pix_fmt = "yuv420p"
        context = self._video.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = reformatter.ColorRange.MPEG.value
        layout = "mono" if self.channels == 1 else "stereo"
        self._audio = file.add_stream(
            "aac", self.sample_rate, layout=layout, bit_rate=96000 * self.channels
        )
        file.start_encoding()

    def _mux(self, packets: list[av.Packet]) -> None:
        if self._container is None:
            raise ValueError(f"video: {self.path} is complete; nothing can be added to it.")
        self._container.mux(packets)

    def _encode_frame(self, pixels: np.ndarray) -> None:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame = frame.reformat(
            format="yuv420p",
            dst_colorspace=reformatter.Colorspace.ITU709,
            dst_color_range=reformatter.ColorRange.MPEG,
        )
        frame.pts, frame.time_base = self.frames, fractions.Fraction(1, self.fps)
        self._mux(self._video.encode(frame))
        self.frames += 1

    def _due(self) -> int:
        """Samples that sound while the frames written so far are shown."""
        return round(self.frames * self.sample_rate / self.fps)

    def _encode_waiting(self) -> None:
        while self._waiting and self._samples < self._due():
            room = self._due() - self._samples
            sound = self._waiting.pop(0)
            if len(sound) > room:
                self._waiting.insert(0, sound[room:])
                sound = sound[:room]
            if not len(sound):
                continue
            planes = np.ascontiguousarray(np.clip(sound, -1.0, 1.0).T)  # [channels, samples]
            layout = "mono" if self.channels == 1 else "stereo"
            frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=layout)
            frame.sample_rate = self.sample_rate
            frame.pts, frame.time_base = self._samples, fractions.Fraction(1, self.sample_rate)
            self._mux(self._audio.encode(frame))
            self._samples += len(sound)

    def _abandon(self) -> None:
        file, self._container = self._container, None
        self._waiting.clear()
        try:
            if file is not None:
                file.close()
        except (av.FFmpegError, ValueError):
            pass  # The first error, which led here, is the cause.
        finally:
            self._part.unlink(missing_ok=True)

    def _explain(self, error: BaseException) -> BaseException:
        """Turns an error of FFmpeg or the system into one line about the file."""
        if isinstance(error, (av.FFmpegError, OSError)):
            return OSError(f"video: {self.path} cannot be written: {error.strerror or error}.")
        return error


def check_path(path: str | os.PathLike) -> pathlib.Path:
    """Returns the real path of an MP4 file that can be written, or raises ValueError."""
    named = pathlib.Path(path)
    if named.is_dir():
        raise ValueError(f"video: expected the name of an .mp4 file, {named} is a folder.")
    if named.suffix.lower() != ".mp4":
        raise ValueError(f"video: expected a name that ends in .mp4, got {named}.")
    path = named.resolve()
    if not path.parent.is_dir():
        raise ValueError(f"video: there is no folder {named.parent}; make it first.")
    if path.exists() and not path.is_file():
        raise ValueError(f"video: {named} is not an ordinary file.")
    return path


def _create_beside(path: pathlib.Path) -> pathlib.Path:
    """Creates an empty file with a new name in the folder of `path`."""
    part = path.with_name(f".{path.stem[:40]}-{secrets.token_hex(4)}.part")
    try:
        part.touch(exist_ok=False)
    except OSError as error:
        raise OSError(
            f"video: nothing can be written in {path.parent}: {error.strerror}."
        ) from error
    return part
