"""Presets with Wan's own parts: models with weights, and the programs that make video.

A picture becomes the latent that is the sink, image tokens and conditioning channels; a
prompt becomes text features; sound becomes audio windows (`wan_session.py`). The causal
student then makes chunk after chunk, or the bidirectional teacher a clip at a time.

Conditioning channels are [mask | latent] as in Wan's image-to-video model: mask 1 where the
frame is known. What is not known is shown to the VAE as empty (grey) frames. In a stream all
chunks have the same ones: those of a long run of empty frames, computed once.
"""

import dataclasses
import functools
import math
import os

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tm_jax.diffusion import samplers
from tm_jax.inference import wan_inputs
from tm_jax.inference import wan_weights
from tm_jax.models import presets
from tm_jax.models.clip import encoder as clip_encoder
from tm_jax.models.clip import pictures as clip_pictures
from tm_jax.models.taehv import autoencoder as taehv
from tm_jax.models.umt5 import encoder as umt5
from tm_jax.models.wan import audio as dit_audio
from tm_jax.models.wan import patterns
from tm_jax.models.wan import student
from tm_jax.models.wan import transformer
from tm_jax.models.wan_vae import autoencoder as wan_vae
from tm_jax.models.wan_vae import clips
from tm_jax.models.wav2vec2 import encoder as wav2vec2
from tm_jax.models.wav2vec2 import stream
from tm_jax.parallel import rules

