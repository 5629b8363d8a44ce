"""Streams of a preset with a motion model: a drawn face that is pasted into its picture."""

import dataclasses
import functools
import json
import os
import typing
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.checkpoints import files
from tm_jax.configs import components
from tm_jax.configs import presets
from tm_jax.configs import puppet as networks
from tm_jax.core import pixels
from tm_jax.core import trees
from tm_jax.inference import pipeline
from tm_jax.models.dit import causal as student
from tm_jax.models.dit import conditioning
from tm_jax.models.dit import transformer
from tm_jax.models.puppet import face as face_lib
from tm_jax.models.puppet import locator
from tm_jax.models.puppet.motion import config as motion_config
from tm_jax.models.puppet.motion import heard
from tm_jax.models.puppet.motion import network as motion_network
from tm_jax.models.puppet.motion import pose
from tm_jax.models.puppet.vae import autoencoder

_MOTION = 0x6D6F  # Sets the keys of motion apart from those of the student's chunks.


@flax.struct.dataclass
class Place:
    """A picture and its face.

    Attributes:
      picture: uint8 [B, H, W, 3].
      face: Box of the face (y0, x0, y1, x1) in 0..1, [B, 4].
      square: Box of the aligned square around it, likewise.
    """

    picture: jax.Array
    face: jax.Array
    square: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Start:
    """What a reference picture gives to a stream.

    Attributes:
      context: Constant conditioning of the transformer.
      reference: Code of the aligned face, [B, H, W, A].
      place: Where it is in the picture.
    """

    context: transformer.Context
    reference: jax.Array
    place: Place


@flax.struct.dataclass
class DenoiseState:
    """What `denoise` hands from chunk to chunk.

    Attributes:
      student: Cache of the transformer.
      motion: Motion so far.
    """

    student: student.StreamState
    motion: motion_network.MotionState


@flax.struct.dataclass
class Denoised:
    """One chunk, not yet decoded.

    Attributes:
      latents: [B, T, H, W, C].
      pose: Pose of head and chest in every frame, [B, F, 6].
      place: As in `Start`.
    """

    latents: jax.Array
    pose: jax.Array
    place: Place


