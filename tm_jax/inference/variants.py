"""Bundles that differ from another in some weights or in how the student samples."""

import dataclasses
import os

import jax

from tm_jax.inference import bundle as bundle_lib
from tm_jax.models import networks
from tm_jax.weights import files


def with_parts(bundle: bundle_lib.Bundle, folder: str) -> bundle_lib.Bundle:
    """The bundle with the parts that a folder holds: that of a stage of training, say.

    A student among them samples in the way that its file says it was trained for.

    Raises:
      FileNotFoundError: The folder holds none of `networks.PARTS`.
      ValueError: Files that do not fit the preset.
    """
    paths = {part: os.path.join(folder, f"{part}.safetensors") for part in networks.PARTS}
    found = {part: path for part, path in paths.items() if os.path.exists(path)}
    if not found:
        names = ", ".join(f"{part}.safetensors" for part in networks.PARTS)
        raise FileNotFoundError(f"{folder}: expected one or more of {names}.")
    shapes = networks.shapes(bundle.models)
    params = {part: files.load(path, shapes[part]) for part, path in found.items()}
    models = bundle.models
    if "dit" in found:
        models = networks.models(bundle.preset.trained(files.facts(found["dit"])))
    return dataclasses.replace(
        bundle, models=models, params={**bundle.params, **jax.device_put(params)}
    )


def with_student(bundle: bundle_lib.Bundle, **changes) -> bundle_lib.Bundle:
    """The bundle with another sampler of the student; `presets.StudentConfig` names the fields.

    Raises:
      ValueError: A value that the student cannot have.
    """
    preset = bundle.preset
    student = dataclasses.replace(preset.student, **changes)
    models = networks.models(dataclasses.replace(preset, student=student))
    return dataclasses.replace(bundle, models=models)
