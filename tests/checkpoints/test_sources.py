"""Checkpoints are opened by their headers, and broken or hostile ones are refused.

The references are the libraries that publish the formats: `safetensors` and `torch` write
what is read here, and read what is written here.
"""

import json
import os
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from tm_jax.checkpoints import sinks
from tm_jax.checkpoints import sources


def _tensors():
    rng = np.random.default_rng(0)
    return {
        "a.weight": rng.standard_normal((3, 4)).astype(np.float32),
        "b": rng.standard_normal((2, 3, 5)).astype(ml_dtypes.bfloat16),
        "c": np.arange(7), "d": np.float16(rng.standard_normal(9)),
        "empty": np.zeros((0, 3), np.float32), "flag": np.array([True, False]),
        "number": np.array(2.5, np.float32),
    }


def _equal(actual, expected):
    assert set(actual) == set(expected)
    for name, value in expected.items():
        x = np.asarray(actual[name])
        assert (x.shape, x.dtype) == (value.shape, value.dtype), name
        assert actual[name].shape == value.shape
        np.testing.assert_array_equal(x, value, err_msg=name)


def test_safetensors_are_read(tmp_path):
    path = str(tmp_path / "x.safetensors")
    safetensors.numpy.save_file(_tensors(), path, metadata={"a": "b"})
    source = sources.open_source(path)
    _equal(source, _tensors())
    _equal(sources.open_source(str(tmp_path)), _tensors())
    assert source.nbytes == sum(x.nbytes for x in _tensors().values())
    assert source.origin("b") == path


@pytest.mark.parametrize("limit", [None, 60])
def test_what_is_written_is_read_by_the_library(tmp_path, limit):
    expected = _tensors()
    folder = str(tmp_path / "out")
    # Tensors come in another order than they were announced, and not contiguous.
    stream = [(n, np.array(expected[n], order="F")) for n in reversed(expected)]
    sinks.write_safetensors(folder, expected, stream, stem="m", limit=limit)
    files = sorted(f for f in os.listdir(folder) if f.endswith(".safetensors"))
    found = {}
    for file in files:
        found.update(safetensors.numpy.load_file(os.path.join(folder, file)))
    _equal(found, expected)
    _equal(sources.open_source(folder), expected)
    if limit is None:
        assert files == ["m.safetensors"]
        return
    assert len(files) > 2 and files[0] == f"m-00001-of-{len(files):05d}.safetensors"
    table = json.loads((tmp_path / "out" / "m.safetensors.index.json").read_text())
    assert table["weight_map"].keys() == expected.keys()
    assert table["metadata"]["total_size"] == sum(x.nbytes for x in expected.values())


def test_large_arrays_are_written_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "_PIECE", 100)
    x = {"x": np.arange(1000.0).reshape(50, 20).T}
    sinks.write_safetensors(str(tmp_path / "x.safetensors"), x, x.items())
    _equal(sources.open_source(str(tmp_path / "x.safetensors")), x)


def test_shards_keep_the_order_and_the_limit():
    items = {str(i): np.zeros(n, np.int8) for i, n in enumerate((4, 4, 9, 1, 5, 5))}
    assert sinks.shards(items, 8) == [["0", "1"], ["2"], ["3", "4"], ["5"]]


def _broken(tmp_path, change):
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"u": np.ones(4, np.float32), "v": np.ones(6, np.float32)}, path)
    data = bytearray(path.read_bytes())
    path.write_bytes(change(data))
    return str(path)


