"""Reads frames and sound of a video file on one clock, whatever it was recorded with.

Time 0 is the first frame that can be shown. Frames come at a steady rate, upright; sound comes
at 16 kHz and begins at time 0. Both are streams: nothing of the file stays in memory, and a
file whose sound lies far from its frames costs no more than another.
"""

from collections.abc import Iterator
import fractions
import os
import pathlib

import av
from av.video import reformatter
import numpy as np

from tm_jax.media import audio as audio_files
from tm_jax.media import resampling

_OPTIONS = {"protocol_whitelist": "file"}  # A playlist must not fetch from the network.
_GAP_S = 10  # A longer jump of the time stamps ends the file: they are wrong.
_DRIFT_S = 0.04  # Sound that is off its time stamps by more is moved: one frame.
_ATTACHED = 0x400  # FFmpeg's AV_DISPOSITION_ATTACHED_PIC: a cover, not a video.
_UNSPECIFIED, _HD_HEIGHT = 2, 720  # Colours that are not named are those of television.
_MATRICES = {  # By the code points of ITU-T H.273.
    1: reformatter.Colorspace.ITU709, 4: reformatter.Colorspace.FCC,
    5: reformatter.Colorspace.ITU601, 6: reformatter.Colorspace.ITU601,
    7: reformatter.Colorspace.SMPTE240M,
}
_SHORT = 0.9  # Part of the announced length below which a file counts as cut short.


class Frame:
    """A decoded frame; its pixels are converted when they are asked for.

    Attributes:
      aspect: Width over height as it is shown.
    """

    def __init__(self, frame: av.VideoFrame, pixel_aspect: float):
        self._frame = frame
        self._turns = round(frame.rotation / 90) % 4
        self._wide = frame.width * pixel_aspect  # Columns if pixels were square.
        aspect = self._wide / frame.height
        self.aspect = 1 / aspect if self._turns % 2 else aspect

    def pixels(self, longest: int | None = None) -> np.ndarray:
        """Returns the upright picture, uint8 RGB [H, W, 3].

        Args:
          longest: Most pixels of the longer side; a larger picture is made smaller, with
            square pixels. None keeps the pixels of the file.
        """
        frame, sizes = self._frame, {}
        if longest is not None:
            scale = min(1.0, longest / max(self._wide, frame.height))
            sizes = {
                "width": max(1, round(self._wide * scale)),
                "height": max(1, round(frame.height * scale)),
                "interpolation": reformatter.Interpolation.AREA,
            }
        code = int(frame.colorspace)
        if code == _UNSPECIFIED:
            code = 1 if frame.height >= _HD_HEIGHT else 6
        matrix, colours = _MATRICES.get(code), {}
        if matrix is not None:  # Others are left to FFmpeg.
            # RGB has the full range; PyAV before 16 heeds the matrix only if ranges differ.
            full = reformatter.ColorRange.JPEG
            named = reformatter.ColorRange.MPEG if int(frame.color_range) != full.value else full
            colours = {
                "src_colorspace": matrix, "dst_colorspace": matrix, "src_color_range": named,
                "dst_color_range": full,
            }
        picture = frame.reformat(format="rgb24", **sizes, **colours).to_ndarray()
        return np.ascontiguousarray(np.rot90(picture, self._turns))


def _frame(frame: av.VideoFrame, stream) -> Frame:
    return Frame(frame, float(stream.sample_aspect_ratio or 1))


