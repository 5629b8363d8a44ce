"""The written MP4 decodes to what was put in; failures leave nothing behind."""

import errno
import os
import resource

import av
import numpy as np
import pytest

from tm_jax.media import video

SIDE = 64


def write(path, frames=30, fps=25, rate=48000, channels=1, sound_s=None, side=SIDE):
    """Writes a moving square and a tone, in pieces of 7 frames."""
    rng = np.random.default_rng(0)
    sound_s = frames / fps if sound_s is None else sound_s
    time_s = np.arange(round(sound_s * rate)) / rate
    sound = (0.5 * np.sin(time_s * 2 * np.pi * 300))[:, None].repeat(channels, 1)
    pixels = rng.integers(0, 60, (frames, side, side, 3), np.uint8)
    for index in range(frames):
        pixels[index, 8:40, index % 20 : index % 20 + 32] = (200, 60, 20)
    with video.Writer(path, fps, side, side, rate, channels) as writer:
        for start in range(0, frames, 7):
            writer.write_sound(sound[start * rate // fps : (start + 7) * rate // fps])
            writer.write_frames(pixels[start : start + 7])
    return pixels


@pytest.mark.parametrize("frames,rate,channels", [(30, 48000, 1), (1, 44100, 2), (26, 16000, 1)])
def test_streams_start_at_zero_and_last_alike(tmp_path, frames, rate, channels):
    path = tmp_path / "o.mp4"
    pixels = write(path, frames, rate=rate, channels=channels)
    with av.open(str(path)) as file:
        picture, sound = file.streams.video[0], file.streams.audio[0]
        assert (picture.codec.name, picture.pix_fmt) == ("h264", "yuv420p")
        assert (sound.codec.name, sound.rate, sound.channels) == ("aac", rate, channels)
        assert picture.average_rate == 25 and picture.start_time == sound.start_time == 0
        for stream in (picture, sound):
            assert abs(float(stream.duration * stream.time_base) - frames / 25) < 0.002
        decoded = list(file.decode(picture))
    np.testing.assert_allclose([f.time for f in decoded], np.arange(frames) / 25, atol=1e-4)
    square = np.stack([f.to_ndarray(format="rgb24") for f in decoded])[:, 16:32, 22:30]
    assert np.abs(np.int32(square) - pixels[:, 16:32, 22:30]).mean() < 4  # measured 1.4
    data = path.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")  # Plays before it is all there.
    assert os.listdir(tmp_path) == ["o.mp4"]


@pytest.mark.parametrize("sound_s", [0.0, 0.3, 5.0])
def test_sound_is_fitted_to_the_frames(tmp_path, sound_s):
    path = tmp_path / "o.mp4"
    rate = 24000
    with video.Writer(path, 25, SIDE, SIDE, rate, 1) as writer:
        writer.write_sound(np.full((round(sound_s * rate), 1), 0.2, np.float32))
        writer.write_frames(np.zeros((25, SIDE, SIDE, 3), np.uint8))
    with av.open(str(path)) as file:
        stream = file.streams.audio[0]
        assert abs(float(stream.duration * stream.time_base) - 1) < 0.001


def test_an_existing_file_is_replaced_only_when_all_is_written(tmp_path):
    path = tmp_path / "o.mp4"
    path.write_text("before")
    with pytest.raises(RuntimeError, match="stop"):
        with video.Writer(path, 25, SIDE, SIDE, 16000, 1) as writer:
            writer.write_frames(np.zeros((25, SIDE, SIDE, 3), np.uint8))
            raise RuntimeError("stop")
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["o.mp4"]
    write(path)
    assert path.stat().st_size > 1000


def test_a_full_disk_leaves_nothing(tmp_path):
    """The system refuses to write past a limit, as a full disk does."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 128, 128, 3), np.uint8)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(OSError, match="cannot be written") as caught:
        with video.Writer(tmp_path / "o.mp4", 25, 128, 128, 16000, 1) as writer:
            resource.setrlimit(resource.RLIMIT_FSIZE, (60000, before[1]))
            try:
                for _ in range(4):
                    writer.write_frames(noise)
                writer.close()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == [] and "\n" not in str(caught.value)


@pytest.mark.parametrize("step", ["replace", "touch"])
def test_other_failures_of_the_disk(tmp_path, monkeypatch, step):
    def full(*unused, **unused_too):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace" if step == "replace" else "pathlib.Path.touch", full)
    with pytest.raises(OSError, match="No space left on device"):
        write(tmp_path / "o.mp4")
    assert os.listdir(tmp_path) == []


def test_paths_are_checked_before_any_work(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.mp4").mkdir()
    cases = {
        tmp_path / "no" / "o.mp4": "no folder",
        tmp_path / "file" / "o.mp4": "no folder",
        tmp_path / "folder.mp4": "is a folder",
        tmp_path / "o.avi": "ends in .mp4",
        tmp_path / "o": "ends in .mp4",
    }
    for path, text in cases.items():
        with pytest.raises(ValueError, match=text) as caught:
            video.Writer(path, 25, SIDE, SIDE, 16000, 1)
        assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.mp4"]


def test_shapes_are_checked(tmp_path):
    for height, width in ((63, 64), (64, 65), (8, 64)):
        with pytest.raises(ValueError, match="even"):
            video.Writer(tmp_path / "o.mp4", 25, height, width, 16000, 1)
    with video.Writer(tmp_path / "o.mp4", 25, SIDE, SIDE, 16000, 2) as writer:
        for frames in (np.zeros((1, 32, 64, 3), np.uint8), np.zeros((1, SIDE, SIDE, 3))):
            with pytest.raises(ValueError, match="frames must be uint8"):
                writer.write_frames(frames)
        with pytest.raises(ValueError, match="sound must be"):
            writer.write_sound(np.zeros(100, np.float32))
        writer.write_frames(np.zeros((1, SIDE, SIDE, 3), np.uint8))
    with pytest.raises(ValueError, match="no frame"):
        video.Writer(tmp_path / "p.mp4", 25, SIDE, SIDE, 16000, 1).close()
    assert os.listdir(tmp_path) == ["o.mp4"]
