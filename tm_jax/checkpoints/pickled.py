"""PyTorch checkpoints read without running what is pickled in them.

A checkpoint is a pickle that describes tensors and, beside it, their raw storages. A pickle
may name any function to call; this reader has a harmless stand-in of its own for each of the
few names that rebuild a tensor, and refuses every other. Both containers are read: the zip
archive of today and the plain stream of PyTorch before 1.6.
"""

import collections
import dataclasses
import io
import math
import os
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np

from tm_jax.checkpoints import sources
from tm_jax.checkpoints import states

_STORAGES = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32,
    "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_MAGIC = 0x1950A86A20F9469CFC6C  # First pickle of the older container.
_LIMIT = 256 * 2**20  # Bytes of a pickle; that of a checkpoint has some hundred per tensor.
# Everything that a broken or hostile pickle can make the interpreter raise.
_BROKEN = (
    pickle.UnpicklingError, AttributeError, EOFError, ImportError, IndexError, KeyError,
    TypeError, ValueError, OverflowError, RecursionError, MemoryError, struct.error,
)


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A storage by its key.

    Attributes:
      dtype: Dtype of the elements.
      key: Name in the container.
      count: Number of elements.
    """

    dtype: np.dtype
    key: str
    count: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A view of a storage.

    Attributes:
      storage: The storage.
      first: Element of the storage where the view starts.
      shape: Its shape.
      strides: Its steps in elements.
    """

    storage: _Storage
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Rebuild:
    """Stands for the functions that rebuild a tensor or a parameter."""

    __slots__ = ("parameter",)

    def __init__(self, parameter: bool):
        self.parameter = parameter

    def __call__(self, *args):
        if self.parameter:
            return args[0]
        storage, first, shape, strides = args[:4]
        if not isinstance(storage, _Storage):
            raise pickle.UnpicklingError("a tensor without storage")
        shape, strides = tuple(map(int, shape)), tuple(map(int, strides))
        last = first + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if min((first, *shape, *strides)) < 0 or (0 not in shape and last >= storage.count):
            raise pickle.UnpicklingError(
                f"a tensor of shape {shape} reaches beyond its storage of {storage.count}"
            )
        return _Tensor(storage, first, shape, strides)


class _Unpickler(pickle.Unpickler):
    """Resolves the names of tensors and nothing else."""

    def find_class(self, module: str, name: str):
        """The stand-in of a name."""
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return _Rebuild(parameter=False)
        if module == "torch._utils" and name == "_rebuild_parameter":
            return _Rebuild(parameter=True)
        if module == "torch" and name in _STORAGES:
            return name
        raise pickle.UnpicklingError(
            f"it names {module}.{name}, which no tensor needs; a checkpoint of plain tensors "
            "is expected"
        )

    def persistent_load(self, pid):
        """The storage of a tensor: ("storage", type, key, device, count, ...)."""
        label, kind, key, _, count = pid[:5]
        if label != "storage" or kind not in _STORAGES:
            raise pickle.UnpicklingError(f"it refers to {label!r}, expected a storage")
        if len(pid) > 5 and pid[5] is not None:
            raise pickle.UnpicklingError("it holds views of storages, an old form; save it anew")
        return _Storage(np.dtype(_STORAGES[kind]), str(key), int(count))


def read_header(file: str, state: str | None = None) -> sources.Header:
    """Tensors of a checkpoint by name, none of them read.

    Args:
      file: The checkpoint.
      state: Name of the dictionary to read where it holds several, see `states.choose`.

    Raises:
      ValueError: Not a complete PyTorch checkpoint, one that needs more than tensors, or one
        without such a state.
    """
    with open(file, "rb") as stream:
        start = stream.read(4)
    read = _read_zip if start == b"PK\x03\x04" else _read_stream
    try:
        content, places = read(file)
    except (zipfile.BadZipFile, *_BROKEN) as error:
        raise ValueError(
            f"{file}: expected a complete PyTorch checkpoint of plain tensors ({error})."
        ) from error
    found = _states(content)
    if not found:
        raise ValueError(f"{file}: expected a dictionary of tensors, got none.")
    name = states.choose(file, found, state)
    return sources.Header(
        entries={key: _entry(file, key, x, places) for key, x in found[name].items()},
        state=name or None, others=tuple(other for other in found if other != name),
    )


