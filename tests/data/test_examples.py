"""Examples on disk: schema, shards; what a full disk or a wrong copy leaves."""

import json
import pickle
import shutil
import subprocess

import fsspec
import grain
import ml_dtypes
import numpy as np
import pytest

from tm_jax.core import timing as timing_lib
from tm_jax.data import examples as examples_lib
from tm_jax.data import manifest as manifest_lib
from tm_jax.data import shards

_TIMING = timing_lib.Timing()
_SETTINGS = {"preset": "small", "height": 32}


def _example(number=0, latents=12, **parts):
    rng = np.random.default_rng(number)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    # The first latent tells its number.
    audio = normal(latents, 6, 5)
    video = normal(1 + latents, 2, 3, 4)
    video[:, 0, 0, 0] = np.arange(1 + latents)
    fields = dict(
        latents=video.astype(ml_dtypes.bfloat16), condition=normal(1, 2, 3, 0),
        face_mask=rng.uniform(0, 1, 6).astype(np.float32), audio=audio,
        mode=rng.integers(0, 2, latents).astype(np.int8),
    )
    return examples_lib.Example(**fields | parts)


def _equal(a, b):
    assert a.arrays().keys() == b.arrays().keys()
    for name, part in a.arrays().items():
        other = b.arrays()[name]
        assert part.dtype == other.dtype and part.shape == other.shape
        np.testing.assert_array_equal(part, other)


def _write(folder, count=7, lengths=None, **options):
    options = {"shard_examples": 3} | options
    with shards.ExampleWriter(folder, _SETTINGS, {"av": "1"}, **options) as writer:
        for i in range(count):
            writer.add(_example(i, lengths[i] if lengths else 12), f"{i}.mp4", 10)
            writer.finish(f"{i}.mp4", {"bytes": 10, "clips": [0], "rejected": [], "notes": []})


def test_a_record_keeps_every_part_and_adds_none():
    text = np.ones((4, 2), np.float16)
    for example in (_example(), _example(text=text, partner_audio=_example(3).audio)):
        schema = examples_lib.Schema.of(example)
        record = examples_lib.to_bytes(example)
        assert record == examples_lib.to_bytes(example)
        _equal(examples_lib.from_bytes(record, schema), example)
    assert "text" not in examples_lib.from_bytes(
        examples_lib.to_bytes(_example()), examples_lib.Schema.of(_example())
    ).arrays()


def test_a_schema_survives_its_json_and_fits_other_lengths():
    schema = examples_lib.Schema.of(_example())
    again = examples_lib.Schema.from_json(json.loads(json.dumps(schema.to_json())))
    assert again == schema
    assert schema.fields["latents"] == (("1+T", 2, 3, 4), "bfloat16")
    assert schema.fields["audio"].shape == ("T", 6, 5) and schema.fields["mode"].shape == ("T",)
    schema.check(_example(latents=6), "a shorter one")
    settled = examples_lib.Schema.of(_example(condition=np.zeros((14, 2, 3, 4), np.float32)))
    assert settled.fields["condition"].shape == ("2+T", 2, 3, 4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(audio=np.zeros((11, 6, 5), np.float32)), "audio must be float32 \\[T, 6, 5\\] .* T=12"),
        (dict(mode=np.zeros(12, np.int32)), "mode must be int8"),
        (dict(text=np.zeros((4, 2), np.float32)), "expected the parts .* got .*text"),
        (dict(face_mask=np.zeros(7, np.float32)), "face_mask must be float32 \\[6\\]"),
    ],
)
def test_a_mismatch_is_explained(changes, words):
    schema = examples_lib.Schema.of(_example())
    with pytest.raises(ValueError, match=words):
        schema.check(_example()._replace(**changes), "the example")


def test_a_store_of_another_schema_is_refused(tmp_path):
    _write(tmp_path / "a", 2)
    needed = examples_lib.Schema.of(_example(text=np.zeros((4, 2), np.float32)))
    with pytest.raises(ValueError, match="text is absent, but float32 \\[4, 2\\] is needed"):
        shards.ExampleSource(tmp_path / "a", needed)
    shards.ExampleSource(tmp_path / "a", examples_lib.Schema.of(_example(5, 6)))


