"""Plans a stage on devices that are not there: memory, FLOPs, collectives, time, and if it fits.

  python launch/plan.py --preset=tm-18b --stage=distill --topology=v5p:4x4x4 \
    --mesh=fsdp=32,seq=2 --batch=32 --remat
  python launch/plan.py --preset=tm-18b --stage=teacher --topology=h100:64 --mesh=fsdp=64
  python launch/plan.py --preset=tm-18b --stage=stream --topology=v6e:4x4 --mesh=tensor=8

Compiles the stage's own programs, without weights. TPUs: by their real compiler (extra `tpu`).
GPUs, or with --simulate: by simulated CPU devices and arithmetic. The last line says whether
it fits; if not, the exit status is 1 and the lines before say what would.
"""

import json
import os
import pathlib
import sys
import types

from absl import flags
from absl import logging

try:
    from launch import common
except ModuleNotFoundError as error:
    if error.name not in ("launch", "launch.common"):
        raise
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    from launch import common

_STAGES = ("teacher", "student", "distill", "stream")

_PRESET = flags.DEFINE_string("preset", "tm-18b", "Preset to plan.")
_STAGE = flags.DEFINE_enum("stage", None, _STAGES, "Stage of training, or the stream.")
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "Chips, e.g. v5p:4x4x4, v6e:4x4 or h100:8 (tm_jax/planning/chips.py)."
)
_MESH = common.mesh_flag()
_BATCH = flags.DEFINE_integer(
    "batch", None, "Clips in a (micro-)batch, or streams; one for each data * fsdp by default.",
    lower_bound=1,
)
_REMAT = flags.DEFINE_string(
    "remat", None, "Rematerialisation, as --set=remat=VALUE; without a value: True."
)
_ACCUMULATE = flags.DEFINE_integer("accumulate", 1, "Micro-batches an update.", lower_bound=1)
_LORA = flags.DEFINE_integer(
    "lora", 0, "Rank of low-rank adaptation, as --set=lora.rank=VALUE; 0: none.", lower_bound=0
)
_ATTENTION = common.attention_flag()
_MATRICES = common.matrices_flag()
_SET = flags.DEFINE_multi_string("set", [], "Typed override of the stage's settings.")
_DEPTHS = flags.DEFINE_string(
    "depths", "2,4", "Layers to compile; a deeper model is on the line through both. all: no line.",
)
_SIMULATE = flags.DEFINE_bool("simulate", False, "Simulated CPU devices for TPUs too.")
_QUICK = flags.DEFINE_bool("quick", False, "The TPU compiler takes less trouble.")
_ARITHMETIC = flags.DEFINE_bool(
    "arithmetic", False, "Compile nothing: trace, count and estimate; no collectives."
)
_SEARCH = flags.DEFINE_integer(
    "search", 1, "Cases that are compiled to confirm what would fit.", lower_bound=0
)
_JSON = flags.DEFINE_string("json", None, "File that gets the figures.")


def _depths() -> tuple[int, ...]:
    """Layers to compile."""
    text = _DEPTHS.value
    if text == "all":
        return ()
    parts = text.split(",")
    if not (all(p.isdigit() and int(p) for p in parts) and len(set(parts)) in (1, 2)):
        raise ValueError(f"--depths: expected one or two numbers as in 2,4, or all; got {text!r}.")
    return tuple(int(p) for p in parts)


def _settings(stage: str, batch: int):
    """Settings of the stage with what the flags change."""
    if stage == "stream":
        training = (
            ("remat", _REMAT), ("accumulate", _ACCUMULATE), ("lora", _LORA), ("set", _SET)
        )
        given = [name for name, flag in training if flag.present]
        if given:
            raise ValueError(f"--{given[0]}: a stream does not learn; leave it out.")
        return types.SimpleNamespace(batch=batch)
    from tm_jax.configs import overrides
    from tm_jax.training import run

    settings = run.config(stage, "corpus", "data")
    changes = [f"batch={batch}", f"lora.rank={_LORA.value}"]
    if _REMAT.value is not None:
        changes.append(f"remat={_REMAT.value}")
    groups = ("optimizer", "critic_optimizer") if stage == "distill" else ("optimizer",)
    changes += [f"{group}.accumulate={_ACCUMULATE.value}" for group in groups]
    return overrides.apply(settings, [*changes, *_SET.value])


def _environment(simulate: bool, count: int) -> None:
    """What must be set before JAX looks for devices."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    # There is no TPU here: nothing is asked of the metadata server, and several may compile.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    if simulate:
        import jax

        try:
            jax.config.update("jax_num_cpu_devices", count)
        except RuntimeError:  # JAX runs already, with the devices that it has.
            pass


def _case():
    """What the flags ask for."""
    if _TOPOLOGY.value is None or _STAGE.value is None:
        missing = "topology" if _TOPOLOGY.value is None else "stage"
        raise ValueError(f"--{missing}: name it, for example --stage=teacher --topology=v5p:4x4x4.")
    from tm_jax.planning import chips  # Knows no JAX, which must find its environment.

    topology = chips.parse(_TOPOLOGY.value)
    simulate = _SIMULATE.value or _ARITHMETIC.value or topology.chip.platform != "tpu"
    _environment(simulate, topology.count)

    from tm_jax.configs import presets
    from tm_jax.parallel import mesh_flag
    from tm_jax.planning import plan
    from tm_jax.training import plan as training_plan

    preset = presets.get(_PRESET.value).with_execution(
        attention=_ATTENTION.value, matrices=_MATRICES.value
    )
    mesh = mesh_flag.parse(_MESH.value, topology.count)
    if _STAGE.value != "stream" and preset.dit.matrices != "full":
        raise ValueError("--matrices: training keeps them as they are; leave it out.")
    training_plan.check_mesh(preset, mesh)
    depths = _depths()
    settings = _settings(_STAGE.value, _BATCH.value or mesh["data"] * mesh["fsdp"])
    return plan.Case(
        preset=preset, stage=_STAGE.value, settings=settings, topology=topology, mesh=mesh,
        depths=depths, simulate=simulate, quick=_QUICK.value,
        arithmetic=_ARITHMETIC.value,
    )


def main() -> None:
    case = _case()
    logging.set_verbosity(logging.INFO)
    from tm_jax.planning import plan
    from tm_jax.planning import report
    from tm_jax.planning import search
    from tm_jax.training import plan as training_plan

    try:
        found = plan.make(case)
    except ImportError as error:
        raise ValueError(
            f"{case.topology.name} needs the compiler of TPUs ({error}): install the extra tpu, or "
            "name --simulate."
        ) from error
    print(report.text(found))
    for note in training_plan.notes(case.mesh, case.settings):
        print(f"note: {note}")
    values = report.values(found)
    if not found.fits:
        values["would_fit"] = search.suggest(found, _SEARCH.value)
        for line in values["would_fit"]:
            print(f"would fit: {line}" if "chips." not in line else line)
    if _JSON.value:
        path = pathlib.Path(_JSON.value)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    print(found.verdict)
    if not found.fits:
        sys.exit(1)


if __name__ == "__main__":
    sys.argv = ["--remat=True" if a in ("--remat", "-remat") else a for a in sys.argv]
    common.run("plan", main)
