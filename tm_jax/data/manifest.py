"""The manifest of a folder of examples: what is in it, made how, and what was left out and why."""

import hashlib
import json
import os
import pathlib

from tm_jax.data import remote

FORMAT = 1
NAME = "manifest.json"
STORES = "stores.json"  # Of a folder of stores, one for each size of the pictures.
SYNTHETIC = "synthetic"  # A folder beside the shards in which drawn videos may lie.


def empty(settings: dict, versions: dict) -> dict:
    """The manifest of a store without examples.

    Args:
      settings: What the examples depend on; plain JSON.
      versions: Versions of libraries; plain JSON.
    """
    counts = ("files", "files_rejected", "clips_rejected", "examples", "latent_frames",
              "speaking_latent_frames")  # fmt: skip
    return {
        "format": FORMAT, "settings": settings, "fingerprint": fingerprint(settings),
        "versions": versions, "schema": None, "counts": dict.fromkeys(counts, 0), "shards": [],
        "files": {}, "under_way": None, "constants": None,
    }


def read(folder: str | os.PathLike) -> dict:
    """Reads the manifest of a store.

    Raises:
      ValueError: There is none, or it is of another format.
    """
    path = pathlib.Path(folder) / NAME
    if not path.is_file():
        raise ValueError(
            f"{folder}: no {NAME} here; make examples with launch/prepare.py --out={folder}."
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{path}: expected format {FORMAT}; prepare the videos anew.")
    manifest.setdefault("constants", None)  # Stores of older versions have none.
    return manifest


def stores(place: str) -> list[str]:
    """The stores of a folder, or of the URL of one: itself, or those that it lists.

    Raises:
      ValueError: The list is damaged.
    """
    path = pathlib.Path(place) / STORES
    if remote.is_url(place):
        try:
            path = remote.Mirror(place).fetch(STORES)
        except OSError:
            return [place]
    elif not path.is_file():
        return [place]
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["stores"]
        return [f"{place.rstrip('/')}/{name}" for name in names]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{place}/{STORES} is damaged: {error}.") from error


def write_stores(folder: str | os.PathLike, names: list[str]) -> None:
    """Writes the list of the stores in a folder."""
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    _write(pathlib.Path(folder) / STORES, {"stores": names})


def write(folder: pathlib.Path, manifest: dict) -> None:
    """Writes a manifest that appears whole, or not at all."""
    _write(folder / NAME, manifest)


def _write(path: pathlib.Path, content: dict) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        with open(part, "w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def fingerprint(settings: dict) -> str:
    """SHA-256 of settings."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def require_settings(folder: pathlib.Path, manifest: dict, settings: dict) -> None:
    """Raises ValueError if a store was made with other settings."""
    stored = manifest["settings"]
    for name in dict.fromkeys([*settings, *stored]):
        if stored.get(name) != settings.get(name):
            raise ValueError(
                f"{folder} was prepared with {name}={stored.get(name)}, now it is "
                f"{settings.get(name)}; give another --out, or the same settings."
            )


def require_shards(folder: pathlib.Path, manifest: dict) -> None:
    """Raises ValueError if a shard is missing or was copied only in part."""
    for shard in manifest["shards"]:
        path = folder / shard["name"]
        if not path.is_file() or path.stat().st_size != shard["bytes"]:
            raise ValueError(
                f"{path} is missing or not {shard['bytes']} bytes long, as {NAME} says; copy "
                "it again, or prepare the videos into a new folder."
            )
