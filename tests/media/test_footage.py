"""Video files of many kinds: a flash and a click at one moment come out in one frame."""

import fractions

import av
import numpy as np
import pytest

from tests.data import recordings
from tm_jax.media import footage
from tm_jax.media import video

_AT_S = (0.6, 1.4, 2.2)
_KINDS = {
    "h264 and aac in mp4": dict(name="a.mp4"),
    "30 frames a second": dict(name="a.mp4", fps=30, rate=44100),
    "50 frames a second": dict(name="a.mp4", fps=50),
    "vp8 and opus in webm": dict(name="a.webm", video="libvpx", audio="libopus"),
    "vp9 and opus in webm": dict(name="a.webm", video="libvpx-vp9", audio="libopus", fps=30),
    "mpeg4 and mp3 in avi": dict(name="a.avi", video="mpeg4", audio="mp3"),
    "transport stream": dict(name="a.ts"),
    "10 bits, low rate of sound": dict(name="a.mkv", pixels="yuv420p10le", rate=22050),
    "stereo": dict(name="a.mov", channels=2),
}


def _picture(height=48, width=64):
    """Dark, with the upper left corner red."""
    picture = np.full((height, width, 3), 30, np.uint8)
    picture[: height // 2, : width // 2] = (200, 30, 30)
    return picture


def _flashes(frames: list[np.ndarray]) -> np.ndarray:
    """Frames that are white where the frame before is not."""
    white = np.array([frame.mean() > 150 for frame in frames])
    return np.flatnonzero(white & ~np.roll(white, 1))


def _clicks(sound: np.ndarray) -> np.ndarray:
    loud = np.array([np.abs(part).max() > 0.2 for part in np.split(sound, len(sound) // 640)])
    return np.flatnonzero(loud & ~np.roll(loud, 1))


def _read(path, channels=1):
    source = footage.Footage(path, 25)
    frames = [frame.pixels() for frame in source.frames()]
    sound = np.concatenate(list(source.sound(channels)), 1)
    return source, frames, sound[:, : sound.shape[1] // 640 * 640]


@pytest.mark.parametrize("kind", _KINDS)
def test_a_flash_and_a_click_come_in_one_frame(tmp_path, kind):
    options = dict(_KINDS[kind])
    path, fps = tmp_path / options.pop("name"), options.pop("fps", 25)
    flashes = [round(at * fps) + i for at in _AT_S for i in range(max(1, fps // 25))]
    sound = recordings.clicks(2.8, _AT_S, options.get("rate", 48000))
    sound = np.repeat(sound[None], options.pop("channels", 1), 0)
    frames = recordings.still(_picture(), round(2.8 * fps), flashes)
    recordings.write(path, frames, sound, fps=fps, **options)
    source, frames, sound = _read(path)
    expected = [round(at * 25) for at in _AT_S]
    assert abs(len(frames) - 70) <= 1 and not source.notes
    assert np.abs(_clicks(sound[0]) - expected).max() <= 1
    assert np.abs(_flashes(frames) - _clicks(sound[0])).max() <= 1


def test_a_variable_rate_becomes_a_steady_one(tmp_path):
    rng = np.random.default_rng(0)
    times = np.concatenate([[0], np.cumsum(rng.uniform(0.01, 0.09, 60))])
    frames = recordings.still(_picture(), 61, [20, 45])
    sound = recordings.clicks(times[-1], times[[20, 45]])
    recordings.write(tmp_path / "a.mp4", frames, sound, times=times)
    _, frames, sound = _read(tmp_path / "a.mp4")
    assert abs(len(frames) / 25 - times[-1]) < 0.12
    assert np.abs(_flashes(frames) - 25 * times[[20, 45]]).max() <= 1
    assert np.abs(_flashes(frames) - _clicks(sound[0])).max() <= 1


def test_a_telephone_held_upright_gives_upright_frames(tmp_path):
    path = tmp_path / "a.mov"
    recordings.write(path, recordings.still(_picture(), 10), recordings.clicks(0.4, []))
    recordings.turn(path)
    source = footage.Footage(path, 25)
    frame = next(source.frames())
    pixels = frame.pixels()
    assert pixels.shape == (64, 48, 3) and frame.aspect == 48 / 64
    red = pixels[..., 0] > 120
    # Turned clockwise: what was the upper left corner is the upper right one.
    assert red[:32, 24:].mean() > 0.9 and red[:, :24].mean() < 0.1 and red[32:].mean() < 0.1
    assert frame.pixels(32).shape == (32, 24, 3)


def test_colours_survive(tmp_path):
    picture = np.zeros((32, 48, 3), np.uint8)
    for start, colour in ((0, (200, 60, 40)), (16, (40, 180, 70)), (32, (50, 60, 210))):
        picture[:, start : start + 16] = colour
    with video.Writer(tmp_path / "a.mp4", 25, 32, 48, 16000, 1) as writer:
        writer.write_frames(np.repeat(picture[None], 5, 0))
    pixels = next(footage.Footage(tmp_path / "a.mp4", 25).frames()).pixels()
    for column in (8, 24, 40):
        error = pixels[16, column].astype(int) - picture[16, column]
        assert np.abs(error).max() <= 6  # Measured 2; the matrix of small pictures makes 20.


def test_the_channels_of_a_conversation_stay_apart(tmp_path):
    left, right = recordings.clicks(1.2, [0.4]), recordings.clicks(1.2, [0.8])
    recordings.write(
        tmp_path / "a.mkv", recordings.still(_picture(), 30), np.stack([left, right]),
    )
    source, _, sound = _read(tmp_path / "a.mkv", channels=2)
    assert source.channels == 2
    assert [list(_clicks(side)) for side in sound] == [[10], [20]]
    mixed = np.concatenate(list(source.sound(1)), 1)[0]
    assert list(_clicks(mixed[: len(mixed) // 640 * 640])) == [10, 20]


def _sound_only(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", 48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.float32), "fltp", "mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.touch(), "empty"),
        (lambda path: path.write_text("Not a video at all.\n" * 50), "not a video"),
        (lambda path: path.write_bytes(bytes(5000)), "not a video"),
        (lambda path: recordings.write(path, recordings.still(_picture(), 10)), "no sound"),
        (_sound_only, "no video"),
    ],
)
def test_what_cannot_be_used_says_why(tmp_path, make, words):
    make(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match=words) as caught:
        footage.Footage(tmp_path / "a.mp4", 25)
    assert "\n" not in str(caught.value)


def test_a_file_cut_short_gives_its_first_part_and_a_note(tmp_path):
    path = tmp_path / "a.mkv"
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(100)]
    recordings.write(path, frames, recordings.clicks(4, [1]))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    source, frames, sound = _read(path)
    assert 20 < len(frames) < 80 and sound.shape[1] > 16000
    assert any("frames end" in note for note in source.notes)


def test_sound_that_starts_late_is_moved_to_its_place(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        pictures = container.add_stream("libx264", 25)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
        voice = container.add_stream("pcm_s16le", 16000, layout="mono")
        for i in range(50):
            frame = av.VideoFrame.from_ndarray(_picture(), format="rgb24")
            frame = frame.reformat(format="yuv420p")
            frame.pts, frame.time_base = i, fractions.Fraction(1, 25)
            container.mux(pictures.encode(frame))
        container.mux(pictures.encode(None))
        for start in (8000, 24000):  # Half a second after the frames; then a hole of half one.
            block = np.full((1, 8000), 10000, np.int16)
            frame = av.AudioFrame.from_ndarray(block, "s16", "mono")
            frame.sample_rate, frame.pts = 16000, start
            frame.time_base = fractions.Fraction(1, 16000)
            container.mux(voice.encode(frame))
        container.mux(voice.encode(None))
    _, _, sound = _read(tmp_path / "a.mkv")
    loud = np.abs(sound[0]) > 0.1
    edges = np.flatnonzero(np.diff(loud.astype(int)))
    np.testing.assert_allclose(edges, [8000, 16000, 24000], atol=40)
