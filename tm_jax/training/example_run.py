"""The stages of presets that learn from prepared examples: what each reads and starts from."""

from collections.abc import Callable
import os
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from tm_jax.checkpoints import loading
from tm_jax.checkpoints import parts
from tm_jax.configs import components
from tm_jax.configs import presets
from tm_jax.training import distill_stage
from tm_jax.training import example_preview
from tm_jax.training import example_source
from tm_jax.training import loop
from tm_jax.training import lora as lora_lib
from tm_jax.training import sources
from tm_jax.training import starts
from tm_jax.training import student_stage
from tm_jax.training import teacher_stage
from tm_jax.training import trajectories
from tm_jax.training import transformer_stage

STAGES = ("teacher", "student", "distill")
PART = "transformer"
ADAPTER = "adapter.safetensors"  # Beside the part, of a stage with low-rank adaptation.


def make(
    preset: presets.Preset, stage: str, settings: Any, workdir: str, mesh: Mesh | None = None,
    start: str | None = None,
) -> loop.Stage:
    """Prepares a stage.

    Args:
      preset: What to train, with the sampler of the student that is trained.
      stage: One of `STAGES`.
      settings: Its settings, whose `data` are examples.
      workdir: Folder of the run, with the finished earlier stages.
      mesh: Where parameters go; None: the default device.
      start: File or folder of weights to start from: for the teacher instead of random
        parameters, for the others instead of those of an earlier stage.

    Raises:
      FileNotFoundError: The examples, an earlier stage or `start` is missing.
      ValueError: No such stage, or data that do not fit.
    """
    if stage not in STAGES:
        raise ValueError(
            f"preset {preset.name} has no stage {stage}; choose one of {', '.join(STAGES)}."
        )
    data = settings.data
    models, part = components.build(preset), parts.transformer(preset)
    train, held_out = example_source.open_records(data.path, data.held_out)
    source = example_source.ExampleSource(train, preset, data.overheard)
    decoder = _decoder(models, data.weights, mesh)

    def preview(latents: int) -> sources.Preview:
        return example_preview.Preview(held_out, preset, latents, decoder)

    def begin(earlier: str) -> starts.Start:
        return starts.Start(part=part, path=start or published(workdir, stage, earlier))

    adapts = bool(settings.lora.rank)
    if stage == "teacher":
        if adapts and not start:
            raise ValueError("lora adapts weights that are there: name them with --start.")
        first = starts.Start(part=part, path=start) if start else None
        given = (None, first.load(mesh, preset.dtype)) if first and adapts else (first, None)
        return teacher_stage.make(models, source, preview, settings, *given)
    teacher = starts.Start(part=part, path=published(workdir, stage, "teacher"))

    def paths() -> dict:
        return trajectories.build(
            os.path.join(workdir, "trajectories"), source, models,
            lambda: teacher.load(mesh, preset.dtype), settings, mesh=mesh,
        )

    if stage == "student":
        found = paths()
        one, sizes = trajectories.windows(source, found, models, settings)
        first = begin("teacher")
        given = (None, first.load(mesh, preset.dtype)) if adapts else (first, None)
        return student_stage.make(
            models, source, one, sizes, preview, settings, *given
        )
    return _distill(models, source, paths, preview, settings, mesh, begin, teacher)


def _distill(
    models, source, paths: Callable, preview, settings, mesh, begin, teacher: starts.Start
) -> loop.Stage:
    """Stage distill; rollouts may have clips of their own."""
    clips, regression = source, None
    if settings.rollouts.path != settings.data.path:
        records, _ = example_source.open_records(settings.rollouts.path)
        clips = example_source.ExampleSource(
            records, models.preset, settings.rollouts.overheard
        )
    if settings.regression_weight:
        found = paths()
        one, sizes = trajectories.windows(source, found, models, settings)
        regression = distill_stage.Regression(source=source, one=one, sizes=sizes)
    adapts = bool(settings.lora.rank)
    frozen = teacher.load(mesh, models.preset.dtype if adapts else jnp.bfloat16)
    first, base = begin(settings.start), None
    if adapts:
        first, base = _adapters(models, settings, first, teacher, mesh)
    return distill_stage.make(
        models, clips, regression, preview, settings, start=first, teacher=frozen,
        critic=teacher, base=base,
    )


def _adapters(
    models, settings, student: starts.Start, teacher: starts.Start, mesh
) -> tuple[Any, Any]:
    """Adapters that the student of stage distill starts from, and its base if not the teacher.

    A student that was adapted from the teacher has its adapters beside its weights, and shares
    the teacher's parameters; any other is a base of its own.
    """
    path = os.path.join(os.path.dirname(student.path), ADAPTER)
    if os.path.exists(path):
        return lora_lib.read(path, settings.lora, transformer_stage.init(models)), None
    if student.path == teacher.path:
        return None, None
    return None, student.load(mesh, models.preset.dtype)


def published(workdir: str, stage: str, earlier: str) -> str:
    """The weights of a finished stage.

    Raises:
      FileNotFoundError: There are none.
    """
    path = os.path.join(workdir, earlier, f"{PART}.safetensors")
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"stage {stage} needs {path}: finish stage {earlier} in this work directory first."
        )
    return path


def _decoder(models: components.Components, folder: str | None, mesh) -> dict | None:
    """Parameters by part that decode previews."""
    if folder is None:
        return None
    found = {}
    for name in models.vae.decoder_parts:
        part = parts.of_preset(models.preset, name)
        path = starts.find(folder, name, part)
        if path is None:
            raise FileNotFoundError(
                f"data.weights: {folder} has no {name}, which decodes previews."
            )
        found[name] = loading.load_part(part, path, dtype=jnp.float32)
    return found
