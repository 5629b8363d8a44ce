"""A folder of examples on disk: shards, and a manifest of what is in them and why.

    FOLDER/manifest.json               settings, schema, counts, what became of every file
    FOLDER/examples-00000.arrayrecord  records, in the order of the files
    FOLDER/constants.safetensors       what all examples share, such as the prompt; if there is any

A shard and the manifest appear under their names only when they are whole, and the manifest
names a shard only after it is there. So a run may be killed, or the disk be full, at any time:
what the manifest names is usable, and the next run goes on after it. Shards end where counts
say, not where a run ended, so that it makes the same bytes as one that was never stopped.
"""

import bisect
from collections.abc import Callable, Iterator, Mapping
import contextlib
import itertools
import json
import os
import pathlib

from absl import logging
from array_record.python import array_record_module
import grain
import numpy as np
import safetensors
import safetensors.numpy

from tm_jax.data import examples as examples_lib
from tm_jax.data import manifest as manifest_lib
from tm_jax.data import remote

_LOCK = ".lock"
_CONSTANTS = "constants.safetensors"
# Every record alone, so that any is read without its neighbours; latents do not compress.
_OPTIONS = "group_size:1,uncompressed"


class ExampleWriter:
    """Writes a store, or goes on with one; one process at a time.

    Attributes:
      files: What became of the files whose examples are all stored, by name, in order.
      under_way: The file of which the first examples are stored, {"file", "bytes", "examples"},
        or None.
      schema: Parts of the examples; None before the first.
    """

    def __init__(
        self, folder: str | os.PathLike, settings: dict, versions: dict,
        shard_examples: int = 64, shard_bytes: int = 1 << 28,
        constants: Mapping[str, np.ndarray] | None = None,
    ):
        """Opens a store.

        Args:
          folder: Where; made if it is missing.
          settings: What the examples depend on; plain JSON.
          versions: Versions of the libraries, for the record; plain JSON.
          shard_examples: Examples of a shard.
          shard_bytes: Bytes after which a shard ends earlier.
          constants: Arrays that all examples share, by name; they follow from the settings.

        Raises:
          ValueError: The folder holds examples of other settings, or something else.
          OSError: It cannot be written.
        """
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        limits = {"shard_examples": shard_examples, "shard_bytes": shard_bytes}
        settings = json.loads(json.dumps(settings | limits))
        self._limits = (shard_examples, shard_bytes)
        self._stack = contextlib.ExitStack()
        self._lock()
        try:
            self._manifest = self._open(settings, versions)
        except BaseException:
            self._stack.close()
            raise
        self.files: dict[str, dict] = dict(self._manifest["files"])
        self.under_way: dict | None = self._manifest["under_way"]
        schema = self._manifest["schema"]
        self.schema = schema and examples_lib.Schema.from_json(schema)
        self._waiting: dict[str, dict] = {}  # Finished files with examples in the open shard.
        self._shard = None
        self._counts = dict(self._manifest["counts"])
        try:
            if constants and self._manifest["constants"] is None:
                self._store(constants)
            self._write()
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> "ExampleWriter":
        return self

    def __exit__(self, kind, *unused) -> None:
        if kind is None:
            self.close()
        else:
            self._abandon()

    @property
    def counts(self) -> dict:
        """The counts of the manifest, with what is not stored yet."""
        return dict(self._counts)

    def add(self, example: examples_lib.Example, file: str, file_bytes: int) -> None:
        """Appends an example.

        Args:
          example: Parts of the store's schema; the first example makes the schema.
          file: Name of the file that it comes from.
          file_bytes: Size of that file.

        Raises:
          ValueError: The parts do not fit the schema.
          OSError: The disk is full or fails; what the manifest names stays usable.
        """
        if self.schema is None:
            self.schema = examples_lib.Schema.of(example)
        self.schema.check(example, f"an example of {file}")
        record = examples_lib.to_bytes(example)
        with self._explained():
            if self._shard is None:
                self._shard = _Shard(self.folder, len(self._manifest["shards"]))
            self._shard.write(record, len(example.mode))
        self._counts["examples"] += 1
        self._counts["latent_frames"] += len(example.mode)
        self._counts["speaking_latent_frames"] += int(np.sum(example.mode == 1))
        if self.under_way is None or self.under_way["file"] != file:
            self.under_way = {"file": file, "bytes": file_bytes, "examples": 0}
        self.under_way = self.under_way | {"examples": self.under_way["examples"] + 1}
        if self._shard.examples >= self._limits[0] or self._shard.bytes >= self._limits[1]:
            self._commit()

    def finish(self, file: str, outcome: dict) -> None:
        """Records what became of a file, after its last example.

        Args:
          file: Its name.
          outcome: Plain JSON with at least `clips` and `rejected`, lists.
        """
        self.under_way = None
        self._waiting[file] = outcome
        self._counts["files"] += 1
        self._counts["files_rejected"] += not outcome["clips"]
        self._counts["clips_rejected"] += len(outcome["rejected"])
        if self._shard is None:
            self._write()

    def close(self) -> None:
        """Ends the last shard and the manifest."""
        try:
            if self._shard is not None:
                self._commit()
            else:
                self._write()
        except BaseException:
            self._abandon()
            raise
        self._stack.close()

    def _lock(self) -> None:
        """Refuses a second writer, where the system has locks."""
        try:
            import fcntl
        except ImportError:
            return
        file = self._stack.enter_context(open(self.folder / _LOCK, "w"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._stack.close()
            raise ValueError(f"{self.folder}: another run is writing there.") from error
        except OSError:
            pass  # Some network folders have no locks.

    def _open(self, settings: dict, versions: dict) -> dict:
        path = self.folder / manifest_lib.NAME
        if path.exists():
            manifest = manifest_lib.read(self.folder)
            if manifest["files"] or manifest["shards"]:
                manifest_lib.require_settings(self.folder, manifest, settings)
                manifest_lib.require_shards(self.folder, manifest)
                if manifest["versions"] != versions:
                    logging.warning(
                        "%s was begun with other versions: %s, now %s.", self.folder,
                        manifest["versions"], versions,
                    )
                return manifest
            return manifest_lib.empty(settings, versions)
        names = sorted(p.name for p in self.folder.iterdir() if not p.name.startswith("."))
        strangers = [name for name in names if name != manifest_lib.SYNTHETIC]
        if strangers:
            raise ValueError(
                f"{self.folder} holds {strangers[0]} and no {manifest_lib.NAME}; expected a new "
                "or empty folder, or one that prepare has written."
            )
        return manifest_lib.empty(settings, versions)

    def _commit(self) -> None:
        """Gives the open shard its name, then writes the manifest that names it."""
        assert self._shard is not None  # Called with an open one.
        with self._explained():
            entry = self._shard.close()
            self._shard = None
            self._manifest["shards"].append(entry)
            self._write()

    def _store(self, constants: Mapping[str, np.ndarray]) -> None:
        path, part = (self.folder / name for name in (_CONSTANTS, f".{_CONSTANTS}.part"))
        with self._explained():
            arrays = {name: np.ascontiguousarray(value) for name, value in constants.items()}
            data = safetensors.numpy.save(arrays)
            part.write_bytes(data)
            os.replace(part, path)
        self._manifest["constants"] = {"name": _CONSTANTS, "bytes": len(data)}

    def _write(self) -> None:
        with self._explained():
            self.files |= self._waiting
            self._waiting = {}
            self._manifest |= {
                "schema": self.schema and self.schema.to_json(), "counts": dict(self._counts),
                "files": self.files, "under_way": self.under_way,
            }
            manifest_lib.write(self.folder, self._manifest)

    def _abandon(self) -> None:
        if self._shard is not None:
            self._shard.abandon()
            self._shard = None
        self._stack.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Errors of the disk as one line that names what is kept."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            if isinstance(error, _Full):
                raise
            text = getattr(error, "strerror", None) or str(error).partition(";")[0]
            raise _Full(
                f"{self.folder} cannot be written: {text}. {self._kept()} are kept and usable; "
                "make room and run the same command again."
            ) from error

    def _kept(self) -> str:
        try:
            shards = manifest_lib.read(self.folder)["shards"]
        except (ValueError, OSError):
            shards = []
        return f"{sum(s['examples'] for s in shards)} examples in {len(shards)} shards"


class _Full(OSError):
    """An error of the disk, explained."""


class _Shard:
    """A shard under way; its name begins with a dot until it is whole."""

    def __init__(self, folder: pathlib.Path, number: int):
        self._path = folder / _shard_name(number)
        self._part = folder / f".{self._path.name}.part"
        self._part.unlink(missing_ok=True)
        self._writer = array_record_module.ArrayRecordWriter(str(self._part), _OPTIONS)
        self.bytes, self.latents = 0, []

    @property
    def examples(self) -> int:
        return len(self.latents)

    def write(self, record: bytes, latents: int) -> None:
        self._writer.write(record)
        self.latents.append(latents)
        self.bytes += len(record)

    def close(self) -> dict:
        """Completes the file; returns its entry in the manifest."""
        try:
            self._writer.close()
            with open(self._part, "rb") as file:
                os.fsync(file.fileno())
            size = self._part.stat().st_size
            os.replace(self._part, self._path)
        except BaseException:
            self._part.unlink(missing_ok=True)
            raise
        return {
            "name": self._path.name, "examples": self.examples, "bytes": size,
            "latents": self.latents,
        }

    def abandon(self) -> None:
        """Removes what was written."""
        with contextlib.suppress(RuntimeError):
            self._writer.close()
        self._part.unlink(missing_ok=True)


class ExampleSource:
    """Examples of a store by number, for grain's input pipelines; may be pickled.

    Attributes:
      folder: Where they are.
      manifest: The store's manifest.
      schema: Their parts.
      constants: Arrays that all examples share, by name.
      latents: Latent frames T of every example.
    """

    def __init__(self, folder: str | os.PathLike, needed: examples_lib.Schema | None = None):
        """Opens a store, also one whose run is not finished.

        Args:
          folder: Written by `ExampleWriter`; or the URL of a copy of it in an object store,
            of which shards are fetched when they are needed.
          needed: Schema that the caller needs; None takes what is there.

        Raises:
          ValueError: No store, an empty or incomplete one, or another schema.
          OSError: An object store cannot be read.
        """
        if remote.is_url(folder):
            mirror = remote.Mirror(str(folder))
            self.folder = mirror.fetch(manifest_lib.NAME).parent
            self.manifest = manifest_lib.read(self.folder)
            locate = mirror.fetch
        else:
            self.folder = pathlib.Path(folder)
            self.manifest = manifest_lib.read(self.folder)
            manifest_lib.require_shards(self.folder, self.manifest)
            locate = self._locate
        shards = self.manifest["shards"]
        if not shards:
            raise ValueError(
                f"{self.folder}: no example in it; {manifest_lib.NAME} says of "
                f"{len(self.manifest['files'])} files why they were rejected."
            )
        self.schema = examples_lib.Schema.from_json(self.manifest["schema"])
        if needed is not None:
            self.schema.require(needed, str(self.folder))
        self.constants = self._shared(locate)
        self.latents = [length for shard in shards for length in shard["latents"]]
        self._records = _Records(shards, locate)

    def _shared(self, locate) -> dict[str, np.ndarray]:
        entry = self.manifest["constants"]
        if entry is None:
            return {}
        path = locate(entry["name"], entry["bytes"])
        try:
            return safetensors.numpy.load_file(path)
        except (OSError, safetensors.SafetensorError) as error:
            raise ValueError(f"{path} is missing or damaged: {error}; copy it again.") from error

    def _locate(self, name: str, size: int) -> pathlib.Path:
        del size  # Compared already.
        return self.folder / name

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> examples_lib.Example:
        """Example number `index`; raises ValueError if its record is damaged."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.folder} holds {len(self)} examples, got index {index}.")
        record = self._records[index]
        return examples_lib.from_bytes(record, self.schema, f"{self.folder}: record {index}")

    def __repr__(self) -> str:
        # grain compares it when a pipeline is restored.
        return f"ExampleSource({self.folder.name}, {self.manifest['fingerprint'][:12]})"


class _Records:
    """Records of all shards by number; a shard is opened when it is first needed."""

    def __init__(self, shards: list[dict], locate: Callable[[str, int], pathlib.Path]):
        self._shards, self._locate = shards, locate
        self._ends = list(itertools.accumulate(shard["examples"] for shard in shards))
        self._open: dict[int, grain.sources.ArrayRecordDataSource] = {}

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> bytes:
        number = bisect.bisect_right(self._ends, index)
        shard = self._shards[number]
        if number not in self._open:
            path = self._locate(shard["name"], shard["bytes"])
            self._open[number] = grain.sources.ArrayRecordDataSource([str(path)])
        return self._open[number][index - (self._ends[number] - shard["examples"])]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": {}}


def _shard_name(number: int) -> str:
    return f"examples-{number:05d}.arrayrecord"
