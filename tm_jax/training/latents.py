"""Latents of drawn clips on disk: what the transformer learns from.

Drawing and encoding cost far more than reading, so clips are encoded once per run. The store
is a folder of memory-mapped arrays and grows by whole blocks; a killed build goes on where
it stopped.
"""

from collections.abc import Callable
import dataclasses
import json
import os
import typing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import tqdm

from tm_jax.configs import puppet as networks
from tm_jax.data.corpus import tracks
from tm_jax.data.synthetic import characters
from tm_jax.data.synthetic import drawn
from tm_jax.data.synthetic import motion as motion_lib
from tm_jax.models.audio.causal import encoder
from tm_jax.models.dit import audio_projection as dit_audio
from tm_jax.models.puppet.vae import autoencoder
from tm_jax.training import aligned
from tm_jax.training import sources

NAMES = (
    "latents", "reference", "features", "face", "mode", "expression"
)

_BLOCK = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentConfig:
    """What the store holds.

    Attributes:
      corpus: Folder written by `launch/corpus.py`.
      clips: Number of clips.
      latents: Latent frames per clip.
      listening: Fraction of listening clips.
      overheard: Fraction of listening clips whose sound holds another voice.
      sketches: Fraction of clips that are sketches beyond their turn: thin mouths are the
        hardest to learn.
      seed: Seed of all of it.
      mouth_weight: Weight in losses of the lower half, which speech moves, beside the upper.
      opening_weight: Weight in losses of the opening of the mouth beside the rest of the lower
        half.
    """

    corpus: str = "runs/corpus"
    clips: int = 9000
    latents: int = 9
    listening: float = 0.2
    overheard: float = 0.5
    sketches: float = 0.15
    seed: int = 0
    mouth_weight: float = 3.0
    opening_weight: float = 3.0

    @property
    def facts(self) -> dict:
        """What decides about the arrays of the store, as JSON."""
        facts = json.loads(json.dumps(dataclasses.asdict(self)))
        return {k: v for k, v in facts.items() if k not in ("mouth_weight", "opening_weight")}


def describe(
    config: LatentConfig, models: networks.Models, voices: tracks.Voices, rng: np.random.Generator,
    character: characters.Character
) -> dict[str, Any]:
    """One clip: character, motion and the sound that drives it.

    Returns:
      Dictionary of `character`, `motion` [1 + F, M] (portrait first), `samples` (float32,
      with the margins that features need), `mode` and the clean `audio` [640 F].
    """
    preset = models.preset
    frames = config.latents * preset.timing.frames_per_latent
    before, after = sound_margins(models)
    total = before + frames + after
    mode = int(rng.random() >= config.listening)
    if mode:
        track = voices.draw(rng, total)
        mouth = track.mouth[before : before + frames]
        motion = motion_lib.talking(rng, mouth, preset.timing.fps)
        sound = track.audio
    else:
        motion = motion_lib.listening(rng, frames, preset.timing.fps)
        if rng.random() < config.overheard:
            sound = voices.draw(rng, total).audio * rng.uniform(0.1, 1.0)
        else:
            sound = np.zeros(total * encoder.FRAME, np.float32)
            sound += tracks.noise(rng, len(sound)) * 10 ** rng.uniform(-4, -1.7)
    damaged = tracks.damage(rng, sound) if mode else sound
    portrait = motion_lib.portrait(rng)
    motion = motion_lib.hold(motion, portrait)
    motion = np.concatenate([portrait[None], motion])
    start = before * encoder.FRAME
    return {
        "character": character, "motion": motion.astype(np.float32), "mode": np.int32(mode),
        "samples": np.pad(damaged, encoder.MARGIN).astype(np.float32),
        "audio": sound[start : start + frames * encoder.FRAME].astype(np.float32),
        "jitter": drawn.jitter(rng),
    }


def sound_margins(models: networks.Models) -> tuple[int, int]:
    """Frames of sound before and after a clip that its audio windows depend on."""
    preset = models.preset
    before, after = dit_audio.margins(preset.dit.audio_window, preset.timing)
    audio = models.audio.config
    return before + audio.history, after + audio.future


