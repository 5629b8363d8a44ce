"""Measures a preset: lip sync, silence, drift, seams, motion, Fréchet distance, diversity.

  python launch/evaluate.py --corpus=runs/corpus --out=runs/evaluation
  python launch/evaluate.py --corpus=runs/corpus --out=experiments/distillation \
    --weights=student=runs/nano/export --weights=undistilled=runs/forced/student \
    --teacher=runs/nano/teacher --long_seconds=3600
  python launch/evaluate.py --video=clip.mp4 [--syncnet=syncnet_v2.model]

The first two draw scenes of held-out characters and voices and let every arm speak in them:
the student and every other --weights, the teacher with many steps, a still picture, the
drawing itself and what the autoencoder leaves of it. They write quality.json, quality.md,
plots and videos into --out. The last measures any video of a face.
"""

import functools
import pathlib
import re
import sys

from absl import flags
from absl import logging

try:
    from launch import common
except ModuleNotFoundError as error:
    if error.name not in ("launch", "launch.common"):
        raise
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    from launch import common
from launch import weights
from tm_jax.checkpoints import hub

_PRESET = flags.DEFINE_string("preset", "nano", "Which model.")
_WEIGHTS = flags.DEFINE_multi_string(
    "weights", [], "LABEL=FOLDER of an arm, or FOLDER of the student; by default the shipped "
    "weights are the student. Parts that a folder lacks are those of the student. "
    "FOLDER@STEPS or FOLDER@STEPS,POLICY samples in another way than the preset. A FOLDER may be "
    "hf:OWNER/NAME[/PATH][@REVISION] of the Hugging Face Hub.",
)
_TEACHER = flags.DEFINE_string(
    "teacher", None, "Folder with the teacher's weights, or hf:OWNER/NAME[/PATH][@REVISION]; parts "
    "that it lacks are the student's."
)
_STEPS = flags.DEFINE_integer("teacher_steps", 50, "Steps of the teacher.", lower_bound=1)
_GUIDANCE = flags.DEFINE_float(
    "teacher_guidance", 1.0, "g in uncond + g * (cond - uncond); 1 is without guidance."
)
_CHUNKS = flags.DEFINE_integer(
    "teacher_chunks", None, "Chunks of a clip of the teacher; by default as in its training.",
    lower_bound=1,
)
_MESH = common.mesh_flag()
_CORPUS = flags.DEFINE_string("corpus", "runs/corpus", "Folder written by launch/corpus.py.")
_OUT = flags.DEFINE_string("out", "runs/evaluation", "Folder for results.")
_CLIPS = flags.DEFINE_integer("clips", 24, "Clips with human voices.", lower_bound=1)
_SYNTHETIC = flags.DEFINE_integer("synthetic_clips", 4, "Clips with a synthetic voice.")
_SILENT = flags.DEFINE_integer("silent_clips", 8, "Of the first, how many are also silent.")
_SECONDS = flags.DEFINE_float("seconds", 8, "Length of a clip.", lower_bound=2)
_DIVERSE = flags.DEFINE_integer("diverse_clips", 3, "Of the first, how many with more seeds.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds of each of them.", lower_bound=2)
_LONG = flags.DEFINE_float("long_seconds", 300, "Length of the long stream; 0 for none.")
_WINDOW = flags.DEFINE_float(
    "window_seconds", 60, "Beginning and end of the long stream that are compared."
)
_RUNS = flags.DEFINE_integer(
    "runs", 6, "Other runs that tell how much such a window varies.", lower_bound=0
)
_LONG_ARMS = flags.DEFINE_list("long_arms", ["student"], "Arms that stream for long.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of scenes and noise.")
_PLOTS = flags.DEFINE_bool("plots", True, "Whether to draw plots; needs matplotlib.")
_VIDEOS = flags.DEFINE_integer("videos", 4, "Scenes written as videos side by side.")
_VIDEO = flags.DEFINE_string("video", None, "Measures this video of a face, and nothing else.")
_SYNCNET = flags.DEFINE_string("syncnet", None, "Published weights of SyncNet, for --video.")

