"""Figure 3 of the paper: where the time of a chunk goes, in four ways to share devices.

  python -m experiments.runtime.run                # simulated devices, reduced large presets
  python -m experiments.runtime.run --full         # on GPUs or TPUs: the presets as they are
"""

import json
import os
import pathlib
import subprocess
import sys

from absl import app
from absl import flags
import matplotlib

matplotlib.use("agg")
matplotlib.rcParams["svg.hashsalt"] = "figure3"  # The same rows, the same file.
from matplotlib import pyplot

from tm_jax.evaluation import facts
from tm_jax.evaluation import tables

_FULL = flags.DEFINE_bool("full", False, "Presets at their own sizes, on real devices.")
_PRESETS = flags.DEFINE_list("presets", ["nano", "wan-1.3b", "tm-18b"], "Presets.")
_DEVICES = flags.DEFINE_list("devices", ["1", "2", "4"], "Numbers of devices.")
_REPEATS = flags.DEFINE_integer("repeats", 8, "Timed chunks of a row.", lower_bound=2)
_LENGTH = flags.DEFINE_integer("length", 10_000, "Chunks of the longest stream; 0: none.")
_PARTS = flags.DEFINE_list(
    "parts", ["figure3", "costs", "peaks", "training"], "What to measure."
)
_RENDER = flags.DEFINE_bool("render", False, "Measure nothing, render what is there.")

_HERE = pathlib.Path(__file__).parent
_RESULTS = _HERE / "results.json"
_STAGES = ("audio", "denoise", "transfer", "decode")


def _layouts(devices: int):
    """(layout, devices that share a chunk's tokens) for so many devices."""
    yield "self-contained", 1
    if devices > 1:
        yield "self-contained", devices
        yield "disaggregated", 1
    if devices > 2:
        yield "disaggregated", devices - 1


def cases() -> list[dict]:
    """The rows of the figure."""
    return [
        {"preset": name, "devices": count, "layout": layout, "sequence": sequence}
        for name in _PRESETS.value for count in map(int, _DEVICES.value)
        for layout, sequence in _layouts(count) if _divides(name, sequence)
    ]  # fmt: skip


def _divides(name: str, sequence: int) -> bool:
    """Whether so many devices can share the tokens of a chunk."""
    from tm_jax.configs import presets

    found = presets.get(name)
    return (3 * found.tokens) % sequence == 0


def costs() -> list[dict]:
    """What a chunk costs by resolution, steps, policy, streams and length, on one device."""
    name = _PRESETS.value[0]
    plain = {"preset": name, "devices": 1, "layout": "self-contained", "sequence": 1}
    found = [{**plain, "changes": {"num_steps": n, "policy": p}}
             for n in (1, 2, 4) for p in ("clean", "per_step")]  # fmt: skip
    found += [{**plain, "batch": n} for n in (2, 4)]
    if _LENGTH.value:
        found.append({**plain, "preset": "pico", "length": _LENGTH.value})
        found.append({**plain, "length": min(1000, _LENGTH.value)})
    large = {**plain, "preset": "wan-1.3b"}
    found += [{**large, "changes": {"side": side}} for side in (64, 128, 192)]
    return found


def _measure(rows: list[dict]) -> list[dict]:
    """Rows of one number of devices, in a process that has as many."""
    count = rows[0]["devices"]
    environment = {**os.environ, "PYTHONPATH": str(_HERE.parents[1])}
    if not _FULL.value:
        environment |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(count)}
    more = {"full": _FULL.value, "repeats": _REPEATS.value}
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.runtime.stages"], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True, env=environment, cwd=_HERE.parents[1],
    )
    lines = "".join(json.dumps({**row, **more}) + "\n" for row in rows)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(lines)
    process.stdin.close()
    found = []
    for line in process.stdout:
        if line.startswith("ROW "):
            found.append(json.loads(line[4:]))
            print(line[4:].strip(), flush=True)
    if process.wait() or len(found) != len(rows):
        sys.exit(f"{len(found)} of {len(rows)} rows were measured before the process ended.")
    return found


def _by_devices(rows: list[dict]) -> list[dict]:
    counts = dict.fromkeys(row["devices"] for row in rows)
    return [row for n in counts for row in _measure([r for r in rows if r["devices"] == n])]


