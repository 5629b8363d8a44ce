"""A preset with its weights, and the compiled programs that streams run.

Every program computes a batch of B independent streams: B is the leading axis of all that
goes in and comes out, except the parameters, and each B is compiled on its own. A stream
gives the same frames whatever its neighbours do, so a server replaces one stream of a batch
(`Bundle.insert`) while the others go on.
"""

import dataclasses
import functools
import json
import os

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.core import trees
from tm_jax.inference import programs
from tm_jax.models import face as face_lib
from tm_jax.models import locator
from tm_jax.models import networks
from tm_jax.models import presets
from tm_jax.models.audio_encoder import encoder
from tm_jax.models.motion import config as motion_config
from tm_jax.models.motion import network as motion_network
from tm_jax.models.motion import pose
from tm_jax.models.vae import autoencoder
from tm_jax.models.wan import audio as dit_audio
from tm_jax.models.wan import conditioning
from tm_jax.models.wan import student
from tm_jax.weights import files

_MOTION = 0x6D6F  # Sets the keys of motion apart from those of the student's chunks.


@dataclasses.dataclass(frozen=True, eq=False)
class Bundle:
    """Networks and weights, ready for any number of streams.

    A stream starts with `begin`. For every chunk it runs `hear`, `score` and `decode`, whose
    states are handed from chunk to chunk; a state that was handed in cannot be used again.

    Attributes:
      models: The networks.
      params: Their parameters by part, on the device.
    """

    models: networks.Models
    params: dict

    @property
    def preset(self) -> presets.Preset:
        """Sizes and clocks."""
        return self.models.preset

    @functools.cached_property
    def before(self) -> int:
        """Samples ahead of a chunk's own that `hear` needs."""
        window, _ = dit_audio.margins(self.preset.dit.audio_window, self.preset.timing)
        return (window + self.preset.audio.history) * encoder.FRAME + encoder.MARGIN

    @functools.cached_property
    def after(self) -> int:
        """Samples after a chunk's own that `hear` needs: the look-ahead."""
        _, window = dit_audio.margins(self.preset.dit.audio_window, self.preset.timing)
        return (window + self.preset.audio.future) * encoder.FRAME + encoder.MARGIN

    @functools.cached_property
    def begin(self):
        """Compiled (params, pictures uint8 [B, H, W, 3], keys) -> states before chunk 0.

        `keys` are uint32 [B, 2], one `stream_key` for every stream. The states are `Start`
        (stays the same for the whole stream), `StreamState` (goes through `score`) and
        `DecoderState` (goes through `decode`).
        """
        return _programs(self.models)["begin"]

    @functools.cached_property
    def hear(self):
        """Compiled (params, samples [B, n]) -> windows [B, T, R, U], voice [B, T] in 0..1.

        The n = before + samples_per_chunk + after samples begin `before` ahead of the chunk.
        """
        return _programs(self.models)["hear"]

    def score(self, params, state, start, windows, mode, other=None):
        """Compiled (params, state, start, windows, mode int32 [B, T]) -> latents, next state.

        Mode is 0 for listening and 1 for speaking. Latents are a tree for `decode` alone.
        `other` float32 [B, F] is the loudness of the other party in every frame
        (`media/overheard.py`), which a listener answers; silence by default.
        """
        if other is None:
            batch, latents = mode.shape
            frames = latents * self.preset.timing.frames_per_latent
            other = np.zeros((batch, frames), np.float32)
        return _programs(self.models)["score"](params, state, start, windows, mode, other)

    @functools.cached_property
    def decode(self):
        """Compiled (params, latents, state) -> frames uint8 [B, F, H, W, 3], next state."""
        return _programs(self.models)["decode"]

    @functools.cached_property
    def insert(self):
        """Compiled (batch tree, index, one tree) -> batch tree with another stream `index`.

        The trees are alike, with B streams and with one, such as what `begin` gave for each.
        The batch tree that was handed in cannot be used again.
        """
        return jax.jit(_insert, donate_argnums=0)

    def warm(self, batch: int = 1) -> None:
        """Makes a chunk of silence with `batch` streams and forgets it.

        After that nothing is left to compile or load for that many streams, and the first
        chunk of a client takes no longer than the others.
        """
        preset = self.preset
        pictures = np.zeros((batch, preset.height, preset.width, 3), np.uint8)
        keys = np.zeros((batch, 2), np.uint32)
        streams = self.begin(self.params, pictures, keys)
        one = self.begin(self.params, pictures[:1], keys[:1])
        start, state, decoder = self.insert(streams, 0, one)
        samples = self.before + preset.timing.samples_per_chunk + self.after
        windows, voice = self.hear(self.params, np.zeros((batch, samples), np.float32))
        mode = np.zeros(voice.shape, np.int32)
        latents, state = self.score(self.params, state, start, windows, mode)
        jax.block_until_ready(self.decode(self.params, latents, decoder))