_HOW = re.compile(r"@\d{1,3}(,\w+)?$")
_RESERVED = ("teacher", "truth", "autoencoder", "static")


def _labels() -> dict[str, str | None]:
    """Folders of weights by label; the student comes first."""
    found: dict[str, str | None] = {"student": None}
    for text in _WEIGHTS.value:
        label, separator, folder = text.rpartition("=")
        label = label if separator else "student"
        if label in _RESERVED or (label in found and found[label] is not None):
            raise ValueError(f"--weights={text}: the label {label!r} is taken.")
        place, how = _place(folder)
        if not place or not pathlib.Path(place).is_dir():
            raise FileNotFoundError(f"--weights={text}: {place!r} is not a folder.")
        found[label] = place + how
    return found


def _place(text: str) -> tuple[str, str]:
    """The local folder of FOLDER@STEPS,POLICY, and what stands from the @ on."""
    if not hub.is_spec(text):
        place, at, how = text.partition("@")
        return place, at + how
    how = _HOW.search(text)  # A revision stands behind an @ too.
    how = how[0] if how else ""
    return weights.fetch(text.removesuffix(how), None).path, how


def _sampled(bundle, folder: str | None):
    """The bundle with the sampler that stands behind the @ of a folder."""
    from tm_jax.inference import variants

    _, _, how = (folder or "").partition("@")
    if not how:
        return bundle
    steps, _, policy = how.partition(",")
    if not steps.isdigit():
        raise ValueError(f"--weights: expected FOLDER@STEPS,POLICY, got {folder!r}.")
    return variants.with_student(
        bundle, num_steps=int(steps), **({"policy": policy} if policy else {})
    )


def _folder(text: str) -> str:
    """The folder of FOLDER@STEPS,POLICY."""
    return text.partition("@")[0]


def _arms(labels: dict) -> tuple:
    """Arms of a preset by name, and the pipeline of its student."""
    from tm_jax.evaluation import arms
    from tm_jax.inference import loading
    from tm_jax.inference import pipeline
    from tm_jax.inference import reconstruction
    from tm_jax.inference import session
    from tm_jax.inference import teacher_session
    from tm_jax.inference import variants

    own, sizes = labels["student"], common.mesh_sizes(_MESH.value)
    placement = pipeline.Placement(mesh=sizes) if sizes else None
    base = loading.load(_PRESET.value, own and _folder(own), placement=placement)
    student = _sampled(base, own)
    made: dict[str, arms.Streamed | arms.Drawn] = {
        "student": arms.Streamed(functools.partial(session.Session, student))
    }
    teacher_folder = weights.local(_TEACHER.value)
    if teacher_folder:
        preset, latents = base.preset, base.preset.teacher_latents
        if _CHUNKS.value:
            latents = 1 + _CHUNKS.value * preset.timing.latents_per_chunk
        made["teacher"] = arms.Streamed(functools.partial(
            teacher_session.TeacherSession, variants.with_parts(base, teacher_folder),
            sampler=teacher_session.Sampler(
                latents=latents, steps=_STEPS.value, guidance=_GUIDANCE.value
            ),
        ))  # fmt: skip
    for label, folder in labels.items():
        if label != "student":
            other = _sampled(variants.with_parts(base, _folder(folder)), folder)
            made[label] = arms.Streamed(functools.partial(session.Session, other))
    made["autoencoder"] = arms.Drawn(reconstruction.Autoencoder(base))
    return made, student