def peaks() -> dict:
    """TFLOP/s of a large product and GB/s of a large sum on the first device."""
    code = (
        "import json, jax, jax.numpy as jnp\n"
        "from experiments.accelerator import measure\n"
        "x = jnp.ones(1 << 26, jnp.float32)\n"
        "add = jax.jit(lambda x: x + 1)\n"
        "spent, _ = measure.median_ms(lambda: add(x).block_until_ready(), 5)\n"
        "print('ROW ' + json.dumps({'device': jax.devices()[0].device_kind,\n"
        "    'matmul_tflops_float32': measure.peak('float32'),\n"
        "    'bandwidth_gbps': 2 * x.nbytes / spent / 1e6}))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(_HERE.parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    [line] = [x for x in done.stdout.splitlines() if x.startswith("ROW ")]
    return {k: v if isinstance(v, str) else round(v, 2) for k, v in json.loads(line[4:]).items()}


def training() -> list[dict]:
    """Updates of the small preset's stages, in pages of memory of 4 KiB and in large ones."""
    found = []
    for size, pages in enumerate(("4 KiB", "large")):
        environment = {
            **os.environ, "PYTHONPATH": str(_HERE.parents[1]),
            "GLIBC_TUNABLES": f"glibc.malloc.hugetlb={size}",
        }
        done = subprocess.run(
            [sys.executable, "-m", "experiments.runtime.training", str(_REPEATS.value)],
            capture_output=True, text=True, env=environment, cwd=_HERE.parents[1],
        )
        if done.returncode:
            sys.exit(done.stderr)
        lines = [line[4:] for line in done.stdout.splitlines() if line.startswith("ROW ")]
        found += [{"pages": pages, **json.loads(line)} for line in lines]
    return found


def training_table(rows: list[dict]) -> str:
    """Updates of stages."""
    head = ["stage", "pages of memory", "update, ms", "page faults", "TFLOP/s", "of a large product's"]
    lines = [[
        r["stage"], r["pages"], tables.number(r["update_ms"], 0), f"{r['page_faults']:,}",
        tables.number(r["tflops"], 3), tables.share(r["of_peak"]),
    ] for r in sorted(rows, key=lambda r: (r["stage"], r["pages"]))]  # fmt: skip
    return "**Training of nano**, one update.\n\n" + "\n".join(tables.table(head, lines)).rstrip()


def compare() -> list[dict]:
    """Ratios to PyTorch's fastest way, from experiments/parity/speed.json; above 1 ours is
    faster."""
    found: dict[str, float] = {}
    names = {"transformer": "transformer_forward", "decoder": "wan_decoder_chunk"}
    for row in json.loads((_HERE.parent / "parity" / "speed.json").read_text())["rows"]:
        item = next((name for key, name in names.items() if key in row["part"]), row["part"])
        found[item] = min(row["ratio"], found.get(item, row["ratio"]))
    return [{"item": item, "ratio": round(ratio, 3)} for item, ratio in found.items()]


def table(rows: list[dict]) -> str:
    """The figure as a table."""
    head = ["preset", "layout", "tokens shared by", "devices", "streams", *(f"{s}, ms" for s in _STAGES),
            "host waits, ms", "encode, ms", "chunk, ms", "overlap", "of what the machine allows"]
    lines = []
    for r in rows:
        shared = r["devices"] - (r["layout"] == "disaggregated") if r["sequence_parallel"] else 1
        lines.append([
            f"{r['preset']} ({r['layers']} layers of {r['width']}, {r['side']}²)", r["layout"],
            str(shared), str(r["devices"]), str(r["streams"]), *(tables.number(r[f"{s}_ms"], 1) for s in _STAGES),
            tables.number(r["wait_ms"], 1), tables.number(r["encode_ms"], 1),
            tables.number(r["chunk_ms"], 1), tables.number(r["overlap_efficiency"]),
            tables.share(r["share_of_allowed"]),
        ])  # fmt: skip
    return "\n".join(tables.table(head, lines)).rstrip()


def cost_table(rows: list[dict]) -> str:
    """The other costs."""
    head = ["preset", "side", "steps", "cache policy", "streams", "denoise, ms", "decode, ms",
            "chunk, ms", "ms a stream"]  # fmt: skip
    lines = [[
        r["preset"], str(r["side"]), str(r["steps"]), r["policy"], str(r["streams"]),
        tables.number(r["denoise_ms"], 1), tables.number(r["decode_ms"], 1),
        tables.number(r["chunk_ms"], 1), tables.number(r["chunk_ms"] / r["streams"], 1),
    ] for r in rows if "denoise_ms_by_position" not in r]  # fmt: skip
    text = "\n".join(tables.table(head, lines)).rstrip()
    for r in rows:
        for position, spent in r.get("denoise_ms_by_position", {}).items():
            text += (
                f"\n\nDenoising chunk {int(position):,} of a stream of {r['preset']}: "
                f"{spent:.2f} ms."
            )
    return text


def plot(rows: list[dict], path: pathlib.Path) -> None:
    """Stages stacked beside the wall time of a chunk."""
    names = list(dict.fromkeys(row["preset"] for row in rows))
    figure, axes = pyplot.subplots(1, len(names), figsize=(5 * len(names), 4.5), squeeze=False)
    for axis, name in zip(axes[0], names):
        mine = [row for row in rows if row["preset"] == name]
        bottom = [0.0] * len(mine)
        for stage in _STAGES:
            values = [row[f"{stage}_ms"] for row in mine]
            axis.bar(range(len(mine)), values, 0.6, bottom=bottom, label=stage)
            bottom = [a + b for a, b in zip(bottom, values)]
        axis.plot(range(len(mine)), [row["chunk_ms"] for row in mine], "k_", ms=22, label="chunk")
        axis.set_xticks(range(len(mine)), [
            f"{row['layout'][:4]}{'+sp' * row['sequence_parallel']}\n{row['devices']}"
            for row in mine
        ], fontsize=7)  # fmt: skip
        axis.set_title(name)
        axis.set_ylabel("ms")
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    results = json.loads(_RESULTS.read_text()) if _RESULTS.exists() else {}
    if not _RENDER.value:
        results |= {"hardware": facts.hardware(), "compare": compare()}
        work = {
            "figure3": lambda: _by_devices(cases()), "costs": lambda: _by_devices(costs()),
            "peaks": peaks, "training": training,
        }  # fmt: skip
        for part in _PARTS.value:
            results[part] = work[part]()
            _RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    text = [table(results["figure3"])]
    if results.get("costs"):
        text.append(cost_table(results["costs"]))
    if results.get("peaks"):
        p = results["peaks"]
        text.append(
            f"{results['hardware']}: {p['matmul_tflops_float32']:.2f} TFLOP/s in large float32 "
            f"products, {p['bandwidth_gbps']:.0f} GB/s."
        )
    if results.get("training"):
        text.append(training_table(results["training"]))
    tables.put(_HERE / "README.md", "\n\n".join(text))
    plot(results["figure3"], _HERE / "figure3.svg")
    print("\n\n".join(text))


if __name__ == "__main__":
    app.run(main)
