"""Turns a folder of videos into examples for training.

  python launch/prepare.py --videos=FOLDER --preset=wan-1.3b --weights=FOLDER --out=examples
  python launch/prepare.py --synthetic=60 --preset=wan-1.3b --weights=FOLDER --out=examples

  python launch/prepare.py --engine=ray --workers=16 --encoders=8 --videos=... --out=...

Every video becomes clips of one face with its sound; what is no use is left out, and
OUT/manifest.json says why. The same command goes on where it was stopped. --dry_run reads the
videos and tells what would be used. --engine=ray does the work on the machines of a Ray cluster,
which all see the videos and the weights under the same paths; the result is the same.
"""

from collections.abc import Callable
from typing import Any
import functools
import json
import pathlib
import pprint
import sys

from absl import flags
import tqdm

try:
    from launch import common
except ModuleNotFoundError as error:
    if error.name not in ("launch", "launch.common"):
        raise
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    from launch import common

from tm_jax.data import clips
from tm_jax.data import manifest
from tm_jax.data import prepare
from tm_jax.media import vad

_VIDEOS = flags.DEFINE_string("videos", None, "Folder of video files with sound.")
_SYNTHETIC = flags.DEFINE_integer(
    "synthetic", None, "Draw so many videos into OUT/synthetic and take those.", lower_bound=1
)
_OUT = flags.DEFINE_string("out", None, "Folder of the examples.")
_PRESET = flags.DEFINE_string("preset", "nano", "Preset whose networks encode the clips.")
_WEIGHTS = flags.DEFINE_string("weights", None, "Weights of the preset.")
_PROMPT = flags.DEFINE_string(
    "prompt", None, "What the videos show, where there is a text encoder."
)
_ASPECTS = flags.DEFINE_list(
    "aspects", [], "Aspect ratios such as 1:1,3:4,16:9: every video takes the nearest, and each "
    "has a store of its own in OUT, with at most the preset's area. Training takes OUT as one.",
)
_FACE = flags.DEFINE_enum(
    "face", "require", clips.FACE, "require: only clips with one face, cropped around it; "
    "optional: the middle of the picture where there is not; none: do not look for faces.",
)
_ZOOM = flags.DEFINE_float("zoom", 3.0, "Height of a clip over that of the face in it.")
_PARTNER = flags.DEFINE_enum(
    "partner", "none", clips.PARTNER, "right: the right channel is the other party's voice."
)
_ACTIVITY = flags.DEFINE_enum(
    "voice_activity", "silero", sorted(vad.NETWORKS), "What marks speech."
)
_SECONDS = flags.DEFINE_float("clip_seconds", 4.8, "Length of a clip, rounded to whole chunks.")
_LEAST = flags.DEFINE_float("least_seconds", 1.92, "Length of the shortest clip.")
_OVERLAP = flags.DEFINE_float("overlap", 0.0, "Seconds that a clip shares with the next.")
_WORKERS = flags.DEFINE_integer(
    "workers", 1, "Processes that read videos; 0 reads in the process that encodes.",
    lower_bound=0,
)
_ENGINE = flags.DEFINE_enum(
    "engine", "local", ("local", "ray"), "Who reads and encodes: this machine, or a Ray cluster "
    "(extra ray).",
)
_ADDRESS = flags.DEFINE_string(
    "ray_address", None, "The cluster, as ray.init takes it, such as auto or HOST:6379; by default "
    "RAY_ADDRESS, else one that is started here.",
)
_ENCODERS = flags.DEFINE_integer(
    "encoders", 1, "Processes of a Ray cluster that encode, one a GPU.", lower_bound=1
)
_GPUS = flags.DEFINE_float(
    "encoder_gpus", None, "GPUs of each; by default one if the cluster has some.", lower_bound=0
)
_BATCH = flags.DEFINE_integer("batch", 1, "Clips encoded at once.", lower_bound=1)
_SHARD = flags.DEFINE_integer(
    "shard_examples", 64, "Examples of a shard: most that a stopped run has to do again.",
    lower_bound=1,
)
_LIMIT = flags.DEFINE_integer("limit", None, "Take the first so many videos.", lower_bound=1)
_CORPUS = flags.DEFINE_string(
    "corpus", None, "Voices of --synthetic (launch/corpus.py); by default the package's "
    "recordings, whose reader is held out: do not measure with that voice.",
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of --synthetic.", lower_bound=0)
_DRAWN = flags.DEFINE_float("drawn_seconds", 6.0, "Length of a video of --synthetic.")
_PEOPLE = flags.DEFINE_float(
    "people", 0.0, "Share of the videos of --synthetic that show 3-D people (extra people).",
    lower_bound=0, upper_bound=1,
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Say what would be used; write nothing.")


def _config(sized: Any, timing: Any = None) -> clips.Config:
    """How files become clips.

    Args:
      sized: Preset or encoder, with the height and width of clips.
      timing: Clocks; None: those of `sized`.
    """
    timing = timing or sized.timing

    def count(seconds, least):
        return max(least, round(seconds / timing.chunk_s))

    chunks = count(_SECONDS.value, 1)
    return clips.Config(
        height=sized.height, width=sized.width, chunks=chunks, timing=timing,
        least_chunks=min(chunks, count(_LEAST.value, 1)),
        overlap_chunks=count(_OVERLAP.value, 0), face=_FACE.value, zoom=_ZOOM.value,
        partner=_PARTNER.value, voice_activity=_ACTIVITY.value,
    )


class _Bar:
    """Progress on the terminal."""

    def __init__(self, unit: str):
        self._bar = tqdm.tqdm(unit=unit, disable=None, dynamic_ncols=True)

    def __call__(self, done: int, total: int, examples: int | None = None) -> None:
        self._bar.total = total
        if examples is not None:
            self._bar.set_postfix(clips=examples, refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        self._bar.close()


def _draw(out: str, count: int, size: int) -> pathlib.Path:
    from tm_jax.data.synthetic import drawn_videos

    folder = pathlib.Path(out) / manifest.SYNTHETIC
    bar = _Bar("drawn")
    try:
        drawn_videos.draw_folder(
            folder, count, drawn_videos.voices(_CORPUS.value), seed=_SEED.value,
            seconds=_DRAWN.value, size=size, partner=_PARTNER.value == "right",
            people=_PEOPLE.value, progress=bar,
        )
    finally:
        bar.close()
    return folder


def _groups(videos: str | pathlib.Path, names: list[str]) -> list[tuple[float | None, list[str]]]:
    """Aspect ratios, or None for the preset's, and the files of each."""
    found = [common.aspect(text) for text in _ASPECTS.value]
    aspects = [aspect for aspect in found if aspect is not None]
    if not aspects:
        return [(None, names)]
    groups = prepare.by_aspect(videos, names, aspects, _WORKERS.value)
    return [(aspect, group) for aspect, group in zip(aspects, groups) if group]


def _survey(preset) -> None:
    from tm_jax.configs import presets

    if _VIDEOS.value is None:
        pprint.pprint(_config(preset))
        print(f"Would draw {_SYNTHETIC.value} videos into {_OUT.value}/{manifest.SYNTHETIC}.")
        return
    for aspect, names in _groups(_VIDEOS.value, prepare.find(_VIDEOS.value)[: _LIMIT.value]):
        sized = preset if aspect is None else presets.with_aspect(preset, aspect)
        pprint.pprint(_config(sized))
        bar = _Bar("file")
        try:
            summary, outcomes = prepare.survey(
                _VIDEOS.value, _config(sized), workers=_WORKERS.value, names=names, progress=bar
            )
        finally:
            bar.close()
        for name, outcome in outcomes.items():
            print(json.dumps({name: outcome}))
        print(f"Would use {summary.line()}.")


def _store(
    load: Callable, preset, out: str, videos: str | None, names: list[str] | None,
    stores: list[str],
) -> None:
    """Makes one store.

    Args:
      load: Makes the encoder.
      preset: For the clocks.
      out: Folder of the examples.
      videos: Folder of the videos; None draws them.
      names: Files of it; None takes all.
      stores: Names below OUT of the stores so far, to which its own is added if it holds clips.
    """
    encoder, engine = load(), None
    if _ENGINE.value == "ray":
        from tm_jax.data import ray_engine

        engine = ray_engine.RayEngine(
            make_encoder=load, readers=max(1, _WORKERS.value), encoders=_ENCODERS.value,
            gpus=_GPUS.value, address=_ADDRESS.value,
        )
    side = max(64, min(encoder.height, encoder.width) // 2 * 2)
    folder = videos or _draw(out, _SYNTHETIC.value or 0, side)
    name = f"{encoder.width}x{encoder.height}" if _ASPECTS.value else ""
    if name in stores:
        raise ValueError(f"--aspects: two of them make videos of {name}; leave one out.")
    out, bar = str(pathlib.Path(out) / name), _Bar("file")
    try:
        # Weights may be of another size than their preset.
        summary = prepare.prepare(
            folder, out, _config(encoder, preset.timing), encoder, preset=_PRESET.value,
            batch=_BATCH.value, workers=_WORKERS.value, names=names,
            shard_examples=_SHARD.value, progress=bar, engine=engine,
        )
    finally:
        bar.close()
    print(f"Wrote {out}: {summary.line()}.")
    if summary.clips:
        stores.append(name)


def main() -> None:
    """Prepares what the flags describe."""
    if (_VIDEOS.value is None) == (_SYNTHETIC.value is None):
        raise ValueError("give either --videos=FOLDER or --synthetic=N.")
    if _OUT.value is None:
        raise ValueError("--out: name the folder of the examples.")
    if _SYNTHETIC.value is not None and _ASPECTS.value:
        raise ValueError("--aspects: drawn videos are square; give --videos.")
    out, videos = _OUT.value, _VIDEOS.value
    names = None if videos is None else prepare.find(videos)[: _LIMIT.value]
    from tm_jax.configs import presets

    preset = presets.get(_PRESET.value)
    if _DRY_RUN.value:
        _survey(preset)
        return
    common.cache_compilations()
    from tm_jax.inference import clip_encoder

    options: dict[str, Any] = {} if _PROMPT.value is None else {"prompt": _PROMPT.value}
    load = functools.partial(clip_encoder.load, _PRESET.value, _WEIGHTS.value, **options)
    made: list[str] = []
    if not _ASPECTS.value or videos is None or names is None:
        _store(load, preset, out, videos, names, made)
        return
    for aspect, group in _groups(videos, names):
        _store(functools.partial(load, aspect=aspect), preset, out, videos, group, made)
        manifest.write_stores(out, made)


if __name__ == "__main__":
    common.run("prepare", main)
