"""The programs of a stage on a mesh and the trees that they keep there, as shapes alone.

These are the stages' own programs (`training.steps`, `inference.pipeline`): what is compiled
here is what runs there.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from tm_jax.configs import components
from tm_jax.configs import presets
from tm_jax.core import axes
from tm_jax.core import trees
from tm_jax.inference import streams
from tm_jax.models.dit import transformer
from tm_jax.parallel import rules
from tm_jax.training import distill_stage
from tm_jax.training import example_source
from tm_jax.training import run
from tm_jax.training import steps
from tm_jax.training import student_stage
from tm_jax.training import teacher_stage
from tm_jax.training import transformer_stage

STAGES = ("teacher", "student", "distill", "stream")
_STEPS = 1000  # Of a run; nothing that is counted here depends on it.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """One program of a stage.

    Attributes:
      name: What it does.
      times: How often it runs in a unit of work.
      trace: Function () -> `jax.stages.Traced`.
      trips: Passes of its loop whose number is known when it runs only.
    """

    name: str
    times: int
    trace: Callable[[], Any]
    trips: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What a stage does over and over: an update, a round of updates, or a chunk of a stream.

    Attributes:
      unit: Name of the unit of work.
      programs: Its programs.
      trees: What stays on the devices, trees of `jax.ShapeDtypeStruct` by kind.
      inside: Bytes of one device, by kind, that the programs hold among their temporaries.
      frames: Frames of video that a unit works on or makes.
      tokens: Tokens of the transformer for them.
    """

    unit: str
    programs: tuple[Program, ...]
    trees: dict[str, Any]
    inside: dict[str, int]
    frames: int
    tokens: int


def make(preset: presets.Preset, stage: str, settings: Any, mesh: Mesh) -> Work:
    """The work of a stage.

    Args:
      preset: What is trained or streamed.
      stage: One of `STAGES`.
      settings: Settings of the stage as `training.run.config` makes them; of a stream only
        `batch` is read.
      mesh: Devices, which may be a description.
    """
    if stage == "stream":
        return _stream(preset, settings.batch, mesh)
    preset = run.sampled(preset, stage, settings)
    models = components.build(preset)
    source = example_source.ExampleSource([_record(preset, 2 * _longest(preset, settings))], preset)
    if stage == "distill":
        return _distill(models, source, settings, mesh)
    return _single(models, source, stage, settings, mesh)


def _longest(preset: presets.Preset, settings: Any) -> int:
    """Latents of the longest window of a stage."""
    chunks = max(settings.chunks, getattr(settings, "rollout_chunks", 0))
    return chunks * preset.timing.latents_per_chunk


def _record(preset: presets.Preset, latents: int) -> dict[str, np.ndarray]:
    """An example that takes no memory: one zero, seen as arrays of all shapes."""
    c, shape = preset.dit, preset.latent_shape

    def zeros(*sizes: int, dtype: Any = np.float32) -> np.ndarray:
        return np.broadcast_to(np.zeros((), dtype), sizes)

    record = {
        "latents": zeros(1 + latents, *shape), "condition": zeros(1 + latents, *shape),
        "face_mask": zeros(preset.tokens), "mode": zeros(latents, dtype=np.int8),
        "audio": zeros(latents, c.audio_window, c.audio_feature_width),
    }
    if c.partner_audio:
        record["partner_audio"] = record["audio"]
    if c.text_width is not None:
        record["text"] = zeros(c.text_length, c.text_width)
    if c.image_width is not None:
        record["image"] = zeros(c.image_length, c.image_width)
    return record


def _batch(item: Any, settings: Any, mesh: Mesh) -> Any:
    """Shapes of a batch of an item, split as `placing.batch` does it."""
    number = settings.optimizer.accumulate
    stacked = (number,) if number > 1 else ()
    logical = (*(None for _ in stacked), axes.BATCH)

    def one(x: np.ndarray) -> jax.ShapeDtypeStruct:
        shape = (*stacked, settings.batch, *np.shape(x))
        spec = rules.spec(mesh.shape, shape, logical)
        return jax.ShapeDtypeStruct(shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(one, item)


def _key(mesh: Mesh) -> jax.ShapeDtypeStruct:
    """Shape of a random key."""
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=sharding)


def _placed(mesh: Mesh, boxed: Any, dtype: Any = None) -> Any:
    """Shapes and shardings of boxed shapes, perhaps in another dtype."""
    if dtype is not None:
        boxed = jax.eval_shape(lambda tree: trees.cast(tree, dtype), boxed)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        rules.unbox(boxed), rules.shardings(mesh, boxed),
    )


