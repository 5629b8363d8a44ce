"""The stages of a work directory, in their order: who reads whose weights."""

import os

from tm_jax.models import networks
from tm_jax.models import presets
from tm_jax.training import audio_stage
from tm_jax.training import latents
from tm_jax.training import locator_stage
from tm_jax.training import loop
from tm_jax.training import motion_stage
from tm_jax.training import student_stage
from tm_jax.training import teacher_stage
from tm_jax.training import vae_stage
from tm_jax.weights import files

# The part that a stage trains, and parts that it reads.
_TRAINS = {
    "vae": "vae", "locator": "locator", "audio": "audio", "motion": "motion",
    "teacher": "dit", "student": "dit",
}
_READS = {
    "vae": {}, "locator": {}, "audio": {}, "motion": {"audio": "audio"},
    "teacher": {"vae": "vae", "audio": "audio"},
    "student": {"vae": "vae", "audio": "audio", "dit": "teacher"},
}


def config(stage: str, corpus: str):
    """Default settings of a stage with speech from the folder `corpus`."""
    if stage == "vae":
        return vae_stage.VAEStageConfig()
    if stage == "locator":
        return locator_stage.LocatorStageConfig()
    if stage == "audio":
        return audio_stage.AudioStageConfig(corpus=corpus)
    if stage == "motion":
        return motion_stage.MotionStageConfig(corpus=corpus)
    data = latents.LatentConfig(corpus=corpus)
    kinds = {
        "teacher": teacher_stage.TeacherStageConfig, "student": student_stage.StudentStageConfig
    }
    return kinds[stage](data=data)


def _published(workdir, stage, part):
    return os.path.join(workdir, stage, f"{part}.safetensors")


def _read(models, workdir, stage):
    return _collect(models, workdir, f"stage {stage}", _READS[stage])


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
    models = networks.models(preset)
    params = _read(models, workdir, stage)
    if stage == "motion":
        return motion_stage.make(models, params, settings)
    store = latents.build(os.path.join(workdir, "latents"), settings.data, models, params)
    if stage == "teacher":
        return teacher_stage.make(models, params, store, settings)
    paths = student_stage.trajectories(
        os.path.join(workdir, "trajectories"), store, models, params, settings
    )
    return student_stage.make(models, params, store, paths, settings)


def train(
    preset: presets.Preset, stage: str, settings, workdir: str, steps: int,
    loop_config: loop.LoopConfig, export: str | None = None,
) -> bool:
    """Trains a stage and publishes its weights in the work directory.

    Args:
      preset: What to train.
      stage: A key of `_TRAINS`.
      settings: Result of `config`, perhaps with overrides.
      workdir: Folder of the run.
      steps: Updates in all.
      loop_config: Checkpoints, metrics, samples.
      export: Folder that gets the finished parts in bfloat16; with stage student all five.

    Returns:
      Whether the stage is finished.

    Raises:
      FileNotFoundError: An earlier stage is missing.
      ValueError: Settings that do not fit the preset or the folder.
    """
    os.makedirs(workdir, exist_ok=True)
    built = make(preset, stage, settings, workdir)
    result = loop.run(built, workdir, steps, loop_config)
    if result is None:
        return False
    part = _TRAINS[stage]
    # float32 here, so that a later stage starts from exactly what was trained.
    files.save(_published(workdir, stage, part), result, "float32", preset=preset.name)
    if export:
        os.makedirs(export, exist_ok=True)
        trained = {part: result}
        if stage == "student":
            rest = {**_READS[stage], "motion": "motion", "locator": "locator"}
            trained = _collect(networks.models(preset), workdir, "export", rest) | trained
        for part, params in trained.items():
            files.save(os.path.join(export, f"{part}.safetensors"), params, preset=preset.name)
    return True
