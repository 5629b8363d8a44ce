"""The stages of a work directory, in their order: who reads whose weights."""

import dataclasses
import json
import os
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import ml_dtypes
import numpy as np

from tm_jax.checkpoints import files
from tm_jax.checkpoints import sinks
from tm_jax.checkpoints import small_vae
from tm_jax.configs import presets
from tm_jax.configs import puppet as networks
from tm_jax.core import trees
from tm_jax.models.vae.small import config as small_vae_config
from tm_jax.models.vae.small import network
from tm_jax.parallel import hosts
from tm_jax.parallel import rules
from tm_jax.training import audio_stage
from tm_jax.training import distill_stage
from tm_jax.training import example_run
from tm_jax.training import example_source
from tm_jax.training import latents
from tm_jax.training import locator_stage
from tm_jax.training import loop
from tm_jax.training import lora as lora_lib
from tm_jax.training import motion_stage
from tm_jax.training import preview as preview_lib
from tm_jax.training import puppet_source
from tm_jax.training import speech_stage
from tm_jax.training import student_stage
from tm_jax.training import teacher_stage
from tm_jax.training import trajectories
from tm_jax.training import vae_stage
from tm_jax.training import video_vae

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
# Stages of other components, which any preset with that component has.
_COMPONENTS = ("vae", "speech")
# Stages whose transformer is a student of a few steps: what a stream runs.
_STUDENTS = ("student", "distill")


def config(
    stage: str, corpus: str, data: str | None = None, preset: presets.Preset | None = None
) -> Any:
    """Default settings of a stage.

    Args:
      stage: Name of the stage.
      corpus: Folder with speech, from which clips of presets with a motion model are made.
      data: Folder of prepared examples (of clips, in stage vae), for all other presets.
      preset: What is trained; None: a preset with a motion model.
    """
    if stage == "vae" and preset is not None and preset.motion is None:
        return video_vae.VideoVAEConfig(path=data or "")
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
    clips: latents.LatentConfig | example_source.ExampleConfig
    clips = latents.LatentConfig(corpus=corpus)
    if data is not None:
        clips = example_source.ExampleConfig(path=data)
    if stage == "teacher":
        return teacher_stage.TeacherStageConfig(data=clips)
    if stage == "student":
        return student_stage.StudentStageConfig(data=clips)
    settings = distill_stage.DistillStageConfig(data=clips)
    rollouts = settings.rollouts
    if isinstance(rollouts, latents.LatentConfig) and data is None:
        rollouts = dataclasses.replace(rollouts, corpus=corpus)
    else:
        rollouts = clips
    return dataclasses.replace(settings, rollouts=rollouts)


def sampled(preset: presets.Preset, stage: str, settings: Any) -> presets.Preset:
    """The preset with what a stage changes: attention, and the student's sampler and view."""
    preset = preset.with_execution(attention=getattr(settings, "attention", None))
    if stage not in _STUDENTS:
        return preset
    names = ("num_steps", "policy", "sink", "positions", "history", "keep", "temperature")
    return preset.with_student(**{name: getattr(settings, name) for name in names})


def _published(workdir: str, stage: str, part: str) -> str:
    return os.path.join(workdir, stage, f"{part}.safetensors")


def _collect(models, workdir: str, who: str, sources: dict[str, str]) -> dict:
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


def make(
    preset: presets.Preset, stage: str, settings: Any, workdir: str, mesh: Mesh | None = None,
    start: str | None = None,
) -> loop.Stage:
    """Prepares a stage: reads earlier stages' weights, fills stores.

    Args:
      preset: What to train.
      stage: Name of the stage.
      settings: Result of `config`, perhaps with overrides.
      workdir: Folder of the run.
      mesh: Where large parameters go; None: the default device.
      start: Weights to start from.
    """
    preset = sampled(preset, stage, settings)
    if stage == "speech":
        built = speech_stage.make(preset, settings)
        return _from(built, start) if start else built
    if preset.motion is None and stage == "vae":
        return video_vae.make(preset, settings, start)
    if preset.motion is None:
        return example_run.make(preset, stage, settings, workdir, mesh, start)
    if isinstance(getattr(settings, "data", None), example_source.ExampleConfig):
        raise ValueError(
            f"preset {preset.name} draws its own clips and takes no prepared examples (--data)."
        )
    if hasattr(settings, "lora") and settings.lora.rank:
        raise ValueError(
            f"lora adapts presets that learn from examples; {preset.name} draws its own."
        )
    built = _make(preset, stage, settings, workdir)
    return _from(built, start) if start else built


