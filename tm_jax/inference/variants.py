"""Pipelines that differ from another in some weights or in how the student samples."""

import dataclasses
import os
from typing import Any

import jax

from tm_jax.checkpoints import files
from tm_jax.configs import puppet as networks
from tm_jax.inference import pipeline as pipeline_lib
from tm_jax.inference import puppet


def with_parts(pipeline: pipeline_lib.Pipeline, folder: str) -> pipeline_lib.Pipeline:
    """The pipeline with the parts that a folder holds: that of a stage of training, say.

    A student among them gets the sampler that its file's metadata names.

    Raises:
      FileNotFoundError: The folder holds none of `networks.PARTS`.
      ValueError: Files that do not fit the preset.
    """
    paths = {part: os.path.join(folder, f"{part}.safetensors") for part in networks.PARTS}
    found = {part: path for part, path in paths.items() if os.path.exists(path)}
    if not found:
        names = ", ".join(f"{part}.safetensors" for part in networks.PARTS)
        raise FileNotFoundError(f"{folder}: expected one or more of {names}.")
    functions = puppet.functions_of(pipeline)
    shapes = networks.shapes(functions.models)
    params = {part: files.load(path, shapes[part]) for part, path in found.items()}
    if "dit" in found:
        functions = puppet.PuppetFunctions(pipeline.preset.trained(files.facts(found["dit"])))
    placed = {**pipeline.params, **jax.device_put(params)}
    decoder = {name: placed[name] for name in functions.decoder_parts}
    return dataclasses.replace(
        pipeline, functions=functions, params=placed, decoder_params=decoder
    )


def with_student(pipeline: pipeline_lib.Pipeline, **changes: Any) -> pipeline_lib.Pipeline:
    """The pipeline with another sampler of the student; `presets.StudentConfig` names the fields.

    Raises:
      ValueError: A value that the student cannot have.
    """
    preset = pipeline.preset
    student = dataclasses.replace(preset.student, **changes)
    functions = puppet.PuppetFunctions(dataclasses.replace(preset, student=student))
    return dataclasses.replace(pipeline, functions=functions)