def stream_key(seed: int, chunk: int = 0) -> np.ndarray:
    """The random key of a stream that begins, uint32 [2].

    Args:
      seed: Seed of the session; its lower 32 bits count.
      chunk: Chunks that the session showed before, so that it never draws a noise twice.
    """
    return np.array([seed & 0xFFFFFFFF, chunk & 0xFFFFFFFF], np.uint32)


def load(preset: str = "nano", weights: str | None = None, batch: int = 1) -> Bundle:
    """Loads a preset; the student samples in the way that its weights say it was trained for.

    Programs that were compiled by an earlier process are loaded in the background, while
    weights are read.

    Args:
      preset: Name in `presets.PRESETS`.
      weights: Folder with dit, vae, audio, locator and motion `.safetensors`; the weights
        that come with the package by default.
      batch: Streams for which programs are loaded ahead; others are loaded or compiled when
        they are first used, as all are of which none is kept.

    Returns:
      The bundle.

    Raises:
      ValueError: Unknown preset, a preset that this version cannot run, or files that do not
        fit it.
      FileNotFoundError: No such weights.
    """
    models = networks.models(presets.get(preset))
    folder = weights or networks.shipped(preset)
    if not os.path.isdir(folder):
        where = "--weights" if weights else "the package"
        raise FileNotFoundError(
            f"{where}: {folder} is not a folder with weights of preset {preset}; train them "
            "with launch/train.py, or use preset nano, whose weights come with the package."
        )
    paths = {part: os.path.join(folder, f"{part}.safetensors") for part in networks.PARTS}
    models = networks.models(models.preset.trained(files.facts(paths["dit"])))
    _programs(models).preload(batch)
    shapes = _shapes(models)
    params = {part: files.load(path, shapes[part]) for part, path in paths.items()}
    return Bundle(models, jax.device_put(params))


def _shapes(models: networks.Models) -> dict:
    """`networks.shapes`, which takes seconds to trace, kept beside the programs."""
    store = _programs(models).store()
    kept = store and store.read("shapes")
    if kept:
        return {
            part: trees.unflatten({
                name: jax.ShapeDtypeStruct(shape, dtype)
                for name, (shape, dtype) in leaves.items()
            })
            for part, leaves in json.loads(kept).items()
        }  # fmt: skip
    shapes = networks.shapes(models)
    if store:
        flat = {
            part: {k: (v.shape, str(v.dtype)) for k, v in trees.flatten(tree).items()}
            for part, tree in shapes.items()
        }
        store.write("shapes", json.dumps(flat).encode())
    return shapes


@functools.lru_cache(maxsize=8)
def _programs(models: networks.Models) -> programs.Programs:
    """The programs of these networks, shared by all bundles that have them."""
    functions = {
        "begin": (_begin, ()), "hear": (_hear, ()), "score": (_score, (1,)),
        "decode": (_decode, (2,)),
    }  # fmt: skip
    bound = {k: (functools.partial(f, models), donate) for k, (f, donate) in functions.items()}
    return programs.Programs(bound, repr(models.preset))


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

    context: object
    reference: jax.Array
    place: Place


