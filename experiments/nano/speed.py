"""Measures how fast and in how much memory the nano preset makes video on this machine.

  python -m experiments.nano.speed --weights=runs/nano

Keys of the result: `stages` times one session chunk by chunk (no process but this one
running), `clips` whole runs of launch/generate.py by length, `start` the time to the first
frame of a new process with an empty and with a filled compilation cache, and `split` when a
new process with a filled cache reaches each step on the way there.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import wave

from absl import app
from absl import flags
from absl import logging
import numpy as np
from PIL import Image

import tm_jax
from tm_jax.data.synthetic import characters
from tm_jax.evaluation import facts
from tm_jax.inference import loading
from tm_jax.inference import session as session_lib
from tm_jax.media import audio
from tm_jax.media import video

_WEIGHTS = flags.DEFINE_string("weights", None, "Folder of weights; the shipped ones by default.")
_OUT = flags.DEFINE_string(
    "out", str(pathlib.Path(__file__).parent / "results" / "speed.json"), "JSON to write."
)
_REPEATS = flags.DEFINE_integer("repeats", 3, "Runs of the short clip and of every start.")
_SECONDS = flags.DEFINE_float("seconds", 60, "Length of the short clip.")
_LONG = flags.DEFINE_float("long_seconds", 600, "Length of the long clip; 0 for none.")
_QUICK = flags.DEFINE_bool("quick", False, "One repetition of a few seconds: does it run?")

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_VOICES = pathlib.Path(tm_jax.__file__).parent / "assets" / "voices"
_CHARACTER = 5009  # A held-out character.
_POLL_S = 0.25
# What launch/generate.py does up to the first encoded chunk, with the time of each step.
_STEPS = """
import json, os, resource, sys, threading, time
start_s, weights, picture, sound, out = json.loads(sys.argv[1])
steps = {}
def reached(step):
    steps[step] = time.time() - start_s
reached("interpreter")
from launch import common
common.cache_compilations()
from tm_jax.inference import loading, offline, session
from tm_jax.media import audio, picture as pictures, video
reached("imports")
models = loading.load("nano", weights)
def watch(thread):
    thread.join()
    reached("programs")
for thread in threading.enumerate():
    if thread.name == "programs":
        threading.Thread(target=watch, args=(thread,)).start()
reached("weights")
preset = models.preset
stream = session.Session(models, pictures.load(picture, preset.height, preset.width))
reached("begun")
with audio.open_speech(sound) as reader:
    for block in reader:
        stream.push_audio(block.speech)
chunk = stream.pull()
reached("first_chunk")
with video.Writer(out, preset.timing.fps, preset.height, preset.width, 16000, 1) as writer:
    writer.write_frames(chunk.frames)
    reached("encoded")
