"""Weight files written tensor by tensor, and nothing half-written.

A sink is given all names, shapes and dtypes first, so that every header is on disk before the
first tensor comes; each tensor then goes to its place and is forgotten. Everything is
written beside the target under a temporary name and moved there at the end; an error or an
interruption removes it.
"""

from collections.abc import Iterable, Iterator, Mapping
import contextlib
import json
import math
import os
import pickle
import shutil
import struct
import tempfile
from typing import Any
import zipfile

import numpy as np

from tm_jax.checkpoints import sources

_NAMES = {dtype: name for name, dtype in sources.DTYPES.items()}
_PIECE = 2**26  # Bytes that are made contiguous and written at once.


@contextlib.contextmanager
def replacing(path: str) -> Iterator[str]:
    """A temporary path beside `path` that takes its place if all goes well.

    Raises:
      FileNotFoundError: The folder of `path` does not exist.
      ValueError: `path` is a folder with something in it.
    """
    path = os.path.abspath(path)
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{folder}: no such folder.")
    if os.path.isdir(path) and os.listdir(path):
        raise ValueError(f"{path}: this folder is not empty; name a new one.")
    inside = tempfile.mkdtemp(prefix=f".{os.path.basename(path)}.", dir=folder)
    try:
        target = os.path.join(inside, os.path.basename(path))
        yield target
        if os.path.isdir(path):
            os.rmdir(path)  # Empty, and a folder takes its place.
        os.replace(target, path)
    finally:
        shutil.rmtree(inside, ignore_errors=True)


def nbytes(item: Any) -> int:
    """Size of a tensor from its shape and dtype."""
    return math.prod(item.shape) * np.dtype(item.dtype).itemsize


def shards(items: Mapping, limit: int) -> list[list[str]]:
    """Names in their order, cut so that no group is larger than `limit` bytes."""
    groups, size = [[]], 0
    for name, item in items.items():
        if groups[-1] and size + nbytes(item) > limit:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += nbytes(item)
    return groups


class _File:
    """One safetensors file whose header is written and whose tensors come in any order."""

    def __init__(self, path: str, items: Mapping, metadata: dict[str, str]):
        header: dict[str, dict[str, Any]] = {"__metadata__": metadata}
        self._places, offset = {}, 0
        # Wide elements first: then every tensor stands at a multiple of its element.
        for name in sorted(items, key=lambda n: -np.dtype(items[n].dtype).itemsize):
            dtype, size = np.dtype(items[name].dtype), nbytes(items[name])
            if dtype not in _NAMES:
                raise ValueError(f"{name}: safetensors cannot hold dtype {dtype}.")
            header[name] = {
                "dtype": _NAMES[dtype], "shape": list(items[name].shape),
                "data_offsets": [offset, offset + size],
            }
            self._places[name], offset = offset, offset + size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._start = 8 + len(text)
        self._left = set(items)
        self._stream = open(path, "wb")
        self._stream.write(struct.pack("<Q", len(text)) + text)
        self._stream.truncate(self._start + offset)

    def write(self, name: str, value: np.ndarray):
        self._stream.seek(self._start + self._places[name])
        _write_array(self._stream, value)
        self._left.remove(name)
        if not self._left:
            self.close()

    def close(self):
        if not self._stream.closed:
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()


