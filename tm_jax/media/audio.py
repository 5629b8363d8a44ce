"""Reads speech from any sound file, block by block, for the models and for the result.

One decoding pass makes both: 16 kHz mono, the models' input, and mono or stereo at
about the file's own rate, for the video's track. Memory does not grow with the length.
"""

from collections.abc import Generator, Iterator
import os
import pathlib
from typing import NamedTuple

from absl import logging
import av
import numpy as np

from tm_jax.media import resampling

SPEECH_RATE = 16000
_SOUND_RATES = (16000, 22050, 24000, 32000, 44100, 48000)  # Kept; others become 48000.
_LOWEST_RATE, _HIGHEST_RATE = 4000, 768000
_OPTIONS = {"protocol_whitelist": "file"}  # A playlist must not fetch from the network.
_LOUD = 2.0  # Decoders of lossy formats overshoot full scale a little; not worth a word.
_ESTIMATED = ("aac", "ac3", "amr")  # Formats that announce a guess of their duration.


class Block(NamedTuple):
    """A stretch of sound.

    Attributes:
      speech: Input of the models, float32 mono at 16 kHz, [samples].
      sound: The video's track, float32 at the reader's `sample_rate`,
        [samples, channels]. Over the whole file both last equally long; in one block
        they may differ by the delay of the resamplers.
    """

    speech: np.ndarray
    sound: np.ndarray


def open_speech(path: str | os.PathLike) -> "Reader":
    """Opens the first audio stream of a file, of any format that FFmpeg reads.

    Args:
      path: A sound or video file.

    Returns:
      A reader, which iterates over `Block`s; also a context manager.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: The file cannot be used; the text gives the reason in one line.
    """
    path = check_path(path)
    try:
        container = av.open(
            str(path.resolve()), container_options=_OPTIONS, metadata_errors="replace"
        )
    except av.FFmpegError as error:
        raise ValueError(
            f"audio: {path} cannot be read as sound ({error.strerror}); "
            "expected for example wav, flac, ogg, mp3, m4a or mp4."
        ) from error
    try:
        return Reader(path, container)
    except BaseException:
        container.close()
        raise


def check_path(path: str | os.PathLike) -> pathlib.Path:
    """Returns the path of a file that is there and not empty; raises as `open_speech`."""
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"audio: there is no file {path}.")
    if not path.is_file():
        raise ValueError(f"audio: expected a sound file, {path} is a folder or a device.")
    if not path.stat().st_size:
        raise ValueError(f"audio: {path} is empty (0 bytes).")
    return path


