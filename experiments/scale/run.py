"""A training on eight simulated devices that is killed over and over, against one that is not.

Draws 200 clips as MP4, prepares them, trains the teacher of preset `pico` on a mesh of eight
devices three times (killed at random and resumed; undisturbed; undisturbed on another mesh),
compares the losses of every step, distils, exports and streams.
"""

import json
import os
import pathlib
import random
import shutil
import signal
import struct
import subprocess
import sys
import time

from absl import app
from absl import flags
from tensorboardX.proto import event_pb2

from experiments.parity import reduced
from tm_jax.configs import presets
from tm_jax.core import huge_pages
from tm_jax.evaluation import facts
from tm_jax.evaluation import tables

_WORK = flags.DEFINE_string("work", None, "Folder of the run; made anew.", required=True)
_CLIPS = flags.DEFINE_integer("clips", 200, "Clips that are drawn.")
_STEPS = flags.DEFINE_integer("steps", 200, "Updates of the teacher.")
_KILLS = flags.DEFINE_integer("kills", 10, "How often the first run is killed.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the moments at which it is killed.")

_ROOT = pathlib.Path(__file__).parents[2]
_FOLDER = pathlib.Path(__file__).parent
_MESH, _OTHER = "data=2,fsdp=2,seq=2", "fsdp=4,tensor=2"
_COUNTED = ("loss", "gradient_norm")  # Equal in every step, or the runs differ.


def _environment() -> dict[str, str]:
    return {
        **os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8",
        "PYTHONPATH": str(_ROOT),
    }


def _train(work: pathlib.Path, stage: str, *more: str) -> list[str]:
    """The command of a stage."""
    return [
        sys.executable, "launch/train.py", "--preset=pico", f"--stage={stage}",
        f"--workdir={work}", f"--data={work / 'examples'}", "--set=data.held_out=2",
        "--set=batch=8", "--set=chunks=1", "--loop=sample_every=0", "--loop=log_every=1",
        "--loop=checkpoint_every_s=1", *more,
    ]


def _teacher(work: pathlib.Path, name: str, mesh: str) -> list[str]:
    start = work / "published" / "transformer"
    return _train(
        work, "teacher", f"--name={name}", f"--mesh={mesh}", f"--steps={_STEPS.value}",
        f"--start={start}", "--set=sample_steps=2",
    )


def _call(command: list[str]) -> None:
    """Runs a command; ends with its output if it fails."""
    done = subprocess.run(
        command, cwd=_ROOT, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-4000:]}")


def _scalars(folder: pathlib.Path) -> dict[str, dict[int, list[float]]]:
    """name -> step -> all values that were logged, of all runs in the folder."""
    found: dict[str, dict[int, list[float]]] = {}
    for path in sorted(folder.glob("*")):
        content, at = path.read_bytes(), 0
        while at + 12 <= len(content):
            [size] = struct.unpack("<Q", content[at : at + 8])
            record = content[at + 12 : at + 12 + size]
            if len(record) < size:  # Killed while it wrote.
                break
            event = event_pb2.Event.FromString(record)
            for value in event.summary.value:
                steps = found.setdefault(value.tag, {})
                steps.setdefault(event.step, []).append(value.simple_value)
            at += 16 + size
    return found


def _last(folder: pathlib.Path) -> int:
    """The last step that a run has logged."""
    steps = _scalars(folder).get("loss", {})
    return max(steps, default=0)


def _checkpoint(folder: pathlib.Path) -> int:
    names = os.listdir(folder) if folder.is_dir() else []
    return max((int(name) for name in names if name.isdecimal()), default=0)


