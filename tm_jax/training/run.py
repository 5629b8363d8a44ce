"""The stages of a work directory, in their order: who reads whose weights."""

import dataclasses
import json
import os
from typing import Any, cast

import jax
from jax.sharding import Mesh
import ml_dtypes
import numpy as np

from tm_jax.checkpoints import files
from tm_jax.checkpoints import sinks
from tm_jax.checkpoints import small_vae
from tm_jax.configs import presets
from tm_jax.core import trees
from tm_jax.models.vae.small import config as small_vae_config
from tm_jax.models.vae.small import network
from tm_jax.parallel import hosts
from tm_jax.parallel import rules
from tm_jax.training import distill_stage
from tm_jax.training import example_run
from tm_jax.training import example_source
from tm_jax.training import loop
from tm_jax.training import lora as lora_lib
from tm_jax.training import speech_stage
from tm_jax.training import student_stage
from tm_jax.training import teacher_stage
from tm_jax.training import video_vae

# Stages that train another component than the transformer, and its part.
COMPONENTS = {"vae": "vae", "speech": "audio"}
# Stages whose transformer is a student of a few steps: what a stream runs.
_STUDENTS = ("student", "distill")


def config(stage: str, corpus: str, data: str | None = None) -> Any:
    """Default settings of a stage.

    Args:
      stage: Name of the stage.
      corpus: Folder with speech, of stage speech.
      data: Folder of prepared examples; of clips, in stage vae.
    """
    if stage == "vae":
        return video_vae.VideoVAEConfig(path=data or "")
    if stage == "speech":
        return speech_stage.SpeechStageConfig(corpus=corpus)
    clips = example_source.ExampleConfig(path=data or "")
    if stage == "teacher":
        return teacher_stage.TeacherStageConfig(data=clips)
    if stage == "student":
        return student_stage.StudentStageConfig(data=clips)
    return distill_stage.DistillStageConfig(data=clips, rollouts=clips)


def sampled(preset: presets.Preset, stage: str, settings: Any) -> presets.Preset:
    """The preset with what a stage changes: attention, and the student's sampler and view."""
    preset = preset.with_execution(attention=getattr(settings, "attention", None))
    if stage not in _STUDENTS:
        return preset
    names = ("num_steps", "policy", "sink", "positions", "history", "keep", "temperature")
    return preset.with_student(**{name: getattr(settings, name) for name in names})


def _published(workdir: str, stage: str, part: str) -> str:
    return os.path.join(workdir, stage, f"{part}.safetensors")


def make(
    preset: presets.Preset, stage: str, settings: Any, workdir: str, mesh: Mesh | None = None,
    start: str | None = None,
) -> loop.Stage:
    """Prepares a stage: reads earlier stages' weights.

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
    if stage == "vae":
        return video_vae.make(preset, settings, start)
    return example_run.make(preset, stage, settings, workdir, mesh, start)


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
      export: Folder that gets the finished part in bfloat16, and beside a transformer the
        sizes, so that it streams as it was trained.
      name: Folder below `workdir`, so that variants of a stage can stand side by side; the
        stage's own name by default. Later stages read the folders of that name.
      start: Weights to start from: a file of this part or, for the transformer, a file or
        folder in any layout that can be converted; audio layers that it lacks begin anew.
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
        preset = preset.with_student(temperature=settings.sampling_temperature)
        facts |= preset.student.facts
    if isinstance(result, lora_lib.Adapted):
        path = os.path.join(workdir, name, example_run.ADAPTER)
        adapter = jax.tree.map(hosts.gather, result.adapter)
        if hosts.is_first():
            files.save(path, adapter, "float32", (), **facts, **lora_lib.facts(settings.lora))
        result = result.params
    if stage not in COMPONENTS:
        _publish(preset, _published(workdir, name, example_run.PART), result, np.float32, facts)
        if export:
            path = os.path.join(export, f"{example_run.PART}.safetensors")
            _publish(preset, path, result, ml_dtypes.bfloat16, facts)
        return True
    # float32 here, so that a later run starts from exactly what was trained.
    part = COMPONENTS[stage]
    if stage == "vae":
        facts |= small_vae.facts(cast(small_vae_config.SmallVAEConfig, preset.vae))
    files.save(_published(workdir, name, part), result, "float32", (), **facts)
    if export:
        os.makedirs(export, exist_ok=True)
        path = os.path.join(export, f"{part}.safetensors")
        files.save(path, result, ml_dtypes.bfloat16, network.STATISTICS, **facts)
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