def _make(preset: presets.Preset, stage: str, settings: Any, workdir: str) -> loop.Stage:
    """A stage of a preset with a motion model."""
    if stage == "vae":
        return vae_stage.make(preset, settings)
    if stage == "locator":
        return locator_stage.make(preset, settings)
    if stage == "audio":
        return audio_stage.make(preset, settings)
    models = networks.models(preset)
    params = _collect(models, workdir, f"stage {stage}", _READS[stage])
    if stage == "motion":
        return motion_stage.make(models, params, settings)
    if stage == "distill":
        return _make_distill(models, params, settings, workdir)
    source = _source(models, params, settings.data, os.path.join(workdir, "latents"))
    preview = _preview(models, params, settings.data, settings.previews)
    if stage == "teacher":
        return teacher_stage.make(models, source, preview, settings)
    paths, one = _trajectories(models, params, source, settings, workdir)
    return student_stage.make(
        models, source, one, len(paths["place"]), preview, settings, params["dit"]
    )


def _source(models, params: dict, config: latents.LatentConfig, folder: str):
    """The clips of a latent store, which is filled first."""
    store = latents.build(folder, config, models, params)
    return puppet_source.PuppetSource(store, models, config)


def _preview(models, params: dict, config: latents.LatentConfig, clips: int):
    """Function (latents) -> held-out clips of that length."""
    config = dataclasses.replace(config, clips=clips)
    return lambda count: preview_lib.Preview(models, params, config, count)


def _trajectories(models, params: dict, source, settings, workdir: str):
    """Trajectories of the teacher, and the function that reads them."""
    paths = trajectories.build(
        os.path.join(workdir, "trajectories"), source, models, lambda: params["dit"], settings,
        settings.data.seed,
    )
    return paths, trajectories.windows(source, paths, models, settings)


def _make_distill(models, params: dict, settings, workdir: str) -> loop.Stage:
    """Two latent stores, because rollouts are longer than the teacher's clips."""
    start = _collect(models, workdir, "stage distill", {"dit": settings.start})
    regression = None
    if settings.regression_weight:
        source = _source(models, params, settings.data, os.path.join(workdir, "latents"))
        paths, one = _trajectories(models, params, source, settings, workdir)
        regression = distill_stage.Regression(source=source, one=one, count=len(paths["place"]))
    clips = _source(models, params, settings.rollouts, os.path.join(workdir, "rollouts"))
    boxed = jax.eval_shape(lambda: models.init("dit", jax.random.key(0)))
    return distill_stage.make(
        models, clips, regression, _preview(models, params, settings.rollouts, settings.previews),
        settings, start=start["dit"], critic=params["dit"],
        teacher=rules.box_like(boxed, trees.cast(params["dit"], jnp.bfloat16)),
    )


def _from(built: loop.Stage, path: str) -> loop.Stage:
    """The stage with the weights of a file as its start."""
    key = jax.random.key(0)
    trained = jax.eval_shape(lambda k: rules.unbox(built.init(k)), key)
    # What a stage publishes may be more than what it trains.
    published = jax.eval_shape(lambda p: built.finish(p, built.frozen), trained)
    found = trees.flatten(files.load(path, published))
    values = trees.unflatten({name: found[name] for name in trees.flatten(trained)})
    return dataclasses.replace(built, start=values)


