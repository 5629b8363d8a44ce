"""A plan as a text for people, and as values for JSON."""

import dataclasses
from typing import Any

from tm_jax.planning import chips
from tm_jax.planning import plan as plan_lib


def text(plan: plan_lib.Plan) -> str:
    """Everything but the verdict, in lines."""
    case, stage = plan.case, plan.stage
    mesh = ", ".join(f"{axis}={size}" for axis, size in case.mesh.items())
    chip, settings, count = case.topology.chip, case.settings, case.topology.count
    lines = [
        f"{case.preset.name}, stage {case.stage}, on {case.topology.name}: {case.topology.count} "
        f"chips of {chip.memory_gib:g} GiB, {chip.tflops:g} TFLOP/s ({chip.source})",
        f"mesh {mesh}; {_settings(settings)}",
        f"method: {method(case)}",
        f"depth: {_depth(plan)}; {stage.seconds:.0f} s to trace and compile",
        "", "memory of one device, GiB",
    ]
    lines += [f"  {name:<30} {size / chips.GIB:8.2f}" for name, size in plan.memory.items()]
    lines.append(f"  {'all':<30} {plan.total_gib:8.2f}")
    for program, time in zip(stage.programs, plan.times, strict=True):
        lines += ["", f"{program.name} ({program.times} per {stage.unit}), one device"]
        lines.append(
            f"  TFLOPs {program.flops * program.replicated / count / 1e12:.2f}"
            f" (of them recomputed {program.recomputed / count / 1e12:.2f}"
            f", {program.replicated:.2f} times its share)"
        )
        lines.append(
            f"  seconds at best: compute {time.compute_s:.4f}, memory {time.memory_s:.4f}, "
            f"network {time.network_s:.4f}"
        )
        lines += [
            f"  {one.kind:<20} x {one.count:6.0f} over {one.members:4d} devices, "
            f"{one.wire_bytes / 1e9:9.3f} GB sent"
            for one in program.collectives if one.wire_bytes >= 1e6
        ]  # fmt: skip
    least, serial = plan.least_s, plan.serial_s
    lines += [
        "", f"one {stage.unit}: {least:.3f} s if all work overlaps (roofline), {serial:.3f} s if "
        f"nothing does; utilisation {plan.utilisation(least):.0%} and "
        f"{plan.utilisation(serial):.0%}",
        f"{stage.frames / least:.1f} frames a second, {stage.tokens / least:.0f} tokens a second "
        "at the roofline",
    ]
    if case.stage == "stream":
        video = case.preset.timing.chunk_s
        lines.append(f"a chunk lasts {video:.2f} s: {video / least:.2f} times real time")
    return "\n".join(lines)


def method(case: plan_lib.Case) -> str:
    """How the figures were found."""
    if case.arithmetic:
        return plan_lib.ARITHMETIC
    return plan_lib.SIMULATED if case.simulate else plan_lib.COMPILED


def _settings(settings: Any) -> str:
    parts = [f"batch={settings.batch}"]
    if hasattr(settings, "remat"):
        parts += [f"remat={settings.remat}", f"accumulate={settings.optimizer.accumulate}"]
    return ", ".join(parts)


def _depth(plan: plan_lib.Plan) -> str:
    layers, depths = plan.case.preset.dit.num_layers, plan.stage.depths
    if depths == (layers,):
        return f"all {layers} layers {_how(plan)}"
    if len(depths) == 1:
        return f"{depths[0]} of {layers} layers"
    return f"{depths[0]} and {depths[1]} layers {_how(plan)}, {layers} on the line through both"


def _how(plan: plan_lib.Plan) -> str:
    return "traced" if plan.case.arithmetic else "compiled"


def values(plan: plan_lib.Plan) -> dict[str, Any]:
    """The plan as numbers and texts."""
    case, stage = plan.case, plan.stage
    settings = case.settings
    return {
        "preset": case.preset.name, "stage": case.stage, "topology": case.topology.name,
        "mesh": {axis: size for axis, size in case.mesh.items() if size > 1},
        "batch": settings.batch, "remat": getattr(settings, "remat", None),
        "lora": settings.lora.rank if hasattr(settings, "lora") else None,
        "accumulate": settings.optimizer.accumulate if hasattr(settings, "optimizer") else None,
        "method": method(case), "layers": case.preset.dit.num_layers,
        "depths": list(stage.depths), "temporaries_gib_by_depth": {
            str(depth): size / chips.GIB for depth, size in stage.points.items()
        }, "quick": case.quick, "seconds": round(stage.seconds, 1),
        "unit": stage.unit, "frames": stage.frames, "tokens": stage.tokens,
        "memory_gib": {name: size / chips.GIB for name, size in plan.memory.items()},
        "total_gib": plan.total_gib, "limit_gib": case.topology.chip.memory_gib,
        "fits": plan.fits, "verdict": plan.verdict,
        "programs": [
            {
                **dataclasses.asdict(program), **dataclasses.asdict(time), "bound": time.bound,
                "collectives": [dataclasses.asdict(one) for one in program.collectives],
            }
            for program, time in zip(stage.programs, plan.times, strict=True)
        ],
        "least_s": plan.least_s, "serial_s": plan.serial_s, "model_flops": plan.model_flops,
        "utilisation": plan.utilisation(plan.least_s),
        "frames_per_s": stage.frames / plan.least_s, "tokens_per_s": stage.tokens / plan.least_s,
    }  # fmt: skip