def make_encoder(models: networks.Models, params: dict) -> Callable[[dict], dict[str, jax.Array]]:
    """Compiles (batch of descriptions) -> arrays of the store, for `params` of audio."""
    preset = models.preset

    @jax.jit
    def encode(params, batch):
        seen = aligned.squares(preset, batch, still=True)
        looks = autoencoder.appearance(seen["frames"][:, 0], models.vae.config)
        features = typing.cast(
            jax.Array, models.audio.apply({"params": params}, batch["samples"])
        )
        expression = batch["motion"][:, 1:, np.asarray(motion_lib.EXPRESSION)]
        return {
            "latents": seen["latents"].astype(jnp.float16),
            "reference": looks.astype(jnp.float16), "features": features.astype(jnp.float16),
            "face": jnp.round(seen["face"] * 255).astype(jnp.uint8),
            "mode": batch["mode"].astype(jnp.uint8), "expression": expression.astype(jnp.float16),
        }

    return lambda batch: encode(params["audio"], batch)


def build(
    folder: str, config: LatentConfig, models: networks.Models, params: dict
) -> dict[str, np.ndarray]:
    """Fills the store up to `config.clips`; returns its arrays, memory-mapped.

    Raises:
      ValueError: The folder holds latents of another configuration.
    """
    os.makedirs(folder, exist_ok=True)
    index = os.path.join(folder, "index.json")
    made = 0
    facts = config.facts
    if os.path.exists(index):
        with open(index) as file:
            found = json.load(file)
        made = found.pop("made")
        if {**found, "clips": 0} != {**facts, "clips": 0}:
            raise ValueError(f"{folder} holds other latents ({found}); use another folder.")
    encode = make_encoder(models, params)
    voices = tracks.Voices(config.corpus, "train")
    bar = tqdm.tqdm(total=config.clips, initial=made, desc="latents", unit="clip")
    while made < config.clips:
        items = []
        for i in range(made, made + _BLOCK):
            rng = np.random.default_rng((config.seed, 77, i))
            style = "sketch" if rng.random() < config.sketches else None
            character = characters.sample(characters.training_seed(i), style)
            items.append(describe(config, models, voices, rng, character))
        arrays = jax.device_get(encode(sources.collate(items)))
        for name, value in arrays.items():
            path = os.path.join(folder, f"{name}.npy")
            size = -(-config.clips // _BLOCK) * _BLOCK
            target = room(path, (size, *value.shape[1:]), value.dtype, made)
            target[made : made + _BLOCK] = value
            target.flush()
        made += _BLOCK
        with open(index + ".tmp", "w") as file:
            json.dump({**facts, "made": made}, file)
        os.replace(index + ".tmp", index)
        bar.update(_BLOCK)
    bar.close()
    return {  # There may be room for more, of a larger build that was stopped.
        name: np.load(os.path.join(folder, f"{name}.npy"), mmap_mode="r")[:made]
        for name in NAMES
    }


def room(path: str, shape: tuple[int, ...], dtype: npt.DTypeLike, made: int) -> np.memmap:
    """Memory-mapped array at `path` of at least `shape[0]` entries.

    One that is too short makes way for a longer one with the same first `made` entries.
    """
    found = np.lib.format.open_memmap(path, "r+") if os.path.exists(path) else None
    if found is not None and len(found) >= shape[0]:
        return found
    new = np.lib.format.open_memmap(path + ".tmp", "w+", dtype, shape)
    if found is not None:
        new[:made] = found[:made]
    new.flush()
    os.replace(path + ".tmp", path)
    return new


def window(
    store: dict, index: int, start: int, latents: int, models: networks.Models
) -> dict[str, np.ndarray]:
    """Cuts `latents` latent frames of clip `index` and what belongs to them.

    Returns:
      Dictionary of `reference` [H, W, A], `x0` [T, H, W, C], `windows` [T, R, U],
      `face` [P], `mode` and `expression` [T, X].
    """
    preset = models.preset
    before, after = dit_audio.margins(preset.dit.audio_window, preset.timing)
    group = preset.timing.frames_per_latent
    cut = slice(start * group, (start + latents) * group + before + after)
    features = np.asarray(store["features"][index, cut], np.float32)
    frames = slice(start * group, (start + latents) * group)
    expression = np.asarray(store["expression"][index, frames], np.float32)
    offsets = np.arange(latents)[:, None] * group + np.arange(preset.dit.audio_window)
    return {
        "reference": np.asarray(store["reference"][index], np.float32),
        "x0": np.asarray(store["latents"][index, start : start + latents], np.float32),
        "windows": features[offsets],
        "face": np.asarray(store["face"][index], np.float32) / 255,
        "mode": np.asarray(store["mode"][index], np.int32),
        "expression": expression.reshape(latents, -1),
    }
