"""Characters that callers can choose, their previews, and uploaded pictures in memory."""

import collections
from collections.abc import Callable
import dataclasses
import io
import pathlib
import secrets
import threading
import time
import urllib.parse

import numpy as np
import PIL.Image

from tm_jax.media import picture as picture_files
from tm_jax.serving.transport import protocol

PREVIEW = 128  # Pixels of a preview's side.
_QUALITY = 85
_MOST_PIXELS = 40_000_000  # Of an upload; a phone's camera makes half of it.
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

_BUNDLED = pathlib.Path(__file__).parents[2] / "assets" / "characters"


def to_jpeg(frame: np.ndarray) -> bytes:
    """Encodes uint8 RGB [H, W, 3]."""
    file = io.BytesIO()
    PIL.Image.fromarray(frame).save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Character:
    """Somebody to call.

    Attributes:
      id: Identifier in the protocol.
      name: Name for people.
      picture: uint8 [H, W, 3] in the size of the models.
      preview: JPEG of `PREVIEW` pixels.
    """

    id: str
    name: str
    picture: np.ndarray
    preview: bytes


def character(id_: str, name: str, picture: np.ndarray) -> Character:
    """A character with its preview."""
    small = PIL.Image.fromarray(picture).resize((PREVIEW, PREVIEW), PIL.Image.Resampling.LANCZOS)
    return Character(id=id_, name=name, picture=picture, preview=to_jpeg(np.asarray(small)))


def from_folder(
    height: int, width: int, folder: str | pathlib.Path = _BUNDLED
) -> list[Character]:
    """A character for every picture file of a folder, named after it.

    Args:
      height: Height of the models' pictures.
      width: Width of the models' pictures.
      folder: The folder; that of the package by default.

    Raises:
      ValueError: No such folder, no picture in it, or one that cannot be read.
    """
    path = pathlib.Path(folder)
    files = sorted(p for p in path.glob("*") if p.suffix.lower() in _SUFFIXES)
    if not files:
        raise ValueError(
            f"characters: expected a folder with {', '.join(_SUFFIXES)} files, got {folder}."
        )
    return [
        character(
            urllib.parse.quote(p.stem, safe="")[:64], p.stem.replace("_", " ").title(),
            picture_files.load(p, height, width),
        )
        for p in files
    ]


class Gallery:
    """Bundled characters, and uploads for a limited time; used in any thread."""

    def __init__(
        self, bundled: list[Character], height: int, width: int, *, most_uploads: int = 64,
        expires_s: float = 1800.0, clock: Callable[[], float] = time.monotonic,
    ):
        """Makes a gallery.

        Args:
          bundled: Characters that everybody sees, at least one.
          height: Height of the models' pictures.
          width: Width of the models' pictures.
          most_uploads: Uploads that are kept; a new one takes the place of the oldest.
          expires_s: How long an upload is kept after its last use.
          clock: Seconds.
        """
        self.bundled = list(bundled)
        self._height, self._width = height, width
        self._most, self.expires_s, self._clock = most_uploads, expires_s, clock
        self._uploads: collections.OrderedDict[str, tuple[float, Character]]
        self._uploads = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, id_: str | None) -> Character:
        """A character by identifier, the first one for None.

        Raises:
          protocol.ProtocolError: `unknown_character`.
        """
        if id_ is None:
            return self.bundled[0]
        for known in self.bundled:
            if known.id == id_:
                return known
        with self._lock:
            self._expire()
            if id_ in self._uploads:
                _, found = self._uploads.pop(id_)
                self._uploads[id_] = self._clock(), found
                return found
        raise protocol.ProtocolError(
            "unknown_character", "There is no such character, or the upload has expired."
        )

    def add(self, data: bytes) -> Character:
        """Takes an uploaded picture; slow, call it in a worker thread.

        Raises:
          protocol.ProtocolError: `bad_picture`, with the reason in one sentence.
        """
        try:
            picture = picture_files.from_bytes(
                data, self._height, self._width, _MOST_PIXELS
            )
        except ValueError as error:
            raise protocol.ProtocolError("bad_picture", str(error)) from error
        added = character("u-" + secrets.token_urlsafe(12), "Your picture", picture)
        with self._lock:
            self._expire()
            self._uploads[added.id] = self._clock(), added
            while len(self._uploads) > self._most:
                self._uploads.popitem(last=False)
        return added

    def _expire(self) -> None:
        oldest = self._clock() - self.expires_s
        while self._uploads and next(iter(self._uploads.values()))[0] < oldest:
            self._uploads.popitem(last=False)

    def __len__(self) -> int:
        """Uploads that are kept."""
        return len(self._uploads)
