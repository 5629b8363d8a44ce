"""Stores of examples in an object store: each file is fetched when it is first asked for."""

import hashlib
import os
import pathlib
from typing import Any

from tm_jax.core import cache


def is_url(path: str | os.PathLike) -> bool:
    """Whether a path is one of fsspec's, as gs://BUCKET/FOLDER."""
    return "://" in str(path)


class Mirror:
    """Local copies of the files of a remote folder, below `core.cache.folder()`.

    Attributes:
      url: The remote folder.
      folder: Where the copies lie.
    """

    def __init__(self, url: str):
        """Reads nothing yet.

        Raises:
          ValueError: fsspec, or the package that it needs for this kind of store, is missing.
        """
        self.url = url.rstrip("/")
        name = hashlib.sha256(self.url.encode()).hexdigest()[:16]
        self.folder = cache.folder() / "examples" / name
        self._files()

    def _files(self) -> tuple[Any, str]:
        """The file system of fsspec, and the folder's path there."""
        try:
            import fsspec
        except ImportError as error:
            raise ValueError(f"{self.url}: install the extra remote to read it.") from error
        try:
            return fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise ValueError(f"{self.url} cannot be read ({error}).") from error

    def fetch(self, name: str, size: int | None = None) -> pathlib.Path:
        """A local copy of a file; one that is complete is not fetched again.

        Args:
          name: Its name in the folder.
          size: Its bytes; None: it is fetched anew.

        Raises:
          OSError: It is not there, cannot be read, or is of another size.
        """
        path = self.folder / name
        if size is not None and path.is_file() and path.stat().st_size == size:
            return path
        self.folder.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{name}.{os.getpid()}.part")
        files, remote = self._files()
        try:
            files.get_file(f"{remote}/{name}", str(part))
            found = part.stat().st_size
            if size is not None and found != size:
                raise OSError(f"it has {found} bytes, expected {size}")
            os.replace(part, path)
        except Exception as error:  # Every store has its own errors.
            raise OSError(f"{self.url}/{name} cannot be fetched: {error}.") from error
        finally:
            part.unlink(missing_ok=True)
        return path
