"""Speech files of every kind: rate, length, place in time, level, and clear errors."""

import os
import struct
import wave

from absl import logging
import av
import numpy as np
import PIL.Image
import pytest

from tm_jax.media import audio

TONE_HZ = 440.0
# Name of the file: codec, sample format, rate, layout.
ENCODED = {
    "u8.wav": ("pcm_u8", "u8", 8000, "mono"),
    "24.wav": ("pcm_s24le", "s32", 48000, "mono"),
    "float.wav": ("pcm_f32le", "flt", 96000, "stereo"),
    "double.wav": ("pcm_f64le", "dbl", 11025, "mono"),
    "law.wav": ("pcm_mulaw", "s16", 8000, "mono"),
    "five.wav": ("pcm_s16le", "s16", 44100, "5.1"),
    "a.flac": ("flac", "s16", 44100, "stereo"),
    "a.ogg": ("libopus", "flt", 48000, "mono"),
    "a.mp3": ("libmp3lame", "fltp", 22050, "mono"),
    "a.m4a": ("aac", "fltp", 32000, "stereo"),
    "a.mp4": ("aac", "fltp", 16000, "mono"),
}


def tone(rate, seconds):
    """A tone of level 0.5 with a pause from 0.4 s to 0.6 s."""
    time_s = np.arange(round(rate * seconds)) / rate
    gate = (time_s < 0.4) | (time_s >= 0.6)
    return (0.5 * gate * np.sin(2 * np.pi * TONE_HZ * time_s)).astype(np.float32)


def encode(path, sound, codec, sample_format, rate, layout, with_video=False):
    """Writes a mono signal, the same in all channels."""
    try:
        av.Codec(codec, "w")
    except av.codec.codec.UnknownCodecError:
        pytest.skip(f"no encoder {codec}")
    channels = av.AudioLayout(layout).nb_channels
    frame = av.AudioFrame.from_ndarray(
        np.tile(sound, (channels, 1)), format="fltp", layout=layout
    )
    frame.sample_rate, frame.pts = rate, 0
    converter = av.AudioResampler(format=sample_format, layout=layout, rate=rate)
    with av.open(str(path), "w") as file:
        if with_video:
            video = file.add_stream("mpeg4", 25)
            video.width = video.height = 32
            video.pix_fmt = "yuv420p"
        stream = file.add_stream(codec, rate=rate, layout=layout, format=sample_format)
        if with_video:
            for _ in range(10):
                file.mux(video.encode(av.VideoFrame(32, 32, "yuv420p")))
            file.mux(video.encode(None))
        for part in converter.resample(frame) + converter.resample(None):
            file.mux(stream.encode(part))
        file.mux(stream.encode(None))
    return path


def write_wav(path, sound, rate):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((sound * 32767).astype("<i2").tobytes())
    return path


def write_float_wav(path, sound, rate):
    data = sound.astype("<f4").tobytes()
    head = struct.pack("<HHIIHH", 3, 1, rate, rate * 4, 4, 32)
    body = b"WAVEfmt " + struct.pack("<I", 16) + head + b"data" + struct.pack("<I", len(data))
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body) + len(data)) + body + data)
    return path


def read(path):
    with audio.open_speech(path) as reader:
        blocks = list(reader)
    assert all(b.speech.dtype == b.sound.dtype == np.float32 for b in blocks)
    speech = np.concatenate([b.speech for b in blocks])
    return speech, np.concatenate([b.sound for b in blocks]), reader


@pytest.fixture
def warnings(monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: lines.append(text % values))
    return lines


@pytest.mark.parametrize("name", ENCODED)
def test_every_format_sounds_the_same(tmp_path, name, warnings):
    codec, sample_format, rate, layout = ENCODED[name]
    path = encode(
        tmp_path / name, tone(rate, 1.0), codec, sample_format, rate, layout,
        with_video=name == "a.mp4",
    )  # fmt: skip
    speech, sound, reader = read(path)
    assert not warnings
    assert reader.channels == sound.shape[1] == (1 if layout == "mono" else 2)
    assert reader.sample_rate in audio._SOUND_RATES
    assert abs(reader.seconds - 1) < 0.1
    # Lossy formats pad to whole packets; mp3 has no exact end.
    assert -0.001 < len(speech) / 16000 - 1 < 0.08
    assert abs(len(speech) / 16000 - len(sound) / reader.sample_rate) < 0.001
    # The level of one channel: 5.1 of six equal channels is louder when mixed down.
    if layout != "5.1":
        expected = tone(16000, 1.0)
        error = speech[: len(expected)] - expected
        assert np.sqrt(np.mean(error**2)) < 0.03  # measured 0.012 for opus at 48 kHz
    middle = speech[round(0.45 * 16000) : round(0.55 * 16000)]
    assert np.abs(middle).max() < 0.02 < 0.3 < np.abs(speech[:6000]).max()