usage = resource.getrusage(resource.RUSAGE_SELF)
steps["cpu"] = usage.ru_utime + usage.ru_stime
print("STEPS", json.dumps(steps))
"""
_LINE = re.compile(
    r"(?P<frames>\d+) frames \((?P<seconds>[\d.]+) s\) in (?P<wall_s>[\d.]+) s: .*"
    r"first frame after (?P<first_frame_s>[\d.]+) s, then real-time factor "
    r"(?P<real_time_factor>[\d.]+) \(audio (?P<audio_s>[\d.]+) s, score (?P<score_s>[\d.]+) s, "
    r"decode (?P<decode_s>[\d.]+) s, encode (?P<encode_s>[\d.]+) s\)"
)


def speech(seconds: float) -> np.ndarray:
    """The bundled voices in a loop, int16 [samples] at 16 kHz."""
    parts = []
    for path in sorted(_VOICES.glob("*.flac")):
        with audio.open_speech(path) as reader:
            parts.extend(block.speech for block in reader)
    once = np.concatenate(parts)
    return np.int16(np.resize(once, round(seconds * audio.SPEECH_RATE)) * 32767)


def write_wav(path: str, seconds: float) -> None:
    """Writes the bundled voices in a loop."""
    with wave.open(path, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(audio.SPEECH_RATE)
        file.writeframes(speech(seconds).tobytes())


def _memory_mb(pid: int) -> tuple[float, float] | None:
    """Memory that a process holds now and at most so far, in MB; None without /proc."""
    try:
        text = pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    found = dict(re.findall(r"(VmRSS|VmHWM):\s+(\d+) kB", text))
    return (int(found["VmRSS"]) / 1024, int(found["VmHWM"]) / 1024) if len(found) == 2 else None


def generate(folder: str, seconds: float, cache: str) -> dict:
    """Runs launch/generate.py once; what it says of itself, its memory and its start."""
    command = [
        sys.executable, str(_ROOT / "launch" / "generate.py"),
        f"--image={folder}/picture.png", f"--audio={folder}/{seconds:g}.wav",
        f"--out={folder}/clip.mp4",
    ]  # fmt: skip
    if _WEIGHTS.value:
        command.append(f"--weights={os.path.abspath(_WEIGHTS.value)}")
    start = time.perf_counter()
    with open(f"{folder}/log", "w+") as log:
        # The cache of an outer process would make every start a warm one.
        environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=_ROOT, env={**environment, "TM_JAX_CACHE": cache}
        )
        memory = []
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            sample = _memory_mb(process.pid)
            if sample:
                memory.append((time.perf_counter() - start, *sample))
            time.sleep(_POLL_S)
        process_s = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        text = log.read()
    found = _LINE.search(text)
    if process.returncode or not found:
        raise RuntimeError(f"launch/generate.py failed with {process.returncode}: {text[-800:]}")
    result = {key: float(value) for key, value in found.groupdict().items()}
    result["process_s"] = process_s
    if memory:
        result["peak_mb"] = max(most for _, _, most in memory)
    else:  # Holds what this process had when it forked. Bytes on macOS, else kilobytes.
        result["peak_mb"] = usage.ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)
    # The run goes at an even pace, so its wall time tells how far the video had come.
    before_s = process_s - result["wall_s"]
    result["rss_mb"] = {
        f"{minute} min": _at(memory, before_s + result["wall_s"] * 60 * minute / seconds)
        for minute in (1, 10) if 60 * minute <= seconds
    }
    # All of the process before the call, and its end: an upper limit.
    result["first_frame_from_start_s"] = before_s + result["first_frame_s"]
    return result


def split(folder: str, seconds: float, cache: str) -> dict[str, float]:
    """Seconds from the start of a process until each step on the way to the first frame.

    Programs are loaded beside the other steps; `cpu` is the processor time of them all.
    """
    weights = _WEIGHTS.value and os.path.abspath(_WEIGHTS.value)
    files = [f"{folder}/picture.png", f"{folder}/{seconds:g}.wav", f"{folder}/split.mp4"]
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", _STEPS, json.dumps([time.time(), weights, *files])], cwd=_ROOT,
        env={**environment, "TM_JAX_CACHE": cache}, capture_output=True, text=True,
    )  # fmt: skip
    found = re.search(r"STEPS (.*)", done.stdout)
    if done.returncode or not found:
        raise RuntimeError(f"The start failed with {done.returncode}: {done.stderr[-800:]}")
    return json.loads(found[1])


def _at(memory: list[tuple[float, float, float]], when_s: float) -> float | None:
    """The median of the ten samples up to a time."""
    values = [now for at_s, now, _ in memory if at_s <= when_s]
    return float(np.median(values[-10:])) if values else None


def stages(picture: np.ndarray, seconds: float) -> dict:
    """Times every stage of every chunk, and encoding after each, one after the other."""
    bundle = loading.load("nano", _WEIGHTS.value)
    timing = bundle.preset.timing
    session = session_lib.Session(bundle, picture, seed=0)
    sound = speech(seconds).astype(np.float32) / 32768
    step = timing.samples_per_chunk
    rows = []
    with tempfile.TemporaryDirectory() as folder, video.Writer(
        f"{folder}/clip.mp4", timing.fps, *picture.shape[:2], audio.SPEECH_RATE, 1
    ) as writer:
        for at in range(0, len(sound), step):
            session.push_audio(sound[at : at + step])
            chunk = session.pull()
            if chunk is None:
                continue
            start = time.perf_counter()
            writer.write_sound(sound[at : at + step, None])
            writer.write_frames(chunk.frames)
            rows.append({**chunk.seconds, "encode": time.perf_counter() - start})
    rows = rows[2:]  # The first chunks compile.
    times = {stage: np.array([row[stage] for row in rows]) for stage in rows[0]}
    models = times["audio"] + times["score"] + times["decode"]
    times["models"] = models
    return {
        "chunk_s": timing.chunk_s, "chunks": len(rows),
        "real_time_factor": {
            "models": float(models.sum() / (len(rows) * timing.chunk_s)),
            "models and encoding": float(
                (models + times["encode"]).sum() / (len(rows) * timing.chunk_s)
            ),
        },
        "ms": {
            stage: {"p50": 1e3 * np.percentile(t, 50), "p95": 1e3 * np.percentile(t, 95)}
            for stage, t in times.items()
        },
    }


def clip_summary(runs: list[dict], seconds: float) -> dict:
    """Medians over runs of one length."""
    keys = ("real_time_factor", "wall_s", "audio_s", "score_s", "decode_s", "encode_s", "peak_mb")
    result = {key: float(np.median([run[key] for run in runs])) for key in keys}
    rss = {
        minute: float(np.median([run["rss_mb"][minute] for run in runs if run["rss_mb"][minute]]))
        for minute in runs[0]["rss_mb"] if runs[0]["rss_mb"][minute]
    }
    return {"seconds": seconds, "runs": len(runs), **result, "rss_mb": rss}


def start_summary(runs: list[dict]) -> dict:
    """Medians over starts: from the call in the process, and from the start of the process."""
    keys = ("first_frame_s", "first_frame_from_start_s")
    return _summary([{key: run[key] for key in keys} for run in runs])


def _summary(runs: list[dict[str, float]]) -> dict:
    """Median of every figure, and the best, which other load disturbed least."""
    values = {key: [run[key] for run in runs] for key in runs[0]}
    return {
        "runs": len(runs), **{k: float(np.median(v)) for k, v in values.items()},
        "best": {k: min(v) for k, v in values.items()},
    }  # fmt: skip


def run() -> dict:
    """Measures everything; returns the result without facts."""
    repeats, short, long = _REPEATS.value, _SECONDS.value, _LONG.value
    if _QUICK.value:
        repeats, short, long = 1, 3.0, 6.0 if long else 0.0
    one = characters.stack([characters.sample(_CHARACTER)])
    pose = characters.neutral()[None, None]
    picture = np.asarray(characters.render(one, pose))[0, 0]
    brief = min(2.0, short)
    with tempfile.TemporaryDirectory() as folder:
        Image.fromarray(picture).save(f"{folder}/picture.png")
        for seconds in {brief, short, long} - {0.0}:
            write_wav(f"{folder}/{seconds:g}.wav", seconds)
        cold = []
        for index in range(repeats):
            cold.append(generate(folder, brief, f"{folder}/cache_{index}"))
            logging.info("Cold start: %.1f s.", cold[-1]["first_frame_from_start_s"])
        filled = f"{folder}/cache_0"
        warm = [generate(folder, brief, filled) for _ in range(repeats)]
        steps = [split(folder, brief, filled) for _ in range(repeats)]
        logging.info("Steps of a warm start, s: %s.", steps)
        clips = {}
        for seconds, count in ((short, repeats), (long, 1)):
            if seconds:
                runs = [generate(folder, seconds, filled) for _ in range(count)]
                clips[f"{seconds:g} s"] = clip_summary(runs, seconds)
                logging.info("%g s: %s", seconds, clips[f"{seconds:g} s"])
    start = {
        "cold": start_summary(cold), "warm": start_summary(warm), "split": _summary(steps),
    }  # fmt: skip
    return {"stages": stages(picture, short), "clips": clips, "start": start}


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.INFO)
    settings = {
        "repeats": _REPEATS.value, "seconds": _SECONDS.value, "long_seconds": _LONG.value,
        "quick": _QUICK.value,
    }
    facts.write(_OUT.value, facts.collect(_WEIGHTS.value, **settings) | run())


if __name__ == "__main__":
    app.run(main)