def _edit(data, **changes):
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    header["v"].update(changes)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda d: d[:-4], "tensor v is expected to end at byte .* truncated"),
        (lambda d: d[:30], "header of .* copy it again"),
        (lambda d: b"", "expected a safetensors file"),
        (lambda d: b"\x00" * 100, "header of a safetensors file"),
        (lambda d: b"<!doctype html>" * 9, "expected a safetensors file"),
        (lambda d: _edit(d, shape=[7]), "tensor v of shape .7,. needs 28 bytes"),
        (lambda d: _edit(d, dtype="F4"), "unknown dtype 'F4'"),
        (lambda d: _edit(d, shape=[-6]), "negative"),
        (lambda d: _edit(d, data_offsets=[1 << 40, (1 << 40) + 24]), "tensor v .* truncated"),
    ],
)
def test_broken_files_are_named(tmp_path, change, words):
    path = _broken(tmp_path, change)
    with pytest.raises(ValueError, match=words) as error:
        sources.open_source(path)
    assert path in str(error.value)


def _sharded(tmp_path):
    tensors = {n: np.full(4, i, np.float32) for i, n in enumerate("abcd")}
    folder = tmp_path / "s"
    sinks.write_safetensors(str(folder), tensors, tensors.items(), limit=32)
    return folder


def test_mixed_up_shards_are_named(tmp_path):
    folder = _sharded(tmp_path)
    first, second = sorted(folder.glob("*.safetensors"))
    a, b = first.read_bytes(), second.read_bytes()
    second.write_bytes(a)
    with pytest.raises(ValueError, match="tensor a is in .*00001-of"):
        sources.open_source(str(folder))
    first.write_bytes(b)
    with pytest.raises(ValueError, match="tensor a is expected in .*00001.*found in .*00002"):
        sources.open_source(str(folder))
    second.unlink()
    with pytest.raises(FileNotFoundError, match="00002-of-00002.*missing"):
        sources.open_source(str(folder))


def test_an_index_that_lacks_its_tensors(tmp_path):
    folder = _sharded(tmp_path)
    index = next(folder.glob("*.json"))
    table = json.loads(index.read_text())
    table["weight_map"]["e"] = table["weight_map"]["a"]
    index.write_text(json.dumps(table))
    with pytest.raises(ValueError, match="tensor e is expected in .* found in no file"):
        sources.open_source(str(folder))
    index.write_text("[]")
    with pytest.raises(ValueError, match="weight_map"):
        sources.open_source(str(index))


def test_what_is_not_a_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such"):
        sources.open_source(str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="expected .safetensors"):
        sources.open_source(str(tmp_path))
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(ValueError, match="expected .safetensors or a PyTorch"):
        sources.open_source(str(tmp_path / "x.txt"))


def test_the_mapping_is_released(tmp_path):
    """A tensor's memory ends with its array, so the largest one bounds a conversion."""
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"u": np.zeros(1 << 20, np.float32)}, path)
    source = sources.open_source(str(path))

    def mapped():
        with open("/proc/self/maps", encoding="utf-8") as stream:
            return str(path) in stream.read()

    if not os.path.exists("/proc/self/maps"):
        pytest.skip("needs /proc")
    x = np.asarray(source["u"]).T
    assert mapped() and x.sum() == 0
    del x
    assert not mapped()


# PyTorch's container.


