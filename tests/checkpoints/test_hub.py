"""Weights are fetched from a Hub on this machine: what, which commit, and why not."""

import builtins
import errno
import importlib
import os
import pathlib
import types

import numpy as np
import pytest

from tests import hub_server
from tm_jax.checkpoints import hub

library = pytest.importorskip("huggingface_hub")
for _name in ("constants", "file_download"):
    importlib.import_module(f"huggingface_hub.{_name}")

_REPO = "someone/Some-Weights.v2"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A Hub without repositories, and a cache of its own."""
    with hub_server.Hub() as running:
        running.serve_this_process(monkeypatch, tmp_path)
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # Between two tries.
        yield running


def _read(path, name=""):
    return pathlib.Path(path, name).read_bytes()


@pytest.mark.parametrize(
    "text, expected",
    [
        ("hf:a/b", ("a/b", "", None)),
        ("hf:a/b@v1.0", ("a/b", "", "v1.0")),
        ("hf:a/b-1.3B/x/y.pt", ("a/b-1.3B", "x/y.pt", None)),
        ("hf:a/b/x/@refs/pr/3", ("a/b", "x", "refs/pr/3")),
    ],
)
def test_specs(text, expected):
    spec = hub.parse(text)
    assert (spec.repo, spec.path, spec.revision) == expected
    assert hub.parse(str(spec)) == spec


@pytest.mark.parametrize(
    "text", ["hf:", "hf:a", "hf:/b", "hf:a/", "hf:a/b@", "hf:a/b/../c", "hf:a/b//c", "hf:a b/c",
             "hf:-a/b", "a/b"],
)  # fmt: skip
def test_what_is_no_spec(text):
    with pytest.raises(ValueError, match=r"expected hf:OWNER/NAME\[/PATH\]\[@REVISION\], got"):
        hub.parse(text)


def test_local_places_pass_through(monkeypatch):
    monkeypatch.setattr(hub, "_library", None)
    for place in (None, "weights", "hf", "./hf:a/b", pathlib.Path("x")):
        assert hub.resolve(place) is place


def test_a_file_and_its_commit(server, tmp_path):
    sha = server.push(_REPO, {"a/x.pt": b"one", "b.pt": b"two", "README.md": b"text"})
    found = hub.fetch(f"hf:{_REPO}/a/x.pt")
    assert found.origin == f"hf:{_REPO}/a/x.pt@{sha}"
    assert _read(found.path) == b"one" and found.path.startswith(str(tmp_path / "cache"))
    assert server.fetched() == ["a/x.pt"]
    # The commit names the same bytes, and needs no second connection.
    server.push(_REPO, {"a/x.pt": b"new"})
    server.requests.clear()
    assert hub.fetch(found.origin) == found and not server.requests
    assert _read(hub.resolve(f"hf:{_REPO}/a/x.pt")) == b"new"


def test_branches_and_tags(server):
    old = server.push(_REPO, {"x.pt": b"old"}, "v1")
    server.push(_REPO, {"x.pt": b"new"})
    found = hub.fetch(f"hf:{_REPO}/x.pt@v1")
    assert _read(found.path) == b"old" and found.origin.endswith(f"/x.pt@{old}")


_ALL = {name: name.encode() for name in (
    "README.md", "LICENSE", "preset.json", "demo.mp4", "Wan_VAE.pth", "dit.safetensors",
    "model.onnx", "text/model-00001-of-00002.safetensors", "text/model-00002-of-00002.safetensors",
    "text/model.safetensors.index.json", "text/pytorch_model.bin", "text/tf_model.h5",
    "tokenizer/tokenizer.json", "tokenizer/spiece.model", "audio/model.pt",
    "audio/model.safetensors", "tree/_METADATA", "tree/d/0", "tree/manifest.ocdbt",
)}  # fmt: skip
_NEEDED = sorted(set(_ALL) - {
    "README.md", "LICENSE", "demo.mp4", "model.onnx", "text/pytorch_model.bin", "text/tf_model.h5",
    "audio/model.pt",
})  # fmt: skip


def test_a_folder_of_all_parts_is_its_weights_alone(server):
    server.push(_REPO, _ALL)
    folder = pathlib.Path(hub.resolve(f"hf:{_REPO}"))
    assert sorted(server.fetched()) == _NEEDED
    there = [f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()]
    assert sorted(there) == _NEEDED
    server.requests.clear()
    inner = hub.fetch(f"hf:{_REPO}/text")
    assert sorted(os.listdir(inner.path)) == [
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    assert not server.fetched()


@pytest.mark.parametrize(
    "path, places, expected",
    [
        # Places in their order: a file, a folder; else what lies in the folder itself.
        ("", ("vae", "Wan_VAE.pth"), ["Wan_VAE.pth"]),
        ("", ("text",), ["text/model-00001-of-00002.safetensors",
                         "text/model-00002-of-00002.safetensors",
                         "text/model.safetensors.index.json"]),
        ("", ("audio", "text"), ["audio/model.safetensors"]),
        ("", ("other",), ["dit.safetensors"]),
        ("", (), ["dit.safetensors"]),
        ("", ("tree",), ["tree/_METADATA", "tree/d/0", "tree/manifest.ocdbt"]),
        ("tree", (), ["tree/_METADATA", "tree/d/0", "tree/manifest.ocdbt"]),
        ("text", ("text",), ["text/model-00001-of-00002.safetensors",
                             "text/model-00002-of-00002.safetensors",
                             "text/model.safetensors.index.json"]),
        # One file, with all that belongs to it.
        ("audio/model.pt", ("x",), ["audio/model.pt"]),
        ("text/model.safetensors.index.json", (), ["text/model-00001-of-00002.safetensors",
                                                   "text/model-00002-of-00002.safetensors",
                                                   "text/model.safetensors.index.json"]),
        ("preset.json", None, ["preset.json"]),
    ],
)  # fmt: skip
def test_of_one_part_only_the_files_that_are_needed(path, places, expected):
    assert sorted(hub.choose(list(_ALL), "hf:a/b", path, places)) == expected


@pytest.mark.parametrize(
    "files, path, places, words",
    [
        (["a.pt", "b.pt"], "", (),
         "expected one checkpoint, got a.pt, b.pt; name one, as hf:OWNER/NAME/a.pt"),
        (["x/a.safetensors", "x/b.safetensors", "x/c.pt"], "", ("x",),
         "got x/a.safetensors, x/b.safetensors; name one"),
        (["checkpoints/a.pt", "README.md"], "", ("transformer",),
         "expected weights, got none; the repository has checkpoints/a.pt"),
        (["a/b.pt"], "c", None, "expected weights at c, got none; the repository has a/b.pt"),
        (["README.md"], "", None, "the repository has no weights at all"),
        ([f"x/{i}.pt" for i in range(9)], "", (), "x/5.pt and 3 more"),
    ],
)  # fmt: skip
def test_which_file_is_meant(files, path, places, words):
    with pytest.raises((ValueError, FileNotFoundError), match=words) as error:
        hub.choose(files, "hf:a/b", path, places)
    assert str(error.value).startswith("hf:a/b: ")


def test_names_with_the_characters_of_patterns(server):
    server.push(_REPO, {"a[1]*.pt": b"one", "a1x.pt": b"two"})
    assert _read(hub.resolve(f"hf:{_REPO}/a[1]*.pt")) == b"one"
    assert server.fetched() == ["a[1]*.pt"]


def test_offline_the_cache_is_enough(server, monkeypatch):
    sha = server.push(_REPO, {"x.pt": b"one", "y.pt": b"two"})
    online = hub.fetch(f"hf:{_REPO}/x.pt")
    server.requests.clear()
    assert hub.fetch(f"hf:{_REPO}/x.pt", offline=True) == online
    assert hub.fetch(f"hf:{_REPO}/x.pt@{sha}", offline=True) == online
    monkeypatch.setattr(library.constants, "HF_HUB_OFFLINE", True)
    assert hub.fetch(f"hf:{_REPO}/x.pt") == online
    # A file, a revision and a repository that were never fetched.
    for text in (f"{_REPO}/y.pt", f"{_REPO}/x.pt@v1", "someone/else"):
        with pytest.raises(FileNotFoundError, match="cache .*cache, and nothing is fetched") as e:
            hub.fetch(f"hf:{text}")
        assert "\n" not in str(e.value)
    assert not server.requests


def test_offline_a_file_that_another_program_fetched(server):
    """The library's own `hf download` of a single file leaves no list of the others."""
    server.push(_REPO, {"a/x.pt": b"one", "y.pt": b"two"})
    path = library.hf_hub_download(_REPO, "a/x.pt")
    server.requests.clear()
    assert hub.resolve(f"hf:{_REPO}/a/x.pt", offline=True) == path
    with pytest.raises(FileNotFoundError, match="the repository has a/x.pt"):
        hub.resolve(f"hf:{_REPO}/y.pt", offline=True)
    assert not server.requests


