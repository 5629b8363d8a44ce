"""Compiled programs that outlive the process.

JAX's own cache spares a new process the compilation but not tracing and lowering, which take
seconds for a transformer. Here whole executables are kept, so a program that was compiled
before is loaded without looking at the model.

A kept program belongs to everything that it was made from (`fingerprint`): this package's
source, the preset, library versions, the device and JAX's configuration. If any of it
differs the file is not read, and a file that cannot be used is replaced.

Executables are machine code and their description is pickled, so a file is read only if
nobody but its owner, who must be this user or the administrator, can have written it.
"""

from collections.abc import Callable, Sequence
import functools
import hashlib
import importlib.metadata
import os
import pathlib
import pickle
import platform
import secrets
import stat
import tempfile
import threading
import time
from typing import Any

from absl import logging
import jax
from jax.experimental import serialize_executable

from tm_jax.core import cache
from tm_jax.core import source

# Least recently used files go first. A preset and batch size takes five files.
_SETTINGS: Any = jax.config  # Its settings are attributes that are made at run time.
_MOST_FILES = 100
_MOST_BYTES = 2 << 30
_LEFTOVER_S = 3600  # Age at which a half-written file is surely nobody's any more.

# Packages whose code ends up in a program, or that compile it.
_PACKAGES = (
    "jax", "jaxlib", "flax", "numpy", "librosa", "jax-cuda12-plugin", "jax-cuda13-plugin",
    "nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "nvidia-cublas-cu12", "nvidia-cublas", "libtpu",
)  # fmt: skip


class Store:
    """Files that only this user can have written, bounded in number and size.

    Writing is atomic: processes may share a store, and a killed one leaves no half file.
    """

    def __init__(self, folder: pathlib.Path, prefix: str):
        """Opens a folder, and makes it if need be.

        Args:
          folder: The folder; only its owner may enter it.
          prefix: Begins the names of all files that this object reads and writes.

        Raises:
          OSError: The folder cannot be made.
          PermissionError: Others could have written into it.
        """
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            pass
        _check_owner(folder.lstat(), folder, stat.S_ISDIR)
        self._folder, self._prefix = folder, prefix

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if there is none that can be trusted and is whole."""
        path = self._folder / f"{self._prefix}-{name}"
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            with open(descriptor, "rb") as file:
                _check_owner(os.fstat(descriptor), path, stat.S_ISREG)
                digest, data = file.read(32), file.read()
            os.utime(path)  # Used now: the last to be removed.
        except FileNotFoundError:
            return None
        except OSError as error:
            logging.warning("A kept program is not used: %s.", error)
            return None
        if hashlib.sha256(data).digest() != digest:
            logging.warning("A kept program is damaged and will be replaced: %s.", path)
            return None
        return data

    def write(self, name: str, data: bytes) -> None:
        """Keeps a file, and removes those that were not used for longest."""
        try:
            self._clean(len(data))
            # mkstemp makes files that only their owner can read and write.
            descriptor, temporary = tempfile.mkstemp(dir=self._folder, prefix=".")
            try:
                with open(descriptor, "wb") as file:
                    file.write(hashlib.sha256(data).digest() + data)
                os.replace(temporary, self._folder / f"{self._prefix}-{name}")
            except BaseException:
                os.unlink(temporary)
                raise
        except OSError as error:
            logging.warning("A compiled program is not kept: %s.", error)

    def names(self, start: str) -> list[str]:
        """Names of files that begin with `start`, the largest first."""
        start = f"{self._prefix}-{start}"
        found = [
            (status.st_size, name[len(self._prefix) + 1 :])
            for name, status in self._files() if name.startswith(start)
        ]
        return [name for _, name in sorted(found, reverse=True)]

    def _files(self):
        for entry in os.scandir(self._folder):
            try:
                yield entry.name, entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # Removed by another process just now.
                continue

    def _clean(self, more: int) -> None:
        """Makes room for one file of `more` bytes."""
        files = sorted(self._files(), key=lambda item: item[1].st_mtime, reverse=True)
        count, size = 1, more
        for name, status in files:
            if name.startswith("."):
                unused = time.time() - status.st_mtime > _LEFTOVER_S
            else:
                count, size = count + 1, size + status.st_size
                unused = count > _MOST_FILES or size > _MOST_BYTES
            if unused:
                (self._folder / name).unlink(missing_ok=True)


def _check_owner(status: os.stat_result, path: pathlib.Path, kind: Callable) -> None:
    if not kind(status.st_mode) or status.st_uid not in (os.geteuid(), 0):
        raise PermissionError(f"{path} belongs to another user or is a link")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{path} can be written by other users; remove it")


def open_store(*identity: str) -> Store | None:
    """The store of this machine, or None with a warning where there can be none.

    Args:
      *identity: What the programs are made from, besides what `fingerprint` covers.
    """
    if jax.process_count() > 1:  # A program of several hosts is no single file.
        return None
    try:
        return Store(cache.folder() / "programs", fingerprint(*identity))
    except OSError as error:
        logging.warning("Compiled programs are not kept: %s.", error)
        return None


def fingerprint(*identity: str) -> str:
    """Hash of everything that a compiled program depends on except shapes of arguments."""
    device = jax.local_devices()[0]
    client = device.client
    parts = [
        *identity, source.digest(), platform.python_version(), platform.machine(), _processor(),
        device.platform, device.device_kind, client.platform_version,
        str(len(jax.local_devices())), str(len(jax.devices())),
    ]
    parts += [f"{name}={_version(name)}" for name in _PACKAGES]
    # Paths of caches change nothing; any other setting might.
    settings = sorted(jax.config.values.items())
    parts += [f"{name}={value}" for name, value in settings if "cache" not in name]
    parts += [
        f"{name}={value}" for name, value in sorted(os.environ.items())
        if name.startswith(("XLA_", "LIBTPU_", "NVIDIA_TF32"))
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


@functools.cache
def _processor() -> str:
    """Model and abilities of the processor, and how many of them this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
        kept = [x for x in lines if x.startswith(("model name", "flags", "Features", "CPU "))]
    except OSError:
        kept = [platform.processor()]
    return "\n".join([*kept, str(cores)])


