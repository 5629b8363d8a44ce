"""What would fit, when a plan does not: other meshes, rematerialisation, accumulation.

All candidates are judged by arithmetic that starts from the figures of the compiled plan; the
best few are compiled to confirm.
"""

from collections.abc import Iterator
import dataclasses
import itertools
import math

from tm_jax.parallel import rules
from tm_jax.planning import activations
from tm_jax.planning import chips
from tm_jax.planning import plan as plan_lib
from tm_jax.training import plan as training_plan

# A sequence or a head is shared by as many devices at most: as many as fast links join in a host.
_MOST_SHARERS = 8
_ACCUMULATIONS = (1, 2, 4, 8)
_RANK = 64  # Of the adaptation that is proposed where no training of all parameters fits.
# Room that is left for what arithmetic does not see.
_MARGIN = 0.95
_UNSPLIT = ("batch", "caches", "constant inputs", "decoder state")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """Another case, and its memory by arithmetic.

    Attributes:
      case: The case.
      gib: What one device would need.
      cost: Order of preference, the least first.
    """

    case: plan_lib.Case
    gib: float
    cost: tuple[float, ...]

    @property
    def flags(self) -> str:
        """The flags that ask for it."""
        case = self.case
        mesh = ",".join(f"{axis}={size}" for axis, size in case.mesh.items() if size > 1)
        flags = f"--mesh={mesh} --batch={case.settings.batch}"
        if case.stage != "stream":
            flags += f" --remat={case.settings.remat}"
            flags += f" --accumulate={case.settings.optimizer.accumulate}"
        return flags


def candidates(plan: plan_lib.Plan) -> list[Candidate]:
    """Cases of the same topology and samples an update that fit by arithmetic, the best first."""
    limit = _MARGIN * plan.case.topology.chip.memory_gib
    found = [c for c in _all(plan) if c.gib <= limit]
    return sorted(found, key=lambda candidate: candidate.cost)


def _all(plan: plan_lib.Plan) -> Iterator[Candidate]:
    case = plan.case
    for mesh in _meshes(case):
        for settings in _settings(case, mesh):
            other = dataclasses.replace(case, mesh=mesh, settings=settings)
            sharers = mesh["seq"] * mesh["tensor"]
            slower = settings.remat if case.stage != "stream" else False
            accumulate = settings.optimizer.accumulate if case.stage != "stream" else 1
            cost = (slower, accumulate, sharers, mesh["tensor"], mesh["data"])
            yield Candidate(case=other, gib=estimate(plan, other), cost=cost)


