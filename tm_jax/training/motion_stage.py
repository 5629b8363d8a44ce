"""Stage `motion`: the motion model learns eyes, brows, head and breath of talkers and listeners."""

import dataclasses

import grain
import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.data import motion as motion_lib
from tm_jax.data import tracks
from tm_jax.diffusion import flow
from tm_jax.models import networks
from tm_jax.models.audio_encoder import encoder
from tm_jax.models.motion import config as motion_config
from tm_jax.models.motion import network
from tm_jax.models.wan import audio as dit_audio
from tm_jax.training import latents as latents_lib
from tm_jax.training import loop
from tm_jax.training import optimizer as optimizer_lib

COLUMNS = [motion_lib.COLUMNS.index(name) for name in motion_config.COLUMNS]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MotionStageConfig:
    """Settings of the stage.

    Attributes:
      corpus: Folder written by `launch/corpus.py`.
      clips: Clips of motion and sound to learn from.
      latents: Latent frames per clip.
      listening: Fraction of listening clips.
      batch: Latent frames per step.
      noise: Standard deviation of noise on the past, in units of its spread: the model's own
        past is never as smooth as the data's.
      previews: Seconds of motion drawn for the measures.
      optimizer: Optimiser.
    """

    corpus: str = "runs/corpus"
    clips: int = 400
    latents: int = 120
    listening: float = 0.5
    batch: int = 512
    noise: float = 0.02
    previews: int = 60
    optimizer: optimizer_lib.OptimizerConfig = optimizer_lib.OptimizerConfig(
        learning_rate=2e-3, weight_decay=0.01, ema_decay=0.995
    )


def _clips(models, params, config, voices, seed, count):
    """Motion [N, F, M], audio windows [N, T, R, U] and mode [N] of `count` clips."""
    timing, window = models.preset.timing, models.preset.dit.audio_window
    before, after = latents_lib.sound_margins(models)
    frames = config.latents * timing.frames_per_latent
    total = before + frames + after
    hear = jax.jit(lambda p, x: dit_audio.windows(
        models.audio.apply({"params": p}, x), window, timing
    ))
    motions, windows, modes = [], [], []
    for index in range(count):
        rng = np.random.default_rng((seed, 21, index))
        speaks = rng.random() >= config.listening
        if speaks:
            track = voices.draw(rng, total)
            motion = motion_lib.talking(
                rng, track.mouth[before : before + frames], timing.fps
            )
            sound = tracks.damage(rng, track.audio)
        else:
            motion = motion_lib.listening(rng, frames, timing.fps)
            sound = np.zeros(total * encoder.FRAME, np.float32)
        samples = np.pad(sound, encoder.MARGIN).astype(np.float32)[None]
        motions.append(motion[:, COLUMNS])
        windows.append(np.asarray(hear(params["audio"], samples))[0].astype(np.float16))
        modes.append(speaks)
    return np.stack(motions), np.stack(windows), np.asarray(modes, np.int32)


def statistics(motions: np.ndarray, group: int) -> dict:
    """Constants of the model: mean, std of motion and spread of its changes.

    Args:
      motions: [N, F, M].
      group: Frames per latent.
    """
    change = [
        np.sqrt(np.mean(np.square(motions[:, i:] - motions[:, :-i]), (0, 1)))
        for i in range(1, group + 1)
    ]
    return {
        "mean": motions.mean((0, 1)), "std": motions.std((0, 1)) + 1e-3,
        "change": np.stack(change) + 1e-3,
    }


def describe(motion: np.ndarray, fps: int) -> dict[str, float]:
    """What a person would notice of motion [F, M].

    Returns:
      Blinks per minute, spread of the head's turn and nod, its speed (mean change of the
      head's columns from frame to frame), jitter (mean second difference), and glances.
    """
    at = motion_config.COLUMNS.index
    minutes = len(motion) / fps / 60
    shut = motion[:, at("blink_left")] > 0.5
    away = np.abs(motion[:, at("gaze_x")]) > 0.15
    head = motion[:, at("yaw") : at("head_y") + 1]
    return {
        "blinks_per_minute": float(np.sum(shut[1:] & ~shut[:-1]) / minutes),
        "glances_per_minute": float(np.sum(away[1:] & ~away[:-1]) / minutes),
        "head_spread": float(head.std(0).mean()),
        "nod_speed": float(np.abs(np.diff(motion[:, at("pitch")])).mean()),
        "head_jitter": float(np.abs(np.diff(head, 2, axis=0)).mean()),
    }