def train(
    preset: presets.Preset, stage: str, settings: Any, workdir: str, steps: int,
    loop_config: loop.LoopConfig, export: str | None = None, name: str | None = None,
    start: str | None = None, mesh: Mesh | None = None,
) -> bool:
    """Trains a stage and publishes its weights in the work directory.

    Args:
      preset: What to train.
      stage: Name of the stage.
      settings: Result of `config`, perhaps with overrides.
      workdir: Folder of the run.
      steps: Updates in all; in stage distill those of critic and student.
      loop_config: Mesh, checkpoints, metrics, samples.
      export: Folder that gets the finished parts in bfloat16. Of a preset with a motion model
        the stages student and distill write all five; of others the sizes stand beside the
        transformer, so that it streams as it was trained.
      name: Folder below `workdir`, so that variants of a stage can stand side by side; the
        stage's own name by default. Later stages read the folders of that name.
      start: Weights to start from: a file of this part or, for presets that learn from
        examples, a file or folder in any layout that can be converted; audio layers that it
        lacks begin anew.
      mesh: Device mesh; that of `loop_config` by default.

    Returns:
      Whether the stage is finished.

    Raises:
      FileNotFoundError: An earlier stage, the examples or `start` is missing.
      ValueError: Settings that do not fit the preset or the folder; `start` is no weights of
        this part.
    """
    os.makedirs(workdir, exist_ok=True)
    name, mesh = name or stage, mesh or loop_config.make_mesh()
    built = dataclasses.replace(make(preset, stage, settings, workdir, mesh, start), name=name)
    result = loop.run(built, workdir, steps, loop_config, mesh)
    if result is None:
        return False
    preset = sampled(preset, stage, settings)
    facts = {"preset": preset.name, "stage": stage}
    if stage in _STUDENTS:
        facts |= preset.student.facts
    if isinstance(result, lora_lib.Adapted):
        path = os.path.join(workdir, name, example_run.ADAPTER)
        adapter = jax.tree.map(hosts.gather, result.adapter)
        if hosts.is_first():
            files.save(path, adapter, "float32", (), **facts, **lora_lib.facts(settings.lora))
        result = result.params
    if preset.motion is None and stage not in _COMPONENTS:
        _publish(preset, _published(workdir, name, example_run.PART), result, np.float32, facts)
        if export:
            path = os.path.join(export, f"{example_run.PART}.safetensors")
            _publish(preset, path, result, ml_dtypes.bfloat16, facts)
        return True
    # float32 here, so that a later stage starts from exactly what was trained.
    part = _TRAINS[stage]
    if isinstance(preset.vae, small_vae_config.SmallVAEConfig) and stage == "vae":
        facts |= small_vae.facts(preset.vae)
    files.save(_published(workdir, name, part), result, "float32", (), **facts)
    if export:
        os.makedirs(export, exist_ok=True)
        path = os.path.join(export, f"{part}.safetensors")
        files.save(path, result, ml_dtypes.bfloat16, network.STATISTICS, **facts)
        if stage in _STUDENTS:
            rest = {**_ENCODERS, "locator": "locator", "motion": "motion"}
            others = _collect(networks.models(preset), workdir, "export", rest)
            for part, params in others.items():
                path = os.path.join(export, f"{part}.safetensors")
                files.save(path, params, preset=preset.name)
    return True


def _publish(
    preset: presets.Preset, path: str, params: Any, dtype: Any, facts: dict[str, str]
) -> None:
    """Writes a transformer tensor by tensor, and the preset's sizes beside it."""
    folder, flat = os.path.dirname(path), trees.flatten(params)
    os.makedirs(folder, exist_ok=True)
    items = {n: jax.ShapeDtypeStruct(x.shape, np.dtype(dtype)) for n, x in flat.items()}
    tensors = ((n, hosts.gather(x).astype(dtype)) for n, x in flat.items())
    if not hosts.is_first():
        for _ in tensors:  # The first process gets them, with the help of all.
            pass
        return
    with sinks.replacing(path) as target:
        sinks.write_safetensors(target, items, tensors, metadata=facts)
    with open(os.path.join(folder, "preset.json"), "w", encoding="utf-8") as stream:
        # How attention is computed depends on the machine.
        json.dump(presets.settings(preset.with_execution(attention="auto")), stream, indent=1)
