"""Stage `audio`: the speech encoder of a small preset learns mouth shapes from speech.

What wav2vec2's pre-training is for the large presets, this is for the small ones: the
transformer later reads the frozen features.
"""

import dataclasses

import grain
import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.configs import presets
from tm_jax.data.corpus import tracks
from tm_jax.models.audio.causal import config as audio_config
from tm_jax.models.audio.causal import encoder
from tm_jax.training import loop
from tm_jax.training import optimizer as optimizer_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioStageConfig:
    """Settings of the stage.

    Attributes:
      corpus: Folder written by `launch/corpus.py`.
      batch: Tracks per step.
      frames: Video frames per track.
      quiet: Fraction of tracks without speech, with noise only.
      vary: Largest relative change of speed and pitch.
      warp: Whether formants are moved at random (`encoder.WARPS`).
      optimizer: Optimiser.
    """

    corpus: str = "runs/corpus"
    batch: int = 24
    frames: int = 100
    quiet: float = 0.08
    vary: float = 0.12
    warp: bool = True
    optimizer: optimizer_lib.OptimizerConfig = optimizer_lib.OptimizerConfig(
        learning_rate=2e-3, weight_decay=0.05, ema_decay=0.99
    )


# Opening matters most; smile is constant in speech and the last column is voice activity.
_WEIGHTS = np.array([4.0, 0.5, 1.0, 1.0, 1.0, 0.0], np.float32)


def example(voices, config, audio, rng, clean=False) -> dict:
    """Samples [640 (history + n + future) + margins], mouth [n, 6] and activity [n]."""
    before, after = audio.history, audio.future
    total = config.frames + before + after
    if rng.random() < config.quiet and not clean:
        sound = tracks.noise(rng, total * encoder.FRAME) * 10 ** rng.uniform(-4, -1.5)
        track = tracks.Track(sound, np.zeros((total, 6), np.float32), np.zeros(total, np.float32))
    else:
        track = voices.draw(rng, total, 0.0 if clean else config.vary)
        sound = track.audio if clean else tracks.damage(rng, track.audio)
    kept = slice(before, before + config.frames)
    return {
        "samples": np.pad(sound, encoder.MARGIN).astype(np.float32),
        "mouth": track.mouth[kept], "active": track.active[kept],
    }


def make(preset: presets.Preset, config: AudioStageConfig) -> loop.Stage:
    """The stage for a preset with a speech encoder of its own.

    Raises:
      ValueError: The preset uses wav2vec2.
    """
    if not isinstance(preset.audio, audio_config.AudioEncoderConfig):
        raise ValueError(f"preset {preset.name} uses wav2vec2; there is none to train.")
    model = encoder.AudioEncoder(preset.audio)
    voices = tracks.Voices(config.corpus, "train")

    def init(key):
        return encoder.init(preset.audio, key)

    def loss(params, frozen, batch, key):
        warp = None
        if config.warp:
            warp = jax.random.randint(key, (len(batch["samples"]),), 0, len(encoder.WARPS))
        out = model.apply({"params": params}, batch["samples"], warp, method=model.train)
        told, voice = jnp.split(out[..., :-1], 1 + preset.audio.recalled, -1), out[..., -1]
        truth, frames = batch["mouth"], config.frames
        error = sum(
            jnp.mean(jnp.square(mouth[:, ago:] - truth[:, : frames - ago]) * _WEIGHTS)
            for ago, mouth in enumerate(told)
        ) / len(told)
        active = batch["active"]
        entropy = jnp.mean(jax.nn.softplus(voice) - active * voice)
        return error + 0.05 * entropy, {"mouth": error, "voice": entropy}

    def batches(seed):
        def one(index):
            rng = np.random.default_rng((seed, int(index)))
            return example(voices, config, preset.audio, rng)

        return (
            grain.MapDataset.range(1 << 31)
            .map(one)
            .batch(config.batch)
            .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
        )

    held_out = tracks.Voices(config.corpus, "held_out")
    apply = jax.jit(lambda p, x: model.apply({"params": p}, x, method=model.train))

    def sample(params, frozen, path):
        """Correlation of the predicted opening with the truth, per held-out speaker."""
        metrics, every = {}, []
        for speaker in held_out.speakers:
            one = tracks.Voices.__new__(tracks.Voices)
            one.speakers, one._weights = [speaker], np.ones(1)
            rng = np.random.default_rng(5)
            items = [example(one, config, preset.audio, rng, clean=True) for _ in range(8)]
            out = np.asarray(apply(params, np.stack([i["samples"] for i in items])))
            truth = np.stack([i["mouth"][:, 0] for i in items])
            every.append(np.corrcoef(out[..., 0].ravel(), truth.ravel())[0, 1])
            metrics[f"corr_{speaker.name}"] = float(every[-1])
        return {"correlation": float(np.median(every)), **metrics}

    return loop.Stage(
        name="audio", init=init, loss=loss, frozen={}, batches=batches, sample=sample,
        finish=lambda params, frozen: params, optimizer=config.optimizer,
    )