def make(models: networks.Models, params: dict, config: MotionStageConfig) -> loop.Stage:
    """The stage.

    Args:
      models: Networks; the preset has a motion model.
      params: Trained parameters of `audio`.
      config: Settings.
    """
    model, group = models.motion, models.preset.motion.frames_per_latent
    history = models.preset.motion.history_frames
    voices = tracks.Voices(config.corpus, "train")
    motions, windows, modes = _clips(models, params, config, voices, 0, config.clips)
    constants = statistics(motions, group)
    first = models.preset.motion.history

    def init(key):
        fresh = models.init("motion", key)
        return {name: value for name, value in fresh.items() if name not in constants}

    frozen = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), constants)

    def loss(trained, frozen, batch, key):
        variables = {"params": {**trained, **frozen}}
        keys = jax.random.split(key, 3)
        past = batch["past"]
        past = past + config.noise * frozen["std"] * jax.random.normal(keys[2], past.shape)
        x0 = model.apply(variables, batch["motion"], past, method=model.normalise)
        sigma = jax.random.uniform(keys[0], (len(x0),))
        noise = jax.random.normal(keys[1], x0.shape)
        velocity = model.apply(
            variables, flow.corrupt(x0, noise, sigma), sigma, past, batch["window"],
            batch["mode"],
        )
        error = jnp.square(velocity - flow.velocity(x0, noise)).mean()
        return error, {"flow": error}

    def batches(seed):
        def one(index):
            rng = np.random.default_rng((seed, 23, int(index)))
            clip = rng.integers(len(motions), size=config.batch)
            latent = rng.integers(first, config.latents, config.batch)
            frame = latent[:, None] * group + np.arange(-history, group)
            cut = motions[clip[:, None], frame]
            return {
                "past": cut[:, :history], "motion": cut[:, history:], "mode": modes[clip],
                "window": windows[clip, latent].astype(np.float32),
            }

        return grain.MapDataset.range(1 << 31).map(one).to_iter_dataset(
            grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
        )

    held_out = tracks.Voices(config.corpus, "held_out")
    streams = max(2, -(-config.previews * models.preset.timing.fps // (config.latents * group)))
    heard = dataclasses.replace(config, listening=0.0)
    talk, talk_windows, _ = _clips(models, params, heard, held_out, 1, streams)
    quiet = dataclasses.replace(config, listening=1.0)
    listen, _, _ = _clips(models, params, quiet, held_out, 2, streams)

    @jax.jit
    def draw(variables, windows, mode, key):
        state = network.initial_state(models.preset.motion, jax.random.split(key, len(mode)))
        return network.next_chunk(model, variables, state, windows, mode)[0]

    def sample(trained, frozen, path):
        """Measures of drawn motion beside those of held-out data."""
        result, skip = {}, 2 * models.preset.timing.fps
        for mode, truth in ((1, talk), (0, listen)):
            modes = jnp.full((streams, config.latents), mode, jnp.int32)
            motion = np.asarray(draw({**trained, **frozen}, talk_windows, modes, jax.random.key(3)))
            np.save(f"{path}_{mode}.npy", motion)
            name = ("listening", "talking")[mode]
            for kind, data in (("", motion), ("true_", truth)):
                found = [describe(m[skip:], models.preset.timing.fps) for m in data]
                for key in found[0]:
                    result[f"{name}/{kind}{key}"] = float(np.mean([f[key] for f in found]))
        return result

    return loop.Stage(
        name="motion", init=init, loss=loss, frozen=frozen, batches=batches, sample=sample,
        finish=lambda params, frozen: {**params, **frozen}, optimizer=config.optimizer,
    )