def _killed(work: pathlib.Path, name: str) -> list[dict]:
    """Trains and kills; gives the step at which each attempt was killed and went on."""
    rng, history = random.Random(_SEED.value), []
    logs, checkpoints = work / name / "tensorboard", work / name / "checkpoints"
    command = _teacher(work, name, _MESH)
    while len(history) < _KILLS.value:
        begun = _last(logs)
        process = subprocess.Popen(
            command, cwd=_ROOT, env=_environment(), stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while _last(logs) <= begun and process.poll() is None:
            time.sleep(0.2)
        time.sleep(rng.uniform(0, 4))
        if process.poll() is not None:
            sys.exit(
                f"{name} ended with status {process.returncode} after {len(history)} kills; take "
                "more steps."
            )
        process.send_signal(signal.SIGKILL)
        process.wait()
        history.append({"killed_after": _last(logs), "goes_on_from": _checkpoint(checkpoints)})
        print(f"{name}: killed after {history[-1]['killed_after']}", flush=True)
    _call(command)
    return history


def _difference(one: dict, other: dict) -> dict[str, float]:
    """Largest relative difference of any value that was logged for the same step."""
    found = {}
    for name in _COUNTED:
        if one[name].keys() != other[name].keys():
            sys.exit(f"{name}: other steps were logged.")
        found[name] = max(
            abs(a - b) / max(abs(b), 1e-12)
            for step, values in one[name].items() for a in values for b in other[name][step]
        )
    return found


def measure(work: pathlib.Path) -> dict:
    """All that the module says."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    start = time.monotonic()
    reduced.write(presets.get("pico"), str(work / "published"))
    _call([
        sys.executable, "launch/prepare.py", "--preset=pico", f"--weights={work / 'published'}",
        f"--out={work / 'examples'}", f"--synthetic={_CLIPS.value}", "--drawn_seconds=2",
        "--clip_seconds=1.92", "--least_seconds=0.96", "--face=none", "--voice_activity=loudness",
        "--workers=2", "--batch=4",
    ])  # fmt: skip
    print(f"prepared after {time.monotonic() - start:.0f} s", flush=True)
    history = _killed(work, "teacher")
    _call(_teacher(work, "whole", _MESH))
    _call(_teacher(work, "other", _OTHER))
    runs = {n: _scalars(work / n / "tensorboard") for n in ("teacher", "whole", "other")}
    more = ("--set=trajectories=16", "--set=teacher_steps=2", f"--mesh={_MESH}")
    _call(_train(work, "student", "--steps=20", *more))
    _call(_train(
        work, "distill", "--steps=20", *more, "--set=rollout_chunks=2", "--set=critic_updates=1",
        f"--export={work / 'published'}",
    ))  # fmt: skip
    shutil.rmtree(work / "published" / "transformer")  # The exported one takes its place.
    _call([
        sys.executable, "launch/generate.py", "--preset=pico", f"--weights={work / 'published'}",
        "--image=tm_jax/assets/characters/ada.png", f"--out={work / 'clip.mp4'}",
        "--audio=tm_jax/assets/voices/dashwood_amiable.flac",
    ])  # fmt: skip
    repeated = sum(len(values) - 1 for values in runs["teacher"]["loss"].values())
    return {
        "hardware": facts.hardware(), "clips": _CLIPS.value, "steps": _STEPS.value,
        "mesh": _MESH, "other_mesh": _OTHER, "kills": history, "steps_done_again": repeated,
        "difference_same_mesh": _difference(runs["teacher"], runs["whole"]),
        "difference_other_mesh": _difference(runs["other"], runs["whole"]),
        "first_loss": runs["whole"]["loss"][1][0],
        "last_loss": runs["whole"]["loss"][_STEPS.value][0],
        "video_bytes": (work / "clip.mp4").stat().st_size,
        "seconds": round(time.monotonic() - start),
    }


def table(results: dict) -> str:
    """The figures as Markdown."""
    same, other = results["difference_same_mesh"], results["difference_other_mesh"]
    rows = [
        ["killed and resumed", str(len(results["kills"]))],
        ["updates done again after a kill, logged twice", str(results["steps_done_again"])],
        ["largest relative difference of a loss to the run that nobody killed",
         f"{same['loss']:.1e}"],
        ["of a gradient's norm", f"{same['gradient_norm']:.1e}"],
        [f"of a loss on mesh `{results['other_mesh']}`", f"{other['loss']:.1e}"],
        ["of a gradient's norm there", f"{other['gradient_norm']:.1e}"],
    ]
    return "\n".join(tables.table([f"{results['steps']} updates on `{results['mesh']}`", ""], rows))


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    results = measure(pathlib.Path(_WORK.value).resolve())
    (_FOLDER / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    tables.put(_FOLDER / "README.md", table(results).rstrip())
    print(table(results))


if __name__ == "__main__":
    huge_pages.restart()
    app.run(main)
