"""Trains one stage of a preset.

  python launch/train.py --preset=nano --stage=vae --workdir=runs/nano --data=clips
  python launch/train.py --stage=teacher --workdir=runs/nano --data=examples --set batch=4
  python launch/train.py --stage=distill --workdir=runs/nano --data=examples --name=distill-4 \
    --set num_steps=4 --set policy=per_step

  python launch/train.py --preset=tm-18b --stage=distill --mesh=fsdp=64 --dry_run
  python launch/train.py --config=runs/nano/vae/config.json --workdir=runs/again

The stages follow one another in one work directory: those that make a preset's other components,
then teacher, student, distill (docs/training.md). A stage that was interrupted goes on where it
stopped; a signal that stops it leaves a checkpoint and exit status 143.
"""

import dataclasses
import os
import pathlib
import sys

from absl import flags, logging

try:
    from launch import common
except ModuleNotFoundError as error:
    if error.name not in ("launch", "launch.common"):
        raise
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    from launch import common
from launch import weights
from tm_jax.configs import overrides, stored
from tm_jax.configs import presets
from tm_jax.core import huge_pages
from tm_jax.checkpoints import hub

STAGES = ("vae", "speech", "teacher", "student", "distill")
# Steps of the shipped nano weights, all parts of their training together (MODEL_CARD.md).
_STEPS = {"vae": 12000, "speech": 5000, "teacher": 12000, "student": 600, "distill": 320}

_STOPPED = 143  # Exit status of a run that a signal has stopped, with a checkpoint.

_PRESET = flags.DEFINE_string("preset", "nano", "Preset to train.")
_STAGE = flags.DEFINE_enum("stage", None, STAGES, "What to train.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_NAME = flags.DEFINE_string(
    "name", None, "Folder of this run in WORKDIR; the stage's name by default."
)
_STEPS_FLAG = flags.DEFINE_integer(
    "steps", None, "Updates in all; by default those of the shipped weights.", lower_bound=1
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of parameters, noise and data order.")
_MESH = common.mesh_flag()
_HOSTS = flags.DEFINE_string(
    "hosts", "", "One process among several: auto (JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and "
    "JAX_PROCESS_ID, or SLURM, Cloud TPU, GKE, Open MPI), or HOST:PORT,COUNT,INDEX.",
)
_CONFIG = flags.DEFINE_string(
    "config", None, "Settings of an earlier run, WORKDIR/NAME/config.json; flags come on top."
)
_CORPUS = flags.DEFINE_string("corpus", None, "Speech corpus; WORKDIR/corpus by default.")
_DATA = flags.DEFINE_string(
    "data", None, "Prepared examples (launch/prepare.py); in stage vae folders of clips "
    "(experiments/nano/draw_clips.py). Several stores with their "
    "shares: a=3,b=1; a store may be a URL, gs://BUCKET/FOLDER.",
)
_SET = flags.DEFINE_multi_string("set", [], "Typed override, e.g. optimizer.learning_rate=1e-3.")
_LOG = flags.DEFINE_multi_string("loop", [], "Typed override of the loop, e.g. sample_every=50.")
_EXPORT = flags.DEFINE_string(
    "export", None, "Also write the published weights to this folder, in bfloat16."
)
_START = flags.DEFINE_string(
    "start", None, "Weight file of the trained part to start from, e.g. the shipped "
    "tm_jax/assets/nano/audio.safetensors to go on with other speech; or "
    "hf:OWNER/NAME/PATH[@REVISION] of the Hugging Face Hub.",
)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Check and print the settings, the shape, size and sharding of every "
    "array and what a device holds, and stop; needs neither data nor devices.",
)


def _given(flag, record: dict, key: str):
    """The value of a flag if it was given, else that of the record, else the default."""
    return flag.value if flag.present else record.get(key, flag.value)


def _without(values, name: str):
    """Nested dictionaries without one name."""
    if not isinstance(values, dict):
        return values
    return {k: _without(v, name) for k, v in values.items() if k != name}