def _meshes(case: plan_lib.Case) -> Iterator[dict[str, int]]:
    """All ways to share the devices among the axes that divide the model."""
    count = case.topology.count
    sizes = [n for n in range(1, _MOST_SHARERS + 1) if count % n == 0]
    for seq, tensor in itertools.product(sizes, sizes):
        if seq * tensor > _MOST_SHARERS or count % (seq * tensor):
            continue
        if case.preset.dit.num_heads % (seq * tensor):
            continue
        rest = count // (seq * tensor)
        for fsdp in (n for n in range(1, rest + 1) if rest % n == 0):
            mesh = {"data": rest // fsdp, "fsdp": fsdp, "seq": seq, "tensor": tensor}
            try:
                training_plan.check_mesh(case.preset, mesh)
            except ValueError:
                continue
            yield {axis: mesh[axis] for axis in rules.MESH_AXES}


def _settings(case: plan_lib.Case, mesh: dict[str, int]) -> Iterator:
    """Settings with the same samples in an update, each device a whole number of them."""
    settings, parts = case.settings, mesh["data"] * mesh["fsdp"]
    if case.stage == "stream":
        if settings.batch % parts == 0:
            yield settings
        return
    samples = settings.batch * settings.optimizer.accumulate
    for accumulate, remat in itertools.product(_ACCUMULATIONS, (False, True)):
        if samples % (accumulate * parts):
            continue
        changes = {"optimizer": dataclasses.replace(settings.optimizer, accumulate=accumulate)}
        if hasattr(settings, "critic_optimizer"):
            changes["critic_optimizer"] = dataclasses.replace(
                settings.critic_optimizer, accumulate=accumulate
            )
        batch = samples // accumulate
        yield dataclasses.replace(settings, batch=batch, remat=remat, **changes)


def estimate(plan: plan_lib.Plan, case: plan_lib.Case) -> float:
    """GiB that one device needs in another case of the same samples an update.

    Parameters and what is shaped like them go with `fsdp * tensor`, the rest with the samples
    and tokens of a device, and activations with their own arithmetic.
    """
    old = plan.case

    def split(mesh: dict[str, int]) -> int:
        return mesh["fsdp"] * mesh["tensor"]

    def load(case: plan_lib.Case) -> float:
        parts = case.mesh["data"] * case.mesh["fsdp"]
        batch = case.settings.batch
        samples = batch / parts if batch % parts == 0 else batch
        return samples / (case.mesh["seq"] * case.mesh["tensor"])

    total = 0.0
    for name, size in plan.memory.items():
        if name == "activations and temporaries":
            total += size * _activations(case) / _activations(old)
        elif name in _UNSPLIT:
            total += size * load(case) / load(old)
        else:
            total += size * split(old.mesh) / split(case.mesh)
    if case.stage != "stream" and case.settings.optimizer.accumulate > 1:
        if old.settings.optimizer.accumulate == 1:  # Sums of gradients, in float32.
            total += plan.memory.get("gradients", 0.0) * split(old.mesh) / split(case.mesh)
    return total / chips.GIB


def _activations(case: plan_lib.Case) -> float:
    return activations.bytes_of(case.preset, case.stage, case.settings, case.mesh)


def least_chips(plan: plan_lib.Plan) -> int:
    """How many chips hold at least what training keeps, split evenly."""
    kinds = [n for n in plan.memory if n not in ("activations and temporaries", *_UNSPLIT)]
    mesh = plan.case.mesh
    whole = sum(plan.memory[name] for name in kinds) * mesh["fsdp"] * mesh["tensor"]
    return math.ceil(whole / chips.GIB / plan.case.topology.chip.memory_gib)


def _adapted(plan: plan_lib.Plan) -> list[str]:
    """The same case with low-rank adaptation, as a line, if that fits by arithmetic."""
    case, c = plan.case, plan.case.preset.dit
    if case.stage == "stream" or case.settings.lora.rank:
        return []
    rank = min(_RANK, c.width, c.audio_width)
    lora = dataclasses.replace(case.settings.lora, rank=rank)
    settings = dataclasses.replace(case.settings, remat=True, lora=lora)
    other = plan_lib.make(dataclasses.replace(
        case, settings=settings, simulate=True, arithmetic=True, depths=case.depths or (1, 2)
    ))
    if not other.fits:
        return []
    return [
        f"--lora={rank} --remat with this mesh and batch: {other.total_gib:.1f} GiB by arithmetic "
        "(low-rank adaptation instead of training every parameter)"
    ]


def suggest(plan: plan_lib.Plan, compiles: int = 1) -> list[str]:
    """What would fit, as lines; up to `compiles` candidates are compiled to confirm."""
    found = candidates(plan)
    if not found:
        return [
            *_adapted(plan),
            f"nothing found on {plan.case.topology.name} (meshes, remat, accumulation): what is "
            f"kept alone needs at least {least_chips(plan)} such chips."
        ]
    lines = []
    for candidate in found[:compiles]:
        confirmed = plan_lib.make(candidate.case)
        arithmetic = f"{candidate.flags}: {candidate.gib:.1f} GiB by arithmetic"
        lines.append(f"{arithmetic}; compiled, it {confirmed.verdict}")
        if confirmed.fits:
            return lines
    if not compiles:
        lines.append(f"{found[0].flags}: {found[0].gib:.1f} GiB by arithmetic, not compiled")
    return lines