@pytest.mark.parametrize("zipped", [True, False])
def test_pytorch_checkpoints_are_read(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    base = torch.arange(24.0)
    tensors = {
        "plain": base.reshape(4, 6), "turned": base.reshape(2, 3, 4).permute(2, 0, 1),
        "slice": base[3:7], "expanded": torch.ones(1, 4).expand(3, 4),
        "half": torch.ones(3, dtype=torch.bfloat16), "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3), "count": torch.tensor(7),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    path = str(tmp_path / "x.pth")
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    source = sources.open_source(path)
    assert set(source) == set(tensors)
    for name, x in tensors.items():
        y = np.asarray(source[name])
        assert y.shape == tuple(x.shape) and str(x.dtype).endswith(y.dtype.name), name
        np.testing.assert_array_equal(np.float64(y), x.detach().double().numpy(), name)
    with pytest.raises(ValueError, match="read-only"):
        np.asarray(source["turned"])[0] = 1


def test_a_state_inside_a_dictionary(tmp_path):
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(2, 3)
    path = str(tmp_path / "x.pt")
    torch.save({"step": 3, "state_dict": model.state_dict()}, path)
    assert set(sources.open_source(path)) == {"weight", "bias"}
    torch.save({"a": model.state_dict(), "b": model.state_dict()}, path)
    with pytest.raises(ValueError, match="got several"):
        sources.open_source(path)
    torch.save({"step": 3}, path)
    with pytest.raises(ValueError, match="got none"):
        sources.open_source(path)


def test_what_is_written_is_read_by_torch(tmp_path):
    torch = pytest.importorskip("torch")
    expected = _tensors()
    path = str(tmp_path / "x.pth")
    sinks.write_pickled(path, expected, reversed(expected.items()))
    found = torch.load(path, weights_only=True)
    assert list(found) == list(expected)
    for name, x in found.items():
        np.testing.assert_array_equal(x.double().numpy(), np.float64(expected[name]), name)
        assert str(x.dtype).endswith(expected[name].dtype.name)
    _equal(sources.open_source(path), expected)


class _Evil:
    """Pickled, it asks the reader to make a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_not_run(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    mark = str(tmp_path / "mark")
    path = str(tmp_path / "x.pt")
    torch.save(
        {"a": torch.ones(1), "b": _Evil(mark)}, path, _use_new_zipfile_serialization=zipped
    )
    with pytest.raises(ValueError, match="mkdir, which no tensor needs"):
        sources.open_source(path)
    assert not os.path.exists(mark)


def _rewrite(path, change):
    """Rewrites the pickle of a checkpoint."""
    with zipfile.ZipFile(path) as archive:
        members = {n: archive.read(n) for n in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, change(data) if name.endswith("data.pkl") else data)


@pytest.mark.parametrize(
    "old, new, words",
    [
        # Four numbers of the storage, seen from its second one; then with a long step.
        (b"\x8a\x09" + struct.pack("<Q", 0) + b"\0(", b"\x8a\x09" + struct.pack("<Q", 1) + b"\0(",
         "beyond its storage"),
        (b"(\x8a\x09" + struct.pack("<Q", 1) + b"\0t", b"(\x8a\x09" + struct.pack("<Q", 9) + b"\0t",
         "beyond its storage"),
        (b"FloatStorage", b"Generator", "torch.Generator, which no tensor needs"),
        (b"tR", b"tb", "expected a complete PyTorch checkpoint"),
        (b"storage", b"module1", "refers to"),
    ],
)
def test_hostile_pickles_are_refused(tmp_path, old, new, words):
    path = str(tmp_path / "x.pth")
    x = {"x": np.ones(4, np.float32)}
    sinks.write_pickled(path, x, x.items())

    def change(data):
        assert old in data
        return data.replace(old, new)

    _rewrite(path, change)
    with pytest.raises(ValueError, match=words):
        sources.open_source(path)


def test_truncated_pytorch_checkpoints_are_named(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.pt"
    for zipped, words in ((True, "complete PyTorch checkpoint"), (False, "tensor w needs .* bytes")):
        torch.save({"w": torch.ones(1000)}, path, _use_new_zipfile_serialization=zipped)
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(ValueError, match=words):
            sources.open_source(str(path))
    path.write_bytes(b"no checkpoint at all")
    with pytest.raises(ValueError, match="complete PyTorch checkpoint"):
        sources.open_source(str(path))


def test_a_failure_leaves_nothing(tmp_path):
    target = tmp_path / "out"
    with pytest.raises(KeyError), sinks.replacing(str(target)) as temporary:
        os.mkdir(temporary)
        raise KeyError("x")
    assert os.listdir(tmp_path) == []
    target.mkdir()
    (target / "mine").write_text("x")
    with pytest.raises(ValueError, match="not empty"), sinks.replacing(str(target)):
        pass
    with pytest.raises(FileNotFoundError, match="no such folder"):
        with sinks.replacing(str(tmp_path / "no" / "x")):
            pass
    assert (target / "mine").read_text() == "x"