@dataclasses.dataclass(frozen=True)
class PuppetFunctions:
    """See `pipeline.Functions`.

    Attributes:
      preset: Sizes and clocks.
    """

    preset: presets.Preset
    partner = True
    decoder_parts = ("vae",)

    @functools.cached_property
    def models(self) -> networks.Models:
        """The networks."""
        return networks.models(self.preset)

    @functools.cached_property
    def audio(self) -> components.AudioEncoder:
        """The speech encoder."""
        return components.audio_encoder(self.preset)

    @property
    def before(self) -> int:
        """See `pipeline.Functions`."""
        return self.audio.before

    @property
    def after(self) -> int:
        """See `pipeline.Functions`."""
        return self.audio.after

    def boxed(self) -> dict:
        """See `pipeline.Functions`."""
        key = jax.random.key(0)
        return {
            part: jax.eval_shape(functools.partial(self.models.init, part), key)
            for part in networks.PARTS
        }

    def inputs(self, pictures: np.ndarray, faces: np.ndarray | None) -> dict:
        """See `pipeline.Functions`; the face is located by a network."""
        del faces
        return {"pictures": pictures}

    def begin(
        self, params: dict, inputs: dict, keys: jax.Array
    ) -> tuple[Start, DenoiseState, jax.Array]:
        """See `pipeline.Functions`."""
        models, preset, pictures = self.models, self.preset, inputs["pictures"]
        frames = pixels.to_float(pictures)
        numbers = models.locator.apply({"params": params["locator"]}, frames)
        face = locator.boxes(typing.cast(jax.Array, numbers))
        place = Place(picture=pictures, face=face, square=face_lib.square(face))
        aligned = face_lib.cut(frames[:, None], place.square, models.vae.config.side)[:, 0]
        reference = autoencoder.appearance(aligned, models.vae.config)
        context = typing.cast(transformer.Context, models.dit.apply(
            {"params": params["dit"]}, method=models.dit.context,
            face_mask=face_lib.tokens(face, place.square, models.grid.rows, models.grid.columns),
        ))  # fmt: skip
        keys = pipeline.keys_of(keys)
        neutral = jnp.zeros((len(pictures), 1, preset.dit.expression_channels))
        channels = conditioning.expression_channels(reference, neutral)
        rest = jnp.zeros((len(pictures), *preset.latent_shape))
        state = student.begin(
            models.dit, params["dit"], rest, channels[:, 0], context, keys,
            preset.timing.latents_per_chunk, preset.student.num_steps, preset.student.policy,
            preset.student.view,
        )
        motion_keys = jax.vmap(lambda key: jax.random.fold_in(key, _MOTION))(keys)
        state = DenoiseState(
            student=state, motion=motion_network.initial_state(models.motion.config, motion_keys)
        )
        start = Start(context=context, reference=reference, place=place)
        return start, state, aligned

    def begin_decoder(self, params: dict, given: jax.Array) -> Any:
        """See `pipeline.Functions`."""
        vae = self.models.vae
        return vae.apply({"params": params["vae"]}, given, method=vae.begin)

    def encode_audio(
        self, params: dict, samples: jax.Array, known: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """See `pipeline.Functions`."""
        return self.audio.encode(params, samples, known)

    def encode_partner(self, params: dict, samples: jax.Array) -> jax.Array:
        """See `pipeline.Functions`: loudness of every frame, [B, F]."""
        del params
        sound = samples[:, self.before + self.after :]
        return heard.loudness(sound, self.preset.timing.samples_per_frame)

    def denoise(
        self, params: dict, state: DenoiseState, start: Start, windows: jax.Array, mode: jax.Array,
        partner: jax.Array | None
    ) -> tuple[Denoised, DenoiseState]:
        """See `pipeline.Functions`."""
        assert partner is not None  # `Pipeline.denoise` gives silence where nobody is heard.
        models, preset = self.models, self.preset
        motion, motion_state = motion_network.next_chunk(
            models.motion, params["motion"], state.motion, windows, mode, partner
        )
        expression, moved = jnp.split(motion, [len(motion_config.EXPRESSION)], -1)
        expression = expression.reshape(*mode.shape, -1)  # [B, T, X]
        given = conditioning.Conditioning(
            channels=conditioning.expression_channels(start.reference, expression),
            audio=windows, mode=mode,
        )
        latents, cache = student.next_chunk(
            models.dit, params["dit"], state.student, given, start.context, preset.sigmas,
            preset.student.policy, preset.student.temperature,
        )
        denoised = Denoised(latents=latents, pose=moved, place=start.place)
        return denoised, DenoiseState(student=cache, motion=motion_state)

    def decode(self, params: dict, latents: Denoised, state: Any) -> tuple[jax.Array, Any]:
        """See `pipeline.Functions`."""
        models, place = self.models, latents.place
        opened = autoencoder.respond(latents.latents, models.preset.opening)
        painted = models.vae.apply(
            {"params": params["vae"]}, opened, state, method=models.vae.paint_chunk
        )
        paint, hidden, state = typing.cast(tuple[jax.Array, jax.Array, Any], painted)
        picture = pixels.to_float(place.picture)
        frames = face_lib.paste(paint, hidden, picture, place.square, place.face)
        return pixels.to_uint8(pose.warp(frames, latents.pose, place.face)), state


def functions_of(model: pipeline.Pipeline) -> PuppetFunctions:
    """The functions of a pipeline, where its preset has a motion model.

    Raises:
      ValueError: It has none.
    """
    functions = model.functions
    if not isinstance(functions, PuppetFunctions):
        raise ValueError(
            f"expected a preset with a motion model, such as nano, got {functions.preset.name}."
        )
    return functions


def load(preset: str = "nano", weights: str | None = None, batch: int = 1) -> pipeline.Pipeline:
    """Loads a preset, with the student's sampler that the weights' metadata names.

    Programs that were compiled by an earlier process are loaded in the background, while
    weights are read.

    Args:
      preset: Name in `presets.PRESETS`.
      weights: Folder with dit, vae, audio, locator and motion `.safetensors`; the weights
        that come with the package by default.
      batch: Streams for which programs are loaded ahead; others are loaded or compiled when
        they are first used, as all are of which none is kept.

    Returns:
      The pipeline.

    Raises:
      ValueError: Unknown preset, a preset that this version cannot run, or files that do not
        fit it.
      FileNotFoundError: No such weights.
    """
    base = presets.get(preset)
    folder = weights or networks.shipped(preset)
    if not os.path.isdir(folder):
        where = "--weights" if weights else "the package"
        raise FileNotFoundError(
            f"{where}: {folder} is not a folder with weights of preset {preset}; train them "
            "with launch/train.py, or use preset nano, whose weights come with the package."
        )
    paths = {part: os.path.join(folder, f"{part}.safetensors") for part in networks.PARTS}
    functions = PuppetFunctions(base.trained(files.facts(paths["dit"])))
    pipeline.preload(functions, batch)
    shapes = _shapes(functions)
    params = {part: files.load(path, shapes[part]) for part, path in paths.items()}
    return pipeline.on_first_device(functions, params)


def _shapes(functions: PuppetFunctions) -> dict:
    """`networks.shapes`, which takes seconds to trace, kept beside the programs."""
    store = pipeline.kept_programs(functions)
    kept = store.read("shapes") if store else None
    if kept:
        return {
            part: trees.unflatten({
                name: jax.ShapeDtypeStruct(shape, dtype)
                for name, (shape, dtype) in leaves.items()
            })
            for part, leaves in json.loads(kept).items()
        }  # fmt: skip
    shapes = networks.shapes(functions.models)
    if store:
        flat = {
            part: {k: (v.shape, str(v.dtype)) for k, v in trees.flatten(tree).items()}
            for part, tree in shapes.items()
        }
        store.write("shapes", json.dumps(flat).encode())
    return shapes
