"""A clip from a fake session: frames, sound and picture together, errors, memory."""

import itertools
import os
import types
from typing import NamedTuple
import wave
import weakref

import av
import numpy as np
import pytest

from tm_jax.core import timing as timing_lib
from tm_jax.inference import offline

SIDE = 64
TIMING = timing_lib.Timing()
BUNDLE = types.SimpleNamespace(
    preset=types.SimpleNamespace(height=SIDE, width=SIDE, timing=TIMING)
)
PICTURE = np.full((SIDE, SIDE, 3), 90, np.uint8)
LIVE = weakref.WeakValueDictionary()  # Frame arrays of chunks that somebody still holds.


class Frames(np.ndarray):
    """An array that can be counted while it lives."""


class Chunk(NamedTuple):
    frames: np.ndarray
    first_frame: int
    seconds: dict[str, float]


class FakeSession:
    """Draws the number of the frame as brightness, and a white frame for a click.

    Like the real one it needs all sound of a chunk and `lookahead` more before it draws.
    """

    lookahead = 1600
    broken_at = None  # Frame at which pull fails.

    def __init__(self, bundle, picture, *, seed=0, mode="auto"):
        assert picture.shape == (SIDE, SIDE, 3) and picture.dtype == np.uint8
        self.fps, self.chunk_frames = bundle.preset.timing.fps, TIMING.frames_per_chunk
        self.sound = np.zeros(0, np.float32)
        self.other, self.ready = np.zeros(0, np.float32), []
        self.next, self.ended, self.closed, self.most_live = 0, False, False, 0
        self.seed, self.mode = seed, mode
        FakeSession.last = self

    def push_audio(self, samples):
        assert samples.dtype == np.float32 and samples.ndim == 1 and not self.ended
        self.sound = np.concatenate([self.sound, samples])

    def push_other(self, samples):
        assert samples.dtype == np.float32 and samples.ndim == 1
        self.other = np.concatenate([self.other, samples])

    def end_audio(self):
        self.ended = True

    def pull(self):
        if self.broken_at is not None and self.next >= self.broken_at:
            raise self.error
        if not self.ended and len(self.sound) < TIMING.samples_per_chunk + self.lookahead:
            return None
        self.ready.append(len(self.other))
        heard, self.sound = np.split(self.sound, [TIMING.samples_per_chunk])
        frames = np.zeros((self.chunk_frames, SIDE, SIDE, 3), np.uint8)
        for index in range(self.chunk_frames):
            frames[index] = 20 + (self.next + index) % 60
            start = index * TIMING.samples_per_frame
            if np.abs(heard[start : start + TIMING.samples_per_frame]).max(initial=0) > 0.3:
                frames[index] = 255
        frames = frames.view(Frames)
        LIVE[id(frames)] = frames
        self.most_live = max(self.most_live, len(LIVE))
        self.next += self.chunk_frames
        stages = {"audio": 0.01, "score": 0.02, "decode": 0.03}
        return Chunk(frames, self.next - self.chunk_frames, stages)

    def set_mode(self, mode):
        self.mode = mode

    def close(self):
        self.closed = True


