"""Trains one stage of a preset.

  python launch/train.py --preset=nano --stage=vae --workdir=runs/nano
  python launch/train.py --preset=nano --stage=teacher --workdir=runs/nano --set batch=4
  python launch/train.py --stage=distill --workdir=runs/nano --name=distill-4 \
    --set num_steps=4 --set policy=per_step

The stages follow one another in one work directory: vae, locator and audio (in any
order), motion, teacher, student, distill. A stage that was interrupted goes on where it stopped.
"""

import pathlib
import pprint
import sys

from absl import flags
from absl import logging

try:
    from launch import common
except ModuleNotFoundError as error:
    if error.name not in ("launch", "launch.common"):
        raise
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    from launch import common

from tm_jax.configs import overrides
from tm_jax.models import presets

STAGES = ("vae", "locator", "audio", "speech", "motion", "teacher", "student", "distill")
# Steps of the shipped nano weights, all parts of their training together (MODEL_CARD.md).
_STEPS = {
    "vae": 2150, "locator": 500, "audio": 5000, "speech": 5000, "motion": 6400, "teacher": 4300,
    "student": 500, "distill": 500,
}

_PRESET = flags.DEFINE_string("preset", "nano", "Preset to train: nano or pico.")
_STAGE = flags.DEFINE_enum("stage", None, STAGES, "What to train.", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_NAME = flags.DEFINE_string(
    "name", None, "Folder of this run in WORKDIR; the stage's name by default."
)
_STEPS_FLAG = flags.DEFINE_integer(
    "steps", None, "Batches in all; by default those of the shipped weights.", lower_bound=1
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of parameters, noise and data order.")
_CORPUS = flags.DEFINE_string("corpus", None, "Speech corpus; WORKDIR/corpus by default.")
_SET = flags.DEFINE_multi_string("set", [], "Typed override, e.g. optimizer.learning_rate=1e-3.")
_LOG = flags.DEFINE_multi_string("loop", [], "Typed override of the loop, e.g. sample_every=50.")
_EXPORT = flags.DEFINE_string(
    "export", None, "Also write the published weights to this folder, in bfloat16."
)
_START = flags.DEFINE_string(
    "start", None, "Weight file of the trained part to start from, e.g. the shipped "
    "tm_jax/assets/nano/audio.safetensors to go on with other speech.",
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the configuration and stop.")


def main() -> None:
    preset = presets.get(_PRESET.value)
    from tm_jax.training import run  # Brings JAX in; a wrong flag is reported before.

    corpus = _CORPUS.value or str(pathlib.Path(_WORKDIR.value) / "corpus")
    config = overrides.apply(run.config(_STAGE.value, corpus), _SET.value)
    loop_config = overrides.apply(run.loop.LoopConfig(seed=_SEED.value), _LOG.value)
    steps = _STEPS_FLAG.value or _STEPS[_STAGE.value]
    if _DRY_RUN.value:
        pprint.pprint({
            "preset": preset, "stage": _STAGE.value, "steps": steps, "config": config,
            "loop": loop_config,
        })
        return
    logging.set_verbosity(logging.WARNING)
    common.cache_compilations()
    finished = run.train(
        preset, _STAGE.value, config, _WORKDIR.value, steps, loop_config, _EXPORT.value,
        _NAME.value, _START.value,
    )
    folder = pathlib.Path(_WORKDIR.value) / (_NAME.value or _STAGE.value)
    if finished:
        print(f"{_STAGE.value}: {steps} steps; weights and samples are in {folder}")
    else:
        print(f"{_STAGE.value}: stopped; the same command goes on from the checkpoint")


if __name__ == "__main__":
    common.run("train", main)
