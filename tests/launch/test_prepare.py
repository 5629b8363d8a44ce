"""The launchers of examples and drawn videos, with a tiny encoder: results and one-line errors."""

import json

import av
import numpy as np
import pytest

from tests.data import encoders
from tests.data import recordings
from tests.launch import in_process
from tm_jax.data import shards
from tm_jax.inference import clip_encoder
from tm_jax.training import example_source


@pytest.fixture
def prepare(monkeypatch):
    def load(preset, weights, **options):
        if weights is None:
            raise FileNotFoundError(f"preset {preset} needs --weights.")
        return encoders.Tiny(**options)

    monkeypatch.setattr(clip_encoder, "load", load)
    return in_process.launcher(monkeypatch, "prepare")


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    frames = recordings.still(np.full((48, 64, 3), 80, np.uint8), 60, [10, 30])
    recordings.write(folder / "a.mp4", frames, recordings.clicks(2.4, [0.4, 1.2]))
    (folder / "b.mp4").write_text("words")
    return folder


def test_a_folder_becomes_examples(prepare, videos, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = (
        f"--videos={videos}", f"--out={out}", "--weights=w", "--face=none", "--clip_seconds=1",
        "--least_seconds=0.48", "--voice_activity=loudness", "--workers=0",
    )
    prepare(*arguments)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"Wrote {out}: 2 clips (0.0 minutes") and "rejected: 1 files" in last
    source = shards.ExampleSource(out)
    assert len(source) == 2 and source[0].latents.shape == (7, 4, 4, 3)
    assert source.manifest["settings"]["chunks"] == 2
    with pytest.raises(SystemExit, match="^prepare: .* prepared with chunks=2, now it is 4"):
        prepare(*arguments, "--clip_seconds=2")


def test_every_aspect_ratio_has_a_store_of_its_own(prepare, videos, tmp_path, capsys):
    frames = recordings.still(np.full((64, 48, 3), 80, np.uint8), 30, [10])
    recordings.write(videos / "tall.mp4", frames, recordings.clicks(1.2, [0.4]))
    out = tmp_path / "out"
    arguments = (
        f"--videos={videos}", f"--out={out}", "--weights=w", "--face=none", "--clip_seconds=1",
        "--least_seconds=0.48", "--voice_activity=loudness", "--workers=0",
        "--aspects=4:3,1:1,3:4",
    )
    prepare(*arguments)
    assert json.loads((out / "stores.json").read_text()) == {"stores": ["64x32", "32x64"]}
    wide, tall = example_source.stores(str(out))
    assert (len(wide), len(tall)) == (2, 1)
    assert wide[0]["latents"].shape[1:3] == (4, 8) and tall[0]["latents"].shape[1:3] == (8, 4)
    files = [shards.ExampleSource(out / name).manifest["files"] for name in ("64x32", "32x64")]
    # What cannot be read is with the first, which says why.
    assert [list(names) for names in files] == [["a.mp4", "b.mp4"], ["tall.mp4"]]
    capsys.readouterr()
    prepare(*arguments, "--dry_run", "--preset=tm-18b")
    printed = capsys.readouterr().out
    assert "width=592" in printed and "height=592" in printed
    for wrong in (("--aspects=4:0",), ("--aspects=4:3,11:10",)):
        with pytest.raises(SystemExit, match="two numbers above 0|two of them make videos of"):
            prepare(*arguments[:-1], *wrong, f"--out={tmp_path / 'other'}")


def test_a_dry_run_tells_what_would_be_used(prepare, videos, tmp_path, capsys):
    prepare(
        f"--videos={videos}", f"--out={tmp_path / 'out'}", "--dry_run", "--face=none",
        "--preset=tm-18b", "--voice_activity=loudness", "--workers=0",
    )
    lines = capsys.readouterr().out.splitlines()
    assert "height=512" in " ".join(lines)
    assert lines[-1].startswith("Would use 1 clips") and not (tmp_path / "out").exists()
    assert "not a video" in json.loads(lines[-2])["b.mp4"]["rejected"][0]["reason"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give either --videos=FOLDER or --synthetic=N"),
        (("--videos=a", "--synthetic=2"), "give either"),
        (("--videos=gone",), "--out: name the folder"),
        (("--videos=gone", "--out=out"), "no folder gone"),
        (("--videos=.", "--out=out"), "no file in . is named like a video"),
        (("--synthetic=1", "--out=out", "--preset=none"), "unknown preset"),
        (("--synthetic=1", "--out=out", "--overlap=20", "--dry_run"), "overlap_chunks"),
        (("--synthetic=1", "--out=out", "--preset=tm-18b"), "needs --weights"),
    ],
)
def test_what_is_wrong_ends_in_one_line(prepare, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=words) as caught:
        prepare(*arguments)
    assert str(caught.value).startswith("prepare: ") and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_preset_without_weights_says_so():
    with pytest.raises(FileNotFoundError, match="tm-18b comes without weights"):
        clip_encoder.load("tm-18b", None)


def test_drawn_videos_are_a_source_like_any_other(prepare, tmp_path, capsys):
    arguments = (
        "--synthetic=2", f"--out={tmp_path / 'out'}", "--weights=w", "--face=none",
        "--clip_seconds=0.48", "--drawn_seconds=1", "--voice_activity=loudness", "--workers=0",
    )
    prepare(*arguments)
    names = sorted(path.name for path in (tmp_path / "out" / "synthetic").iterdir())
    assert names == ["drawn-000-00000.mp4", "drawn-000-00001.mp4"]
    assert len(shards.ExampleSource(tmp_path / "out")) == 4
    drawn = {name: (tmp_path / "out" / "synthetic" / name).stat().st_mtime_ns for name in names}
    prepare(*arguments)
    for name, when in drawn.items():
        assert (tmp_path / "out" / "synthetic" / name).stat().st_mtime_ns == when
    assert "Wrote" in capsys.readouterr().out


def test_a_drawn_video_has_frames_and_sound(monkeypatch, tmp_path, capsys):
    character = in_process.launcher(monkeypatch, "character")
    path = tmp_path / "a.mp4"
    character(
        f"--video={path}", "--seconds=1.2", "--seed=3", "--style=clay", "--size=64",
        "--kind=listening", "--partner", "--voice=dashwood_leisure",
    )
    assert "30 frames, listening" in capsys.readouterr().out
    with av.open(str(path)) as container:
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    with av.open(str(path)) as container:
        sound = np.concatenate([f.to_ndarray() for f in container.decode(audio=0)], 1)
    assert len(frames) == 30 and frames[0].shape == (64, 64, 3)
    assert np.abs(frames[0].astype(int) - frames[-1]).mean() > 1  # Head and shoulders move.
    own, other = np.abs(sound).max(1)
    assert own < 0.02 and other > 0.1  # The character listens.
    with pytest.raises(SystemExit, match="style 'oil' is unknown"):
        character(f"--video={path}", "--style=oil")
    with pytest.raises(SystemExit, match="there is no 'nobody'; choose from dashwood_amiable"):
        character(f"--video={path}", "--voice=nobody")
