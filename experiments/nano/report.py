"""Renders results as tables into README.md, between its markers, and gathers quality.json.

  python -m experiments.nano.report

Reads results/speed.json of experiments.nano.speed, results/vae.json and results/vae_people.json of
vae_quality.py, and experiments/distillation/quality.json of launch/evaluate.py.
"""

import json
import pathlib

from absl import app

import tm_jax
from tm_jax.evaluation import tables

_FOLDER = pathlib.Path(__file__).parent
_EVALUATED = _FOLDER.parent / "distillation" / "quality.json"
_ASSETS = pathlib.Path(tm_jax.__file__).parent / "assets" / "nano"
_STAGES = ("audio", "score", "decode", "models", "encode")


def speed(results: dict) -> str:
    """Markdown of speed.json."""
    stages, start = results["stages"], results["start"]
    lines = [tables.facts(results), ""]
    factors = ", ".join(f"{tables.number(v)} for {k}" for k, v in stages["real_time_factor"].items())
    lines += [
        f"**One chunk** ({stages['chunk_s']:.2f} s of video). Stages one after the other give a "
        f"real-time factor of {factors}; below 1 is faster than real time.", "",
    ]  # fmt: skip
    rows = [[s, *(tables.number(stages["ms"][s][p], 1) for p in ("p50", "p95"))] for s in _STAGES]
    lines += tables.table(["stage, ms per chunk", "median", "95th percentile"], rows)
    clips = list(results["clips"].values())
    minutes = list(dict.fromkeys(m for clip in clips for m in clip["rss_mb"]))
    head = ["`launch/generate.py`", *(f"{c['seconds']:g} s" for c in clips)]
    rows = [
        ["runs", *(str(c["runs"]) for c in clips)],
        ["real-time factor, all included", *(tables.number(c["real_time_factor"]) for c in clips)],
        ["wall time, s", *(tables.number(c["wall_s"], 1) for c in clips)],
        ["peak memory, MB", *(tables.number(c["peak_mb"], 0) for c in clips)],
    ]
    for minute in minutes:
        rows.append(
            [f"memory at {minute}, MB", *(tables.number(c["rss_mb"].get(minute), 0) for c in clips)]
        )
    lines += tables.table(head, rows)
    rows = [
        [name, *(tables.number(start[key][k], 1) for k in ("first_frame_s", "first_frame_from_start_s"))]
        for key, name in (("cold", "nothing compiled yet"), ("warm", "compilation cache filled"))
    ]
    head = ["time to the first frame, s", "from the call", "from the start of the process"]
    return "\n".join(lines + tables.table(head, rows)).rstrip()


def quality(speed_results: dict, vae: dict, people: dict, evaluated: dict) -> dict:
    """One number for every aim, of held-out characters and voices."""
    student = evaluated["arms"]["student"]
    gestures = student["gestures"]["speaking"]["to_truth"]
    drift = evaluated["drift"]
    return {
        "vae_psnr": vae["psnr"], "vae_psnr_moving": vae["psnr_moving"], "vae_ssim": vae["ssim"],
        "vae_people_psnr": people["psnr"], "vae_people_psnr_moving": people["psnr_moving"],
        **{name: evaluated[name] for name in (
            "lipsync_correlation", "lipsync_lag_frames", "bilabial_closure", "silence_ratio",
            "frechet_ratio", "seam_ratio",
        )},
        "drift": drift,
        "head_motion_ratio": gestures["head_spread"],
        "blink_ratio": gestures["blinks_per_minute"],
        "real_time_factor": max(c["real_time_factor"] for c in speed_results["clips"].values()),
        "peak_mb": max(c["peak_mb"] for c in speed_results["clips"].values()),
        "first_frame_s": speed_results["start"]["warm"]["first_frame_s"],
        "weights_mb": round(sum(f.stat().st_size for f in _ASSETS.glob("*.safetensors")) / 1e6, 1),
        "hardware": evaluated["hardware"], "weights": evaluated["weights"],
    }


_AIMS = (  # Key, measure, its aim, digits.
    ("vae_psnr", "autoencoder, drawn characters in motion: PSNR, dB", "34", 1),
    ("vae_psnr_moving", "the same where pixels move", "28", 1),
    ("vae_people_psnr", "autoencoder, 3-D people in motion: PSNR, dB", "34", 1),
    ("vae_people_psnr_moving", "the same where pixels move", "28", 1),
    ("lipsync_correlation", "lip sync, human voices: correlation", "0.90", 2),
    ("lipsync_lag_frames", "lag, frames", "0", 0),
    ("bilabial_closure", "lips shut on m, b, p", "0.90", 2),
    ("silence_ratio", "mouth movement in silence and while listening", "0.02", 2),
    ("head_motion_ratio", "spread of head motion over the data's", "0.9 to 1.1", 2),
    ("blink_ratio", "blinks over the data's", "0.9 to 1.1", 2),
    ("frechet_ratio", "Fréchet distance over the many-step teacher's", "1.05", 2),
    ("seam_ratio", "change at chunk borders over inside", "1.0", 2),
    ("real_time_factor", "real-time factor with encoding", "0.35", 2),
    ("peak_mb", "memory, MB", "1000", 0),
    ("first_frame_s", "first frame, warm, s", "1.5", 1),
    ("weights_mb", "weights, MB", "25", 1),
)


def aims(values: dict) -> str:
    """Markdown of quality.json."""
    rows = [[name, aim, tables.number(values[key], d)] for key, name, aim, d in _AIMS]
    return "\n".join(tables.table(["measure", "goal", "measured"], rows)).rstrip()


def _read(path: pathlib.Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    results = _FOLDER / "results"
    measured = _read(results / "speed.json")
    values = quality(
        measured, _read(results / "vae.json"), _read(results / "vae_people.json"),
        _read(_EVALUATED),
    )
    (_FOLDER / "quality.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    text = f"{aims(values)}\n\n{speed(measured)}"
    tables.put(_FOLDER / "README.md", text)
    print(text)


if __name__ == "__main__":
    app.run(main)
