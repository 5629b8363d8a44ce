"""Renders what `run.py` has measured as tables into README.md, between its markers.

  python -m experiments.call.report
"""

import json
import pathlib

from absl import app

from tm_jax.evaluation import tables

_FOLDER = pathlib.Path(__file__).parent


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f} %"


def _ms(found: dict, quantile: str) -> str:
    return tables.number(found[quantile], 0)


def bench(results: dict) -> list[str]:
    """Headless callers: one, a full host, one too many."""
    head = [
        "headless callers", "served", "first frame, ms", "voice to lips, ms: median", "p95",
        "frames", "late",
    ]  # fmt: skip
    rows = []
    for name in ("one_caller", "full", "one_too_many"):
        if name in results:
            found = results[name]
            lips = found["voice_to_lips_ms"]
            rows.append([
                str(found["callers"]), str(found["served"]), _ms(found["first_frame_ms"], "p95"),
                _ms(lips, "p50"), _ms(lips, "p95"), tables.number(found["frames"], 0),
                _share(found["late_share"]),
            ])
    return tables.table(head, rows)


def screen(results: dict) -> list[str]:
    """Callers in a browser."""
    head = [
        "pages", "seconds", "first frame, ms", "frames a second", "late or missing",
        "undisturbed seconds", "late or missing in them", "picture after sound, ms: least",
        "median", "most", "voice to picture, ms: median", "p95",
    ]  # fmt: skip
    rows = []
    for callers in (results["callers_1"], results["callers_2"]):
        for found in callers:
            behind, lips = found["picture_after_sound_ms"], found.get("voice_to_picture_ms", {})
            rows.append([
                str(len(callers)), tables.number(found["seconds"], 0),
                tables.number(found["first_frame_ms"], 0),
                tables.number(found["frames_per_second"], 1), _share(found["late_share"]),
                tables.number(found["undisturbed_seconds"], 0),
                _share(found["undisturbed_late_share"]),
                *(tables.number(behind[name], 0) for name in ("least", "median", "most")),
                *(tables.number(lips.get(name), 0) for name in ("median", "p95")),
            ])
    return tables.table(head, rows)


def soak(results: dict) -> list[str]:
    """Impossible callers beside a good one."""
    good = results["good_caller"]
    before, after = results["before"], results["after"]
    rows = [
        ["minutes", tables.number(results["minutes"], 0)],
        ["visits", tables.number(results["visits"], 0)],
        ["memory before and after, MB", " → ".join(
            tables.number(state["resident_bytes"] / 1e6, 0) for state in (before, after)
        )],
        ["open files before and after", f"{before['open_files']:.0f} → {after['open_files']:.0f}"],
        ["sessions left", tables.number(after["sessions"], 0)],
        ["frames of the good caller", tables.number(good["frames"], 0)],
        ["of them late", _share(good["late_share"])],
    ]  # fmt: skip
    lines = tables.table(["soak", ""], rows)
    visits = ", ".join(f"{name} {count}" for name, count in results["outcomes"].items())
    return [*lines, f"Visits and how they ended: {visits}.", ""]


def main(argv: list[str]) -> None:
    """Renders the parts that have a result."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    lines = []
    parts = {
        "bench": bench, "screen_websocket": screen, "screen_webrtc": screen, "soak": soak,
    }  # fmt: skip
    for name, render in parts.items():
        path = _FOLDER / "results" / f"{name}.json"
        if path.exists():
            results = json.loads(path.read_text())
            facts = [results["preset"], results["machine"]]
            if "load_average_at_end" in results:
                facts.append(f"load {results['load_average_at_end']:.1f} at the end")
            if results.get("taken_by_the_host"):
                share = _share(results["taken_by_the_host"])
                facts.append(f"{share} of the processors taken by the host")
            lines += [f"`{path.name}`: {', '.join(facts)}.", "", *render(results)]
    tables.put(_FOLDER / "README.md", "\n".join(lines).strip())


if __name__ == "__main__":
    app.run(main)
