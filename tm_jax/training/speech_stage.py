"""Stage `speech`: the speech encoder of a small preset learns phones from sound alone.

What wav2vec2's pre-training is for the large presets, this is for the small ones: the
transformer later reads the frozen features. From every feature a linear layer predicts which
phones are in its frame and in some before it, how loud speech is and whether there is
any; and, if asked for, what a recogniser that has heard many people makes of these frames. No face
and nothing that was made for one has a part in it.
"""

from collections.abc import Mapping
import dataclasses
import typing

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

from tm_jax.configs import presets
from tm_jax.data.corpus import acoustics
from tm_jax.data.corpus import recogniser
from tm_jax.data.corpus import speech
from tm_jax.data.corpus import spoken
from tm_jax.data.corpus import tracks
from tm_jax.models.audio.causal import config as audio_config
from tm_jax.models.audio.causal import encoder
from tm_jax.nn import parameters
from tm_jax.training import loop
from tm_jax.training import optimizer as optimizer_lib

CLASSES = len(speech.PHONES)
TAUGHT = "taught"  # Parameters that predict the recogniser's features, and are not kept.
COLUMNS = spoken.PARTS * CLASSES + 1  # Of one frame: phones of its parts, and level.
_HELD_OUT_TRACKS = 8
_STATISTICS = 1 << 20  # Seed of the batch on which features are standardised.


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechStageConfig:
    """Settings of the stage.

    Attributes:
      corpus: Folder written by `launch/corpus.py`.
      batch: Tracks per step.
      frames: Video frames per track.
      quiet: Share of tracks without speech, with noise only.
      vary: Largest relative change of speed and pitch.
      warp: Whether formants are moved at random (`encoder.WARPS`).
      level_weight: Weight of the squared error of the level.
      voice_weight: Weight of the cross-entropy of voice activity.
      recogniser_weight: Weight of the squared error of a recogniser's features
        (`data/corpus/recogniser.py`, extra `recogniser`); 0 does without it.
      damage: Rooms, microphones and noise.
      optimizer: Optimiser.
    """

    corpus: str = "runs/corpus"
    batch: int = 24
    frames: int = 100
    quiet: float = 0.06
    vary: float = 0.16
    warp: bool = True
    level_weight: float = 1.0
    voice_weight: float = 0.3
    recogniser_weight: float = 0.0
    damage: acoustics.AcousticsConfig = acoustics.AcousticsConfig()
    optimizer: optimizer_lib.OptimizerConfig = optimizer_lib.OptimizerConfig(
        learning_rate=2e-3, weight_decay=0.05, ema_decay=0.995
    )


def sizes(audio: audio_config.AudioEncoderConfig) -> audio_config.AudioEncoderConfig:
    """The encoder with as many outputs as this stage trains."""
    return dataclasses.replace(audio, outputs=COLUMNS + 1)


def example(
    voices: tracks.Voices, config: SpeechStageConfig, audio: audio_config.AudioEncoderConfig,
    rng: np.random.Generator, clean: bool = False,
    recognised: Mapping[str, np.ndarray] | None = None,
) -> dict:
    """One element of a batch.

    Args:
      voices: `tracks.Voices` to draw from.
      config: The stage.
      audio: Sizes of the encoder.
      rng: Random generator.
      clean: Speech as it was recorded, for measuring.
      recognised: The recogniser's features by speaker; None without.

    Returns:
      `samples` [640 (history + n + future) + margins], `phones` [n, PARTS], `active` [n],
      `level` [n], and perhaps `taught` [n, D], as in `spoken.Spoken`.
    """
    before, after = audio.history, audio.future
    total = config.frames + before + after
    if rng.random() < config.quiet and not clean:
        sound = acoustics.noise(rng, total * encoder.FRAME) * 10 ** rng.uniform(-4, -1.2)
        track = spoken.silence(sound)
    else:
        speaker = voices.speaker(rng)
        known = None if recognised is None else recognised[speaker.name]
        track = spoken.track(speaker, rng, total, 0.0 if clean else config.vary, known)
        sound = track.audio if clean else acoustics.damage(rng, track.audio, config.damage)
    kept = slice(before, before + config.frames)
    more = {}
    if recognised is not None:
        taught = track.taught
        if taught is None:
            taught = np.full((total, recogniser.COMPONENTS), np.nan, np.float32)
        more["taught"] = taught[kept]
    return more | {
        "samples": np.pad(sound, encoder.MARGIN).astype(np.float32),
        "phones": track.phones[kept], "active": track.active[kept], "level": track.level[kept],
    }