@flax.struct.dataclass
class ScoreState:
    """What `score` hands from chunk to chunk.

    Attributes:
      student: Cache of the transformer.
      motion: Motion so far.
    """

    student: student.StreamState
    motion: motion_network.MotionState


@flax.struct.dataclass
class Scored:
    """One chunk, not yet decoded.

    Attributes:
      latents: [B, T, H, W, C].
      pose: Pose of head and chest in every frame, [B, F, 6].
      place: As in `Start`.
    """

    latents: jax.Array
    pose: jax.Array
    place: Place


def _begin(models, params, pictures, keys):
    from tm_jax.data import drawn  # Slow to import; a program that is kept needs it not.

    preset = models.preset
    frames = drawn.to_float(pictures)
    face = locator.boxes(models.locator.apply({"params": params["locator"]}, frames))
    place = Place(picture=pictures, face=face, square=face_lib.square(face))
    aligned = face_lib.cut(frames[:, None], place.square, preset.crop)[:, 0]
    variables = {"params": params["vae"]}
    reference = autoencoder.appearance(aligned, preset.vae)
    context = models.dit.apply(
        {"params": params["dit"]}, method=models.dit.context,
        face_mask=face_lib.tokens(face, place.square, models.grid.rows, models.grid.columns),
    )
    keys = jax.vmap(lambda key: jax.random.fold_in(jax.random.key(key[0]), key[1]))(keys)
    neutral = jnp.zeros((len(pictures), 1, preset.dit.expression_channels))
    channels = conditioning.expression_channels(reference, neutral)
    rest = jnp.zeros((len(pictures), *preset.latent_shape))
    state = student.begin(
        models.dit, params["dit"], rest, channels[:, 0], context, keys,
        preset.timing.latents_per_chunk, preset.student.num_steps, preset.student.policy,
        preset.student.view,
    )
    motion_keys = jax.vmap(lambda key: jax.random.fold_in(key, _MOTION))(keys)
    state = ScoreState(
        student=state, motion=motion_network.initial_state(preset.motion, motion_keys)
    )
    start = Start(context=context, reference=reference, place=place)
    return start, state, models.vae.apply(variables, aligned, method=models.vae.begin)


def _hear(models, params, samples):
    preset = models.preset
    variables = {"params": params["audio"]}
    features = models.audio.apply(variables, samples)
    labels = models.audio.apply(variables, features, method=models.audio.predict)
    before, _ = dit_audio.margins(preset.dit.audio_window, preset.timing)
    frames = preset.timing.frames_per_chunk
    voice = jax.nn.sigmoid(labels[:, before : before + frames, -1])  # [B, F]
    voice = voice.reshape(voice.shape[0], -1, preset.timing.frames_per_latent).max(-1)
    windows = dit_audio.windows(features, preset.dit.audio_window, preset.timing)
    return windows, voice


def _score(models, params, state, start, windows, mode, other):
    preset = models.preset
    motion, motion_state = motion_network.next_chunk(
        models.motion, params["motion"], state.motion, windows, mode, other
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
    scored = Scored(latents=latents, pose=moved, place=start.place)
    return scored, ScoreState(student=cache, motion=motion_state)


def _decode(models, params, scored, state):
    from tm_jax.data import drawn  # See `_begin`.

    latents = autoencoder.respond(scored.latents, models.preset.opening)
    paint, hidden, state = models.vae.apply(
        {"params": params["vae"]}, latents, state, method=models.vae.paint_chunk
    )
    place, picture = scored.place, drawn.to_float(scored.place.picture)
    frames = face_lib.paste(paint, hidden, picture, place.square, place.face)
    return drawn.to_uint8(pose.warp(frames, scored.pose, place.face)), state


def _insert(batch, index, one):
    return jax.tree.map(
        lambda many, x: jax.lax.dynamic_update_index_in_dim(many, x[0], index, 0), batch, one
    )
