"""Parameters on their devices, and the compiled programs that streams run.

Every program computes a batch of B independent streams: B is the leading axis of all that
goes in and comes out, except the parameters, and each B is compiled on its own. A stream
gives the same frames whatever its neighbours do, so a server replaces one stream of a batch
(`Pipeline.insert`) while the others go on.

Devices form one or two slices (section 4.3 of the paper): the denoise slice runs the
transformer and the encoders, the decode slice the pixel decoder. Latents travel between them
by `device_put`, and nothing here waits for a device.
"""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import functools
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from tm_jax.configs import presets
from tm_jax.inference import programs
from tm_jax.parallel import rules

Tree = TypeVar("Tree")


class Functions(Protocol):
    """What the streams of a preset compute: pure functions of parameters by part."""

    @property
    def preset(self) -> presets.Preset:
        """Sizes and clocks."""
        ...

    @property
    def before(self) -> int:
        """Samples ahead of a chunk that `encode_audio` needs."""
        ...

    @property
    def after(self) -> int:
        """Samples after it: the look-ahead."""
        ...

    @property
    def decoder_parts(self) -> tuple[str, ...]:
        """Parts that `begin_decoder` and `decode` need."""
        ...

    @property
    def partner(self) -> bool:
        """Whether `denoise` takes the other party's voice (`encode_partner`)."""
        ...

    def boxed(self) -> dict:
        """Shapes of all parameters by part, boxed with their logical axes."""

    def inputs(self, pictures: np.ndarray, faces: np.ndarray | None) -> dict:
        """What `begin` takes of pictures, made on the host: a tree of arrays [B, ...]."""

    def begin(self, params: dict, inputs: dict, keys: jax.Array) -> tuple[Any, Any, Any]:
        """(constant inputs of the streams, state for `denoise`, input of `begin_decoder`)."""

    def begin_decoder(self, params: dict, given: Any) -> Any:
        """State before the first chunk is decoded."""

    def encode_audio(
        self, params: dict, samples: jax.Array, known: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """As `components.AudioEncoder.encode`."""

    def encode_partner(self, params: dict, samples: jax.Array) -> jax.Array:
        """What `denoise` takes of the other party's voice, of samples [B, before + after + n];
        the last n of them are the chunk's own."""

    def denoise(
        self, params: dict, state: Any, start: Any, windows: jax.Array, mode: jax.Array,
        partner: jax.Array | None,
    ) -> tuple[Any, Any]:
        """(latents of the next chunk, next state): all steps and the cache update."""

    def decode(self, params: dict, latents: Any, state: Any) -> tuple[jax.Array, Any]:
        """(frames uint8 [B, F, H, W, 3], next state)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """How devices share the work (figure 3 of the paper).

    Attributes:
      mode: "self-contained", or "disaggregated": the last device decodes, the others denoise.
      sequence: Devices that share the tokens of one chunk; 1 for no sequence parallelism.
      mesh: Sizes of further mesh axes of the denoise slice, such as {"tensor": 2}; devices
        that are left share the streams of a batch.
    """

    mode: str = "self-contained"
    sequence: int = 1
    mesh: dict[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.mode not in ("self-contained", "disaggregated"):
            raise ValueError(
                f"mode must be self-contained or disaggregated, got {self.mode!r}."
            )
        if self.sequence < 1:
            raise ValueError(f"sequence must be at least 1, got {self.sequence}.")
        if "seq" in self.mesh and self.sequence not in (1, self.mesh["seq"]):
            raise ValueError(
                f"sequence={self.sequence} and seq={self.mesh['seq']} of the mesh differ."
            )

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes of the mesh axes of the denoise slice."""
        return {"seq": self.sequence, **self.mesh}

    @property
    def least(self) -> int:
        """Devices that it needs at least."""
        return int(np.prod(list(self.sizes.values()))) + (self.mode == "disaggregated")

    def meshes(self, devices: Sequence[jax.Device]) -> tuple[Mesh, Mesh]:
        """The meshes of the denoise slice and of the decode slice.

        Raises:
          ValueError: Not enough devices, or a number that does not divide.
        """
        devices = list(devices)
        denoise, decode = devices, devices
        if self.mode == "disaggregated":
            if len(devices) < 2:
                raise ValueError(
                    "disaggregated needs at least 2 devices, one to denoise and one to decode; "
                    f"got {len(devices)}. Use self-contained."
                )
            denoise, decode = devices[:-1], devices[-1:]
        parts = int(np.prod(list(self.sizes.values())))
        if len(denoise) % parts:
            raise ValueError(
                f"a mesh of {', '.join(f'{k}={v}' for k, v in self.sizes.items())} does not "
                f"divide {len(denoise)} devices that denoise."
            )
        mesh = rules.make_mesh(denoise, **self.sizes)
        same = self.mode == "self-contained"
        return mesh, mesh if same else rules.make_mesh(decode)


@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline:
    """A preset with weights, ready for any number of streams.

    A stream starts with `begin`. For every chunk it runs `encode_audio`, `denoise` and
    `decode`, whose states are handed from chunk to chunk; a state that was handed in cannot be
    used again.

    Attributes:
      functions: What streams compute.
      params: Parameters by part, on the denoise slice.
      decoder_params: Those that decoding needs, on the decode slice.
      denoise_mesh: Mesh of the denoise slice; None for the first device alone, where programs
        that an earlier process compiled are used.
      decode_mesh: Mesh of the decode slice, likewise.
      apart: Whether the slices are different devices.
    """

    functions: Functions
    params: dict
    decoder_params: dict
    denoise_mesh: Mesh | None = None
    decode_mesh: Mesh | None = None
    apart: bool = False

    @property
    def preset(self) -> presets.Preset:
        """Sizes and clocks."""
        return self.functions.preset

    @property
    def before(self) -> int:
        """Samples ahead of a chunk's own that `encode_audio` needs."""
        return self.functions.before

    @property
    def after(self) -> int:
        """Samples after a chunk's own that `encode_audio` needs: the look-ahead."""
        return self.functions.after

    @property
    def shares(self) -> int:
        """Devices that share the streams of a batch: what its size must be a multiple of."""
        if self.denoise_mesh is None:
            return 1
        return int(np.prod([self.denoise_mesh.shape[name] for name in rules.BATCH_AXES]))

    @functools.cached_property
    def _programs(self) -> programs.Programs:
        return _programs(self.functions)

    def begin(
        self, pictures: np.ndarray, keys: np.ndarray, faces: np.ndarray | None = None
    ) -> tuple[Any, Any, Any]:
        """Starts streams.

        Args:
          pictures: uint8 [B, H, W, 3] in the preset's size.
          keys: uint32 [B, 2], one `stream_key` for every stream.
          faces: Box (top, left, bottom, right) in 0..1 of each picture whose tokens attend to
            the sound, float [B, 4]; None: the whole picture, or what the preset finds itself.

        Returns:
          Constant inputs of the streams (for `denoise`), state for `denoise`, state for
          `decode`.
        """
        inputs = self.functions.inputs(pictures, faces)
        with _within(self.denoise_mesh):
            start, state, given = self._programs["begin"](self.params, inputs, keys)
        with _within(self.decode_mesh):
            decoder = self._programs["begin_decoder"](self.decoder_params, self._move(given))
        return start, state, decoder

    def encode_audio(
        self, samples: np.ndarray, known: np.ndarray | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Audio windows [B, T, R, U] and probability of a voice [B, T] of the next chunk.

        Args:
          samples: [B, n]; the n = before + samples_per_chunk + after samples begin `before`
            ahead of the chunk.
          known: How many of them, from the end, belong to the stream, int32 [B]; all by
            default.
        """
        if known is None:
            known = np.full(len(samples), samples.shape[1], np.int32)
        with _within(self.denoise_mesh):
            return self._programs["encode_audio"](self.params, samples, known)

    def encode_partner(self, samples: np.ndarray) -> jax.Array | None:
        """What `denoise` takes of the other party's voice; None if the preset takes nothing.

        Args:
          samples: [B, before + after + n] up to the end of the chunk's own n samples: the
            partner is not heard ahead, so an encoder that looks ahead is late by `after`.
        """
        if not self.functions.partner:
            return None
        with _within(self.denoise_mesh):
            return self._programs["encode_partner"](self.params, samples)

    def denoise(
        self, state: Any, start: Any, windows: jax.Array, mode: jax.Array | np.ndarray,
        partner: jax.Array | None = None
    ) -> tuple[Any, Any]:
        """Latents of the next chunk for `decode` alone, and the next state.

        Args:
          state: State of the streams.
          start: Constant inputs of the streams.
          windows: Audio windows [B, T, R, U].
          mode: 0 listening, 1 speaking, int32 [B, T].
          partner: Result of `encode_partner`, to which a listener reacts; that of silence by
            default.
        """
        if partner is None:
            n = self.before + self.preset.timing.samples_per_chunk + self.after
            partner = self.encode_partner(np.zeros((len(mode), n), np.float32))
        with _within(self.denoise_mesh):
            return self._programs["denoise"](self.params, state, start, windows, mode, partner)

    def move(self, latents: Any) -> Any:
        """Sends latents to the decode slice; returns before they have arrived."""
        return self._move(latents)

    def decode(self, latents: Any, state: Any) -> tuple[jax.Array, Any]:
        """Frames uint8 [B, F, H, W, 3] of moved latents, and the next state."""
        with _within(self.decode_mesh):
            return self._programs["decode"](self.decoder_params, latents, state)

    def _move(self, tree):
        if not self.apart:
            return tree
        assert self.decode_mesh is not None  # Slices of different devices have meshes.
        return jax.device_put(tree, NamedSharding(self.decode_mesh, PartitionSpec()))

    @functools.cached_property
    def _insert(self) -> Callable:
        return jax.jit(_insert, donate_argnums=0)

    def insert(self, batch: Tree, index: int, one: Tree, decoder: bool = False) -> Tree:
        """The batch tree with another stream `index`; the tree handed in is used up.

        The trees are alike, with B streams and with one, such as what `begin` gave for each;
        `decoder` marks them as states of `decode`.
        """
        with _within(self.decode_mesh if decoder else self.denoise_mesh):
            return self._insert(batch, index, one)

    def spread(self, one: Tree, batch: int, decoder: bool = False) -> Tree:
        """One stream copied into every slot of a batch, sharded by the rules."""
        mesh = self.decode_mesh if decoder else self.denoise_mesh
        many = jax.tree.map(lambda x: jnp.repeat(x, batch, 0, total_repeat_length=batch), one)
        if mesh is None:
            return many
        shared = int(np.prod([mesh.shape[name] for name in rules.BATCH_AXES]))
        first = rules.BATCH_AXES if batch % shared == 0 else None

        def place(x, like):
            rest = like.sharding.spec[1:] if isinstance(like.sharding, NamedSharding) else ()
            return jax.device_put(x, NamedSharding(mesh, PartitionSpec(first, *rest)))

        return jax.tree.map(place, many, one)  # The heads of a cache stay apart.

    def warm(self, batch: int = 1) -> None:
        """Makes a chunk of silence with `batch` streams and discards it.

        After that nothing is left to compile or load for that many streams, and the first
        chunk of a client takes no longer than the others.
        """
        preset = self.preset
        picture = np.zeros((1, preset.height, preset.width, 3), np.uint8)
        start, state, decoder = self.begin(picture, np.zeros((1, 2), np.uint32))
        if batch > 1:
            one, start = start, self.spread(start, batch)
            first, state = state, self.spread(state, batch)
            decoder = self.insert(
                self.spread(decoder, batch, True), 0, decoder, decoder=True
            )
            start, state = self.insert(start, 0, one), self.insert(state, 0, first)
        samples = self.before + preset.timing.samples_per_chunk + self.after
        windows, voice = self.encode_audio(np.zeros((batch, samples), np.float32))
        latents, state = self.denoise(state, start, windows, np.zeros(voice.shape, np.int32))
        jax.block_until_ready(self.decode(self.move(latents), decoder))

    def placed(
        self, placement: Placement, devices: Sequence[jax.Device] | None = None
    ) -> "Pipeline":
        """This pipeline on other devices.

        Args:
          placement: How they share the work.
          devices: Devices to use; the first ones by default, as many as needed.
        """
        devices = list(devices or jax.devices()[: placement.least])
        if devices == jax.local_devices()[:1] and placement.mode == "self-contained":
            return on_first_device(self.functions, self.params)
        meshes = placement.meshes(devices)
        boxed = self.functions.boxed()
        params = place(meshes[0], boxed, self.params)
        decoder = {name: self.params[name] for name in self.functions.decoder_parts}
        return Pipeline(
            self.functions, params, place(meshes[1], boxed, decoder), *meshes,
            placement.mode == "disaggregated",
        )



def on_first_device(functions: Functions, params: dict) -> Pipeline:
    """A pipeline on one device, where kept programs are used."""
    params = jax.device_put(params, jax.local_devices()[0])
    return Pipeline(functions, params, {n: params[n] for n in functions.decoder_parts})


def place(mesh: Mesh, boxed: dict, params: dict) -> dict:
    """Puts parameters on a mesh, each sharded by the rules."""
    return {
        part: jax.device_put(tree, rules.shardings(mesh, boxed[part]))
        for part, tree in params.items()
    }


def stream_key(seed: int, chunk: int = 0) -> np.ndarray:
    """The random key of a stream that begins, uint32 [2].

    Args:
      seed: Seed of the session; its lower 32 bits count.
      chunk: Chunks that the session showed before, so that it never draws a noise twice.
    """
    return np.array([seed & 0xFFFFFFFF, chunk & 0xFFFFFFFF], np.uint32)


def keys_of(keys: jax.Array) -> jax.Array:
    """Random keys [B] from stream keys, uint32 [B, 2]."""
    return jax.vmap(lambda key: jax.random.fold_in(jax.random.key(key[0]), key[1]))(keys)


@functools.lru_cache(maxsize=8)
def _programs(functions: Functions) -> programs.Programs:
    """The programs of these functions, shared by all pipelines that have them."""
    table: dict[str, tuple[Callable, Sequence[int]]] = {
        "begin": (functions.begin, ()), "begin_decoder": (functions.begin_decoder, ()),
        "encode_audio": (functions.encode_audio, ()),
        "encode_partner": (functions.encode_partner, ()),
        "denoise": (functions.denoise, (1,)), "decode": (functions.decode, (2,)),
    }  # fmt: skip
    return programs.Programs(table, repr(functions))


def preload(functions: Functions, batch: int) -> None:
    """Starts to load programs that an earlier process kept."""
    _programs(functions).preload(batch)


def _insert(batch, index, one):
    return jax.tree.map(
        lambda many, x: jax.lax.dynamic_update_index_in_dim(many, x[0], index, 0), batch, one
    )


def _within(mesh: Mesh | None):
    """Makes a mesh active, if there is one."""
    return contextlib.nullcontext() if mesh is None else rules.use(mesh)
