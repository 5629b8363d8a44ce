"""Speed of transformer and streaming decoder on CPU against PyTorch, in one process.

  python -m experiments.parity.speed [--rounds=5] [--threads=2] [--parts=transformer,decoder]

Runs ours and the reference in turn, checks that they agree, writes speed.json and renders
README.md. The transformer has 84 M parameters (8 layers, 12 heads of 64) and 7 latent frames
of 32x32; the decoder is the published one of Wan2.1, a chunk of 3 latents in mid-stream.
"""

from collections.abc import Callable
import copy
import dataclasses
import functools
import json
import os
import pathlib
import platform
import statistics
import tempfile
import time

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
import torch

from experiments.parity import autoencoders
from experiments.parity import compare
from experiments.parity import run
from experiments.parity import transformer
from tm_jax.checkpoints import loading
from tm_jax.checkpoints import parts
from tm_jax.core import huge_pages
from tm_jax.models.vae.wan import autoencoder
from tm_jax.models.vae.wan import config as vae_config

_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed rounds.", lower_bound=1)
_THREADS = flags.DEFINE_integer("threads", 2, "Processors to use.", lower_bound=1)
_PARTS = flags.DEFINE_list("parts", ["transformer", "decoder"], "What to measure.")

_HERE = pathlib.Path(__file__).parent
_LIMIT = 1e-4  # Largest difference over the reference's largest value.
_QUIET = 0.1  # Other programs' share below which a call counts as undisturbed.
_REST_S = 0.3  # Idle threads of the program before stop spinning meanwhile.
_CASE = transformer.Case(
    heads=12, head_width=64, image=False, batch=1, frames=7, height=32, width=32, layers=8,
    mlp_width=3072, text_width=4096,
)
_DECODER_SIDE = 8  # Latents, 64 pixels.
_NOTE = (
    "Every program computes all of its pass: ours also projects its 512 text tokens in each "
    "call, as the reference does, and attends to audio, which the reference does not have. "
    "`oneDNN` is the reference with the weights of its linear layers packed for oneDNN; "
    "attention is `scaled_dot_product_attention` in both. Where other programs took much of "
    "the processors, times are too long and PyTorch, whose threads wait for each other after "
    "every operation, loses more than ours: the ratio of undisturbed calls tells which is faster."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timed:
    """One timed call.

    Attributes:
      wall_s: Seconds on the clock.
      others: Share of the processors that other programs took, 0..1.
    """

    wall_s: float
    others: float


class _Packed(torch.nn.Module):
    """A linear layer with weights in oneDNN's own layout, for so many rows at a time."""

    def __init__(self, linear: torch.nn.Linear, rows: int):
        super().__init__()
        weight = linear.weight.detach().contiguous()
        self.weight = linear.weight  # The reference asks for its dtype.
        self.bias = linear.bias
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)

    def forward(self, x):
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


def with_onednn(model: torch.nn.Module, rows: int) -> torch.nn.Module:
    """A copy of a model whose linear layers run in oneDNN."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is torch.nn.Linear:
                setattr(module, name, _Packed(child, rows))
    return model


def transformer_programs() -> dict[str, Callable[[], np.ndarray]]:
    """Ours and the references, each a function that returns the velocity."""
    reference, ours, params = transformer.pair(_CASE)
    params, i = jax.device_put(params), transformer.inputs(_CASE)
    packed = with_onednn(reference, i["face_mask"].shape[1] * _CASE.frames)
    forward = jax.jit(functools.partial(transformer.velocity, ours))
    return {
        "ours": lambda: np.asarray(forward(params, i)),
        "eager": lambda: transformer.run_reference(reference, _CASE, i).numpy(),
        "oneDNN": lambda: transformer.run_reference(packed, _CASE, i).numpy(),
    }


def decoder_programs() -> dict[str, Callable[[], np.ndarray]]:
    """Ours and the references, each a function that returns the chunk's frames."""
    config = vae_config.PRESETS["wan-2.1"]
    reference = autoencoders.vae_reference(config)
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        params = jax.device_put(loading.load_part(parts.vae(config), folder))
    model = autoencoder.WanVAE(config)
    z = autoencoders.latents_of(1, 1, 4, _DECODER_SIDE, _DECODER_SIDE, config.latent_channels)
    first = jax.jit(lambda p, z: model.apply({"params": p}, z, method="decode_first"))
    steady = jax.jit(lambda p, z, s: model.apply({"params": p}, z, s, method="decode_chunk"))
    state = first(params, z[:, :1])[1]
    raw = torch.tensor(autoencoders.raw_latents(z)).permute(0, 4, 1, 2, 3).contiguous()
    cache = _their_cache(reference, raw[:, :, :1])

    def ours():
        frames, after = steady(params, jnp.asarray(z[:, 1:]), state)
        jax.block_until_ready(after)
        return np.asarray(frames)

    return {
        "ours": ours,
        "eager, latent by latent": lambda: _their_chunk(reference, raw[:, :, 1:], cache, 1),
        "eager, 3 latents at once": lambda: _their_chunk(reference, raw[:, :, 1:], cache, 3),
    }


