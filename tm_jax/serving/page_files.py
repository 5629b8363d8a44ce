"""The page's files, read once: no path of a request ever reaches the file system."""

import hashlib
import mimetypes
import pathlib
from typing import NamedTuple

FOLDER = pathlib.Path(__file__).parent / "page"
_TYPES = {
    ".js": "text/javascript", ".mjs": "text/javascript",
    ".webmanifest": "application/manifest+json",
}


class File(NamedTuple):
    """A file in memory.

    Attributes:
      body: Its bytes.
      content_type: MIME type.
      tag: Changes with its content.
    """

    body: bytes
    content_type: str
    tag: str


def read(folder: pathlib.Path = FOLDER) -> dict[str, File]:
    """All files below a folder, by their path in URLs; empty if there is no such folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or name.startswith(".") or path.suffix in (".py", ".pyc", ".md"):
            continue
        kind = _TYPES.get(path.suffix) or mimetypes.guess_type(name)[0]
        body = path.read_bytes()
        tag = hashlib.sha256(body).hexdigest()[:20]
        found[name] = File(body, kind or "application/octet-stream", tag)
    return found