def test_long_files_come_in_small_blocks(tmp_path):
    path = write_wav(tmp_path / "a.wav", np.zeros(8000 * 120), 8000)
    with audio.open_speech(path) as reader:
        lengths = [len(block.speech) for block in reader]
    assert sum(lengths) == 16000 * 120 and max(lengths) < 16000


def test_nan_infinity_and_overload(tmp_path, warnings):
    sound = tone(16000, 1.0)
    sound[100], sound[200], sound[300] = np.nan, np.inf, 1e30
    speech, track, _ = read(write_float_wav(tmp_path / "a.wav", sound, 16000))
    assert np.isfinite(speech).all() and np.isfinite(track).all()
    assert speech[100] == speech[200] == 0 and speech[300] == 1
    assert len(warnings) == 2 and all("\n" not in line for line in warnings)


def test_silence_and_offset(tmp_path, warnings):
    speech, _, _ = read(write_wav(tmp_path / "a.wav", np.zeros(16000), 16000))
    assert len(speech) == 16000 and not speech.any()
    step = np.repeat([0.0, 0.8], 8000)
    speech, _, _ = read(write_wav(tmp_path / "b.wav", step, 16000))
    np.testing.assert_allclose(speech, step, atol=1e-4)
    assert not warnings


@pytest.mark.parametrize("name", ["16.wav", "a.flac", "a.mp3"])
def test_what_is_left_of_a_cut_file_is_used(tmp_path, name, warnings):
    whole = tmp_path / name
    if name == "16.wav":
        write_wav(whole, tone(16000, 4.0), 16000)
    else:
        encode(whole, tone(ENCODED[name][2], 4.0), *ENCODED[name])
    data = whole.read_bytes()
    whole.write_bytes(data[: len(data) // 2 + 1])
    speech, _, _ = read(whole)
    assert 1.5 < len(speech) / 16000 < 2.5
    assert len(warnings) == 1 and "s of it are used" in warnings[0]


def test_damage_in_the_middle_is_passed_over(tmp_path, warnings):
    path = encode(tmp_path / "a.mp3", tone(22050, 4.0), *ENCODED["a.mp3"])
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
    path.write_bytes(data)
    speech, _, _ = read(path)
    assert len(speech) > 2 * 16000 and warnings


def _text(path):
    path.write_text("Not a sound.\n" * 100)


def _picture(path):
    PIL.Image.new("RGB", (32, 32)).save(path, "PNG")


def _mute_video(path):
    with av.open(str(path), "w", format="mp4") as file:
        stream = file.add_stream("mpeg4", 25)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        file.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        file.mux(stream.encode(None))


def _no_index(path):
    encode(path, tone(32000, 2.0), *ENCODED["a.m4a"])
    path.write_bytes(path.read_bytes()[:10000])


@pytest.mark.parametrize(
    "name,make,error,text",
    [
        ("a.wav", None, FileNotFoundError, "no file"),
        ("a.wav", os.mkdir, ValueError, "folder"),
        ("a.wav", lambda path: path.touch(), ValueError, "empty"),
        ("a.wav", _text, ValueError, "cannot be read as sound"),
        ("a.txt", _text, ValueError, "no sound"),
        ("a.png", _picture, ValueError, "no sound"),
        ("a.mp4", _mute_video, ValueError, "no sound, only video"),
        ("a.m4a", _no_index, ValueError, "cannot be read as sound"),
        ("a.wav", lambda path: write_wav(path, np.zeros(0), 16000), ValueError, "length is zero"),
        ("a.wav", lambda path: write_wav(path, np.zeros(99), 1), ValueError, "claims 1 samples"),
        (
            "a.mp3",
            lambda path: path.write_bytes(np.random.default_rng(0).bytes(9999)),
            ValueError,
            "cannot be read as sound|can be heard",
        ),
    ],
)
def test_errors_are_one_clear_line(tmp_path, name, make, error, text):
    path = tmp_path / name
    if make is not None:
        make(path)
    with pytest.raises(error, match=text) as caught:
        audio.open_speech(path)
    assert "\n" not in str(caught.value) and name in str(caught.value)