@functools.cache
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


class Program:
    """One function of (parameters, arrays of B streams ...), compiled once for each B.

    Where the parameters are on several devices, or not on the first, it is a plain `jax.jit`.
    """

    def __init__(
        self, name: str, function: Callable, donate: Sequence[int],
        store: Callable[[], Store | None],
    ):
        """Describes a program; nothing is compiled or read before it is needed.

        Args:
          name: Name of its files.
          function: The function; the second argument's leaves have leading axis B.
          donate: Arguments whose memory the results may take.
          store: Opens the store.
        """
        self._name, self._store = name, store
        self._function, self._donate = function, tuple(donate)
        self._jit = jax.jit(function, donate_argnums=self._donate)
        self._ready = {}
        self._loaded = set()
        self._lock = threading.RLock()

    def __call__(self, params, *args):
        """Runs the program; the first call for these shapes loads or compiles it."""
        if not _on_first_device(params):
            return self._jit(params, *args)
        signature = _signature(*jax.tree.flatten(((params, *args), {})))
        compiled = self._ready.get(signature)
        if compiled is None:
            with self._lock:
                compiled = self._ready.get(signature) or self._make(signature, params, args)
        return compiled(params, *args)

    def load(self, name: str) -> None:
        """Loads a kept program if it can be used.

        Args:
          name: Name in the store, as `_make` forms it.
        """
        with self._lock:
            store = None if name in self._loaded else self._store()
            data = None if store is None else store.read(name)
            if data is None:
                return
            try:
                compiled = serialize_executable.deserialize_and_load(
                    *pickle.loads(data), execution_devices=jax.local_devices()[:1]
                )
                # Not `compiled.in_tree`: unpickled trees equal others but have another hash.
                signature = _signature(*jax.tree.flatten(compiled.in_avals))
            except Exception as error:  # Whatever is wrong with a file, compiling helps.
                logging.warning("A kept program is not used: %s: %s.", name, error)
                return
            self._ready[signature] = compiled
            self._loaded.add(name)

    def _make(self, signature, params, args):
        """Loads or compiles the program for these arguments."""
        store = self._store()
        batch = jax.tree.leaves(args[0])[0].shape[0]
        digest = hashlib.sha256(repr(signature).encode()).hexdigest()[:16]
        name = f"{self._name}-{batch}-{digest}"
        if store is not None:
            self.load(name)
            if signature in self._ready:
                return self._ready[signature]
        if store is None:
            compiled = self._jit.lower(params, *args).compile()
        else:
            compiled = _compile_anew(self._function, self._donate, (params, *args))
            try:
                data = pickle.dumps(serialize_executable.serialize(compiled))
            except Exception as error:  # Not every backend and program can be kept.
                logging.info("Program %s is not kept: %s.", name, error)
            else:
                store.write(name, data)
        self._ready[signature] = compiled
        return compiled


