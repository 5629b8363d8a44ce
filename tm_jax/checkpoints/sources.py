"""Tensor files opened by their headers: names, shapes and places, no data until asked.

`open_source` takes what publishers hand out: a `.safetensors` file, a folder of them with or
without an index, an index, or a PyTorch checkpoint (`.pth`, `.pt`, `.bin`, see `pickled.py`;
nothing in it is executed). Every tensor is mapped from disk when NumPy asks for it and let
go with the array, so the largest tensor bounds the memory of a conversion.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import glob
import json
import math
import os

import ml_dtypes
import numpy as np

DTYPES = {
    "F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16), "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2), "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32), "I16": np.dtype(np.int16), "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8), "BOOL": np.dtype(np.bool_),
}
PICKLED = (".pth", ".pt", ".bin", ".ckpt")
_HEADER_LIMIT = 100 * 2**20  # What the format's own library accepts.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor of a file.

    Attributes:
      file: Path of the file.
      shape: Its shape.
      dtype: Its dtype.
      offset: Byte where its first element stands.
      strides: Steps between elements along every axis, in elements; None: in C order.
    """

    file: str
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    strides: tuple[int, ...] | None = None

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of its data."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        """Maps the tensor, read-only; the mapping ends with the array."""
        x = self._map()
        if dtype is not None and x.dtype != dtype:
            return x.astype(dtype)
        return np.array(x) if copy else x

    def _map(self) -> np.ndarray:
        if 0 in self.shape:
            return np.zeros(self.shape, self.dtype)
        steps = self.strides
        if steps is None:
            return np.memmap(self.file, self.dtype, "r", self.offset, self.shape)
        span = 1 + sum((n - 1) * step for n, step in zip(self.shape, steps))
        flat = np.memmap(self.file, self.dtype, "r", self.offset, (span,))
        size = self.dtype.itemsize
        return np.lib.stride_tricks.as_strided(
            flat, self.shape, [step * size for step in steps], writeable=False
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
    """What stands in one file.

    Attributes:
      entries: Its tensors by name.
      state: Name of the dictionary that holds them; None where they stand in none.
      others: Names of its other dictionaries of tensors.
    """

    entries: dict[str, Entry]
    state: str | None = None
    others: tuple[str, ...] = ()


class Source(Mapping):
    """Tensors by name, from one or more files; `state` and `others` as in a `Header`."""

    removed: tuple[str, ...] = ()  # Names are as they stand in the files, see `states.unwrap`.

    def __init__(
        self, path: str, entries: dict, state: str | None = None, others: tuple[str, ...] = ()
    ):
        self.path = path
        self.state, self.others = state, others
        self._entries = entries

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def origin(self, name: str | None = None) -> str:
        """The file of a tensor, or the path that was opened."""
        return self._entries[name].file if name in self._entries else self.path

    @property
    def nbytes(self) -> int:
        """Size of all data."""
        return sum(entry.nbytes for entry in self._entries.values())


def open_source(path: str, state: str | None = None) -> Source:
    """Opens a checkpoint by its header.

    Args:
      path: A file, an index (`*.index.json`), or a folder that holds one checkpoint.
      state: Which one to read where a PyTorch checkpoint holds several dictionaries of
        tensors; None for the moving average, see `states.choose`.

    Returns:
      Its tensors, none of them read.

    Raises:
      FileNotFoundError: There is no such file, or no checkpoint in the folder.
      ValueError: A file is incomplete or of another format, two files hold one tensor, or
        there is no such state.
    """
    path = os.fspath(path)
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such file or folder.")
    files, index = _files(path)
    entries: dict[str, Entry] = {}
    header = Header(entries={})
    for file in files:
        header = _read_header(file, state)
        for name, entry in header.entries.items():
            if name in entries:
                raise ValueError(
                    f"{file}: tensor {name} is in {entries[name].file} too; the folder must "
                    "hold one checkpoint."
                )
            entries[name] = entry
    if index is not None:
        _check_index(path, index, entries)
    return Source(path, entries, header.state, header.others)


def _files(path: str) -> tuple[list[str], dict | None]:
    """Files of a checkpoint and the index that names them, tensor name to file."""
    if os.path.isdir(path):
        indices = sorted(glob.glob(os.path.join(glob.escape(path), "*.index.json")))
        # An index of another format may stand beside that of the safetensors files.
        indices = [i for i in indices if ".safetensors." in i] or indices
        if len(indices) > 1:
            raise ValueError(f"{path}: expected one index, got {', '.join(indices)}; name one.")
        if indices:
            return _files(indices[0])
        for endings in ((".safetensors",), PICKLED):
            found = sorted(os.path.join(path, f) for f in os.listdir(path) if f.endswith(endings))
            if len(found) > 1 and endings == PICKLED:
                raise ValueError(f"{path}: expected one file, got {', '.join(found)}; name one.")
            if found:
                return found, None
        raise FileNotFoundError(
            f"{path}: expected .safetensors files or a PyTorch checkpoint in this folder."
        )
    if not path.endswith(".index.json"):
        return [path], None
    with open(path, encoding="utf-8") as stream:
        try:
            table = json.load(stream)["weight_map"]
            files = sorted({os.path.join(os.path.dirname(path), f) for f in table.values()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: expected an index with a weight_map ({error}).") from error
    for file in files:
        if not os.path.isfile(file):
            raise FileNotFoundError(f"{file}: missing, though {path} names it; copy it again.")
    return files, table


def _check_index(path: str, table: dict, entries: dict):
    """Whether every tensor stands in the file that the index names."""
    for name, file in table.items():
        entry = entries.get(name)
        if entry is None or os.path.basename(entry.file) != os.path.basename(file):
            where = "no file" if entry is None else os.path.basename(entry.file)
            raise ValueError(
                f"{path}: tensor {name} is expected in {file}, found in {where}; files of "
                "different checkpoints are mixed up."
            )


def _read_header(file: str, state: str | None) -> Header:
    if file.endswith(PICKLED):
        from tm_jax.checkpoints import pickled

        return pickled.read_header(file, state)
    if not file.endswith(".safetensors"):
        raise ValueError(
            f"{file}: expected .safetensors or a PyTorch checkpoint ({', '.join(PICKLED)})."
        )
    if state is not None:
        raise ValueError(f"{file}: state {state!r} is asked for; .safetensors has one, unnamed.")
    return Header(entries=_read_safetensors(file))


def _read_safetensors(file: str) -> dict[str, Entry]:
    """Header of one file: eight bytes of length, JSON, data."""
    total = os.path.getsize(file)
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if total < 8 or length > _HEADER_LIMIT:
            raise ValueError(f"{file}: expected a safetensors file, got something else.")
        if 8 + length > total:
            raise ValueError(
                f"{file}: expected a header of {length} bytes, but the file has only {total}; "
                "copy it again."
            )
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            entries = {
                name: _entry(file, 8 + length, item) for name, item in header.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{file}: expected the header of a safetensors file ({error})."
            ) from error
    for name, entry in entries.items():
        begin, end = header[name]["data_offsets"]
        if end - begin != entry.nbytes or begin < 0:
            raise ValueError(
                f"{file}: tensor {name} of shape {entry.shape} needs {entry.nbytes} bytes, the "
                f"header gives it {end - begin}."
            )
        if entry.offset + entry.nbytes > total:
            raise ValueError(
                f"{file}: tensor {name} is expected to end at byte "
                f"{entry.offset + entry.nbytes}, but the file has only {total}; it is "
                "truncated, copy it again."
            )
    return entries


def _entry(file: str, start: int, item: dict) -> Entry:
    if item["dtype"] not in DTYPES:
        raise ValueError(f"unknown dtype {item['dtype']!r}, known are {', '.join(DTYPES)}")
    shape = tuple(int(n) for n in item["shape"])
    if min(shape, default=0) < 0:
        raise ValueError(f"negative size in {shape}")
    return Entry(
        file=file, shape=shape, dtype=DTYPES[item["dtype"]],
        offset=start + int(item["data_offsets"][0]),
    )
