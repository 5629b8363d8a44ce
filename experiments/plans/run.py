"""Plans `tm-18b` (and `wan-1.3b` on one GPU) on TPUs and GPUs and renders the table of this page and of docs/training.md.

Every case is one call of launch/plan.py and leaves one JSON in results/; those that are there
are not run again, so that a run that was stopped goes on. Cases of TPUs that are compiled need
the extra `tpu`.
"""

import json
import pathlib
import subprocess
import sys

from absl import app
from absl import flags

from tm_jax.evaluation import tables

_ONLY = flags.DEFINE_list("only", None, "Names of cases to run; all by default.")
_RENDER = flags.DEFINE_bool("render", False, "Run nothing, render what is there.")

_FOLDER = pathlib.Path(__file__).parent
PAGES = (_FOLDER / "README.md", _FOLDER.parents[1] / "docs" / "training.md")

_TPU = ("--depths=1,2", "--quick", "--search=0")
_ESTIMATE = ("--arithmetic", "--depths=1,2", "--search=0")


def _case(stage: str, topology: str, mesh: str, *flags_: str) -> tuple[str, ...]:
    preset = () if any(one.startswith("--preset=") for one in flags_) else ("--preset=tm-18b",)
    return (*preset, f"--stage={stage}", f"--topology={topology}", f"--mesh={mesh}", *flags_)


# Updates (in stage distill rounds) of a run, and the utilisation that its hours are counted with:
# assumptions, of which the first are what the stages of open models of this kind take.
RUN = {"teacher": 10_000, "student": 3_000, "distill": 1_000}
UTILISATION = 0.4

# Name -> flags of launch/plan.py.
CASES = {
    "teacher-v5p-64-compiled": _case("teacher", "v5p:4x4x4", "fsdp=32,seq=2", "--remat", *_TPU),
    "distill-v5p-64-compiled": _case("distill", "v5p:4x4x4", "fsdp=32,seq=2", "--remat", *_TPU),
    "distill-v5p-64": _case("distill", "v5p:4x4x4", "fsdp=32,seq=2", "--remat", *_ESTIMATE),
    "distill-h100-8": _case("distill", "h100:8", "fsdp=8", "--remat", *_ESTIMATE),
    "distill-h100-8-lora": _case("distill", "h100:8", "fsdp=8", "--remat", "--lora=64", *_ESTIMATE),
    "teacher-h100-8-lora": _case("teacher", "h100:8", "fsdp=8", "--remat", "--lora=64", *_ESTIMATE),
    "teacher-wan-h100-1": _case(
        "teacher", "h100:1", "", "--preset=wan-1.3b", "--batch=4", "--remat", "--lora=64", *_ESTIMATE
    ),
    "distill-wan-h100-1": _case(
        "distill", "h100:1", "", "--preset=wan-1.3b", "--batch=4", "--remat", "--lora=64", *_ESTIMATE
    ),
    "distill-h100-64": _case("distill", "h100:64", "fsdp=32,seq=2", "--remat", *_ESTIMATE),
    "distill-h100-128": _case("distill", "h100:128", "fsdp=64,seq=2", "--remat", *_ESTIMATE),
    "teacher-v5p-64": _case("teacher", "v5p:4x4x4", "fsdp=32,seq=2", "--remat", *_ESTIMATE),
    "teacher-h100-8": _case("teacher", "h100:8", "fsdp=8", "--remat", *_ESTIMATE),
    "teacher-h100-64": _case("teacher", "h100:64", "fsdp=32,seq=2", "--remat", *_ESTIMATE),
    "teacher-h100-128": _case("teacher", "h100:128", "fsdp=64,seq=2", "--remat", *_ESTIMATE),
    "teacher-v6e-64": _case("teacher", "v6e:8x8", "fsdp=16,seq=4", "--remat", *_ESTIMATE),
    "distill-v6e-64": _case("distill", "v6e:8x8", "fsdp=16,seq=4", "--remat", *_ESTIMATE),
    "stream-h100-1": _case("stream", "h100:1", "", *_ESTIMATE),
    "stream-h100-8": _case("stream", "h100:8", "seq=2,tensor=4", *_ESTIMATE),
    "stream-v5p-4": _case("stream", "v5p:2x2x1", "tensor=4", *_ESTIMATE),
}  # fmt: skip


def run(name: str) -> None:
    """Runs one case in a process of its own, unless its result is there."""
    path = _FOLDER / "results" / f"{name}.json"
    if path.exists():
        return
    command = [sys.executable, "-m", "launch.plan", *CASES[name], f"--json={path}"]
    done = subprocess.run(command)
    if not path.exists():
        print(f"{name}: no plan, exit status {done.returncode}", file=sys.stderr)


def hours(result: dict) -> float | None:
    """Hours of a run of the stage, at the assumed utilisation; None of a stream."""
    if result["stage"] not in RUN:
        return None
    seconds = result["least_s"] * result["utilisation"] / UTILISATION
    return RUN[result["stage"]] * seconds / 3600


def method(result: dict) -> str:
    """How the figures were found, in a word."""
    return result["method"].split()[0].rstrip(",")


def row(result: dict) -> list[str]:
    """One row of the table."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in result["mesh"].items()) or "one device"
    sent = sum(
        program["times"] * one["wire_bytes"]
        for program in result["programs"] for one in program["collectives"]
    ) / 1e9  # fmt: skip
    compiled = method(result) != "arithmetic"
    adapted = f" (LoRA, rank {result['lora']})" if result.get("lora") else ""
    preset = "" if result["preset"] == "tm-18b" else f"{result['preset']}, "
    return [
        f"{preset}{result['stage']}{adapted}, {result['topology']}", mesh, str(result["batch"]),
        method(result), f"{result['total_gib']:.1f} of {result['limit_gib']:g}",
        "yes" if result["fits"] else "**no**",
        tables.number(sum(
            p["times"] * (p["flops"] - p["recomputed"]) for p in result["programs"]
        ) / 1e15, 2),
        tables.number(sent, 1) if compiled else tables.NONE,
        tables.number(result["least_s"]), tables.number(result["frames_per_s"], 1),
        tables.number(hours(result), 1),
    ]  # fmt: skip


def found() -> list[dict]:
    """The results that are there, in the order of the cases."""
    paths = (_FOLDER / "results" / f"{name}.json" for name in CASES)
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def table(results: list[dict]) -> str:
    """All results in a table."""
    head = [
        "stage, chips", "mesh", "batch", "method", "GiB a device", "fits", "model PFLOP a unit",
        "GB sent a device", "s a unit, at best", "frames/s, at best", "hours of a run",
    ]
    return "\n".join(tables.table(head, [row(result) for result in results])).rstrip()


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    if not _RENDER.value:
        for name in _ONLY.value or CASES:
            run(name)
    text = table(found())
    for page in PAGES:
        tables.put(page, text)
    print(text)


if __name__ == "__main__":
    app.run(main)