def device_bytes(tree: Any) -> int:
    """Bytes that one device holds of a tree of shapes with shardings."""
    return sum(
        int(np.prod(x.sharding.shard_shape(x.shape), dtype=np.int64)) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )


def _regression_item(source: Any, preset: presets.Preset, latents: int) -> dict:
    """An item of `trajectories.windows`."""
    points = (preset.student.num_steps + 1, latents, *preset.latent_shape)
    return {
        "window": source.window(0, 0, latents), "dropped": np.zeros(3, bool),
        "points": np.broadcast_to(np.zeros((), np.float16), points),
    }


def _no_preview(latents: int) -> Any:
    """Stands for the previews of a stage, of which a plan draws none."""
    del latents


def _base(preset: presets.Preset, settings: Any, mesh: Mesh) -> Any:
    """What a stage adapts; None without low-rank adaptation."""
    if not settings.lora.rank:
        return None
    return _placed(mesh, transformer.boxed_shapes(preset.dit), preset.dtype)


def _passing(learns: Any, base: Any, networks: int) -> dict[str, int]:
    """Bytes of gradients and, with adaptation, of the sums of base and adapters."""
    found = {"gradients": device_bytes(learns)}
    if base is not None:  # The sums themselves, and the gradient of one of them.
        found["adapted parameters"] = (1 + networks) * device_bytes(base)
    return found


def _single(models: Any, source: Any, stage: str, settings: Any, mesh: Mesh) -> Work:
    """A stage of one network: teacher or student."""
    preset = models.preset
    latents = transformer_stage.window_latents(models, settings)
    base = _base(preset, settings, mesh)
    if stage == "teacher":
        made = teacher_stage.make(models, source, _no_preview, settings, base=base)
        item = source.window(0, 0, latents)
    else:
        item = _regression_item(source, preset, latents)
        made = student_stage.make(
            models, source, lambda i: item, source.sizes, _no_preview, settings, None, base
        )
    training = steps.prepare(made, _STEPS, mesh)
    state, batch = training.target, _batch(item, settings, mesh)
    update = Program(
        name="update", times=1,
        trace=lambda: training.step.trace(state, made.frozen, batch, _key(mesh)),
    )
    number = settings.batch * settings.optimizer.accumulate
    return Work(
        unit="update", programs=(update,), inside=_passing(state.params, base, 1),
        trees={
            "parameters": state.params, "average": state.average, "optimizer": state.optimizer,
            "batch": batch, **made.frozen,
        },
        frames=number * latents * preset.timing.frames_per_latent,
        tokens=number * latents * preset.tokens,
    )


def _distill(models: Any, source: Any, settings: Any, mesh: Mesh) -> Work:
    """The distillation: rounds of the critic's updates and one of the student."""
    preset = models.preset
    latents = transformer_stage.window_latents(models, settings)
    longest = _longest(preset, settings)
    base = _base(preset, settings, mesh)
    teacher = base or _placed(mesh, transformer.boxed_shapes(preset.dit), jnp.bfloat16)
    item = {"rollout": source.window(0, 0, longest)}
    regression = None
    if settings.regression_weight:
        item["regression"] = _regression_item(source, preset, latents)
        regression = distill_stage.Regression(source=source, one=lambda i: item, sizes=source.sizes)
    made = distill_stage.make(
        models, source, regression, _no_preview, settings, start=None, teacher=teacher,
        critic=None,
    )
    student = steps.prepare(made, _STEPS, mesh)
    critic = steps.prepare(made.critic, _STEPS, mesh, average=False)
    batch, state, other = _batch(item, settings, mesh), student.target, critic.target

    def learn_student() -> Any:
        frozen = {**made.frozen, "critic": other.params}
        return student.step.trace(state, frozen, batch, _key(mesh))

    def learn_critic() -> Any:
        frozen = {**made.frozen, "student": state.params}
        return critic.step.trace(other, frozen, batch, _key(mesh))

    # All but the last chunk of a rollout are made in a loop that ends at the latest window.
    trips = max(1, settings.rollout_chunks - 1)
    updates = settings.critic_updates
    number = settings.batch * settings.optimizer.accumulate * (1 + updates)
    return Work(
        unit=f"round of {1 + updates} updates",
        programs=(
            Program(name="student's update", times=1, trace=learn_student, trips=trips),
            Program(name="critic's update", times=updates, trace=learn_critic, trips=trips),
        ),
        trees={
            "parameters": state.params, "average": state.average, "optimizer": state.optimizer,
            "critic": {"params": other.params, "optimizer": other.optimizer},
            "teacher": teacher, "batch": batch,
        },
        inside={
            **_passing(state.params, base, 2),
            "caches": _cache_bytes(preset, settings.batch, mesh),
        },
        frames=number * longest * preset.timing.frames_per_latent,
        tokens=number * longest * preset.tokens,
    )


