"""Stage `motion`: the motion model learns eyes, brows, head and breath of talkers and listeners.

A clip is one of four kinds: somebody talks all the time; listens to another voice; listens
while nobody speaks, in silence or noise, so that a listener without a second sound is at
rest; or talks and listens by turns, so that the data hold every change from one to the
other. The other voice is damaged as by a microphone.
"""

import dataclasses
import typing

import grain
import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.configs import puppet as networks
from tm_jax.data.corpus import tracks
from tm_jax.data.synthetic import backchannel
from tm_jax.data.synthetic import motion as motion_lib
from tm_jax.diffusion import flow_matching
from tm_jax.models.audio.causal import encoder
from tm_jax.models.dit import audio_projection as dit_audio
from tm_jax.models.puppet.motion import config as motion_config
from tm_jax.models.puppet.motion import heard as heard_lib
from tm_jax.models.puppet.motion import network
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
      conversations: Fraction of clips with turns of talking and of listening.
      listening: Fraction of the other clips that are listening.
      alone: Fraction of the listening clips in which nobody else speaks.
      batch: Latent frames per step.
      noise: Standard deviation of noise on the past, in units of its spread: the model's own
        past is never as smooth as the data's.
      previews: Seconds of motion drawn for the measures.
      optimizer: Optimiser.
    """

    corpus: str = "runs/corpus"
    clips: int = 800
    latents: int = 120
    conversations: float = 0.3
    listening: float = 0.6
    alone: float = 0.3
    batch: int = 512
    noise: float = 0.02
    previews: int = 60
    optimizer: optimizer_lib.OptimizerConfig = optimizer_lib.OptimizerConfig(
        learning_rate=2e-3, weight_decay=0.01, ema_decay=0.995
    )


_NOBODY, _SELF, _OTHER = 0, 1, 2
_TURN_S = (1.5, 8.0)
_PAUSE_S = (0.2, 1.2)
_LONG_PAUSE_S = (1.2, 5.0)
_LONG_PAUSES = 0.3  # Part of the pauses between turns that are long.
_HOLD_S = (0.0, 1.0)  # How long the mode stays at speaking after the voice.
_RAMP_S = 0.06  # In which a voice is faded at the edges of its turn.


@dataclasses.dataclass(frozen=True)
class Clips:
    """Clips to learn from.

    Attributes:
      motion: [N, F, M].
      windows: Audio windows of the own voice, [N, T, R, U].
      modes: 1 where the character speaks, [N, T].
      heard: Features of the other party's voice, [N, T, heard_width].
      other: Whether the other party speaks, [N, F].
      level: Loudness of its sound, [N, F].
    """

    motion: np.ndarray
    windows: np.ndarray
    modes: np.ndarray
    heard: np.ndarray
    other: np.ndarray
    level: np.ndarray


def _turns(rng, num_frames: int, fps: int, holders) -> np.ndarray:
    """Who has the turn in each frame, [num_frames] of 0 and of `holders`, one after another."""
    turns = np.zeros(num_frames, int)
    at = int(rng.uniform(-3, 1) * fps)
    index = int(rng.integers(len(holders)))
    while at < num_frames:
        length = int(rng.uniform(*_TURN_S) * fps)
        turns[max(at, 0) : max(at + length, 0)] = holders[index % len(holders)]
        pause = _LONG_PAUSE_S if rng.random() < _LONG_PAUSES else _PAUSE_S
        at += length + int(rng.uniform(*pause) * fps)
        index += 1
    return turns


def _gated(track: tracks.Track, gate: np.ndarray, fps: int) -> tracks.Track:
    """A track that is silent but where `gate`, bool [n], is set."""
    samples = np.repeat(gate.astype(np.float32), encoder.FRAME)
    ramp = np.ones(int(_RAMP_S * fps * encoder.FRAME))
    samples = np.convolve(samples, ramp / len(ramp), "same")
    return tracks.Track(
        audio=(track.audio * samples).astype(np.float32), mouth=track.mouth * gate[:, None],
        active=track.active * gate,
    )


def _held(rng, spoken: np.ndarray, fps: int, group: int) -> np.ndarray:
    """Mode of every latent frame [T]: 1 while somebody speaks, bool [F], and a little after."""
    hold = int(rng.uniform(*_HOLD_S) * fps)
    frames = np.flatnonzero(spoken)[:, None] + np.arange(hold + 1)
    mode = np.zeros(len(spoken), np.int32)
    mode[np.minimum(frames, len(spoken) - 1)] = 1
    return mode.reshape(-1, group).max(1)


def _clip(rng, voices, config, before: int, frames: int, total: int, fps: int, group: int):
    """Motion [F, M], own sound [n], mode [T], other active [F] and other sound [n]."""
    cut = slice(before, before + frames)
    talks = rng.random() < config.conversations
    speaks = talks or rng.random() >= config.listening
    alone = not speaks and rng.random() < config.alone
    turns = _turns(rng, total, fps, (_SELF, _OTHER) if talks else (_OTHER,))
    silence = np.zeros(total * encoder.FRAME, np.float32)
    own, sound, mode = None, silence, np.zeros(frames // group, np.int32)
    if speaks:
        own = voices.draw(rng, total)
        mode[:] = 1
        if talks:
            own = _gated(own, turns == _SELF, fps)
            mode = _held(rng, own.active[cut] > 0, fps, group)
        sound = tracks.damage(rng, own.audio)
    if alone or (speaks and not talks):
        other = np.zeros(total, np.float32)
        heard = tracks.noise(rng, len(silence)) * 10 ** rng.uniform(-4, -1.7)
        heard = heard if rng.random() < 0.5 else silence
    else:
        voice = _gated(voices.draw(rng, total), turns == _OTHER, fps)
        other, heard = voice.active, tracks.damage(rng, voice.audio)
    if own is None:
        motion = motion_lib.listening(rng, frames, fps, None if alone else other[cut])
    elif talks:
        # The other one is answered wherever the mode is listening.
        motion = motion_lib.conversing(
            rng, own.mouth[cut], np.repeat(mode, group), other[cut], fps
        )
    else:
        motion = motion_lib.talking(rng, own.mouth[cut], fps)
    return motion[:, COLUMNS], sound, mode, other[cut], heard


def draw_clips(
    models: networks.Models, params: dict, config: MotionStageConfig, voices: tracks.Voices,
    seed: int, count: int,
) -> Clips:
    """Draws clips.

    Args:
      models: Networks; the preset has a motion model.
      params: Trained parameters of `audio`.
      config: Length and kinds of the clips.
      voices: Who talks, and who is listened to.
      seed: Seed; clip i depends on it and on i alone.
      count: Number of clips.
    """
    timing, window = models.preset.timing, models.preset.dit.audio_window
    group, fps, sizes = timing.frames_per_latent, timing.fps, models.motion.config
    before, after = latents_lib.sound_margins(models)
    frames = config.latents * group
    total = before + frames + after

    @jax.jit
    def windows_of(params, samples):
        features = models.audio.apply({"params": params}, samples)
        return dit_audio.windows(typing.cast(jax.Array, features), window, timing)

    hear = jax.jit(lambda x: heard_lib.hear(sizes, heard_lib.initial_state(sizes, 1), x)[0])
    rows = []
    for index in range(count):
        rng = np.random.default_rng((seed, 21, index))
        motion, sound, mode, other, heard = _clip(
            rng, voices, config, before, frames, total, fps, group
        )
        samples = np.pad(sound, encoder.MARGIN).astype(np.float32)[None]
        windows = np.asarray(windows_of(params["audio"], samples))[0].astype(np.float16)
        level = np.asarray(heard_lib.loudness(heard, encoder.FRAME))
        # Sound before the clip counts.
        start = before // group * group
        lead = level[before - start : before + frames]
        features = np.asarray(hear(lead[None]))[0, start // group :].astype(np.float16)
        rows.append(
            (motion, windows, mode, features, other, level[before : before + frames])
        )
    return Clips(*(np.stack(column) for column in zip(*rows)))


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


def describe(motion: np.ndarray, fps: int, other: np.ndarray | None = None) -> dict[str, float]:
    """What a person would notice of motion [F, M].

    With `other`, [F] of 0 to 1, also how the other party's phrases are answered.

    Returns:
      Blinks per minute, spread of the head's turn and nod, its speed (mean change of the
      head's columns from frame to frame), jitter (mean second difference), glances and nods;
      the part of the phrases that are answered by a nod, and how many would be by chance.
    """
    at = motion_config.COLUMNS.index
    minutes = max(len(motion), 1) / fps / 60
    shut = motion[:, at("blink_left")] > 0.5
    away = np.abs(motion[:, at("gaze_x")]) > 0.15
    head = motion[:, at("yaw") : at("head_y") + 1]
    nods = backchannel.nods(motion[:, at("pitch")], fps)
    result = {
        "blinks_per_minute": float(np.sum(shut[1:] & ~shut[:-1]) / minutes),
        "glances_per_minute": float(np.sum(away[1:] & ~away[:-1]) / minutes),
        "head_spread": float(head.std(0).mean()),
        "nod_speed": float(np.abs(np.diff(motion[:, at("pitch")])).mean()),
        "head_jitter": float(np.abs(np.diff(head, 2, axis=0)).mean()),
        "nods_per_minute": len(nods) / minutes,
    }
    if other is not None:
        ends = backchannel.ends(other, fps)
        answered, chance = backchannel.answered(nods, ends, len(motion), fps)
        result |= {"answered": answered, "answered_by_chance": chance}
    return result


def make(models: networks.Models, params: dict, config: MotionStageConfig) -> loop.Stage:
    """The stage.

    Args:
      models: Networks; the preset has a motion model.
      params: Trained parameters of `audio`.
      config: Settings.
    """
    model, sizes = models.motion, models.motion.config
    group, history = sizes.frames_per_latent, sizes.history_frames
    voices = tracks.Voices(config.corpus, "train")
    clips = draw_clips(models, params, config, voices, 0, config.clips)
    constants = statistics(clips.motion, group)
    first = sizes.history

    def init(key):
        fresh = models.init("motion", key)
        return {name: value for name, value in fresh.items() if name not in constants}

    frozen = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), constants)

    def loss(trained, frozen, batch, key):
        variables = {"params": {**trained, **frozen}}
        keys = jax.random.split(key, 3)
        past = batch["past"]
        past = past + config.noise * frozen["std"] * jax.random.normal(keys[2], past.shape)
        normal = model.apply(variables, batch["motion"], past, method=model.normalise)
        x0 = typing.cast(jax.Array, normal)
        sigma = jax.random.uniform(keys[0], (len(x0),))
        noise = jax.random.normal(keys[1], x0.shape)
        velocity = typing.cast(jax.Array, model.apply(
            variables, flow_matching.corrupt(x0, noise, sigma), sigma, past, batch["window"],
            batch["mode"], batch["heard"],
        ))  # fmt: skip
        error = jnp.square(velocity - flow_matching.velocity(x0, noise)).mean()
        return error, {"flow": error}

    def batches(seed):
        def one(index):
            rng = np.random.default_rng((seed, 23, int(index)))
            clip = rng.integers(len(clips.motion), size=config.batch)
            latent = rng.integers(first, config.latents, config.batch)
            frame = latent[:, None] * group + np.arange(-history, group)
            cut = clips.motion[clip[:, None], frame]
            return {
                "past": cut[:, :history], "motion": cut[:, history:],
                "mode": clips.modes[clip, latent],
                "window": clips.windows[clip, latent].astype(np.float32),
                "heard": clips.heard[clip, latent].astype(np.float32),
            }

        return grain.MapDataset.range(1 << 31).map(one).to_iter_dataset(
            grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
        )

    held_out = tracks.Voices(config.corpus, "held_out")
    streams = max(2, -(-config.previews * models.preset.timing.fps // (config.latents * group)))
    kinds = {
        "talking": dataclasses.replace(config, conversations=0.0, listening=0.0),
        "listening": dataclasses.replace(config, conversations=0.0, listening=1.0, alone=0.0),
        "alone": dataclasses.replace(config, conversations=0.0, listening=1.0, alone=1.0),
    }
    truths = {
        name: draw_clips(models, params, kind, held_out, index + 1, streams)
        for index, (name, kind) in enumerate(kinds.items())
    }

    @jax.jit
    def draw(variables, windows, mode, other, key):
        state = network.initial_state(sizes, jax.random.split(key, len(mode)))
        return network.next_chunk(model, variables, state, windows, mode, other)[0]

    def sample(trained, frozen, path):
        """Measures of drawn motion beside those of held-out data."""
        result, fps = {}, models.preset.timing.fps
        skip = 2 * fps
        for name, truth in truths.items():
            motion = np.asarray(draw(
                {**trained, **frozen}, truth.windows.astype(np.float32), truth.modes,
                truth.level, jax.random.key(3),
            ))
            np.save(f"{path}_{name}.npy", motion)
            for kind, data in (("", motion), ("true_", truth.motion)):
                found = [
                    describe(m[skip:], fps, o[skip:] if name == "listening" else None)
                    for m, o in zip(data, truth.other)
                ]
                for key in found[0]:
                    values = [f[key] for f in found if np.isfinite(f[key])]
                    if values:
                        result[f"{name}/{kind}{key}"] = float(np.mean(values))
        return result

    return loop.Stage(
        name="motion", init=init, loss=loss, frozen=frozen, batches=batches, sample=sample,
        finish=lambda params, frozen: {**params, **frozen}, optimizer=config.optimizer,
    )