def write_wav(path, sound, rate):
    """Writes 16-bit sound, float [samples] or [samples, channels]."""
    sound = sound.reshape(len(sound), -1)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(sound.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((sound * 32767).astype("<i2").tobytes())
    return path


def probe(path):
    """Decodes a video: brightness [frames], frame times [frames], sound [samples], rate."""
    with av.open(str(path)) as file:
        frames = [(f.time, f.to_ndarray(format="gray").mean()) for f in file.decode(video=0)]
    with av.open(str(path)) as file:
        stream = file.streams.audio[0]
        blocks = [(f.time, f.to_ndarray().mean(axis=0)) for f in file.decode(stream)]
        rate = stream.rate
    start = round(blocks[0][0] * rate)
    sound = np.concatenate([np.zeros(max(start, 0), np.float32), *[b for _, b in blocks]])
    return np.array([f[1] for f in frames]), np.array([f[0] for f in frames]), sound, rate


def clicks(times_s, seconds, rate, channels=1):
    """Short loud bursts at the given times."""
    sound = np.zeros((round(seconds * rate), channels))
    for time_s in times_s:
        start = round(time_s * rate)
        burst = 0.9 * np.sin(np.arange(round(0.02 * rate)) * 2 * np.pi * 1000 / rate)
        sound[start : start + len(burst)] = burst[: len(sound) - start, None]
    return sound


def generate(audio, out, **arguments):
    arguments.setdefault("session_factory", FakeSession)
    return offline.generate(BUNDLE, PICTURE, audio, out, **arguments)


@pytest.mark.parametrize("rate,channels", [(8000, 1), (16000, 1), (44100, 2)])
def test_a_flash_and_its_click_coincide(tmp_path, rate, channels):
    times_s = (0.01, 1.005, 2.525)
    audio = write_wav(tmp_path / "a.wav", clicks(times_s, 3.01, rate, channels), rate)
    report = generate(audio, tmp_path / "o.mp4")
    bright, shown_s, sound, out_rate = probe(tmp_path / "o.mp4")
    assert report.frames == len(bright) == 76  # 3.01 s are 75.25 frames
    np.testing.assert_allclose(shown_s, np.arange(76) / 25, atol=1e-4)
    assert abs(len(sound) / out_rate - 76 / 25) < 1 / 25
    flashes = shown_s[bright > 200]
    for time_s in times_s:
        near = np.abs(np.arange(len(sound)) / out_rate - time_s) < 0.1
        loud = (np.flatnonzero(near)[np.abs(sound[near]) > 0.3] / out_rate).min()
        flash = flashes[np.abs(flashes - time_s) < 0.1].min()
        assert abs(loud - time_s) < 0.005  # measured 0.001
        assert 0 <= loud - flash < 1 / 25  # The click sounds while its frame is shown.


def test_frames_are_in_order_and_the_report_adds_up(tmp_path):
    audio = write_wav(tmp_path / "a.wav", np.zeros(16000 * 2), 16000)
    seen = []
    report = generate(
        audio, tmp_path / "o.mp4", seed=7, mode="speak",
        progress=lambda done, expected: seen.append((done, expected)),
    )  # fmt: skip
    bright, *_ = probe(tmp_path / "o.mp4")
    np.testing.assert_allclose(bright, 20 + np.arange(50), atol=2)
    assert seen == [(12, 50), (24, 50), (36, 50), (48, 50), (50, 50)]
    session = FakeSession.last
    assert (session.seed, session.mode, session.closed) == (7, "speak", True)
    assert report.seconds == 2 and report.first_chunk_frames == 12
    stages = (report.audio_s, report.score_s, report.decode_s)
    np.testing.assert_allclose(stages, (0.05, 0.10, 0.15))
    assert 0 < report.first_frame_s < report.wall_s and report.encode_s > 0
    later_s = report.wall_s - report.first_frame_s
    np.testing.assert_allclose(report.real_time_factor, later_s / (38 / 25))
    assert "50 frames (2.00 s)" in report.line() and "\n" not in report.line()


@pytest.mark.parametrize(
    "length_s,seconds,frames", [(2.0, 1.0, 25), (0.5, 1.5, 38), (None, 1.0, 25), (0.001, None, 1)]
)
def test_length(tmp_path, length_s, seconds, frames):
    audio = None
    if length_s is not None:
        audio = write_wav(tmp_path / "a.wav", clicks([0.0], length_s, 24000), 24000)
    report = generate(audio, tmp_path / "o.mp4", seconds=seconds)
    bright, _, sound, rate = probe(tmp_path / "o.mp4")
    assert report.frames == len(bright) == frames
    assert abs(len(sound) / rate - frames / 25) < 1 / 25
    if length_s == 0.5 or length_s is None:
        assert np.abs(sound[round(0.6 * rate) :]).max() < 0.01  # Silence to the end.


def test_memory_does_not_grow(tmp_path):
    audio = write_wav(tmp_path / "a.wav", np.zeros(8000 * 40), 8000)
    report = generate(audio, tmp_path / "o.mp4", seconds=60)
    assert report.frames == 1500
    assert FakeSession.last.most_live <= 5
    assert len(FakeSession.last.sound) < 2 * TIMING.samples_per_chunk


@pytest.mark.parametrize("error", [RuntimeError("model broke"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing(tmp_path, error):
    class Broken(FakeSession):
        broken_at = 36

    Broken.error = error
    audio = write_wav(tmp_path / "a.wav", np.zeros(16000 * 4), 16000)
    with pytest.raises(type(error)):
        generate(audio, tmp_path / "o.mp4", session_factory=Broken)
    assert os.listdir(tmp_path) == ["a.wav"]
    assert FakeSession.last.closed


def test_an_error_of_the_encoder_reaches_the_caller(tmp_path, monkeypatch):
    calls = itertools.count()

    def full(writer, frames):
        if next(calls) == 2:
            raise OSError("video: disk full")

    monkeypatch.setattr(offline.video_files.Writer, "write_frames", full)
    with pytest.raises(OSError, match="disk full"):
        generate(None, tmp_path / "o.mp4", seconds=60)
    assert FakeSession.last.next < 200 and not os.listdir(tmp_path)


def test_wrong_arguments_are_told_before_the_session_starts(tmp_path):
    def never(*unused, **unused_too):
        raise AssertionError("the session was made")

    audio = write_wav(tmp_path / "a.wav", np.zeros(1600), 16000)
    out = tmp_path / "o.mp4"
    cases = [
        (dict(audio=audio, out=out, mode="sing"), "auto, speak, listen"),
        (dict(audio=audio, out=out, seconds=0), "above 0"),
        (dict(audio=audio, out=out, seconds=float("nan")), "above 0"),
        (dict(audio=None, out=out), "seconds"),
        (dict(audio=tmp_path / "no.wav", out=out), "no file"),
        (dict(audio=audio, out=tmp_path / "o.avi"), ".mp4"),
        (dict(audio=audio, out=tmp_path / "no" / "o.mp4"), "no folder"),
    ]
    for arguments, text in cases:
        with pytest.raises((ValueError, FileNotFoundError), match=text) as caught:
            generate(**arguments, session_factory=never)
        assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["a.wav"]


def test_an_input_is_never_replaced(tmp_path):
    first = tmp_path / "o.mp4"
    generate(None, first, seconds=0.2)
    before = first.read_bytes()
    with pytest.raises(ValueError, match="replace the audio"):
        generate(first, first)
    assert first.read_bytes() == before
    report = generate(first, tmp_path / "again.mp4")  # The sound of a video is a source.
    assert report.frames in (5, 6)  # AAC ends on a multiple of 1024 samples.


def test_no_chunk_after_the_end_is_an_error_and_not_a_hang(tmp_path):
    class Silent(FakeSession):
        def pull(self):
            return None

    with pytest.raises(RuntimeError, match="no chunk"):
        generate(None, tmp_path / "o.mp4", seconds=1, session_factory=Silent)


def test_the_other_party_is_heard_in_time_and_by_the_viewer(tmp_path):
    """Its sound is there before its chunk, whole, and is the track of a clip without speech."""
    tone = (0.5 * np.sin(2 * np.pi * 440 * np.arange(24000 * 1.3) / 24000)).astype(np.float32)
    other = write_wav(tmp_path / "b.wav", tone, 24000)
    report = generate(None, tmp_path / "o.mp4", other_audio=other, mode="listen")
    session = FakeSession.last
    assert report.frames == 33  # 1.3 s are 32.5 frames.
    assert all(ready >= 7680 * (i + 1) for i, ready in enumerate(session.ready))
    heard = session.other[: int(1.3 * 16000)]
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(len(heard)) / 16000)
    np.testing.assert_allclose(heard[800:-800], expected[800:-800], atol=0.02)
    assert not session.other[int(1.31 * 16000) :].any()
    _, _, sound, rate = probe(tmp_path / "o.mp4")
    assert rate == 24000 and abs(len(sound) / rate - 33 / 25) < 1 / 25
    assert 0.3 < np.sqrt(np.mean(np.square(sound[2400:28800]))) < 0.4


def test_the_other_party_beside_speech_changes_neither_length_nor_track(tmp_path):
    audio = write_wav(tmp_path / "a.wav", np.zeros(16000), 16000)
    other = write_wav(tmp_path / "b.wav", 0.5 * np.ones(48000), 16000)
    report = generate(audio, tmp_path / "o.mp4", other_audio=other)
    _, _, sound, _ = probe(tmp_path / "o.mp4")
    assert report.frames == 25 and np.abs(sound).max() < 1e-3
    assert FakeSession.last.other.max() > 0.4


@pytest.mark.parametrize("name, text", [("no.wav", "no file"), ("text.wav", "cannot be read")])
def test_a_wrong_file_of_the_other_party_is_named(tmp_path, name, text):
    (tmp_path / "text.wav").write_text("hello " * 100)
    with pytest.raises((FileNotFoundError, ValueError), match=f"^other_audio: .*{text}"):
        generate(None, tmp_path / "o.mp4", other_audio=tmp_path / name)
    assert not (tmp_path / "o.mp4").exists()