def parts(out: jax.Array, recalled: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The encoder's predictions, by kind.

    Args:
      out: [..., COLUMNS * (1 + recalled) + 1].
      recalled: Earlier frames that are predicted, too.

    Returns:
      Logits of phones [..., 1 + recalled, PARTS, CLASSES], of which entry k is of the
      frame k before; level [..., 1 + recalled]; logit of voice activity [...].
    """
    told = out[..., :-1].reshape(*out.shape[:-1], 1 + recalled, COLUMNS)
    logits = told[..., :-1].reshape(*told.shape[:-1], spoken.PARTS, CLASSES)
    return logits, told[..., -1], out[..., -1]


def _mean(x, known):
    return jnp.sum(x * known) / jnp.maximum(jnp.sum(known), 1)


def losses(out: jax.Array, batch: dict, recalled: int) -> dict:
    """Cross-entropy of phones, squared error of the level, cross-entropy of the voice.

    Unknown phones and unknown activity count for nothing.

    Args:
      out: [B, n, COLUMNS * (1 + recalled) + 1].
      batch: As `example` gives it.
      recalled: Earlier frames that are predicted, too.

    Returns:
      Scalars `phones`, `level` and `voice`, and `right`, the share of known parts of a
      feature's own frame whose phone is the most probable one.
    """
    logits, level, voice = parts(out, recalled)
    frames, truth = out.shape[1], batch["phones"]
    entropy = error = 0.0
    for ago in range(1 + recalled):
        there = truth[:, : frames - ago]
        told = logits[:, ago:, ago]  # [B, n - ago, PARTS, CLASSES]
        lost = optax.softmax_cross_entropy_with_integer_labels(told, jnp.maximum(there, 0))
        entropy += _mean(lost, there != spoken.UNKNOWN) / (1 + recalled)
        off = jnp.square(level[:, ago:, ago] - batch["level"][:, : frames - ago])
        error += jnp.mean(off) / (1 + recalled)
    active = batch["active"]
    heard = jax.nn.softplus(voice) - active * voice
    return {
        "phones": entropy, "level": error, "voice": _mean(heard, active != spoken.UNKNOWN),
        "right": _mean(jnp.argmax(logits[:, :, 0], -1) == truth, truth != spoken.UNKNOWN),
    }


def taught_error(told: jax.Array, taught: jax.Array, recalled: int) -> jax.Array:
    """Mean squared error of the recogniser's features, where there are any.

    Args:
      told: Predictions from every frame of itself and of `recalled` frames before it,
        [B, n, (1 + recalled) * D].
      taught: [B, n, D], nan where there are none.
      recalled: Earlier frames that are predicted, too.
    """
    frames, width = taught.shape[1:]
    told = told.reshape(*told.shape[:2], 1 + recalled, width)
    known = ~jnp.isnan(taught[..., 0])
    truth = jnp.where(known[..., None], taught, 0.0)
    total = 0.0
    for ago in range(1 + recalled):
        off = jnp.square(told[:, ago:, ago] - truth[:, : frames - ago]).mean(-1)
        total += _mean(off, known[:, : frames - ago]) / (1 + recalled)
    return jnp.asarray(total)


def accuracy(out: np.ndarray, batch: dict, recalled: int) -> dict:
    """How often phones and voice are right.

    Args:
      out: [B, n, COLUMNS * (1 + recalled) + 1].
      batch: As `example` gives it.
      recalled: Earlier frames that are predicted, too.

    Returns:
      `phones`: share of right phones where one is spoken; `delayed`: the same, predicted as late
      as the encoder may; `voice`: mean of the shares of speech and of silence that are found.
    """
    logits, _, voice = (np.asarray(x) for x in parts(jnp.asarray(out), recalled))
    truth, found = batch["phones"], logits.argmax(-1)  # [B, n, 1 + recalled, PARTS]
    silence, frames = speech.PHONE_ID["SIL"], truth.shape[1]
    spoke = (truth != silence) & (truth != spoken.UNKNOWN)
    late = slice(0, frames - recalled)
    speaking, quiet = batch["active"] == 1, batch["active"] == 0
    shares = [np.mean(voice[speaking] > 0), np.mean(voice[quiet] <= 0)]
    return {
        "phones": float((found[:, :, 0] == truth)[spoke].mean()),
        "delayed": float((found[:, recalled:, recalled] == truth[:, late])[spoke[:, late]].mean()),
        "voice": float(np.mean(shares)),
    }


def batches(
    voices: tracks.Voices, config: SpeechStageConfig, audio: audio_config.AudioEncoderConfig,
    seed: int, recognised: Mapping[str, np.ndarray] | None = None,
) -> grain.IterDataset:
    """Endless batches of `example`."""

    def one(index):
        rng = np.random.default_rng((seed, int(index)))
        return example(voices, config, audio, rng, recognised=recognised)

    return (
        grain.MapDataset.range(1 << 31)
        .map(one)
        .batch(config.batch)
        .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
    )


def make(preset: presets.Preset, config: SpeechStageConfig) -> loop.Stage:
    """The stage for a preset with a speech encoder of its own.

    Raises:
      ValueError: The preset uses wav2vec2.
    """
    if not isinstance(preset.audio, audio_config.AudioEncoderConfig):
        raise ValueError(f"preset {preset.name} uses wav2vec2; there is none to train.")
    audio = sizes(preset.audio)
    model = encoder.AudioEncoder(audio)
    voices = tracks.Voices(config.corpus, "train")
    held_out = tracks.Voices(config.corpus, "held_out")
    recognised = None
    if config.recogniser_weight:
        recognised = recogniser.taught(config.corpus, voices.speakers)

    def init(key):
        params = encoder.init(audio, key)
        if recognised is not None:
            shape = (audio.features, (1 + audio.recalled) * recogniser.COMPONENTS)
            params[TAUGHT] = {"kernel": parameters.named(
                nn.initializers.lecun_normal(), (None, None)
            )(jax.random.fold_in(key, 1), shape)}
        return params

    def loss(params, frozen, batch, key):
        warp = None
        if config.warp:
            warp = jax.random.randint(key, (len(batch["samples"]),), 0, len(encoder.WARPS))
        kept = {"params": {name: part for name, part in params.items() if name != TAUGHT}}
        features = typing.cast(jax.Array, model.apply(kept, batch["samples"], warp))
        out = typing.cast(jax.Array, model.apply(kept, features, method=model.predict))
        found = losses(out, batch, audio.recalled)
        total = (
            found["phones"] + config.level_weight * found["level"]
            + config.voice_weight * found["voice"]
        )
        if recognised is not None:
            told = features @ params[TAUGHT]["kernel"]
            found["recogniser"] = taught_error(told, batch["taught"], audio.recalled)
            total += config.recogniser_weight * found["recogniser"]
        return total, found

    apply = jax.jit(lambda p, x: model.apply({"params": p}, x, method=model.train))
    encode = jax.jit(lambda p, x: model.apply({"params": p}, x))

    def finish(params, frozen):
        params = {name: part for name, part in params.items() if name != TAUGHT}
        batch = next(iter(batches(voices, config, audio, _STATISTICS)))
        return standardised(params, encode(params, batch["samples"]))

    def sample(params, frozen, path):
        """Accuracy on every held-out speaker, and its median over them."""
        params = {name: part for name, part in params.items() if name != TAUGHT}
        every = {}
        for speaker in held_out.speakers:
            batch = clean_batch(speaker, config, audio)
            every[speaker.name] = accuracy(apply(params, batch["samples"]), batch, audio.recalled)
        medians = {
            kind: float(np.median([found[kind] for found in every.values()]))
            for kind in ("phones", "delayed", "voice")
        }
        return medians | {f"phones_{name}": found["phones"] for name, found in every.items()}

    return loop.Stage(
        name="speech", init=init, loss=loss, frozen={},
        batches=lambda seed: batches(voices, config, audio, seed, recognised), sample=sample,
        finish=finish, optimizer=config.optimizer,
    )


def standardised(params: dict, features: jax.Array) -> dict:
    """Parameters whose features have zero mean and unit deviation; predictions stay the same.

    Args:
      params: Parameters of the encoder.
      features: What it makes of speech, [B, n, U].
    """
    mean, spread = features.mean((0, 1)), features.std((0, 1)) + 1e-4
    out, labels = params["out"], params["labels"]
    return params | {
        "out": {"kernel": out["kernel"] / spread, "bias": (out["bias"] - mean) / spread},
        "labels": {
            "kernel": labels["kernel"] * spread[:, None],
            "bias": labels["bias"] + mean @ labels["kernel"],
        },
    }


def clean_batch(
    speaker: speech.Speaker, config: SpeechStageConfig, audio: audio_config.AudioEncoderConfig,
    count: int = _HELD_OUT_TRACKS
) -> dict:
    """A batch of one speaker's speech as it was recorded, the same at every call."""
    one = tracks.Voices.of([speaker])
    rng = np.random.default_rng(5)
    items = [example(one, config, audio, rng, clean=True) for _ in range(count)]
    return {name: np.stack([item[name] for item in items]) for name in items[0]}
