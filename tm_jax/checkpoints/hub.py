"""Weights of the Hugging Face Hub: `hf:OWNER/NAME[/PATH][@REVISION]` becomes a place on disk.

The Hub's own library (extra `hub`) does what it does well: cache, connections that are taken
up again, progress bars, tokens. Here stands which files are needed, which commit they are of,
and why something cannot be had, in one line. The library's environment variables hold:
HF_TOKEN, HF_HOME and HF_HUB_CACHE (where the cache is), HF_HUB_OFFLINE, HF_ENDPOINT.
"""

from collections.abc import Collection, Iterator
import contextlib
import dataclasses
import errno
import glob
import os
import pathlib
import posixpath
import re
import shutil
import types
import typing
from typing import Any

from absl import logging
import tqdm

from tm_jax.checkpoints import sources

PREFIX = "hf:"
_NAME = re.compile(r"\w[\w.-]*")
_SHARD = re.compile(r"-\d{5}-of-\d{5}(?=\.\w+$)")
_INDEX = ".index.json"
_CHECKPOINT = (".safetensors", *sources.PICKLED)
_BESIDE = (".json", ".model")  # Settings and tokenizers.
_TREE = "_METADATA"  # An Orbax tree has it.
_SHOWN = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """The fields of `hf:OWNER/NAME[/PATH][@REVISION]`.

    Attributes:
      repo: OWNER/NAME.
      path: File or folder in it; "" for all.
      revision: Branch, tag or commit; None for the repository's default branch.
    """

    repo: str
    path: str = ""
    revision: str | None = None

    def __str__(self) -> str:
        path = f"/{self.path}" if self.path else ""
        return f"{PREFIX}{self.repo}{path}" + (f"@{self.revision}" if self.revision else "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fetched:
    """Weights on disk.

    Attributes:
      path: File or folder.
      origin: The spec with the commit as its revision, which names the same bytes for ever.
    """

    path: str
    origin: str


def is_spec(text: str | None) -> typing.TypeGuard[str]:
    """Whether a place is on the Hub."""
    return isinstance(text, str) and text.startswith(PREFIX)


def parse(text: str) -> Spec:
    """Reads `hf:OWNER/NAME[/PATH][@REVISION]`.

    Raises:
      ValueError: It has another form.
    """
    place, at, revision = text.removeprefix(PREFIX).partition("@")
    owner, _, rest = place.partition("/")
    name, _, path = rest.partition("/")
    path = path.rstrip("/")
    steps = path.split("/") if path else []
    if (
        not is_spec(text) or not _NAME.fullmatch(owner) or not _NAME.fullmatch(name)
        or (at and not revision) or any(step in ("", ".", "..") for step in steps)
    ):
        raise ValueError(f"expected hf:OWNER/NAME[/PATH][@REVISION], got {text!r}.")
    return Spec(repo=f"{owner}/{name}", path=path, revision=revision or None)


@typing.overload
def resolve(text: str, *, offline: bool = False) -> str: ...
@typing.overload
def resolve(text: None, *, offline: bool = False) -> None: ...


def resolve(text: str | None, *, offline: bool = False) -> str | None:
    """A local folder or file of weights: what `text` names on the Hub, else `text` itself.

    Raises:
      ValueError, OSError: See `fetch`.
    """
    return fetch(text, offline=offline).path if is_spec(text) else text


def fetch(
    text: str, *, offline: bool = False, places: tuple[str, ...] | None = None
) -> Fetched:
    """Fetches what a spec names, unless the cache has it.

    Args:
      text: The spec.
      offline: Use the cache alone, as with HF_HUB_OFFLINE=1.
      places: None: all weights, settings and tokenizers. Else one part: the first of these
        files and folders that is there, or the only checkpoint beside them.

    Returns:
      Where it lies, and the commit.

    Raises:
      ValueError: No such spec, or the extra is not installed.
      FileNotFoundError: No such repository, revision or file, or not in the cache.
      PermissionError: The repository is gated or private, or the token is not good.
      ConnectionError: The Hub cannot be reached.
      OSError: No room on the disk.
    """
    spec = parse(text)
    hub = _library(text)
    offline = offline or hub.constants.is_offline_mode()
    with _explained(text, hub, offline):
        api = hub.HfApi()
        revision = api.resolve_revision(
            spec.repo, revision=spec.revision, local_files_only=offline
        )
        commit = revision.resolved
        files = _listing(hub, api, spec, commit, offline)
        names = choose(files, text, spec.path, places)
        if not offline:
            missing = {n: files[n] for n in names if not _is_here(hub, spec, commit, n)}
            _check_room(hub, text, missing)
            # One after another in this thread: a pool of threads would finish its files, for
            # hours perhaps, before Ctrl-C ends it.
            for name in missing:
                hub.hf_hub_download(spec.repo, name, revision=commit)
        # All is here now: this keeps the list of files for later, or finds what is missing.
        folder = hub.snapshot_download(
            spec.repo, revision=commit, local_files_only=offline, tqdm_class=_Silent,
            allow_patterns=[glob.escape(name) for name in names],
        )
    origin = str(dataclasses.replace(spec, revision=commit))
    logging.info("%s is %s in %s.", text, origin, folder)
    return Fetched(path=os.path.join(folder, *spec.path.split("/")).rstrip(os.sep), origin=origin)


def choose(
    files: Collection[str], text: str, path: str = "", places: tuple[str, ...] | None = None
) -> list[str]:
    """Which files of a repository are needed.

    Of one checkpoint in several formats the safetensors are; a shard comes with its index and
    the other shards.

    Args:
      files: All files of the repository.
      text: The spec, for messages.
      path: File or folder.
      places: See `fetch`.

    Returns:
      Names out of `files`.

    Raises:
      FileNotFoundError: There is no such path, or nothing in it.
      ValueError: Several checkpoints, of which one is to be named.
    """
    if path in files:
        same = [f for f in files if posixpath.dirname(f) == posixpath.dirname(path)]
        return _checkpoints(same).get(_stem(path), [path])
    folder = f"{path}/" if path else ""
    inside = [f for f in files if f.startswith(folder)]
    found = _every(inside) if places is None else _part(inside, folder, places, text)
    if not any(f.endswith(_CHECKPOINT) or posixpath.basename(f) == _TREE for f in found):
        there = [f for f in files if f.endswith(_CHECKPOINT)]
        raise FileNotFoundError(
            f"{text}: expected weights{f' at {path}' if path else ''}, got none; the repository "
            f"has {_listed(there) if there else 'no weights at all'}."
        )
    return found


def _part(inside: list[str], folder: str, places: tuple[str, ...], text: str) -> list[str]:
    """Files of one part: at the first of its places that is there, or right in the folder."""
    for place in places:
        if folder + place in inside:
            return [folder + place]
        if any(f.startswith(f"{folder}{place}/") for f in inside):
            folder = f"{folder}{place}/"
            break
    here = [f for f in inside if f"{posixpath.dirname(f)}/".lstrip("/") == folder]
    if folder + _TREE in here:
        return [f for f in inside if f.startswith(folder)]
    groups = _checkpoints(here)
    safe = {stem: names for stem, names in groups.items() if stem.endswith(".safetensors")}
    groups = safe or groups
    if len(groups) > 1:
        raise ValueError(
            f"{text}: expected one checkpoint, got {_listed(groups)}; name one, as "
            f"hf:OWNER/NAME/{next(iter(groups))}."
        )
    return [name for names in groups.values() for name in names]


def _every(inside: list[str]) -> list[str]:
    """All weights, each in one format, and the settings and tokenizers beside them."""
    trees = [posixpath.dirname(f) + "/" for f in inside if posixpath.basename(f) == _TREE]
    groups = _checkpoints(inside)
    twice = set()
    for stem, names in groups.items():
        place, name = posixpath.split(posixpath.splitext(stem)[0])
        same = {name, name.removeprefix("pytorch_")}  # As transformers names them.
        if not stem.endswith(".safetensors") and any(
            posixpath.join(place, f"{other}.safetensors") in groups for other in same
        ):
            twice.update(names)
    wanted = (*_CHECKPOINT, *_BESIDE)
    return [
        f for f in inside
        if f.startswith(tuple(trees)) or (f.endswith(wanted) and f not in twice)
    ]


def _checkpoints(files: Collection[str]) -> dict[str, list[str]]:
    """Files of every checkpoint, by its name without the numbers of shards."""
    groups: dict[str, list[str]] = {}
    for file in files:
        if file.endswith((*_CHECKPOINT, _INDEX)):
            groups.setdefault(_stem(file), []).append(file)
    return {k: v for k, v in groups.items() if any(f.endswith(_CHECKPOINT) for f in v)}


def _stem(file: str) -> str:
    return _SHARD.sub("", file.removesuffix(_INDEX))


def _listed(names: Collection[str]) -> str:
    names = sorted(names)
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _library(text: str) -> types.ModuleType:
    """The Hub's library."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.hf_api
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{text}: weights of the Hub need the extra `hub`: pip install 'tm_jax[hub]', or "
            f"pip install huggingface_hub ({error})."
        ) from error
    return huggingface_hub


def _listing(
    hub: types.ModuleType, api: Any, spec: Spec, commit: str, offline: bool
) -> dict[str, int]:
    """Sizes of all files of a commit by name; without a network, of those in the cache."""
    try:
        found = hub.get_cached_repo_tree(spec.repo, revision=commit)
    except hub.errors.CachedRepoTreeNotFoundError:
        if offline:  # Another program may have fetched single files.
            folder = pathlib.Path(
                hub.snapshot_download(spec.repo, revision=commit, local_files_only=True)
            )
            return {
                f.relative_to(folder).as_posix(): f.stat().st_size
                for f in folder.rglob("*") if f.is_file()
            }
        found = api.list_repo_tree(spec.repo, recursive=True, revision=commit)
    return {f.path: f.size for f in found if isinstance(f, hub.hf_api.RepoFile)}


def _is_here(hub: types.ModuleType, spec: Spec, commit: str, name: str) -> bool:
    """Whether the cache has a file."""
    return isinstance(hub.try_to_load_from_cache(spec.repo, name, revision=commit), str)


def _check_room(hub: types.ModuleType, text: str, sizes: dict[str, int]) -> None:
    """Whether the cache's disk has room: better now than after an hour.

    Raises:
      OSError: It has not.
    """
    cache, needed = pathlib.Path(hub.constants.HF_HUB_CACHE).absolute(), sum(sizes.values())
    there = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise OSError(_no_room(text, hub, f"{needed / 1e9:.3g} GB, got {free / 1e9:.3g} GB"))


class _Silent(tqdm.tqdm):
    """A progress bar that is never shown."""

    def __init__(self, *args: Any, **settings: Any):
        settings["disable"] = True
        super().__init__(*args, **settings)


def _no_room(text: str, hub: types.ModuleType, what: str) -> str:
    return (
        f"{text}: expected room for {what} in {hub.constants.HF_HUB_CACHE}; set HF_HUB_CACHE to "
        "a folder on another disk."
    )


@contextlib.contextmanager
def _explained(text: str, hub: types.ModuleType, offline: bool) -> Iterator[None]:
    """Turns errors of a fetch into one line with the reason."""
    errors, where = hub.errors, hub.constants.ENDPOINT
    spec = parse(text)
    try:
        yield
    except errors.GatedRepoError as error:
        raise PermissionError(
            f"{text}: the repository is gated; accept its terms at {where}/{spec.repo} and set "
            "HF_TOKEN, or run `hf auth login`."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{text}: {where} has no public repository {spec.repo}; check the name, or set "
            "HF_TOKEN for a private one."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"{text}: {spec.repo} has no branch, tag or commit {spec.revision}."
        ) from error
    except (errors.LocalEntryNotFoundError, errors.RevisionResolutionError) as error:
        cache = hub.constants.HF_HUB_CACHE
        if offline:
            raise FileNotFoundError(
                f"{text}: not, or not whole, in the cache {cache}, and nothing is fetched "
                "offline; run once without --offline and HF_HUB_OFFLINE."
            ) from error
        raise _unreached(text, where, error.__cause__ or error) from error
    except errors.HfHubHTTPError as error:
        code = error.response.status_code
        if code in (401, 403):
            raise PermissionError(
                f"{text}: {where} refuses the token or its rights ({code}); set another HF_TOKEN."
            ) from error
        raise ConnectionError(
            f"{text}: {where} answers with status {code}; try again later."
        ) from error
    except (errors.HTTPError, RuntimeError) as error:
        # Of the transport (no name, no route, a broken line), or of the Xet storage behind it.
        raise _unreached(text, where, error) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(_no_room(text, hub, "the files")) from error
        raise


def _unreached(text: str, where: str, error: BaseException) -> ConnectionError:
    lines = str(error).splitlines() or [type(error).__name__]
    return ConnectionError(
        f"{text}: {where} cannot be reached ({lines[0].rstrip('.')}); check the network and run it "
        "again: whole files that came are kept."
    )