@torch.no_grad()
def _their_cache(reference, z) -> list:
    """Feature caches of the reference's decoder after its first latent."""
    reference.clear_cache()
    cache = reference._feat_map
    reference.decoder(
        reference.post_quant_conv(z), feat_cache=cache, feat_idx=[0], first_chunk=True
    )
    return list(cache)


@torch.no_grad()
def _their_chunk(reference, z, cache, step: int) -> np.ndarray:
    """Frames of a chunk decoded `step` latents at a time."""
    cache, frames = list(cache), []
    for i in range(0, z.shape[2], step):
        x = reference.post_quant_conv(z[:, :, i : i + step])
        frames.append(reference.decoder(x, feat_cache=cache, feat_idx=[0]))
    return torch.cat(frames, 2).clamp(-1, 1).permute(0, 2, 3, 4, 1).numpy()


def _busy_s() -> float:
    """Seconds that all processors were busy since the machine started, with stolen time."""
    fields = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    user, nice, system, _idle, _wait, irq, soft, steal = map(int, fields)
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def timed(program: Callable[[], np.ndarray]) -> Timed:
    """Runs a program once."""
    time.sleep(_REST_S)
    busy, own, start = _busy_s(), time.process_time(), time.perf_counter()
    program()
    wall = time.perf_counter() - start
    others = _busy_s() - busy - (time.process_time() - own)
    return Timed(wall_s=wall, others=max(0.0, others) / (wall * os.cpu_count()))


def compared(part: str, programs: dict, rounds: int) -> list[dict]:
    """Checks that programs agree, then times them in turn; one row per reference."""
    mine = programs["ours"]()
    errors = {
        name: compare.row(part, name, "float32", mine, program()).max_rel
        for name, program in programs.items() if name != "ours"
    }
    wrong = {name: error for name, error in errors.items() if error > _LIMIT}
    if wrong:
        raise SystemExit(f"{part}: differs from its references: {wrong}.")
    for program in programs.values():  # Allocators and caches, once more in turn.
        program()
    found = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            found[name].append(timed(program))
    return [_row(part, name, found["ours"], found[name], errors[name]) for name in errors]


def _row(part, reference, ours, theirs, max_rel) -> dict:
    each = [b.wall_s / a.wall_s for a, b in zip(ours, theirs, strict=True)]
    middle = [statistics.median(x.wall_s for x in side) for side in (ours, theirs)]
    others = [statistics.median(x.others for x in side) for side in (ours, theirs)]
    quiet = [[x.wall_s for x in side if x.others < _QUIET] for side in (ours, theirs)]
    alone = None
    if all(quiet):
        alone = statistics.median(quiet[1]) / statistics.median(quiet[0])
    return {
        "part": part, "reference": reference, "ours_ms": 1000 * middle[0],
        "reference_ms": 1000 * middle[1], "ratio": middle[1] / middle[0],
        "ratio_per_round": {
            "median": statistics.median(each), "min": min(each), "max": max(each),
        },
        "quiet_ratio": alone, "quiet_calls": [len(quiet[0]), len(quiet[1])],
        "load_average": list(os.getloadavg()), "ours_others": others[0], "reference_others": others[1],
        "ours_runs": [dataclasses.asdict(x) for x in ours],
        "reference_runs": [dataclasses.asdict(x) for x in theirs], "max_rel": max_rel,
    }


def _cpu() -> str:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


_PROGRAMS = {
    "transformer": (
        "transformer, 84 M parameters, 7x32x32 latents", transformer_programs,
    ),
    "decoder": ("Wan VAE decoder, 3 latents in mid-stream, 64x64 pixels", decoder_programs),
}


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    unknown = set(_PARTS.value) - set(_PROGRAMS)
    if unknown:
        raise app.UsageError(f"--parts knows {', '.join(_PROGRAMS)}, got {sorted(unknown)}.")
    # Before JAX starts its threads: it takes as many as it may use processors.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: _THREADS.value])
    torch.set_num_threads(_THREADS.value)
    path = _HERE / "speed.json"
    kept = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = []
    for key, (name, programs) in _PROGRAMS.items():
        if key in _PARTS.value:
            with torch.no_grad():
                rows += compared(name, programs(), _ROUNDS.value)
        else:
            rows += [row for row in kept if row["part"] == name]
    machine = {"cpu": _cpu(), "threads": _THREADS.value}
    result = {"rows": rows, "machine": machine, "note": _NOTE}
    path.write_text(json.dumps(result, indent=1) + "\n")
    run.write_page(_HERE)
    for row in rows:
        print(
            f"{row['ratio']:.2f}  {row['part']} against {row['reference']}: ours "
            f"{row['ours_ms']:.0f} ms, reference {row['reference_ms']:.0f} ms"
        )


if __name__ == "__main__":
    huge_pages.restart()
    app.run(main)