def _read_zip(file: str):
    """The pickle of an archive, and byte and size of every storage."""
    with zipfile.ZipFile(file) as archive:
        items = {item.filename: item for item in archive.infolist()}
        main = [name for name in items if name.endswith("/data.pkl")]
        if len(main) != 1:
            raise ValueError("the archive has no data.pkl")
        folder = main[0][: -len("data.pkl")]
        if items[main[0]].file_size > _LIMIT:
            raise ValueError("its pickle is too large")
        order = folder + "byteorder"
        if order in items and archive.read(order) != b"little":
            raise ValueError("its byte order is not little-endian")
        content = _Unpickler(io.BytesIO(archive.read(main[0]))).load()
        places = {}
        for name, item in items.items():
            if name.startswith(folder + "data/"):
                if item.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"its member {name} is compressed")
                places[name[len(folder) + 5 :]] = (_data_offset(file, item), item.file_size)
    return content, places


def _data_offset(file: str, item: zipfile.ZipInfo) -> int:
    """Byte where the data of a stored member starts: after its own, padded header."""
    with open(file, "rb") as stream:
        stream.seek(item.header_offset)
        header = stream.read(30)
    name, extra = struct.unpack("<HH", header[26:30])
    return item.header_offset + 30 + name + extra


def _read_stream(file: str):
    """The same of the older container: pickles one after another, then the storages."""
    places, total = {}, os.path.getsize(file)
    with open(file, "rb") as stream:
        if _Unpickler(stream).load() != _MAGIC:
            raise ValueError("it does not start as a checkpoint does")
        _Unpickler(stream).load()  # Protocol.
        if not _Unpickler(stream).load()["little_endian"]:
            raise ValueError("its byte order is not little-endian")
        unpickler = _Unpickler(stream)
        content = unpickler.load()
        sizes = {t.storage.key: t.storage.dtype.itemsize for t in _find_tensors(content)}
        for key in _Unpickler(stream).load():
            count = int.from_bytes(stream.read(8), "little")
            if str(key) not in sizes:
                raise ValueError(f"storage {key} belongs to no tensor")
            places[str(key)] = (stream.tell(), min(count * sizes[str(key)], total))
            stream.seek(count * sizes[str(key)], os.SEEK_CUR)
    return content, places


def _find_tensors(content) -> list[_Tensor]:
    if isinstance(content, _Tensor):
        return [content]
    if isinstance(content, dict):
        content = content.values()
    elif not isinstance(content, (list, tuple)):
        return []
    return [tensor for item in content for tensor in _find_tensors(item)]


def _states(content: object) -> dict[str, dict[str, _Tensor]]:
    """Dictionaries of tensors by name: the content itself, and those inside it."""
    if not isinstance(content, dict):
        return {}
    inside = {str(k): v for k, v in content.items() if isinstance(v, dict)}
    found = {}
    for name, values in {states.ITSELF: content, **inside}.items():
        tensors = {str(k): v for k, v in values.items() if isinstance(v, _Tensor)}
        if tensors:
            found[name] = tensors
    return found


def _entry(file: str, name: str, x: _Tensor, places: dict) -> sources.Entry:
    size = x.storage.dtype.itemsize
    offset, available = places.get(x.storage.key, (0, -1))
    if available < x.storage.count * size or offset + available > os.path.getsize(file):
        raise ValueError(
            f"{file}: tensor {name} needs {x.storage.count * size} bytes of storage "
            f"{x.storage.key}, which the file does not have; it is truncated, copy it again."
        )
    rows, expected = 1, []
    for n in reversed(x.shape):
        expected.insert(0, rows)
        rows *= n
    plain = math.prod(x.shape) == 0 or all(
        n == 1 or step == usual for n, step, usual in zip(x.shape, x.strides, expected)
    )
    return sources.Entry(
        file=file, shape=x.shape, dtype=x.storage.dtype, offset=offset + x.first * size,
        strides=None if plain else x.strides,
    )