class _Recorder:
    """Writes plots and videos of the first scenes as they come."""

    def __init__(self, out: pathlib.Path, fps: int):
        self._out, self._fps, self._seen = out, fps, 0

    def __call__(self, scene, videos):
        from tm_jax.evaluation import plots
        from tm_jax.evaluation import side_by_side

        self._seen += 1
        name = f"{scene.index:02d}_{scene.style}_{scene.speaker}"
        if self._seen <= _VIDEOS.value:
            shown = {k: videos[k] for k in _order(videos)}
            folder = self._out / "videos"
            folder.mkdir(parents=True, exist_ok=True)
            side_by_side.write(folder / f"{name}.mp4", shown, scene.track.audio, self._fps)
        if _PLOTS.value and self._seen <= 4:
            folder = self._out / "plots"
            folder.mkdir(parents=True, exist_ok=True)
            plots.lips(folder / f"lips_{name}.png", scene, videos)


def _order(names) -> list[str]:
    """Truth, teacher, student, then the others; the still picture says nothing in a video."""
    first = [name for name in ("truth", "teacher", "student") if name in names]
    return first + [name for name in names if name not in (*first, "static")]


def _drawn() -> None:
    """Measures all arms on drawn scenes."""
    from tm_jax.data.corpus import speech
    from tm_jax.evaluation import arms
    from tm_jax.evaluation import facts
    from tm_jax.evaluation import plots
    from tm_jax.evaluation import suite
    from tm_jax.evaluation import tables

    if _PLOTS.value:
        plots.check()
    labels = _labels()
    speakers = speech.load(_CORPUS.value, "held_out")
    common.cache_compilations()
    made, bundle = _arms(labels)
    made = {**made, "truth": arms.Drawn(), "static": arms.Static()}
    unknown = set(_LONG_ARMS.value) - set(made)
    if unknown:
        raise ValueError(
            f"--long_arms: no arm {', '.join(sorted(unknown))}; there are {', '.join(made)}."
        )
    config = suite.Config(
        size=bundle.preset.height, timing=bundle.preset.timing, clips=_CLIPS.value,
        synthetic_clips=_SYNTHETIC.value, silent_clips=_SILENT.value, seconds=_SECONDS.value,
        diverse_clips=_DIVERSE.value, seeds=_SEEDS.value, long_seconds=_LONG.value,
        window_s=_WINDOW.value, runs=_RUNS.value, long_arms=tuple(_LONG_ARMS.value),
        seed=_SEED.value,
    )
    settings = {
        "preset": _PRESET.value, "clips": config.clips, "seconds": config.seconds,
        "synthetic_clips": config.synthetic_clips, "silent_clips": config.silent_clips,
        "diverse_clips": config.diverse_clips, "seeds": config.seeds,
        "long_seconds": config.long_seconds, "window_seconds": config.window_s,
        "runs": config.runs, "seed": config.seed,
    }
    if _TEACHER.value:
        settings |= {
            "teacher_steps": _STEPS.value, "teacher_guidance": _GUIDANCE.value,
        }
    out = pathlib.Path(_OUT.value)
    own = labels["student"]
    known = facts.collect(own and _folder(own), **settings)
    found = suite.run(made, speakers, config, _Recorder(out, config.timing.fps))
    student = {key: found["arms"]["student"][key] for key in suite.KEYS}
    results = facts.plain(student | known | found)
    facts.write(str(out / "quality.json"), results)
    (out / "quality.md").write_text(tables.evaluation(results))
    if _PLOTS.value:
        folder = out / "plots"
        folder.mkdir(parents=True, exist_ok=True)
        plots.arms(folder / "arms.png", results)
        plots.endurance(folder / "endurance.png", results)
    print((out / "quality.md").read_text())


def _recorded(path: str) -> None:
    """Measures one video of a face."""
    import json

    from tm_jax.evaluation import facts
    from tm_jax.evaluation import recorded

    found = facts.plain(recorded.measure(path, _SYNCNET.value))
    print(json.dumps(found, indent=1))


def main() -> None:
    """Measures what the flags describe."""
    if _SYNCNET.value and not _VIDEO.value:
        raise ValueError("--syncnet needs --video.")
    logging.set_verbosity(logging.INFO)
    if _VIDEO.value:
        _recorded(_VIDEO.value)
    else:
        _drawn()


if __name__ == "__main__":
    common.run("evaluate", main)