def test_without_a_network_the_cache_is_used(server, monkeypatch):
    server.push(_REPO, {"x.pt": b"one"})
    online = hub.fetch(f"hf:{_REPO}/x.pt")
    monkeypatch.setattr(library.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert hub.fetch(f"hf:{_REPO}/x.pt") == online
    with pytest.raises(ConnectionError, match="127.0.0.1:9 cannot be reached .*refused") as error:
        hub.fetch("hf:someone/else")
    assert "\n" not in str(error.value)


def test_a_broken_connection_goes_on_where_it_broke(server, monkeypatch):
    data = np.random.default_rng(0).bytes(300_000)
    server.push(_REPO, {"x.safetensors": data})
    monkeypatch.setattr(library.constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    server.break_after = 100_000
    assert _read(hub.resolve(f"hf:{_REPO}/x.safetensors")) == data
    ranges = [r for method, path, r in server.requests if method == "GET" and "resolve" in path]
    assert ranges[0] is None and len(ranges) == 2
    assert 0 < int(ranges[1].removeprefix("bytes=").rstrip("-")) <= 100_000


def test_whole_files_are_kept_when_a_later_one_fails(server, monkeypatch):
    server.push(_REPO, {"a.safetensors": b"a" * 10, "b.safetensors": b"b" * 10})
    get = library.file_download.http_get

    def fail(url, *args, **kwargs):
        if url.endswith("b.safetensors"):
            raise OSError(errno.ENOSPC, "No space left on device")
        get(url, *args, **kwargs)

    with monkeypatch.context() as context:
        context.setattr(library.file_download, "http_get", fail)
        with pytest.raises(OSError, match="expected room for the files in .*; set HF_HUB_CACHE"):
            hub.resolve(f"hf:{_REPO}")
    server.requests.clear()
    folder = hub.resolve(f"hf:{_REPO}")
    assert server.fetched() == ["b.safetensors"]
    assert sorted(os.listdir(folder)) == ["a.safetensors", "b.safetensors"]


def test_a_full_disk_is_told_before_anything_is_fetched(server, monkeypatch):
    server.push(_REPO, {"x.pt": b"x" * 1000, "y.pt": b"y" * 500})
    free = types.SimpleNamespace(free=999)
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda folder: free)
    with pytest.raises(OSError, match="expected room for 1e-06 GB, got 9.99e-07 GB in .*cache"):
        hub.resolve(f"hf:{_REPO}/x.pt")
    assert not server.fetched()
    free.free = 1000
    hub.resolve(f"hf:{_REPO}/x.pt")
    free.free = 0  # What is there needs no room.
    hub.resolve(f"hf:{_REPO}/x.pt")


def test_what_cannot_be_had_is_told_in_one_line(server, monkeypatch):
    server.push(_REPO, {"x.pt": b"x"})
    server.push("someone/gated", {"x.pt": b"x"}, token="good", gated=True)
    server.push("someone/private", {"x.pt": b"x"}, token="good")
    for text, kind, words in [
        ("hf:no/body", FileNotFoundError, "no public repository no/body; check the name, or set"),
        (f"hf:{_REPO}@v9", FileNotFoundError, f"{_REPO} has no branch, tag or commit v9"),
        (f"hf:{_REPO}@{'0' * 40}", FileNotFoundError, "no branch, tag or commit 0000"),
        (f"hf:{_REPO}/y.pt", FileNotFoundError, "weights at y.pt, got none; .* has x.pt"),
        ("hf:someone/gated", PermissionError, "gated; accept its terms at .*/someone/gated and"),
        ("hf:someone/private", FileNotFoundError, "set HF_TOKEN for a private one"),
    ]:
        with pytest.raises(kind, match=words) as error:
            hub.resolve(text)
        assert str(error.value).startswith(f"{text}: ") and "\n" not in str(error.value)
    monkeypatch.setenv("HF_TOKEN", "bad")
    with pytest.raises(PermissionError, match="gated; accept its terms"):
        hub.resolve("hf:someone/gated")
    with pytest.raises(PermissionError, match=r"refuses the token or its rights \(403\)"):
        hub.resolve("hf:someone/private")
    monkeypatch.setenv("HF_TOKEN", "good")
    for name in ("gated", "private"):
        assert _read(hub.resolve(f"hf:someone/{name}/x.pt")) == b"x"
    with monkeypatch.context() as context:
        # As hf_xet, which fetches what lies in the newer storage, tells its errors.
        context.setattr(library, "hf_hub_download", _raise(RuntimeError("Data error\nat x")))
        server.push("someone/other", {"x.pt": b"x"})
        with pytest.raises(ConnectionError, match=r"cannot be reached \(Data error\); .* kept"):
            hub.resolve("hf:someone/other/x.pt")
    server.status = 500
    with pytest.raises(ConnectionError, match="cannot be reached .*500"):
        hub.resolve("hf:no/body")


def _raise(error):
    def call(*args, **kwargs):
        raise error

    return call


def test_without_the_extra(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("huggingface_hub"):
            raise ModuleNotFoundError("No module named 'huggingface_hub'", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"hf:a/b: .* need the extra `hub`: pip install"):
        hub.resolve("hf:a/b")
