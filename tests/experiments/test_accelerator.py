"""The scripts for accelerators run where there is none, at the smallest size."""

import json
import os
import pathlib
import subprocess
import sys

from experiments.accelerator import measure as accelerator
from experiments.runtime import stages
from tm_jax.configs import presets
from tm_jax.inference import streams

_ROOT = pathlib.Path(__file__).parents[2]


def test_a_row_of_the_accelerator():
    preset = presets.get("pico").with_student(policy="per_step").with_execution(attention="xla")
    params = accelerator.draw(streams.StreamFunctions(preset))
    row = accelerator.row(preset, params, False, 2, 1.0)
    assert row["finite"] and row["passes"] == 2 and row["attention"] == "xla"
    assert 0 < row["pass_ms"] < row["denoise_ms"] and row["frames_per_s"] > 0
    # What it counts is what is run.
    assert row["tflops"] * row["denoise_ms"] < 1 and row["parameters"] > 1e4
    [checked] = accelerator.correctness()
    assert checked["attention"] == "xla" and checked["largest_relative_difference"] < 0.02


def test_the_script_says_what_is_missing(tmp_path):
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\nexec {sys.executable} -S -I \"$@\"\n")
    fake.chmod(0o755)
    done = subprocess.run(
        ["experiments/accelerator/run.sh", str(tmp_path)], cwd=_ROOT, capture_output=True,
        text=True, env={**os.environ, "PYTHON": str(fake)},
    )
    assert done.returncode == 1
    assert done.stderr.strip().startswith("run.sh: install jax, flax, optax")


def test_rows_of_figure_3():
    """One device, and two of which one decodes."""
    case = {"preset": "pico", "full": True, "repeats": 2, "layout": "self-contained",
            "sequence": 1, "devices": 1, "length": 30}  # fmt: skip
    row = stages.measure(case)
    assert row["transfer_ms"] < row["denoise_ms"] and row["chunk_ms"] > 0
    assert row["denoise_ms_by_position"].keys() == {"10", "30"}
    apart = stages.measure({**case, "layout": "disaggregated", "devices": 2, "length": 0})
    assert apart["layout"] == "disaggregated" and apart["streams"] == 1
    assert apart["overlap_efficiency"] > 0 and apart["share_of_allowed"] > 0
    json.dumps([row, apart])


def test_large_presets_are_reduced_where_they_cannot_run():
    for name in ("wan-1.3b", "tm-18b"):
        assert stages.preset(name, False, {}).dit.num_layers == 2
        assert stages.preset(name, True, {}) == presets.get(name)
    changed = stages.preset("nano", False, {"num_steps": 4, "policy": "clean"})
    assert changed.dit == presets.get("nano").dit
    assert (changed.student.num_steps, changed.student.policy) == (4, "clean")