def _resolve() -> dict:
    """Flags, file and defaults as one record of typed settings."""
    record = stored.read(_CONFIG.value) if _CONFIG.value else {}
    preset = presets.get(_given(_PRESET, record, "preset"))
    stage = _given(_STAGE, record, "stage")
    if stage not in STAGES:
        raise ValueError(f"--stage: expected one of {', '.join(STAGES)}, got {stage!r}.")
    if _WORKDIR.value is None and not _DRY_RUN.value:
        raise ValueError("--workdir: name the folder of the run; only --dry_run needs none.")
    from tm_jax.training import run  # Brings JAX in; a wrong flag is reported before.

    corpus = _CORPUS.value or str(pathlib.Path(_WORKDIR.value or ".") / "corpus")
    values = record.get("settings", {})
    data = _DATA.value or values.get("path") or values.get("data", {}).get("path")
    values = _without(values, "path") if _DATA.present else values
    values = _without(values, "corpus") if _CORPUS.present else values
    settings = stored.fill(run.config(stage, corpus, data), values)
    loop_config = stored.fill(run.loop.LoopConfig(seed=_SEED.value), record.get("loop", {}))
    flagged = {
        name: flag.value for name, flag in (("seed", _SEED), ("mesh", _MESH)) if flag.present
    }
    loop_config = dataclasses.replace(loop_config, **flagged)
    return {
        "preset": preset.name, "stage": stage,
        "steps": _given(_STEPS_FLAG, record, "steps") or _STEPS[stage],
        "settings": overrides.apply(settings, _SET.value),
        "loop": overrides.apply(loop_config, _LOG.value),
    }


def _plan(record: dict) -> None:
    """Prints what the run would be."""
    from tm_jax.data import remote
    from tm_jax.parallel import mesh_flag
    from tm_jax.training import example_source
    from tm_jax.training import plan

    preset, stage, settings = presets.get(record["preset"]), record["stage"], record["settings"]
    sizes = mesh_flag.sizes(record["loop"].mesh)
    start = None if hub.is_spec(_START.value) else _START.value
    named = example_source.parse(_DATA.value) if _DATA.value else []
    data = [("data", place) for place, _ in named if not remote.is_url(place)]
    folders = [("corpus", _CORPUS.value), *data, ("start", start)]
    plan.check_files(stage, _WORKDIR.value, folders)
    rows = plan.describe(preset, stage, sizes, settings)
    print(stored.text({**record, "preset": presets.settings(preset)}))
    print(plan.render(rows, sizes))
    for note in plan.notes(sizes, settings):
        print(f"note: {note}")


def _join() -> None:
    """Becomes one of the processes of --hosts."""
    from tm_jax.parallel import hosts

    try:
        hosts.start(_HOSTS.value, dict(os.environ))
    except ValueError as error:
        raise ValueError(f"--hosts: {error}") from error


def _keep(record: dict, path: pathlib.Path) -> None:
    """Writes the record beside the run; says what differs from the run that goes on."""
    if path.exists():
        changed = stored.differences(_shaping(stored.read(str(path))), _shaping(record))
        if changed:
            print(f"train: other settings, code or examples than before in {path}: "
                  f"{'; '.join(changed)}",
                  file=sys.stderr)
    stored.write(str(path), record)


def _shaping(record: dict) -> dict:
    """What a run that goes on should not change."""
    return {name: record.get(name) for name in ("preset", "stage", "settings", "made_by")}


def _made_by(settings) -> dict:
    """The code and the examples that a run has."""
    import tm_jax
    from tm_jax.core import source
    from tm_jax.training import example_source

    found = {"tm_jax": tm_jax.__version__, "code": source.digest()[:16]}
    data = getattr(settings, "data", None)
    if isinstance(data, example_source.ExampleConfig):
        found["examples"] = example_source.fingerprint(data.path)
    return found


def main() -> None:
    if _HOSTS.value and not _DRY_RUN.value:
        _join()
    record = _resolve()
    if _DRY_RUN.value:
        _plan(record)
        return
    from tm_jax.parallel import hosts
    from tm_jax.training import run

    stage, steps, workdir = record["stage"], record["steps"], _WORKDIR.value
    assert workdir is not None  # Checked by `_resolve`.
    record["loop"].make_mesh()  # Refuses what does not fit the devices before any work.
    folder = pathlib.Path(workdir) / (_NAME.value or stage)
    record["made_by"] = _made_by(record["settings"])
    if hosts.is_first():
        _keep(record, folder / "config.json")
    logging.set_verbosity(logging.WARNING)
    common.cache_compilations()
    finished = run.train(
        presets.get(record["preset"]), stage, record["settings"], workdir, steps,
        record["loop"], _EXPORT.value, _NAME.value, weights.local(_START.value),
    )
    if hosts.is_first():
        done = f"{steps} steps; weights and samples are in {folder}"
        print(f"{stage}: {done if finished else 'stopped; the same command goes on'}")
    if not finished:
        sys.exit(_STOPPED)


if __name__ == "__main__":
    huge_pages.restart()
    common.run("train", main)
