"""Encodes clips for training with a preset's own components: a `data/prepare.ClipEncoder`.

Latents, audio windows and conditioning are those that a stream of the same picture and sound has,
because the same components make them.
"""

from collections.abc import Mapping
import functools
import hashlib
import os

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from tm_jax.checkpoints import hub
from tm_jax.configs import components as components_lib
from tm_jax.configs import presets
from tm_jax.core import pixels
from tm_jax.core import trees
from tm_jax.inference import loading
from tm_jax.inference import part_files
from tm_jax.inference import streams
from tm_jax.models.image import encoder as clip_encoder
from tm_jax.models.image import pictures as clip_pictures
from tm_jax.parallel import rules


class ClipEncoder:
    """The encoders of a preset.

    Attributes:
      height: Height of the frames.
      width: Their width.
      before: Frames of sound wanted before frame 0.
      after: Frames of sound wanted after the last frame.
      grid: Rows and columns of tokens of a latent frame.
    """

    def __init__(self, functions: streams.StreamFunctions, params: dict, mesh, prompt: str = ""):
        """Makes an encoder.

        Args:
          functions: What streams of the preset compute.
          params: Parameters of the encoders by part, and the constants.
          mesh: Device mesh.
          prompt: The prompt, for the record.
        """
        self._functions, self._params, self._mesh = functions, params, mesh
        self._prompt = prompt
        preset = functions.preset
        self.height, self.width = preset.height, preset.width
        grid = functions.components.grid
        self.grid = grid.rows, grid.columns
        rate = preset.timing.samples_per_frame
        # Chunks are counted from frame 1, so one frame fewer lies before frame 0. A partner is
        # heard `functions.after` late, as in a stream.
        self._late = functions.after if preset.dit.partner_audio else 0
        self.before = -(-(functions.before + self._late) // rate) - 1
        self.after = -(-functions.after // rate)

    @property
    def preset(self) -> presets.Preset:
        """Sizes and clocks."""
        return self._functions.preset

    def settings(self) -> dict:
        """Sizes and a fingerprint of the weights."""
        found = {"sizes": presets.settings(self.preset), "prompt": self._prompt}
        for part, params in sorted(self._params.items()):
            found[f"{part}_weights"] = _fingerprint(params)
        return found

    def constants(self) -> Mapping[str, np.ndarray]:
        """The features of the prompt and of the empty one, [L, D] each; see `ClipEncoder`."""
        if self.preset.text is None:
            return {}
        known = self._params[streams.CONSTANTS]
        names = {"text": "prompt", "negative_text": "negative"}
        return {name: np.asarray(known[key][0], np.float32) for name, key in names.items()}

    def __call__(
        self, frames: np.ndarray, sound: np.ndarray, partner: np.ndarray | None = None
    ) -> Mapping[str, np.ndarray]:
        """Encodes one clip; see `prepare.ClipEncoder`."""
        partner = None if partner is None else partner[None]
        found = self.encode_batch(frames[None], sound[None], partner)
        return {name: part[0] for name, part in found.items()}

    def encode_batch(
        self, frames: np.ndarray, sound: np.ndarray, partner: np.ndarray | None = None
    ) -> Mapping[str, np.ndarray]:
        """Encodes clips of equal length; see `prepare.ClipEncoder`."""
        latents, condition = self._video(self._params, frames)
        found = {
            "latents": np.asarray(latents), "condition": np.asarray(condition),
            "audio": self._windows(sound, frames.shape[1]),
        }
        if self._functions.components.vae.decodes_beside_picture:
            found["picture"] = frames[:, 0]
        if self.preset.dit.partner_audio:
            partner = np.zeros_like(sound) if partner is None else partner
            found["partner_audio"] = self._windows(partner, frames.shape[1], self._late)
        if self.preset.image is not None:
            side = self.preset.image.picture
            small = [clip_pictures.prepare(p, side, fit="stretch") for p in frames[:, 0]]
            found["image"] = np.asarray(self._image(self._params["image"], np.stack(small)))
        return found

    @functools.cached_property
    def _video(self):
        """Compiled (params, frames uint8 [B, F, H, W, 3]) -> latents and condition."""
        vae, kind = self._functions.components.vae, self.preset.conditioning

        def run(params, frames):
            clip = pixels.to_float(frames)
            latents = vae.encode(params, clip)
            reference = vae.begin(params, params[streams.CONSTANTS], clip[:, 0])
            condition = reference.condition
            if kind == "none":
                condition = condition[..., :0]
            elif kind == "first_frame":
                # A clip of its own, then what a long stream settles at.
                assert isinstance(vae, components_lib.WanVideoVAE)  # No other has such presets.
                exact = vae.clip_condition(params, clip[:, 0], latents.shape[1])
                condition = jnp.concatenate([exact, condition[:, -1:]], 1)
            return latents.astype(jnp.float32), condition.astype(jnp.float32)

        return self._compile(run)

    @functools.cached_property
    def _audio(self):
        """Compiled (params, samples [B, n], known [B]) -> windows and voice activity."""
        return self._compile(self._functions.components.audio.encode)

    @functools.cached_property
    def _image(self):
        config = self.preset.image
        assert config is not None  # Asked for by presets that have one.
        model = clip_encoder.CLIPVision(config, jnp.dtype(self.preset.dtype))

        def run(params, x):
            return jnp.asarray(model.apply({"params": params}, x), jnp.float32)

        return self._compile(run)

    def _windows(self, sound: np.ndarray, frames: int, late: int = 0) -> np.ndarray:
        """Audio windows [B, T, R, U] of a clip, chunk by chunk as a stream computes them.

        Args:
          sound: [B, samples] with `before` and `after` frames around the clip.
          frames: Frames of the clip.
          late: Samples by which the sound is heard late.
        """
        functions, timing = self._functions, self.preset.timing
        step = timing.samples_per_chunk
        length = functions.before + step + functions.after
        chunks = -(-(frames - 1) // timing.frames_per_chunk)
        start = (self.before + 1) * timing.samples_per_frame - functions.before - late
        missing = start + chunks * step + length - sound.shape[1]
        sound = np.pad(sound, ((0, 0), (0, max(0, missing))))
        known = np.full(len(sound), length, np.int32)
        made = [
            np.asarray(self._audio(self._params, sound[:, at : at + length], known)[0], np.float32)
            for at in range(start, start + chunks * step, step)
        ]
        return np.concatenate(made, 1)[:, : (frames - 1) // timing.frames_per_latent]

    def _compile(self, function):
        compiled = jax.jit(function)

        def run(*args):
            with rules.use(self._mesh):
                return compiled(*args)

        return run


def load(
    preset: str, weights: str | os.PathLike | None, *, prompt: str = loading.PROMPT,
    aspect: float | None = None, mesh: Mesh | None = None
) -> ClipEncoder:
    """Loads the encoders of a preset; the transformer is not needed.

    Args:
      preset: Its name.
      weights: Folder with the parts (`part_files.py`), or `hf:...`.
      prompt: What all videos show; used where there is a text encoder.
      aspect: Width over height of the clips, with at most the preset's area; None: the preset's.
      mesh: Device mesh; the first device by default.

    Raises:
      ValueError: A preset whose latents are not encoded from pixels, or unfit files.
      FileNotFoundError: No folder, or a part that it lacks.
    """
    folder = presets.shipped(preset) if weights is None else hub.resolve(os.fspath(weights))
    sized = part_files.preset_of(preset, folder)
    if aspect is not None:
        sized = presets.with_aspect(sized, aspect)
    functions = streams.StreamFunctions(sized)
    mesh = rules.make_mesh(jax.devices()[:1]) if mesh is None else mesh
    parts: components_lib.Components = functions.components
    names = [name for name in parts.parts if name != "transformer"]
    part_files.require(sized, folder, tuple(names))
    params = {name: part_files.load(sized, folder, name, mesh, "float32") for name in names}
    constants = loading.prompts(sized, folder, mesh, (prompt, ""))
    params[streams.CONSTANTS] = constants
    with rules.use(mesh):
        more = jax.jit(parts.vae.constants)(params)
    params[streams.CONSTANTS] = {**constants, **more}
    return ClipEncoder(functions, params, mesh, prompt)


def _fingerprint(params) -> str:
    """A short hash of all values."""
    digest = hashlib.sha256()
    for name, leaf in sorted(trees.flatten(params).items()):
        array = np.asarray(leaf)
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]
