"""Encodes clips for training with Wan's parts: what `data/prepare.py` calls a `ClipEncoder`.

Latents are the VAE's, audio features the sliding-window features that a stream computes
(`models/wav2vec2/stream.py`), with real sound before and after the clip. Conditioning channels
hold nothing of a clip's own beside latent 0, so `condition` is empty.
"""

import functools
import hashlib
import os
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.core import trees
from tm_jax.inference import wan
from tm_jax.inference import wan_inputs
from tm_jax.inference import wan_weights
from tm_jax.models import presets
from tm_jax.models.clip import encoder as clip_encoder
from tm_jax.models.clip import pictures as clip_pictures
from tm_jax.models.wan import audio as dit_audio
from tm_jax.models.wan_vae import autoencoder as wan_vae
from tm_jax.models.wan_vae import clips
from tm_jax.models.wav2vec2 import config as wav2vec2_config
from tm_jax.models.wav2vec2 import encoder as wav2vec2
from tm_jax.models.wav2vec2 import stream
from tm_jax.parallel import rules


class WanClipEncoder:
    """Wan's VAE, wav2vec2, and the prompt and picture where the transformer takes them.

    Attributes:
      height: Height of the frames.
      width: Their width.
      before: Frames of sound wanted before frame 0: the window's past, in whole chunks.
      after: Frames of sound wanted after the last frame.
      grid: Rows and columns of tokens of a latent frame.
      margins: Feature frames of `audio` before frame 1 and after the last frame.
    """

    def __init__(
        self, sizes: wan_weights.Sizes, params: dict, text: np.ndarray | None, mesh,
        prompt: str = wan.PROMPT,
    ):
        """Makes an encoder.

        Args:
          sizes: Sizes of all parts.
          params: Parameters of `vae` and `audio`, and of `image` where it is used.
          text: Features of the prompt, [L, D]; None where the transformer takes none.
          mesh: Device mesh.
          prompt: The prompt, for the record.
        """
        preset, timing = sizes.preset, sizes.preset.timing
        self._sizes, self._params, self._mesh = sizes, params, mesh
        self._text, self._prompt = text, prompt
        self.height, self.width = preset.height, preset.width
        rows, columns, _ = preset.latent_shape
        self.grid = rows // preset.dit.patch, columns // preset.dit.patch
        self.margins = dit_audio.margins(preset.dit.audio_window, timing)
        self._window = wav2vec2_config.WindowConfig(
            timing=timing, before_frames=self.margins[0], after_frames=self.margins[1]
        )
        self._lead = -(-self._window.past_frames // timing.frames_per_chunk)  # Chunks.
        # Chunks are counted from frame 1, so one frame fewer lies before frame 0.
        self.before = self._lead * timing.frames_per_chunk - 1
        self.after = timing.frames_per_chunk

    def settings(self) -> dict:
        """Sizes and a fingerprint of the weights."""
        found = {
            "kind": "wan", "vae_width": self._sizes.vae.base_width,
            "audio_layers": self._sizes.audio.num_layers, "prompt": self._prompt,
        }
        for part, params in sorted(self._params.items()):
            found[f"{part}_weights"] = _fingerprint(params)
        return found

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
        latents = np.asarray(self._latents(self._params["vae"], frames))
        found = {
            "latents": latents, "condition": np.zeros((*latents[:, 0].shape[:-1], 0), np.float32),
            "audio": self._audio(sound),
        }
        if partner is not None:
            found["partner_audio"] = self._audio(partner)
        if self._text is not None:
            found["text"] = np.repeat(self._text[None], len(frames), 0)
        if "image" in self._params:
            small = [
                clip_pictures.prepare(picture, self._sizes.image.picture, fit="stretch")
                for picture in frames[:, 0]
            ]
            found["image"] = np.asarray(self._image(self._params["image"], np.stack(small)))
        return found

    @functools.cached_property
    def _latents(self):
        """Compiled (params, frames uint8 [B, F, H, W, 3]) -> latents [B, 1 + T, h, w, C]."""
        model = wan_vae.WanVAE(self._sizes.vae, jnp.dtype(self._sizes.preset.dtype))

        def run(params, frames):
            pixels = wan_inputs.to_float(frames)
            return clips.encode(model, params, pixels).astype(jnp.float32)

        return self._compile(run)

    @functools.cached_property
    def _features(self):
        """Compiled (params, sound [B, samples]) -> features [B, chunks, kept, U]."""
        model = wav2vec2.Wav2Vec2(self._sizes.audio)
        return self._compile(
            lambda params, sound: stream.windowed(model, params, self._window, sound)
        )

    @functools.cached_property
    def _image(self):
        model = clip_encoder.CLIPVision(self._sizes.image, jnp.dtype(self._sizes.preset.dtype))
        return self._compile(
            lambda params, x: model.apply({"params": params}, x).astype(jnp.float32)
        )

    def _audio(self, sound: np.ndarray) -> np.ndarray:
        """Features [B, before + 4 T + after, U] of sound with its context."""
        before, after = self.margins
        features = np.asarray(self._features(self._params["audio"], sound), np.float32)
        features = features[:, self._lead : -1]  # Of the clip's own chunks.
        middle = features[:, :, before : self._window.kept - after]
        middle = middle.reshape(len(sound), -1, features.shape[-1])
        return np.concatenate(
            [features[:, 0, :before], middle, features[:, -1, self._window.kept - after :]], 1
        )

    def _compile(self, function):
        compiled = jax.jit(function)

        def run(*args):
            with rules.use(self._mesh):
                return compiled(*args)

        return run


def load(
    preset: str, weights: str | os.PathLike | None, *, prompt: str = wan.PROMPT, mesh=None
) -> WanClipEncoder:
    """Loads the encoders of a preset.

    Args:
      preset: Its name.
      weights: Folder with the parts (`wan_weights.py`).
      prompt: What all videos show; used where there is a text encoder.
      mesh: Device mesh; the first device by default.

    Raises:
      ValueError: A preset whose latents are not encoded from pixels, or unfit files.
      FileNotFoundError: No folder, or a part that it lacks.
    """
    if presets.get(preset).vae is not None:
        full = [name for name, p in presets.PRESETS.items() if p.vae is None]
        raise ValueError(
            f"preset {preset} has no autoencoder that encodes video; use {' or '.join(full)}."
        )
    if weights is None:
        raise FileNotFoundError(f"preset {preset} needs --weights, a folder of converted weights.")
    sizes = wan_weights.sizes(preset, os.fspath(weights))
    mesh = rules.make_mesh(jax.devices()[:1]) if mesh is None else mesh
    names = ["vae", "audio"] + (["image"] if sizes.preset.dit.image_width is not None else [])
    wan_weights.require(sizes, weights, tuple(names))
    text = wan.text_features(sizes, weights, mesh, (prompt,))[0]
    params = {name: wan_weights.load(sizes, weights, name, mesh, "float32") for name in names}
    return WanClipEncoder(
        sizes, params, None if text is None else np.asarray(text[0], np.float32), mesh, prompt
    )


def _fingerprint(params) -> str:
    """A short hash of all values."""
    digest = hashlib.sha256()
    for name, leaf in sorted(trees.flatten(params).items()):
        array = np.asarray(leaf)
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]