def test_examples_come_back_by_number(tmp_path):
    _write(tmp_path / "a")
    source = shards.ExampleSource(tmp_path / "a")
    assert isinstance(source, grain.sources.RandomAccessDataSource) and len(source) == 7
    for index in (6, 0, 3, 2):
        _equal(source[index], _example(index))
    _equal(pickle.loads(pickle.dumps(source))[4], _example(4))
    with pytest.raises(IndexError, match="7 examples"):
        source[7]
    manifest = source.manifest
    assert [shard["examples"] for shard in manifest["shards"]] == [3, 3, 1]
    assert manifest["counts"] == {
        "files": 7, "files_rejected": 0, "clips_rejected": 0, "examples": 7, "latent_frames": 84,
        "speaking_latent_frames": sum(int(_example(i).mode.sum()) for i in range(7)),
    }
    assert not [path.name for path in (tmp_path / "a").iterdir() if "part" in path.name]


def test_shards_also_end_by_size(tmp_path):
    size = len(examples_lib.to_bytes(_example()))
    _write(tmp_path / "a", shard_examples=100, shard_bytes=2 * size)
    counts = [shard["examples"] for shard in manifest_lib.read(tmp_path / "a")["shards"]]
    assert counts == [2, 2, 2, 1]


def test_other_settings_and_a_second_writer_are_refused(tmp_path):
    _write(tmp_path / "a", 2)
    for changes, words in (
        ({"height": 64}, "prepared with height=32, now it is 64"), ({"new": 1}, "new=None")
    ):
        with pytest.raises(ValueError, match=words):
            shards.ExampleWriter(tmp_path / "a", _SETTINGS | changes, {}, 3)
    with shards.ExampleWriter(tmp_path / "a", _SETTINGS, {"av": "2"}, 3):
        with pytest.raises(ValueError, match="another run"):
            shards.ExampleWriter(tmp_path / "a", _SETTINGS, {}, 3)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "letter.txt").touch()
    with pytest.raises(ValueError, match="letter.txt"):
        shards.ExampleWriter(tmp_path / "b", _SETTINGS, {})


