"""Renders speed.json as tables into README.md, between its markers.

  python -m experiments.nano.report
"""

import json
import pathlib

from absl import app

from tm_jax.evaluation import tables

_FOLDER = pathlib.Path(__file__).parent
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


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    text = speed(json.loads((_FOLDER / "results" / "speed.json").read_text()))
    tables.put(_FOLDER / "README.md", text)
    print(text)


if __name__ == "__main__":
    app.run(main)