def _write_array(stream, value: np.ndarray):
    """Writes in C order; a large transposed array is copied piece by piece."""
    if value.ndim == 0 or value.nbytes <= _PIECE:
        stream.write(value.tobytes())
        return
    rows = max(1, _PIECE * len(value) // value.nbytes)
    for start in range(0, len(value), rows):
        stream.write(value[start : start + rows].tobytes())


def write_safetensors(
    path: str, items: Mapping, tensors: Iterable[tuple[str, np.ndarray]], *, stem: str = "model",
    limit: int | None = None, metadata: dict[str, str] | None = None
) -> None:
    """Writes a file, or a folder of shards with their index.

    Args:
      path: A `.safetensors` file, or a folder to make.
      items: Everything that will come, in order: anything with shape and dtype by name.
      tensors: (name, array), each name of `items` once, in any order.
      stem: Beginning of the file names in a folder.
      limit: Bytes of a file in a folder; None: one file.
      metadata: Strings for the headers.
    """
    metadata = {"format": "pt", **(metadata or {})}
    single = path.endswith(".safetensors")
    groups = shards(items, limit) if limit and not single else [list(items)]
    names = [f"{stem}.safetensors"]
    if len(groups) > 1:
        count = len(groups)
        names = [f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    if not single:
        os.makedirs(path, exist_ok=True)
    files, place = [], {}
    with contextlib.ExitStack() as stack:
        for name, group in zip(names, groups):
            file = path if single else os.path.join(path, name)
            files.append(_File(file, {n: items[n] for n in group}, metadata))
            stack.callback(files[-1].close)
            place.update((n, len(files) - 1) for n in group)
        for name, value in tensors:
            _check(name, value, items)
            files[place[name]].write(name, value)
    if len(groups) > 1:
        total = sum(map(nbytes, items.values()))
        table = {n: names[i] for n, i in place.items()}
        with open(os.path.join(path, f"{stem}.safetensors.index.json"), "w") as stream:
            json.dump(
                {"metadata": {"total_size": total}, "weight_map": table}, stream, indent=2
            )


def _check(name, value, items):
    assert value.shape == tuple(items[name].shape), (name, value.shape, items[name].shape)
    assert value.dtype == np.dtype(items[name].dtype), (name, value.dtype, items[name].dtype)


_TORCH = {
    "float64": "DoubleStorage", "float32": "FloatStorage", "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage", "int64": "LongStorage", "int32": "IntStorage",
    "int16": "ShortStorage", "int8": "CharStorage", "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


def write_pickled(path: str, items: Mapping, tensors: Iterable[tuple[str, np.ndarray]]) -> None:
    """Writes a PyTorch checkpoint (`.pth`) that `torch.load` reads, without PyTorch.

    Args:
      path: File to make.
      items: Everything that will come, in order: anything with shape and dtype by name.
      tensors: (name, array), each name of `items` once, in any order.

    Raises:
      ValueError: A dtype that PyTorch's older storages do not have.
    """
    folder = os.path.splitext(os.path.basename(path))[0]
    keys = {name: str(i) for i, name in enumerate(items)}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{folder}/data.pkl", _state_dict(items, keys))
        archive.writestr(f"{folder}/byteorder", "little")
        for name, value in tensors:
            _check(name, value, items)
            with archive.open(f"{folder}/data/{keys[name]}", "w", force_zip64=True) as stream:
                _write_array(stream, value)
        archive.writestr(f"{folder}/version", "3\n")


def _state_dict(items: Mapping, keys: Mapping) -> bytes:
    """Pickle of an ordered dictionary of tensors, as opcodes of protocol 2.

    Python's own pickler would have to import the functions that it names.
    """
    ordered = b"ccollections\nOrderedDict\n)R"
    parts = [b"\x80\x02", ordered, b"("]
    for name, item in items.items():
        kind = np.dtype(item.dtype).name
        if kind not in _TORCH:
            raise ValueError(f"{name}: a PyTorch checkpoint cannot hold dtype {kind} here.")
        shape = tuple(item.shape)
        strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
        parts += [
            _text(name), b"ctorch._utils\n_rebuild_tensor_v2\n((", _text("storage"),
            b"ctorch\n%s\n" % _TORCH[kind].encode(), _text(keys[name]), _text("cpu"),
            _number(math.prod(shape)), b"tQ", _number(0), _tuple(shape), _tuple(strides),
            b"\x89", ordered, b"tR",
        ]
    return b"".join([*parts, b"u."])


def _text(value: str) -> bytes:
    data = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def _number(value: int) -> bytes:
    data = value.to_bytes(8, "little")
    return pickle.LONG1 + bytes([len(data) + 1]) + data + b"\0"  # Never negative.


def _tuple(values) -> bytes:
    return pickle.MARK + b"".join(map(_number, values)) + pickle.TUPLE