def _cache_bytes(preset: presets.Preset, batch: int, mesh: Mesh) -> int:
    """Bytes of the student's cache on one device."""
    student, c = preset.student, preset.dit
    levels = 1 if student.policy == "clean" else student.num_steps
    chunk = preset.timing.latents_per_chunk * student.view.history
    shape = (batch, preset.tokens * (1 + chunk * levels), c.num_heads, c.head_width)
    spec = rules.spec(mesh.shape, shape, (axes.BATCH, axes.CACHE, axes.SPREAD, None))
    part = NamedSharding(mesh, spec).shard_shape(shape)
    size = jnp.dtype(preset.dtype).itemsize
    return 2 * c.num_layers * int(np.prod(part, dtype=np.int64)) * size


def _stream(preset: presets.Preset, batch: int, mesh: Mesh) -> Work:
    """The three programs of a chunk of a stream."""
    functions = streams.StreamFunctions(preset)
    boxed = functions.boxed()
    params = {name: _placed(mesh, tree, _stored(preset, name)) for name, tree in boxed.items()}
    inputs = functions.inputs(np.zeros((1, preset.height, preset.width, 3), np.uint8), None)
    plain = rules.unbox(params)

    def like(tree: Any, names: Callable[[Any], tuple]) -> Any:
        def one(x: Any) -> jax.ShapeDtypeStruct:
            spec = rules.spec(mesh.shape, x.shape, names(x))
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

        return jax.tree.map(one, tree)

    def first(x: Any) -> tuple:
        return (axes.BATCH,) if x.ndim else ()

    inputs = {n: jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for n, x in inputs.items()}
    keys = jax.ShapeDtypeStruct((batch, 2), np.uint32)
    with rules.use(mesh):
        start, state, given = jax.eval_shape(functions.begin, plain, inputs, keys)
        decoder = jax.eval_shape(functions.begin_decoder, plain, given)
    # As `attention.place_keys` and `place_context` leave them.
    state = like(state, lambda x: (
        (axes.BATCH, axes.CACHE, axes.SPREAD, None) if x.ndim == 4 else first(x)
    ))
    start = start.replace(
        context=like(start.context, lambda x: (
            (axes.BATCH, None, axes.HEADS, None) if x.ndim == 4 else first(x)
        )),
        condition=like(start.condition, first),
    )
    decoder = like(decoder, first)
    timing, c = preset.timing, preset.dit
    latents = timing.latents_per_chunk

    def array(*shape: int, dtype: Any = np.float32) -> Any:
        return like(jax.ShapeDtypeStruct((batch, *shape), dtype), first)

    samples = array(functions.before + timing.samples_per_chunk + functions.after)
    windows = array(latents, c.audio_window, c.audio_feature_width)
    made = array(latents, *preset.latent_shape)
    programs = {
        "audio": (functions.encode_audio, (), (params, samples, array(dtype=np.int32))),
        "denoise": (functions.denoise, (1,), (
            params, state, start, windows, array(latents, dtype=np.int32),
            windows if c.partner_audio else None,
        )),
        "decode": (functions.decode, (2,), (
            {name: params[name] for name in functions.decoder_parts}, made, decoder
        )),
    }  # fmt: skip

    def trace(function: Callable, donated: tuple, arguments: tuple) -> Any:
        with rules.use(mesh):
            return jax.jit(function, donate_argnums=donated).trace(*arguments)

    return Work(
        unit="chunk",
        programs=tuple(
            Program(name=name, times=1, trace=lambda given=given: trace(*given))
            for name, given in programs.items()
        ),
        trees={
            **{f"parameters of {name}": tree for name, tree in params.items()},
            "caches": state, "constant inputs": start, "decoder state": decoder,
        },
        inside={}, frames=batch * timing.frames_per_chunk,
        tokens=batch * latents * preset.tokens,
    )


def _stored(preset: presets.Preset, part: str) -> Any:
    """Dtype of the parameters of a part in a stream, as `inference.loading` has them."""
    if part == streams.CONSTANTS:
        return None
    kept = part == "audio" or part in components.video_vae(preset).parts
    return jnp.float32 if kept else jnp.dtype(preset.dtype)
