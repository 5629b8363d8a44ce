"""Trains the video autoencoder of `nano` on stored clips; see `draw_clips.py`.

  python experiments/nano/train_vae.py --clips=/tmp/clips/train --held_out=/tmp/clips/held_out \
      --out=/tmp/vae --steps=4000 --decay_steps=800

It writes checkpoints with the optimiser's state (the same command with --resume goes on), metrics
as JSON lines, now and then a contact sheet (truth above reconstruction), and at the end
`vae.safetensors` with the averaged weights and their statistics.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import sys
import time

from absl import app
from absl import flags
from absl import logging
import imageio.v3 as iio
import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from tm_jax.checkpoints import small_vae as weights
from tm_jax.checkpoints import store as store_lib
from tm_jax.configs import overrides  # noqa: E402
from tm_jax.data import frame_store  # noqa: E402
from tm_jax.models.vae.small import config as config_lib
from tm_jax.models.vae.small import network
from tm_jax.training import vae_start  # noqa: E402
from tm_jax.training import video_vae  # noqa: E402

_CLIPS = flags.DEFINE_multi_string("clips", None, "Stores to train on.", required=True)
_HELD_OUT = flags.DEFINE_string("held_out", None, "Store of clips to measure on.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder of the run.", required=True)
_PRESET = flags.DEFINE_enum("preset", "nano", sorted(config_lib.PRESETS), "Size.")
_STEPS = flags.DEFINE_integer("steps", 4000, "Updates in all.", lower_bound=1)
_DECAY = flags.DEFINE_integer("decay_steps", 800, "Last updates, in which rates fall to zero.")
_RESUME = flags.DEFINE_bool("resume", False, "Go on from the newest checkpoint in --out.")
_SET = flags.DEFINE_multi_string("set", [], "Settings of the training, as name=value.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of weights, noise and order.")
_MOTION = flags.DEFINE_integer(
    "motion_channels", 28, "Latent channels that start as components of measured motion."
)
_EVERY = flags.DEFINE_integer("measure_every", 200, "Updates between measurements.")
_CHECKPOINT_S = flags.DEFINE_float("checkpoint_every_s", 300, "Seconds between checkpoints.")
_LOG_EVERY = 20  # Updates between lines of metrics.


def _settings():
    config = video_vae.VideoVAEConfig()
    return overrides.apply(config, _SET.value) if _SET.value else config


def _codes(path, sizes, batches):
    """The linear codes to start with; measured once a run."""
    if not os.path.exists(path):
        batches, count = list(batches), _MOTION.value
        vae_start.save(
            path, vae_start.measure_motion(sizes, batches, count),
            vae_start.measure_change(sizes, batches, sizes.latent_channels - count),
        )
    return vae_start.load(path)


class _Run:
    """Files of one run."""

    def __init__(self, model, folder):
        self.model, self.folder = model, pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        held_out = frame_store.FrameStore([_HELD_OUT.value])
        clips = [held_out.clip(i) for i in range(min(16, len(held_out)))]
        self.held_out = np.stack(clips)

    def log(self, **values):
        """Adds a line to the metrics."""
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"time": time.strftime("%H:%M:%S"), **values}) + "\n")

    def measure(self, step, params):
        """Measures on held-out clips and writes a contact sheet."""
        values = video_vae.measure(self.model, params, self.held_out)
        self.log(step=step, **{f"held_out/{k}": round(v, 4) for k, v in values.items()})
        logging.info(
            "step %d: held out %.2f dB, moving %.2f dB", step, values["psnr"],
            values["psnr_moving"],
        )
        sheet = video_vae.preview(self.model, params, self.held_out[:6])
        iio.imwrite(self.folder / f"preview-{step:06d}.png", sheet)


@contextlib.contextmanager
def _stop_on_signals():
    """Yields a list that fills when the process is asked to stop."""
    asked = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *args: asked.append(args[0]))
    yield asked


def _loop(run, state, step, clips, config, store, asked):
    """Updates until the last step, or until asked to stop."""
    key = jax.random.fold_in(jax.random.key(_SEED.value), 1)
    count, saved, start = int(state.step), time.monotonic(), time.monotonic()
    frames = config.latents * run.model.config.frames_per_latent
    while count < _STEPS.value and not asked:
        batch = clips.batch(_SEED.value, count, config.batch, frames, config.side)
        factor = video_vae.rate(count, _STEPS.value, _DECAY.value, config.warmup_steps)
        state, metrics = step(state, batch, key, factor)
        count += 1
        if count % _LOG_EVERY == 0:
            values = {k: round(float(v), 5) for k, v in metrics.items()}
            seconds, start = (time.monotonic() - start) / _LOG_EVERY, time.monotonic()
            run.log(step=count, rate=round(factor, 4), step_s=round(seconds, 3), **values)
            if not np.isfinite(values["loss"]):
                raise FloatingPointError(f"the loss is {values['loss']} at step {count}.")
        if time.monotonic() - saved > _CHECKPOINT_S.value:
            store.save(count, state, {"step": count})
            saved = time.monotonic()
        if count % _EVERY.value == 0:
            run.measure(count, state.average)
            start = time.monotonic()
    store.save(count, state, {"step": count})
    return state


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected argument {argv[1]!r}.")
    config, sizes = _settings(), config_lib.PRESETS[_PRESET.value]
    model = network.SmallVAE(sizes)
    run = _Run(model, _OUT.value)
    run.log(config=dataclasses.asdict(config), sizes=dataclasses.asdict(sizes))
    state = video_vae.create(model, config, jax.random.key(_SEED.value))
    clips = frame_store.FrameStore(_CLIPS.value)
    frames = config.latents * sizes.frames_per_latent
    some = lambda seed, count: (clips.batch(seed, i, 8, frames) for i in range(count))
    step = video_vae.make_step(model, config)
    with (
        contextlib.closing(store_lib.Store(os.path.join(_OUT.value, "checkpoints"))) as store,
        _stop_on_signals() as asked,
    ):
        if store.latest is not None:
            if not _RESUME.value:
                raise ValueError(f"{_OUT.value} holds a run; add --resume or name another folder.")
            placement = jax.tree.map(lambda x: x.sharding, state)
            state, _ = store.restore(state, placement)
            logging.info("resumed at step %d", int(state.step))
        else:
            codes = _codes(str(run.folder / "start.npz"), sizes, some(_SEED.value + 1, 6))
            state = video_vae.restart(state, vae_start.start(state.params, sizes, *codes))
        state = _loop(run, state, step, clips, config, store, asked)
    params = video_vae.with_statistics(
        model, jax.device_get(state.average), some(_SEED.value + 2, 12)
    )
    path = str(run.folder / "vae.safetensors")
    weights.save(path, params, sizes)
    run.measure(int(state.step), params)
    logging.info("wrote %s", path)


if __name__ == "__main__":
    app.run(main)