def _compile_anew(function: Callable, donate: tuple[int, ...], args):
    """Compiles past JAX's own cache.

    What comes from that cache on a CPU lacks its machine code when it is written again: it
    loads, and fails when it runs. A name that was never used before is not found in there.
    """

    def once(*args):
        return function(*args)

    once.__name__ = f"once_{secrets.token_hex(8)}"
    compiled = jax.jit(once, donate_argnums=donate).lower(*args).compile()
    folder = _SETTINGS.jax_compilation_cache_dir
    if folder:  # It is never used again.
        for path in pathlib.Path(folder).glob(f"*{once.__name__}*"):
            path.unlink(missing_ok=True)
    return compiled


def _on_first_device(params) -> bool:
    placed = (x.sharding for x in jax.tree.leaves(params) if isinstance(x, jax.Array))
    sharding = next(placed, None)
    single = isinstance(sharding, jax.sharding.SingleDeviceSharding)
    return single and sharding.device_set == {jax.local_devices()[0]}


def _signature(leaves, tree):
    """What a program was compiled for, the same whether leaves are arrays or descriptions."""
    precision = _SETTINGS.jax_default_matmul_precision  # May be set for a block of code.
    return tree, precision, tuple([(x.shape, x.dtype) for x in leaves])


class Programs:
    """The programs of one set of networks, by name."""

    def __init__(self, functions: dict[str, tuple[Callable, Sequence[int]]], identity: str):
        """Describes the programs.

        Args:
          functions: By name: the function and the arguments that it may overwrite.
          identity: Distinguishes these functions from others of the same names.
        """
        self._identity = identity
        self._opening = threading.Lock()
        self._programs = {
            name: Program(name, function, donate, self.store)
            for name, (function, donate) in functions.items()
        }

    def __getitem__(self, name: str) -> Program:
        return self._programs[name]

    def store(self) -> Store | None:
        """Where these programs are kept; None for nowhere."""
        with self._opening:
            return self._opened

    @functools.cached_property
    def _opened(self) -> Store | None:
        return open_store(self._identity)

    def preload(self, batch: int) -> threading.Thread:
        """Starts to load what is kept for a batch size, the largest program first.

        A call that needs a program sooner loads it itself or waits for it.

        Returns:
          The thread that loads.
        """
        thread = threading.Thread(target=self._preload, args=(batch,), name="programs")
        thread.start()
        return thread

    def _preload(self, batch: int) -> None:
        store = self.store()
        if store is None:
            return
        for name in store.names(""):
            program, _, rest = name.partition("-")
            if program in self._programs and rest.startswith(f"{batch}-"):
                self._programs[program].load(name)