def test_a_store_that_was_copied_badly_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no manifest.json"):
        shards.ExampleSource(tmp_path)
    _write(tmp_path / "a")
    path = tmp_path / "a" / "examples-00001.arrayrecord"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match="examples-00001.arrayrecord is missing or not"):
        shards.ExampleSource(tmp_path / "a")
    path.unlink()
    with pytest.raises(ValueError, match="missing"):
        shards.ExampleSource(tmp_path / "a")
    (tmp_path / "a" / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        shards.ExampleSource(tmp_path / "a")


def test_a_store_without_examples_says_so(tmp_path):
    with shards.ExampleWriter(tmp_path / "a", _SETTINGS, {}) as writer:
        writer.finish("x.mp4", {"bytes": 0, "clips": [], "rejected": [{}], "notes": []})
    with pytest.raises(ValueError, match="no example in it.* 1 files"):
        shards.ExampleSource(tmp_path / "a")


@pytest.mark.parametrize("at", ["write", "close"])
def test_a_full_disk_keeps_what_was_written(tmp_path, monkeypatch, at):
    _write(tmp_path / "whole")
    usual = shards.array_record_module.ArrayRecordWriter
    made = []

    class Full:
        """The third shard meets a full disk, as the C++ writer reports it."""

        def __init__(self, path, options):
            self._writer, self._full = usual(path, options), len(made) == 2
            made.append(path)

        def write(self, record):
            if self._full and at == "write":
                raise RuntimeError("write() failed: No space left on device; writing x")
            self._writer.write(record)

        def close(self):
            self._writer.close()
            if self._full and at == "close":
                raise RuntimeError("close() failed: No space left on device; writing x")

    with monkeypatch.context() as patch:
        patch.setattr(shards.array_record_module, "ArrayRecordWriter", Full)
        with pytest.raises(OSError, match="No space left on device. 6 examples in 2 shards are"):
            _write(tmp_path / "a")
    source = shards.ExampleSource(tmp_path / "a")
    assert len(source) == 6
    _equal(source[5], _example(5))
    assert not [path.name for path in (tmp_path / "a").iterdir() if "part" in path.name]
    with shards.ExampleWriter(tmp_path / "a", _SETTINGS, {"av": "1"}, 3) as writer:
        assert list(writer.files) == [f"{i}.mp4" for i in range(6)]
        writer.add(_example(6), "6.mp4", 10)
        writer.finish("6.mp4", {"bytes": 10, "clips": [0], "rejected": [], "notes": []})
    _same_bytes(tmp_path / "a", tmp_path / "whole")


def test_a_manifest_that_cannot_be_written_keeps_the_old_one(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="3 examples in 1 shards are kept"):
        with shards.ExampleWriter(tmp_path / "a", _SETTINGS, {}, 3) as writer:
            for i in range(6):
                if i == 3:
                    monkeypatch.setattr(manifest_lib.os, "fsync", full)
                writer.add(_example(i), "a.mp4", 10)
    assert len(shards.ExampleSource(tmp_path / "a")) == 3


def _same_bytes(a, b):
    names = sorted(path.name for path in a.iterdir())
    assert names == sorted(path.name for path in b.iterdir())
    for name in names:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


@pytest.mark.skipif(not shutil.which("mount"), reason="needs a file system of its own")
def test_a_file_system_that_is_full(tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", place], capture_output=True
    )
    if made.returncode:
        pytest.skip("mounting is not permitted")
    try:
        with pytest.raises(OSError, match="No space left on device.*examples in . shards"):
            _write(place / "a", 1000, shard_examples=10)
        source = shards.ExampleSource(place / "a")
        assert len(source) >= 10 and len(source) % 10 == 0
        _equal(source[len(source) - 1], _example(len(source) - 1))
        del source
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A store in an object store in memory; gives its URL and its file system."""
    monkeypatch.setenv("TM_JAX_CACHE", str(tmp_path / "cache"))
    _write(tmp_path / "a")
    files = fsspec.filesystem("memory")
    files.put(str(tmp_path / "a"), f"/{tmp_path.name}", recursive=True)
    yield f"memory://{tmp_path.name}", files
    files.rm(f"/{tmp_path.name}", recursive=True)


def test_a_store_elsewhere_is_fetched_shard_by_shard(bucket, tmp_path, monkeypatch):
    url, files = bucket
    asked = []
    original = type(files).get_file

    def get_file(self, name, *args, **kwargs):
        asked.append(name.rpartition("/")[2])
        return original(self, name, *args, **kwargs)

    monkeypatch.setattr(type(files), "get_file", get_file)
    source = shards.ExampleSource(url)
    assert len(source) == 7 and asked == ["manifest.json"]
    for index in (4, 5, 3):
        _equal(source[index], _example(index))
    assert asked[1:] == ["examples-00001.arrayrecord"]
    again = pickle.loads(pickle.dumps(shards.ExampleSource(url)))
    _equal(again[3], _example(3))
    assert asked[2:] == ["manifest.json"]  # The shard is there already.
    _equal(again[6], _example(6))
    assert asked[3:] == ["examples-00002.arrayrecord"]
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_a_store_elsewhere_that_is_damaged_or_away(bucket):
    url, files = bucket
    source = shards.ExampleSource(url)
    name = f"/{url.partition('://')[2]}/examples-00000.arrayrecord"
    files.pipe(name, files.cat(name)[:-9])
    with pytest.raises(OSError, match="examples-00000.arrayrecord cannot be fetched: it has"):
        source[0]
    with pytest.raises(OSError, match="none/manifest.json cannot be fetched"):
        shards.ExampleSource("memory://none")
    with pytest.raises(ValueError, match="nosuch://a cannot be read"):
        shards.ExampleSource("nosuch://a")
