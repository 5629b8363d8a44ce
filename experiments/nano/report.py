"""Renders quality.json and speed.json as tables into README.md, between its markers.

  python -m experiments.nano.report
"""

import json
import pathlib

from absl import app

from tm_jax.evaluation import tables

_FOLDER = pathlib.Path(__file__).parent
_ARMS = {
    "auto": "generated, mode auto", "speak": "generated, mode speak",
    "truth": "drawn with the true motion", "autoencoder": "the same through the autoencoder",
    "static": "still picture",
}
_SILENT = {
    "auto_silence": "auto, silence", "auto_noise": "auto, background noise",
    "listen_overheard": "listen, somebody else speaks",
    "truth_listening": "drawn with a listener's motion",
}
_STAGES = ("audio", "score", "decode", "models", "encode")


def _sync(summary: dict) -> list[str]:
    human = summary["human"]
    lines = [f"**Lips.** Medians over {human['clips']} clips of human voices.", ""]
    lines += tables.table(
        ["video", "correlation", "lag, frames", "at that lag", "closures kept", "by chance"],
        [
            [
                name, tables.number(human[arm]["correlation"]), tables.number(human[arm]["lag_frames"], 1),
                tables.number(human[arm]["correlation_at_lag"]), tables.share(human[arm]["closures_kept"]),
                tables.share(human[arm]["closures_by_chance"]),
            ]
            for arm, name in _ARMS.items()
        ],
    )  # fmt: skip
    head = ["group", "clips", "auto", "speak", "drawn truth", "auto: lag", "auto: closures"]
    rows = [
        [
            group, str(row["clips"]), *(tables.number(row[arm]["correlation"]) for arm in
            ("auto", "speak", "truth")), tables.number(row["auto"]["lag_frames"], 1),
            tables.share(row["auto"]["closures_kept"]),
        ]
        for group, row in summary.items()
    ]  # fmt: skip
    return lines + ["Correlation by voice and by style of drawing:", ""] + tables.table(head, rows)


def _silence(silence: dict) -> list[str]:
    rows = [
        [name, *(tables.share(silence[arm][key]) for key in ("travel_ratio", "opening_ratio",
                                                      "movement_ratio"))]
        for arm, name in _SILENT.items()
    ]
    head = ["without an own voice", "movement of the opening", "widest opening",
            "change of pixels around the mouth"]  # fmt: skip
    return ["**Silence**, relative to speech of the same character. Pixels around the mouth also "
            "change when the head moves.", "", *tables.table(head, rows)]


def _seams(results: dict) -> list[str]:
    videos = {_ARMS[arm]: found for arm, found in results["seams"].items()}
    if "long" in results:
        name = f"generated, {results['long']['seconds']:.0f} s in one stream"
        videos[name] = results["long"]["seams"]
    rows = []
    for name, found in videos.items():
        pairs = [f"{tables.number(f['median'])} / {tables.number(f['p95'])}" for f in found.values()]
        rows.append([name, *pairs, str(found["chunk"]["borders"])])
    head = ["median / 95th percentile", "chunk borders", "chunk to latent borders",
            "latent borders", "chunk borders counted"]  # fmt: skip
    return [
        "**Seams.** Change at borders over change beside them: 1 means that borders look like "
        "any other frame.", "", *tables.table(head, rows),
    ]  # fmt: skip


def _long(long: dict) -> list[str]:
    names = {
        "colour_distance": "distance of colour histograms, 0..1",
        "picture_distance": "distance of 16x16 pictures, 0..1",
        "likeness": "correlation of the upper face",
        "sharpness": "sharpness of the face over the reference's",
    }
    rows = [
        [
            name, *(tables.number(long["drift"][key][k], 4) for k in ("first", "last", "spread")),
            tables.number(long["drift"][key]["change"], 1),
        ]
        for key, name in names.items() if key in long["drift"]
    ]  # fmt: skip
    head = ["to the reference", "first 10 s", "last 10 s", "spread", "change / spread"]
    finite = "All numbers are finite." if long["finite"] else "NOT all numbers are finite."
    return [
        f"**One stream of {long['seconds']:.0f} s.** {finite} Correlation of the lips "
        f"{tables.number(long['correlation_first_30_s'])} in the first 30 s, "
        f"{tables.number(long['correlation_last_30_s'])} in the last 30 s.", "", *tables.table(head, rows),
    ]  # fmt: skip


def quality(results: dict) -> str:
    """Markdown of quality.json."""
    lines = ["### Quality", "", tables.facts(results), "", *_sync(results["summary"])]
    if "silence" in results:
        lines += _silence(results["silence"])
    lines += _seams(results)
    if "long" in results:
        lines += _long(results["long"])
    same = "the same" if results["seed"]["same_seed_same_video"] else "NOT the same"
    return "\n".join([*lines, f"The same seed gives {same} video, bit for bit."])


def speed(results: dict) -> str:
    """Markdown of speed.json."""
    stages, start = results["stages"], results["start"]
    lines = ["### Speed", "", tables.facts(results), ""]
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


def render(folder: pathlib.Path) -> str:
    """All tables for which there are results."""
    parts = []
    for name, draw in (("quality", quality), ("speed", speed)):
        path = folder / f"{name}.json"
        parts.append(draw(json.loads(path.read_text())) if path.exists() else f"No {name}.json.")
    return "\n\n".join(parts)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    text = render(_FOLDER / "results")
    tables.put(_FOLDER / "README.md", text)
    print(text)


if __name__ == "__main__":
    app.run(main)