class Reader:
    """Iterates over the sound of one file, once.

    Attributes:
      sample_rate: Samples per second of `Block.sound`.
      channels: Channels of `Block.sound`, 1 or 2.
      seconds: Duration that the file announces, which may be wrong, or None.
    """

    def __init__(self, path: pathlib.Path, container: "av.container.InputContainer"):
        if not container.streams.audio:
            kinds = sorted({stream.type for stream in container.streams}) or ["nothing"]
            raise ValueError(
                f"audio: {path} holds no sound, only {' and '.join(kinds)}; "
                "name a sound file or a video with sound."
            )
        self._path = path
        self._container = container
        self._stream = container.streams.audio[0]
        self.seconds = _announced_seconds(container, self._stream)
        self._problem: str | None = None
        self._warned: set[str] = set()
        self._to_sound: av.AudioResampler | None = None
        self._source: tuple[int, int, str] | None = None
        frames = self._frames()
        first = next((frame for frame in frames if frame.samples), None)
        if first is None:
            reason = self._problem or "its length is zero"
            raise ValueError(f"audio: nothing in {path} can be heard ({reason}).")
        if not _LOWEST_RATE <= first.sample_rate <= _HIGHEST_RATE:
            raise ValueError(
                f"audio: {path} claims {first.sample_rate} samples per second; "
                f"expected {_LOWEST_RATE} to {_HIGHEST_RATE}."
            )
        self.sample_rate = first.sample_rate if first.sample_rate in _SOUND_RATES else 48000
        self.channels = min(first.layout.nb_channels, 2)
        self._to_speech = resampling.Resampler(self.sample_rate, SPEECH_RATE)
        self._blocks = self._decode(first, frames)

    def __iter__(self) -> Iterator[Block]:
        return self._blocks

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *unused) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; may be called twice."""
        self._blocks.close()
        self._container.close()

    def _frames(self) -> Iterator[av.AudioFrame]:
        """Yields what can be decoded and remembers what could not."""
        try:
            for packet in self._container.demux(self._stream):
                if packet.is_corrupt:
                    self._problem = "the file is cut short"
                try:
                    yield from packet.decode()
                except av.FFmpegError as error:
                    self._problem = f"a part is damaged: {error.strerror}"
        except av.FFmpegError as error:
            self._problem = f"the rest is damaged: {error.strerror}"

    def _decode(
        self, first: av.AudioFrame, rest: Iterator[av.AudioFrame]
    ) -> Generator[Block, None, None]:
        decoded_s = first.samples / first.sample_rate
        yield from self._convert(first)
        for frame in rest:
            if frame.samples:
                decoded_s += frame.samples / frame.sample_rate
                yield from self._convert(frame)
        yield from self._hear(_flush(self._to_sound))
        speech = self._to_speech.push(np.zeros(0, np.float32), last=True)
        yield Block(speech, np.zeros((0, self.channels), np.float32))
        announced_s = self.seconds or 0.0
        if decoded_s < 0.98 * announced_s - 0.25 and self._container.format.name not in _ESTIMATED:
            self._problem = self._problem or "the file is cut short"
        if self._problem:
            self._warn(f"{self._problem}; {decoded_s:.2f} s of it are used")

    def _convert(self, frame: av.AudioFrame) -> Iterator[Block]:
        samples = self._clean(_as_float(frame))
        layout = frame.layout.name
        if len(samples) > 2 and "channels" in layout:  # Speakers without known places.
            samples, layout = samples.mean(axis=0, keepdims=True), "mono"
        elif len(samples) <= 2:
            layout = "mono" if len(samples) == 1 else "stereo"
        source = (frame.sample_rate, len(samples), layout)
        if source != self._source:  # At the start, and where a stream changes its format.
            yield from self._hear(_flush(self._to_sound))
            self._source = source
            self._to_sound = av.AudioResampler(
                format="fltp",
                layout="mono" if self.channels == 1 else "stereo",
                rate=self.sample_rate,
            )
        assert self._to_sound is not None  # Made for the first source.
        yield from self._hear(self._to_sound.resample(_frame(samples, layout, source[0])))

    def _hear(self, frames: list[av.AudioFrame]) -> Iterator[Block]:
        """Makes blocks of frames that are already at the viewer's rate and layout."""
        if not frames:
            return
        sound = np.clip(_join(frames, self.channels), -1.0, 1.0)  # [channels, samples]
        yield Block(self._to_speech.push(sound.mean(axis=0)), np.ascontiguousarray(sound.T))

    def _clean(self, samples: np.ndarray) -> np.ndarray:
        peak = np.abs(samples).max()
        if not np.isfinite(peak):
            self._warn("samples that are not numbers are taken as silence")
            samples = np.where(np.isfinite(samples), samples, np.float32(0))
            peak = np.abs(samples).max()
        if peak > _LOUD:
            self._warn("samples above full scale are clipped")
        return np.clip(samples, -_LOUD, _LOUD)

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            logging.warning("audio: %s: %s.", self._path, text)


def _announced_seconds(container, stream) -> float | None:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None:
        return container.duration / av.time_base
    return None


def _as_float(frame: av.AudioFrame) -> np.ndarray:
    """Returns the samples of a decoded frame as float32 [channels, samples]."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T  # [channels, samples]
    if samples.dtype.kind == "u":
        return (samples.astype(np.float32) - 128) / 128
    if samples.dtype.kind == "i":
        return samples.astype(np.float32) / 2.0 ** (8 * samples.dtype.itemsize - 1)
    with np.errstate(over="ignore"):  # A float64 beyond float32 becomes infinite, then 0.
        return samples.astype(np.float32)


def _frame(samples: np.ndarray, layout: str, rate: int) -> av.AudioFrame:
    samples = np.ascontiguousarray(samples, np.float32)
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
    frame.sample_rate = rate
    return frame


def _flush(resampler: av.AudioResampler | None) -> list[av.AudioFrame]:
    """Returns what a resampler still holds; nothing if it was never used."""
    if resampler is None or resampler.format is None:
        return []
    return [frame for frame in resampler.resample(None) if frame is not None]


def _join(frames: list[av.AudioFrame], channels: int) -> np.ndarray:
    """Returns planar float frames as one array, [channels, samples]."""
    arrays = [frame.to_ndarray() for frame in frames]
    return np.concatenate(arrays or [np.zeros((channels, 0), np.float32)], axis=1)
