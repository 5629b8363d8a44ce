"""Times the programs of a stream on this machine's accelerator, with random weights.

  python -m experiments.accelerator.run --presets=wan-1.3b,tm-18b --budget_s=420

Weights are drawn on the device. A row is one preset with one cache policy and one way of
attention; another is begun only while there is time left.
"""

import dataclasses
import json
import pathlib
import time

from absl import app
from absl import flags
import jax

from experiments.accelerator import measure
from tm_jax.configs import presets
from tm_jax.inference import streams
from tm_jax.models.dit import causal
from tm_jax.nn import quantization

_PRESETS = flags.DEFINE_list("presets", ["wan-1.3b", "tm-18b"], "Presets to time.")
_POLICIES = flags.DEFINE_list("policies", list(causal.POLICIES), "Cache policies to time.")
_ATTENTION = flags.DEFINE_list(
    "attention", None, "Ways of attention; by default all that this device has."
)
_MATRICES = flags.DEFINE_list(
    "matrices", [quantization.FLOAT8, quantization.INT8], "Eight-bit rows of every preset."
)
_LAYERS = flags.DEFINE_integer("layers", None, "Layers of every transformer; by default its own.")
_REPEATS = flags.DEFINE_integer("repeats", 10, "Timed chunks.", lower_bound=2)
_BUDGET = flags.DEFINE_float("budget_s", 420.0, "No row begins after so many seconds.")
_OUT = flags.DEFINE_string(
    "out", str(pathlib.Path(__file__).parent / "results.json"), "JSON to write."
)


def _preset(name: str, policy: str, backend: str, matrices: str) -> presets.Preset:
    preset = presets.get(name).with_student(policy=policy)
    preset = preset.with_execution(attention=backend, matrices=matrices)
    if _LAYERS.value:
        dit = dataclasses.replace(preset.dit, num_layers=_LAYERS.value)
        preset = dataclasses.replace(preset, dit=dit)
    return preset


def _rows():
    """(preset, policy, attention, matrices, tiny) of every row, the most wanted ones first."""
    kernels = _ATTENTION.value or measure.KERNELS[jax.default_backend()]
    policies = sorted(_POLICIES.value, key=lambda name: name != "per_step")
    for name in _PRESETS.value:
        for backend in reversed(kernels):
            for policy in policies:
                tiny = presets.get(name).conditioning == "first_frame" and policy == "clean"
                yield name, policy, backend, quantization.FULL, tiny
        for matrices in _MATRICES.value:
            yield name, policies[0], kernels[-1], matrices, False


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    began, device = time.monotonic(), jax.devices()[0]
    fastest = {dtype: measure.peak(dtype) for dtype in ("bfloat16", "float32")}
    result = {
        "device": device.device_kind, "platform": device.platform, "jax": jax.__version__,
        "matmul_tflops": {name: round(value, 1) for name, value in fastest.items()},
        "correctness": measure.correctness(), "rows": [],
    }
    params: dict = {}
    for name, policy, backend, matrices, tiny in _rows():
        if time.monotonic() - began > _BUDGET.value:
            print("no time left for", name, policy, backend, matrices, flush=True)
            continue
        preset = _preset(name, policy, backend, matrices)
        if params.get("of") != (name, matrices, tiny):
            params.clear()  # Before others are drawn.
            drawn = measure.draw(streams.StreamFunctions(preset, tiny))
            params = {"of": (name, matrices, tiny), "all": drawn}
        try:
            row = measure.row(preset, params["all"], tiny, _REPEATS.value, fastest[preset.dtype])
        except (ValueError, jax.errors.JaxRuntimeError) as error:
            row = {"preset": name, "policy": policy, "attention": backend, "matrices": matrices,
                   "error": str(error).splitlines()[0][:300]}  # fmt: skip
        result["rows"].append(row)
        print(json.dumps(row), flush=True)
        result["seconds"] = round(time.monotonic() - began)
        pathlib.Path(_OUT.value).write_text(json.dumps(result, indent=1) + "\n")
        jax.clear_caches()


if __name__ == "__main__":
    app.run(main)
