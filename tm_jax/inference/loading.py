"""One door for all presets: weights from disk onto their devices, and the session's options."""

from collections.abc import Callable, Sequence
import functools
import os
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tm_jax.checkpoints import hub
from tm_jax.configs import presets
from tm_jax.inference import part_files
from tm_jax.inference import pipeline as pipeline_lib
from tm_jax.inference import session
from tm_jax.inference import streams
from tm_jax.inference import teacher_session
from tm_jax.models.text import encoder as umt5
from tm_jax.nn import quantization
from tm_jax.parallel import rules

DECODERS = ("wan", "tiny")
SAMPLERS = ("student", "teacher")
PROMPT = "A person looks into the camera and talks; the camera and the background stay still."
_LOAD = ("prompt", "decoder", "aspect", "attention", "matrices")
_TEACHER = ("steps", "guidance", "latents")
OPTIONS = (*_LOAD, "sampler", "face", *_TEACHER)


def load(
    preset: str = "nano", weights: str | None = None, *, prompt: str | None = None,
    negative: str = "", decoder: str | None = None, aspect: float | None = None,
    attention: str | None = None, matrices: str | None = None,
    placement: pipeline_lib.Placement | None = None, devices: Sequence[jax.Device] | None = None
) -> pipeline_lib.Pipeline:
    """Loads a preset; every tensor goes from disk to its own place on the devices.

    Without a text encoder in the folder the text features are zeros, and prompts do nothing;
    a warning says so. The encoder is let go as soon as the prompts are encoded.

    Args:
      preset: Name in `presets.PRESETS`.
      weights: Folder with weights, or `hf:OWNER/NAME[/PATH][@REVISION]` of the Hugging Face
        Hub (`weights.hub`); by default those that come with the package.
      prompt: What the video shows; `PROMPT` by default. For presets with a text encoder.
      negative: What guidance leads away from; used by the teacher alone.
      decoder: "wan" (default) or "tiny", for presets with a second, faster decoder.
      aspect: Width over height of the video; its area stays the preset's.
      attention: How self-attention is computed, a name in `nn.attention.BACKENDS`.
      matrices: How those of the transformer's blocks are stored and multiplied, a name in
        `nn.quantization.KINDS`.
      placement: How devices share the work; one device by default.
      devices: Devices to use; the first ones by default, as many as the placement needs.

    Returns:
      The pipeline.

    Raises:
      ValueError: Unknown preset or decoder, or files that do not fit the sizes.
      FileNotFoundError: No such weights.
    """
    weights = hub.resolve(weights)
    if decoder not in (None, *DECODERS):
        raise ValueError(f"decoder must be one of {', '.join(DECODERS)}, got {decoder!r}.")
    if weights is None:
        weights = presets.shipped(preset)
    sized = part_files.preset_of(preset, weights).with_execution(
        attention=attention, matrices=matrices
    )
    if prompt is not None and sized.text is None:
        raise ValueError(f"preset {preset} takes no prompt; wan-1.3b and tm-18b do.")
    if aspect is not None:
        sized = presets.with_aspect(sized, aspect)
    functions = streams.StreamFunctions(sized, tiny=decoder == "tiny")
    names = functions.components.parts
    part_files.require(sized, weights, names)
    placement = placement or pipeline_lib.Placement()
    devices = list(devices or jax.devices()[: placement.least])
    alone = devices == jax.local_devices()[:1] and placement.mode == "self-contained"
    meshes = placement.meshes(devices)
    if alone:  # Programs that were compiled before are loaded while weights are read.
        pipeline_lib.preload(functions, 1)
    text = prompts(sized, weights, meshes[0], (prompt or PROMPT, negative))

    def read(name: str, mesh: Mesh) -> dict:
        # The speech encoder stays in float32: it is small, and its norms are delicate.
        dtype = "float32" if name in ("audio", *functions.components.vae.parts) else sized.dtype
        loaded = part_files.load(sized, weights, name, mesh, dtype)
        if name == "transformer" and sized.dit.matrices != quantization.FULL:
            loaded = quantization.tree(loaded, functions.boxed()[name], sized.dit.matrices)
        return loaded

    params = {name: read(name, meshes[0]) for name in names}
    params[streams.CONSTANTS] = text
    with rules.use(meshes[0]):
        constants = jax.jit(functions.components.vae.constants)(params)
    params[streams.CONSTANTS] = {**text, **constants}
    if alone:
        return pipeline_lib.on_first_device(functions, params)
    apart = placement.mode == "disaggregated"
    decoder_params = {
        name: read(name, meshes[1]) if apart else params[name] for name in functions.decoder_parts
    }
    return pipeline_lib.Pipeline(functions, params, decoder_params, *meshes, apart)


def prompts(
    preset: presets.Preset, folder: str, mesh: Mesh, texts: tuple[str, str]
) -> dict[str, jax.Array]:
    """Features [1, L, D] of prompt and negative prompt; empty where the preset has no text."""
    c, names = preset.dit, ("prompt", "negative")
    if preset.text is None:
        return {}
    if part_files.find(folder, "text", part_files.parts.of_preset(preset, "text")) is None:
        logging.warning(
            "%s has no text encoder: text features are zeros and the prompt is not used. "
            "Make it with `python launch/convert.py --part=text --preset=%s "
            "--source=PUBLISHED --out=%s`.",
            folder, preset.name, os.path.join(folder, "text"),
        )
        return dict.fromkeys(names, jnp.zeros((1, c.text_length, c.text_width)))
    tokens = part_files.tokenizer(folder, c.text_length)(list(texts))
    params = part_files.load(preset, folder, "text", mesh, preset.dtype)
    model = umt5.UMT5Encoder(preset.text, jnp.dtype(preset.dtype))
    with rules.use(mesh):
        encode = jax.jit(lambda p, *x: model.apply({"params": p}, *x, method="prompt"))
        features = encode(params, tokens.ids, tokens.valid)
    return {name: features[i : i + 1] for i, name in enumerate(names)}


def prepare(
    preset: str, weights: str | None, options: dict,
    placement: pipeline_lib.Placement | None = None,
) -> tuple[pipeline_lib.Pipeline, Callable[..., session.Session]]:
    """Loads a preset and chooses its session.

    Args:
      preset: Name of the preset.
      weights: Folder with weights, or None.
      options: Any of `OPTIONS`: prompt, decoder, aspect, attention, matrices (`load`), face
        (`session.Session`), sampler ("student" or "teacher"); steps and guidance of the
        teacher.
      placement: How devices share the work; one device by default.

    Returns:
      The pipeline, and what makes a session of it.

    Raises:
      ValueError: An option that the preset or the sampler does not have, or whatever loading
        raises.
    """
    sampler = options.get("sampler", "student")
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}.")
    teacher = {name: options[name] for name in _TEACHER if name in options}
    if teacher and sampler != "teacher":
        raise ValueError(f"--{next(iter(teacher))} needs --sampler=teacher.")
    chosen: dict[str, Any] = {"face": options["face"]} if "face" in options else {}
    kind = session.Session
    if sampler == "teacher":
        kind = teacher_session.TeacherSession
        teacher = {"latents": presets.get(preset).teacher_latents, **teacher}
        chosen["sampler"] = teacher_session.Sampler(**teacher)
    chosen_to_load = {name: options[name] for name in _LOAD if name in options}
    loaded = load(preset, weights, placement=placement, **chosen_to_load)
    return loaded, functools.partial(kind, **chosen) if chosen else kind