DECODERS = ("wan", "tiny")
PROMPT = "A person looks into the camera and talks; the camera and the background stay still."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What the teacher makes at once.

    Attributes:
      latents: Latents of a clip, the picture's included.
      steps: Steps of the sampler.
      guidance: g in uncond + g * (cond - uncond); 1 runs the conditional model alone.
    """

    latents: int = 21
    steps: int = 50
    guidance: float = 5.0

    def __post_init__(self):
        if self.latents < 2 or self.steps < 1 or not math.isfinite(self.guidance):
            raise ValueError(
                "a clip needs at least 2 latents, 1 step and a finite guidance, got "
                f"{self.latents}, {self.steps} and {self.guidance}."
            )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Character:
    """What a picture gives to a video.

    Attributes:
      reference: Latent of the picture, [1, H, W, C].
      image: Tokens of the image encoder [1, L, D]; None where the transformer takes none.
      face_mask: How strongly each token listens to the sound, [1, P] in 0..1.
    """

    reference: jax.Array
    image: jax.Array | None
    face_mask: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class WanBundle:
    """Networks, weights and text features, ready for streams and clips.

    Every compiled program takes the parameters of its parts first; `params` holds them.

    Attributes:
      sizes: Sizes of all parts.
      params: Parameters by part, on the mesh.
      prompt: Text features [1, L, D]; None where the transformer takes none.
      negative: Those of what guidance leads away from.
      mesh: Device mesh.
      decoder: "wan" for Wan's own decoder, "tiny" for the fast one.
    """

    sizes: wan_weights.Sizes
    params: dict
    prompt: jax.Array | None
    negative: jax.Array | None
    mesh: Mesh
    decoder: str = "wan"

    @property
    def preset(self) -> presets.Preset:
        """Sizes and clocks."""
        return self.sizes.preset

    @property
    def dtype(self):
        """Dtype of the large products."""
        return jnp.dtype(self.preset.dtype)

    @property
    def dit(self) -> transformer.DiT:
        """The video transformer."""
        return transformer.DiT(self.preset.dit, self.dtype)

    @property
    def vae(self) -> wan_vae.WanVAE:
        """Wan's autoencoder."""
        return wan_vae.WanVAE(self.sizes.vae, self.dtype)

    @property
    def pixels(self):
        """The autoencoder that decodes, and the name of its part."""
        if self.decoder == "tiny":
            return taehv.TAEHV(self.sizes.taehv, self.dtype), "taehv"
        return self.vae, "vae"

    @property
    def everywhere(self) -> NamedSharding:
        """Placement of what every device holds."""
        return NamedSharding(self.mesh, PartitionSpec())

    def grid(self, latents: int) -> patterns.Grid:
        """Token grid of one latent frame, for chunks of `latents`."""
        height, width, _ = self.preset.latent_shape
        patch = self.preset.dit.patch
        return patterns.Grid(height // patch, width // patch, latents)

    def _compile(self, function, **options):
        """Compiles a program whose constraints follow the rules table on the mesh."""
        compiled = jax.jit(function, **options)

        def run(*args):
            with rules.use(self.mesh):
                return compiled(*args)

        return run

    @functools.cached_property
    def empty(self) -> jax.Array:
        """Latent [H, W, C] of a frame in a long run of empty frames."""
        size = (self.preset.height, self.preset.width)

        def run(params):
            first = jnp.zeros((1, 1, *size, 3))
            z, state = self.vae.apply({"params": params}, first, method="encode_first")
            more = jnp.zeros((1, self.sizes.vae.frames_per_latent, *size, 3))

            def step(carry, _):
                z, state = self.vae.apply(
                    {"params": params}, more, carry[1], method="encode_chunk"
                )
                return (z, state), None

            steps = wan_inputs.settled_latents(self.sizes.vae)
            (z, _), _ = jax.lax.scan(step, (z, state), length=steps)
            return z[0, 0]

        return self._compile(run)(self.params["vae"])

    @functools.cached_property
    def _encode_picture(self):
        def run(params, picture):
            frame = wan_inputs.to_float(picture)[None, None]  # [1, 1, H, W, 3]
            return self.vae.apply({"params": params}, frame, method="encode")[:, 0]

        return self._compile(run)

    @functools.cached_property
    def _encode_tokens(self):
        model = clip_encoder.CLIPVision(self.sizes.image, self.dtype)
        return self._compile(lambda params, x: model.apply({"params": params}, x))

    def character(self, picture: np.ndarray, face=None) -> Character:
        """Encodes a picture.

        Args:
          picture: uint8 [H, W, 3] in the preset's size.
          face: Box (top, left, bottom, right) in 0..1 that listens to the sound; None: the
            whole picture.

        Returns:
          What streams and clips start from.
        """
        mask = wan_inputs.face_mask(face or (0.0, 0.0, 1.0, 1.0), self.grid(1))
        image = None
        if self.preset.dit.image_width is not None:
            small = clip_pictures.prepare(picture, self.sizes.image.picture, fit="stretch")
            image = self._encode_tokens(self.params["image"], small[None])
        return Character(self.reference(picture), image, jnp.asarray(mask))

    def reference(self, picture: np.ndarray) -> jax.Array:
        """Latent [1, H, W, C] of a picture, uint8 [H, W, 3]."""
        return self._encode_picture(self.params["vae"], picture)

    @functools.cached_property
    def context(self):
        """Compiled (params, text, image, face_mask) -> `transformer.Context`."""
        return self._compile(
            lambda params, *inputs: self.dit.apply(
                {"params": params}, *inputs, method="context"
            )
        )

    @functools.cached_property
    def begin(self):
        """Compiled (params, reference, context, key [1]) -> state of a student's stream."""
        preset = self.preset

        def run(params, reference, context, key):
            known = jnp.ones((1, 1))
            condition = self.condition(reference[:, None], known)[:, 0]
            return student.begin(
                self.dit, params, reference, condition, context, key,
                preset.timing.latents_per_chunk, preset.student.num_steps,
                preset.student.policy, preset.student.view,
            )

        return self._compile(run)

    @functools.cached_property
    def score(self):
        """Compiled (params, state, empty, windows, mode, context) -> latents, next state.

        The state that is handed in cannot be used again.
        """
        preset = self.preset

        def run(params, state, empty, windows, mode, context):
            frames = preset.timing.latents_per_chunk
            latents = jnp.broadcast_to(empty, (1, frames, *empty.shape))
            condition = self.condition(latents, jnp.zeros((1, frames)))
            return student.next_chunk(
                self.dit, params, state, condition, windows, mode, context, preset.sigmas,
                preset.student.policy,
            )

        return self._compile(run, donate_argnums=1)

    def condition(self, latents: jax.Array, known: jax.Array) -> jax.Array:
        """Conditioning channels [B, T, H, W, Cc].

        Args:
          latents: Latents of the known and the empty frames, [B, T, H, W, C].
          known: 1 for latents whose frames are known, else 0, [B, T].
        """
        c = self.preset.dit
        if not c.condition_channels:
            return latents[..., :0]
        channels = c.condition_channels - c.latent_channels
        mask = jnp.broadcast_to(
            known[:, :, None, None, None], (*latents.shape[:-1], channels)
        )
        return jnp.concatenate([mask.astype(latents.dtype), latents], -1)

    def clip_latents(self, params, picture, latents: int) -> jax.Array:
        """Latents [1, T, H, W, C] of a picture and the empty frames after it."""
        frames = 1 + (latents - 1) * self.sizes.vae.frames_per_latent
        clip = jnp.zeros((1, frames, *picture.shape)).at[0, 0].set(wan_inputs.to_float(picture))
        return clips.encode(self.vae, params, clip)

    @functools.cached_property
    def teacher(self):
        """Compiled program of the many-step sampler.

        Where the transformer has conditioning channels all latents are denoised together, as
        in Wan's image-to-video model; where it has none the picture's latent stays clean at
        noise level 0, as in training. Guidance is uncond + g * (cond - uncond), where
        `uncond` is without sound and with the negative prompt.

        (`Plan`, params with `transformer` and `vae`, picture uint8 [H, W, 3], reference
        [1, H, W, C], windows [1, T - 1, R, U], mode [1, T - 1], context, negative context,
        key) -> latents [1, T, H, W, C].
        """
        pinned = not self.preset.dit.condition_channels

        def run(plan, params, picture, reference, windows, mode, context, negative, key):
            latents, grid = plan.latents, self.grid(plan.latents)
            known = (jnp.arange(latents) == 0).astype(jnp.float32)[None]
            noise = jax.random.normal(key, (1, latents, *self.preset.latent_shape))
            if pinned:
                condition = noise[..., :0]
                noise = noise.at[:, 0].set(reference)
            else:
                seen = self.clip_latents(params["vae"], picture, latents)
                condition = self.condition(seen, known)
            variables = {"params": params["transformer"]}
            windows = jnp.pad(windows, ((0, 0), (1, 0), (0, 0), (0, 0)))  # A silent frame 0.
            modes = jnp.concatenate([mode[:, :1], mode], 1)

            def once(x, sigma, windows, context):
                level = sigma * (1 - known) if pinned else jnp.full_like(known, sigma)
                velocity, _ = self.dit.apply(
                    variables, x, condition, level, modes, context,
                    self.dit.apply(variables, windows, method="audio"),
                    lambda layer: patterns.bidirectional(grid),
                )
                return velocity.at[:, 0].set(0.0) if pinned else velocity

            def velocity(x, sigma):
                conditional = once(x, sigma, windows, context)
                if plan.guidance == 1:
                    return conditional
                plain = once(x, sigma, jnp.zeros_like(windows), negative)
                return plain + plan.guidance * (conditional - plain)

            sigmas = self.preset.schedule.steps(plan.steps)
            return samplers.euler(velocity, noise, sigmas)[-1]

        return self._compile(run, static_argnums=0)

    @functools.cached_property
    def decode_first(self):
        """Compiled (params, latents [1, 1, H, W, C]) -> frame uint8 [1, H, W, 3], state."""
        model, _ = self.pixels

        def run(params, latents):
            frames, state = model.apply({"params": params}, latents, method="decode_first")
            return wan_inputs.to_uint8(frames[0]), state

        return self._compile(run)

    @functools.cached_property
    def decode(self):
        """Compiled (params, latents, state) -> frames uint8 [F, H, W, 3], next state.

        The state that is handed in cannot be used again.
        """
        model, _ = self.pixels

        def run(params, latents, state):
            frames, state = model.apply(
                {"params": params}, latents, state, method="decode_chunk"
            )
            return wan_inputs.to_uint8(frames[0]), state

        return self._compile(run, donate_argnums=2)

    @functools.cached_property
    def hear(self):
        """Compiled (`WindowConfig`, params, state, samples) -> windows [1, T, R, U], state."""
        model, c = wav2vec2.Wav2Vec2(self.sizes.audio), self.preset.dit

        def run(window, params, state, samples):
            features, state = stream.step(model, params, window, state, samples)
            return dit_audio.windows(features, c.audio_window, window.timing), state

        return self._compile(run, static_argnums=0)


def load(
    preset: str, weights: str | None, *, mesh: Mesh | None = None, prompt: str = PROMPT,
    negative: str = "", decoder: str = "wan", aspect: float | None = None,
) -> WanBundle:
    """Loads a preset of full size from a folder of weights (`wan_weights.py`).

    Without a text encoder in the folder the text features are zeros, and prompts do nothing;
    a warning says so. The encoder is let go as soon as the prompts are encoded.

    Args:
      preset: Name of the preset.
      weights: Folder of the weights.
      mesh: Device mesh; the first device by default.
      prompt: What the video shows.
      negative: What guidance leads away from; used by the teacher alone.
      decoder: "wan" or "tiny".
      aspect: Width over height of the video; its area stays the preset's.

    Returns:
      The bundle.

    Raises:
      ValueError: Unknown decoder, or files that do not fit the sizes.
      FileNotFoundError: No folder, or a part that it lacks.
    """
    if decoder not in DECODERS:
        raise ValueError(f"decoder must be one of {', '.join(DECODERS)}, got {decoder!r}.")
    if weights is None:
        raise FileNotFoundError(
            f"preset {preset} comes without weights; name a folder of converted ones with "
            "--weights (python launch/convert.py makes it, part by part)."
        )
    sizes = wan_weights.sizes(preset, weights)
    if aspect is not None:
        sizes = dataclasses.replace(sizes, preset=wan_inputs.with_aspect(sizes.preset, aspect))
    names = ["transformer", "vae", "audio"]
    names += ["image"] if sizes.preset.dit.image_width is not None else []
    names += ["taehv"] if decoder == "tiny" else []
    wan_weights.require(sizes, weights, tuple(names))
    mesh = rules.make_mesh(jax.devices()[:1]) if mesh is None else mesh
    dtypes = {"transformer": sizes.preset.dtype, "image": sizes.preset.dtype}
    text = text_features(sizes, weights, mesh, (prompt, negative))
    params = {
        name: wan_weights.load(sizes, weights, name, mesh, dtypes.get(name, "float32"))
        for name in names
    }
    return WanBundle(sizes, params, *text, mesh, decoder)


def text_features(sizes, folder, mesh, prompts):
    """Features [1, L, D] of every prompt; None where the transformer takes none."""
    c = sizes.preset.dit
    if c.text_width is None:
        return [None] * len(prompts)
    if wan_weights.find(folder, "text", sizes.part("text")) is None:
        logging.warning(
            "%s has no text encoder: text features are zeros and the prompt is not used. "
            "Make it with `python launch/convert.py --part=text --preset=%s "
            "--source=PUBLISHED --out=%s`.",
            folder, sizes.preset.name, os.path.join(folder, "text"),
        )
        return [jnp.zeros((1, c.text_length, c.text_width))] * len(prompts)
    tokens = wan_weights.tokenizer(folder, c.text_length)(list(prompts))
    dtype = sizes.preset.dtype
    params = wan_weights.load(sizes, folder, "text", mesh, dtype)
    model = umt5.UMT5Encoder(sizes.text, jnp.dtype(dtype))
    with rules.use(mesh):
        encode = jax.jit(lambda p, *x: model.apply({"params": p}, *x, method="prompt"))
        features = encode(params, tokens.ids, tokens.valid)
    return [features[i : i + 1] for i in range(len(prompts))]
