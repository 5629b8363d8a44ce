"""Real video files for tests, written with FFmpeg's encoders."""

import fractions
import pathlib

import av
import numpy as np

_MATRIX = bytes.fromhex("00010000" + 3 * "00000000" + "00010000" + 3 * "00000000" + "40000000")
# What a telephone held upright writes: the picture is to be turned clockwise by 90 degrees.
_TURNED = bytes.fromhex("00000000" "00010000" "00000000" "ffff0000" + 4 * "00000000" + "40000000")


def still(picture: np.ndarray, frames: int, flashes=()) -> list[np.ndarray]:
    """A picture that stands still but for white frames at `flashes`."""
    white = np.full_like(picture, 255)
    return [white if i in flashes else picture for i in range(frames)]


def clicks(seconds: float, times, rate: int = 48000) -> np.ndarray:
    """Silence with tones of 10 ms at some times, float32 [samples]."""
    sound = np.zeros(round(seconds * rate), np.float32)
    tone = 0.8 * np.sin(0.3 * np.arange(rate // 100)).astype(np.float32)
    for time in times:
        at = round(time * rate)
        sound[at : at + len(tone)] = tone[: len(sound) - at]
    return sound


def write(
    path, frames, sound=None, *, fps=25, times=None, rate=48000, video="libx264", audio="aac",
    pixels="yuv420p", options=None,
) -> pathlib.Path:
    """Writes a file.

    Args:
      path: Where; the suffix chooses the container.
      frames: uint8 [H, W, 3] each.
      sound: float32 [samples] or [channels, samples]; None for a file without sound.
      fps: Frames per second.
      times: Seconds at which the frames appear, for a variable rate.
      rate: Samples per second of the sound.
      video: Encoder of the frames.
      audio: Encoder of the sound.
      pixels: Format of the pixels.
      options: Of the encoder of the frames.
    """
    height, width = frames[0].shape[:2]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(video, fps, options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        base = fractions.Fraction(1, fps if times is None else 1000)
        stream.time_base = stream.codec_context.time_base = base
        voice = None
        if sound is not None:
            sound = np.atleast_2d(sound)
            layout = ("mono", "stereo")[len(sound) - 1]
            voice = container.add_stream(audio, rate, layout=layout)
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame = frame.reformat(format=pixels)
            frame.pts = i if times is None else round(times[i] * 1000)
            frame.time_base = base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if voice is not None:
            _write_sound(container, voice, sound, layout, rate)
    return pathlib.Path(path)


def _write_sound(container, stream, sound, layout, rate):
    for at in range(0, sound.shape[1], 1024):
        block = np.ascontiguousarray(sound[:, at : at + 1024])
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate, at
        frame.time_base = fractions.Fraction(1, rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def turn(path) -> pathlib.Path:
    """Marks an MP4 or MOV file as recorded by a telephone held upright."""
    path = pathlib.Path(path)
    data = path.read_bytes()
    at = data.index(_MATRIX, data.index(b"tkhd"))
    path.write_bytes(data[:at] + _TURNED + data[at + len(_MATRIX) :])
    return path
