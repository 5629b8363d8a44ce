"""The stages of a work directory, in their order: who reads whose weights."""

import dataclasses
import os

import jax

from tm_jax.core import trees
from tm_jax.models import networks
from tm_jax.models import presets
from tm_jax.parallel import rules
from tm_jax.training import audio_stage
from tm_jax.training import distill_stage
from tm_jax.training import latents
from tm_jax.training import locator_stage
from tm_jax.training import loop
from tm_jax.training import motion_stage
from tm_jax.training import speech_stage
from tm_jax.training import student_stage
from tm_jax.training import teacher_stage
from tm_jax.training import vae_stage
from tm_jax.weights import files

# The part that a stage trains, and parts that it reads.
_TRAINS = {
    "vae": "vae", "locator": "locator", "audio": "audio", "speech": "audio",
    "motion": "motion", "teacher": "dit", "student": "dit", "distill": "dit",
}
_ENCODERS = {"vae": "vae", "audio": "audio"}
_TEACHER = {**_ENCODERS, "dit": "teacher"}
_READS = {
    "vae": {}, "locator": {}, "audio": {}, "speech": {}, "motion": {"audio": "audio"},
    "teacher": _ENCODERS, "student": _TEACHER, "distill": _TEACHER,
}
# Stages whose transformer is a student of a few steps: what a stream runs.
_STUDENTS = ("student", "distill")


def config(stage: str, corpus: str):
    """Default settings of a stage with speech from the folder `corpus`."""
    if stage == "vae":
        return vae_stage.VAEStageConfig()
    if stage == "locator":
        return locator_stage.LocatorStageConfig()
    if stage == "audio":
        return audio_stage.AudioStageConfig(corpus=corpus)
    if stage == "speech":
        return speech_stage.SpeechStageConfig(corpus=corpus)
    if stage == "motion":
        return motion_stage.MotionStageConfig(corpus=corpus)
    data = latents.LatentConfig(corpus=corpus)
    if stage == "teacher":
        return teacher_stage.TeacherStageConfig(data=data)
    if stage == "student":
        return student_stage.StudentStageConfig(data=data)
    settings = distill_stage.DistillStageConfig(data=data)
    rollouts = dataclasses.replace(settings.rollouts, corpus=corpus)
    return dataclasses.replace(settings, rollouts=rollouts)


def _sampled(preset, settings):
    """The preset with the sampler and the view that a stage of the student trains."""
    return preset.with_student(
        settings.num_steps, settings.policy, settings.sink, settings.positions
    )


def _published(workdir, stage, part):
    return os.path.join(workdir, stage, f"{part}.safetensors")


def _collect(models, workdir, who, sources):
    """Parameters of the parts in `sources`, {part: stage that trains it}."""
    shapes = networks.shapes(models)
    params = {}
    for part, source in sources.items():
        path = _published(workdir, source, part)
        if not os.path.exists(path):
            raise FileNotFoundError(
                f"{who} needs {path}: finish stage {source} in this work directory first."
            )
        params[part] = files.load(path, shapes[part])
    return params


def make(preset: presets.Preset, stage: str, settings, workdir: str) -> loop.Stage:
    """Prepares a stage: reads earlier stages' weights, fills the latent store."""
    if stage == "vae":
        return vae_stage.make(preset, settings)
    if stage == "locator":
        return locator_stage.make(preset, settings)
    if stage == "audio":
        return audio_stage.make(preset, settings)
    if stage == "speech":
        return speech_stage.make(preset, settings)
    if stage in _STUDENTS:
        preset = _sampled(preset, settings)
    models = networks.models(preset)
    params = _collect(models, workdir, f"stage {stage}", _READS[stage])
    if stage == "motion":
        return motion_stage.make(models, params, settings)
    if stage == "distill":
        return _make_distill(models, params, settings, workdir)
    store = latents.build(os.path.join(workdir, "latents"), settings.data, models, params)
    if stage == "teacher":
        return teacher_stage.make(models, params, store, settings)
    paths = _trajectories(models, params, store, settings, workdir)
    return student_stage.make(models, params, store, paths, settings)


def _trajectories(models, params, store, settings, workdir):
    folder = os.path.join(workdir, "trajectories")
    return student_stage.trajectories(folder, store, models, params, settings)


def _make_distill(models, params, settings, workdir):
    """Two latent stores, because rollouts are longer than the teacher's clips."""
    start = _collect(models, workdir, "stage distill", {"dit": settings.start})
    store = paths = None
    if settings.regression_weight:
        store = latents.build(
            os.path.join(workdir, "latents"), settings.data, models, params
        )
        paths = _trajectories(models, params, store, settings, workdir)
    clips = latents.build(
        os.path.join(workdir, "rollouts"), settings.rollouts, models, params
    )
    return distill_stage.make(
        models, {**params, **start}, params["dit"], store, clips, paths, settings
    )


def _from(built: loop.Stage, path: str) -> loop.Stage:
    """The stage with the weights of a file as its start."""
    key = jax.random.key(0)
    boxed = jax.eval_shape(built.init, key)
    # What a stage publishes may be more than what it trains.
    published = jax.eval_shape(lambda k: built.finish(rules.unbox(built.init(k)), built.frozen), key)
    found = trees.flatten(files.load(path, published))
    values = trees.unflatten({name: found[name] for name in trees.flatten(rules.unbox(boxed))})
    return dataclasses.replace(built, init=lambda key: rules.box_like(boxed, values))


def train(
    preset: presets.Preset, stage: str, settings, workdir: str, steps: int,
    loop_config: loop.LoopConfig, export: str | None = None, name: str | None = None,
    start: str | None = None,
) -> bool:
    """Trains a stage and publishes its weights in the work directory.

    Args:
      preset: What to train.
      stage: Name of the stage.
      settings: Result of `config`, perhaps with overrides.
      workdir: Folder of the run.
      steps: Batches in all; in stage distill those of critic and student.
      loop_config: Checkpoints, metrics, samples.
      export: Folder that gets the finished parts in bfloat16; with the stages student and
        distill all five.
      name: Folder below `workdir`, so that variants of a stage can stand side by side; the
        stage's own name by default. Later stages read the folders of that name.

    Returns:
      Whether the stage is finished.

    Raises:
      FileNotFoundError: An earlier stage, or `start`, is missing.
      ValueError: Settings that do not fit the preset or the folder; `start` is no weights of
        this part.
    """
    os.makedirs(workdir, exist_ok=True)
    name = name or stage
    built = dataclasses.replace(make(preset, stage, settings, workdir), name=name)
    if start:
        built = _from(built, start)
    result = loop.run(built, workdir, steps, loop_config)
    if result is None:
        return False
    part = _TRAINS[stage]
    facts = {"preset": preset.name, "stage": stage}
    if stage in _STUDENTS:
        facts |= _sampled(preset, settings).student.facts
    # float32 here, so that a later stage starts from exactly what was trained.
    files.save(_published(workdir, name, part), result, "float32", **facts)
    if export:
        os.makedirs(export, exist_ok=True)
        files.save(os.path.join(export, f"{part}.safetensors"), result, **facts)
        if stage in _STUDENTS:
            rest = {**_ENCODERS, "locator": "locator", "motion": "motion"}
            others = _collect(networks.models(preset), workdir, "export", rest)
            for part, params in others.items():
                path = os.path.join(export, f"{part}.safetensors")
                files.save(path, params, preset=preset.name)
    return True
