"""Pipelines that differ from another in some weights or in how the student samples."""

import dataclasses
import typing
from typing import Any

import jax

from tm_jax.checkpoints import parts
from tm_jax.inference import part_files
from tm_jax.inference import pipeline as pipeline_lib
from tm_jax.inference import streams
from tm_jax.parallel import rules


def _functions(pipeline: pipeline_lib.Pipeline) -> streams.StreamFunctions:
    return typing.cast(streams.StreamFunctions, pipeline.functions)


def with_parts(pipeline: pipeline_lib.Pipeline, folder: str) -> pipeline_lib.Pipeline:
    """The pipeline, on the same devices, with the parts that a folder holds: those of a stage, say.

    A student among them gets the sampler that the folder's `preset.json` names.

    Raises:
      FileNotFoundError: The folder holds none of the pipeline's parts.
      ValueError: Files that do not fit the preset.
    """
    preset = part_files.preset_of(pipeline.preset.name, folder)
    functions = dataclasses.replace(_functions(pipeline), preset=preset)
    vae, names = functions.components.vae, functions.components.parts
    found = [n for n in names if part_files.find(folder, n, parts.of_preset(preset, n))]
    if not found:
        raise FileNotFoundError(f"{folder}: expected one or more of {', '.join(names)}.")
    first, _ = pipeline_lib.Placement().meshes(jax.local_devices()[:1])
    meshes = pipeline.denoise_mesh or first, pipeline.decode_mesh or first

    def read(name, mesh):
        dtype = jax.tree.leaves(pipeline.params[name])[0].dtype
        return part_files.load(preset, folder, name, mesh, dtype)

    params = {**pipeline.params, **{name: read(name, meshes[0]) for name in found}}
    if set(found) & set(vae.parts):
        with rules.use(meshes[0]):
            constants = jax.jit(vae.constants)(params)
        params[streams.CONSTANTS] = {**params[streams.CONSTANTS], **constants}
    if pipeline.denoise_mesh is None:
        return pipeline_lib.on_first_device(functions, params)
    decoder = dict(pipeline.decoder_params)
    for name in set(found) & set(functions.decoder_parts):
        decoder[name] = read(name, meshes[1]) if pipeline.apart else params[name]
    return dataclasses.replace(
        pipeline, functions=functions, params=params, decoder_params=decoder
    )


def with_student(pipeline: pipeline_lib.Pipeline, **changes: Any) -> pipeline_lib.Pipeline:
    """The pipeline with another sampler of the student; `presets.StudentConfig` names the fields.

    Raises:
      ValueError: A value that the student cannot have.
    """
    preset = pipeline.preset.with_student(**changes)
    functions = dataclasses.replace(_functions(pipeline), preset=preset)
    return dataclasses.replace(pipeline, functions=functions)