class Footage:
    """One file; frames and sound may be read in turn, each as often as needed.

    Attributes:
      path: The file.
      fps: Frames per second of `frames`.
      channels: Channels of the file's sound.
      aspect: Width over height of its first frame, as it is shown.
      notes: What was wrong with the parts read so far, in the order found.
    """

    def __init__(self, path: str | os.PathLike, fps: int):
        """Opens a file.

        Raises:
          ValueError: It cannot be used; the text gives the reason in a few words.
        """
        self.path, self.fps, self.notes = pathlib.Path(path), fps, []
        try:
            if not self.path.stat().st_size:
                raise ValueError("empty file (0 bytes)")
            with self._open() as container:
                stream = _pictures(container)
                if stream is None:
                    raise ValueError("no video in it")
                if not container.streams.audio:
                    raise ValueError("no sound in it")
                self.channels = container.streams.audio[0].codec_context.channels
                self._announced_s = (container.duration or 0) / av.time_base
                first = next(self._decode(container, stream, []), None)
                if first is None:
                    raise ValueError("no frame of it can be decoded")
                self._start = _time(first, stream, fractions.Fraction(0))
                self.aspect = _frame(first, stream).aspect
        except OSError as error:  # av.FFmpegError is one.
            raise ValueError(f"not a video that can be read ({_reason(error)})") from error
        except av.FFmpegError as error:
            raise ValueError(f"not a video that can be read ({_reason(error)})") from error

    def frames(self) -> Iterator[Frame]:
        """Yields the frame that is shown in the middle of each 1 / fps seconds."""
        due, shown, until = 0, None, fractions.Fraction(0)
        for frame, start, end in self._timed_frames():
            while shown is not None and fractions.Fraction(2 * due + 1, 2 * self.fps) < start:
                yield shown
                due += 1
            shown, until = frame, end
        while shown is not None and fractions.Fraction(2 * due + 1, 2 * self.fps) < until:
            yield shown
            due += 1

    def sound(self, channels: int = 1) -> Iterator[np.ndarray]:
        """Yields sound from time 0 on, float32 [channels, samples] at 16 kHz.

        Args:
          channels: 1 mixes all channels, 2 gives left and right.
        """
        with self._open() as container:
            blocks = self._timed_sound(container, channels)
            rate, first = next(blocks, (audio_files.SPEECH_RATE, np.zeros((channels, 0))))
            if not 4000 <= rate <= 192000:
                self._note(f"sound of {rate} samples per second is not read")
                return
            streams = [
                resampling.Resampler(rate, audio_files.SPEECH_RATE) for _ in range(channels)
            ]
            for block in _chain(first, blocks):
                yield np.stack([s.push(b) for s, b in zip(streams, block)])
            empty = np.zeros(0, np.float32)
            yield np.stack([stream.push(empty, last=True) for stream in streams])

    def _open(self):
        container = av.open(
            str(self.path.resolve()), container_options=_OPTIONS, metadata_errors="replace"
        )
        return container

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _decode(self, container, stream, trouble: list[str]) -> Iterator:
        """Yields what can be decoded, up to the first damage, which `trouble` then names."""
        stream.codec_context.thread_count = 1  # Files are read in parallel, not frames.
        begun = False
        try:
            for packet in container.demux(stream):
                for frame in packet.decode():
                    if getattr(frame, "is_corrupt", False) or packet.is_corrupt:
                        if not begun:
                            continue  # Frames before the first that stands alone.
                        trouble.append("damaged data")
                        return
                    begun = True
                    yield frame
        except (av.FFmpegError, OSError) as error:
            trouble.append(_reason(error))

    def _timed_frames(self):
        """Yields frames with the times at which they appear and end, in seconds."""
        end, trouble = fractions.Fraction(0), []
        with self._open() as container:
            stream = _pictures(container)
            assert stream is not None  # Checked when the file was opened.
            rate = stream.average_rate or stream.guessed_rate or self.fps
            for frame in self._decode(container, stream, trouble):
                start = _time(frame, stream, end + self._start) - self._start
                if start > end + _GAP_S:
                    trouble.append("the time stamps jump")
                    break
                if start < 0 or (end and start < end - fractions.Fraction(_GAP_S)):
                    continue
                length = (getattr(frame, "duration", 0) or 0) * (frame.time_base or 0)
                end = start + (length or 1 / fractions.Fraction(rate))
                yield _frame(frame, stream), start, end
        if trouble:
            self._note(f"frames end at {float(end):.2f} s: {trouble[0]}")
        elif end < _SHORT * self._announced_s - 0.5:
            self._note(f"frames end at {float(end):.2f} s of {self._announced_s:.2f} s announced")

    def _timed_sound(self, container, channels: int):
        """Yields (rate, float32 [channels, n]) without gaps from time 0, at the file's rate."""
        stream, trouble, at = container.streams.audio[0], [], 0
        layout = "mono" if channels == 1 else "stereo"
        convert, rate = av.AudioResampler("fltp", layout), None
        for frame in self._decode(container, stream, trouble):
            if rate not in (None, frame.sample_rate):
                trouble.append("the sample rate changes")
                break
            rate = frame.sample_rate
            due = None
            if frame.pts is not None:
                due = round((_time(frame, stream, 0) - self._start) * rate)
            frame.pts = None
            block = np.concatenate([f.to_ndarray() for f in convert.resample(frame)], 1)
            block = np.nan_to_num(block, nan=0.0, posinf=0.0, neginf=0.0).clip(-1, 1)
            begins = at == 0
            if due is not None and (begins or abs(due - at) > _DRIFT_S * rate):
                if due > at + _GAP_S * rate:
                    trouble.append("the time stamps jump")
                    break
                block = np.pad(block, ((0, 0), (max(0, due - at), 0)))[:, max(0, at - due) :]
            if block.shape[1]:
                at += block.shape[1]
                yield rate, block
        if trouble:
            self._note(f"sound ends at {at / (rate or 1):.2f} s: {trouble[0]}")


def _chain(first, blocks):
    yield first
    for _, block in blocks:
        yield block


def _pictures(container):
    """The first stream of moving pictures; None if there is none."""
    for stream in container.streams.video:
        flags = getattr(stream.disposition, "value", stream.disposition)
        if not flags & _ATTACHED:
            return stream
    return None


def _time(frame, stream, otherwise) -> fractions.Fraction:
    if frame.pts is None:
        return fractions.Fraction(otherwise)
    return frame.pts * fractions.Fraction(frame.time_base or stream.time_base)


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split())
