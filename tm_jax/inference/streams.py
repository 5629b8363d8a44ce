"""What the streams of a preset compute: encode audio, denoise a chunk, decode it."""

import dataclasses
import functools
import typing
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.checkpoints import parts as parts_lib
from tm_jax.configs import components as components_lib
from tm_jax.configs import presets
from tm_jax.core import pixels
from tm_jax.inference import pictures as picture_lib
from tm_jax.inference import pipeline
from tm_jax.models.dit import causal
from tm_jax.models.dit import conditioning as conditioning_lib
from tm_jax.models.dit import transformer
from tm_jax.models.image import encoder as clip_encoder
from tm_jax.models.image import pictures as clip_pictures
from tm_jax.parallel import rules

CONSTANTS = "constants"  # What is computed once: prompt features, latents of empty frames.


@flax.struct.dataclass
class Start:
    """What is constant in a stream.

    Attributes:
      context: Keys and values of text and image, and the face mask.
      condition: As in `components.Reference`.
    """

    context: transformer.Context
    condition: jax.Array


@flax.struct.dataclass
class DecoderInput:
    """What the decoder starts from.

    Attributes:
      picture: Pictures [B, H, W, 3] in -1..1.
      latent: Their latents [B, H, W, C].
    """

    picture: jax.Array
    latent: jax.Array


@dataclasses.dataclass(frozen=True)
class StreamFunctions:
    """See `pipeline.Functions`.

    Attributes:
      preset: Sizes and clocks.
      tiny: Whether the faster decoder decodes.
    """

    preset: presets.Preset
    tiny: bool = False

    @property
    def partner(self) -> bool:
        """See `pipeline.Functions`."""
        return self.preset.dit.partner_audio

    @functools.cached_property
    def components(self) -> components_lib.Components:
        """The components, without weights."""
        return components_lib.build(self.preset, self.tiny)

    @property
    def before(self) -> int:
        """See `pipeline.Functions`."""
        return self.components.audio.before

    @property
    def after(self) -> int:
        """See `pipeline.Functions`."""
        return self.components.audio.after

    @property
    def decoder_parts(self) -> tuple[str, ...]:
        """See `pipeline.Functions`."""
        return self.components.vae.decoder_parts

    def boxed(self) -> dict:
        """See `pipeline.Functions`; what is constant is replicated."""
        parts = self.components.parts
        boxed = {name: parts_lib.of_preset(self.preset, name).boxed for name in parts}
        boxed["transformer"] = transformer.boxed_shapes(self.preset.dit)
        vae = self.components.vae
        shapes = {"vae": boxed["vae"]}
        constants = jax.eval_shape(vae.constants, rules.unbox(shapes))
        c = self.preset.dit
        if c.text_width is not None:
            text = jax.ShapeDtypeStruct((1, c.text_length, c.text_width), jnp.float32)
            constants |= {"prompt": text, "negative": text}
        return {**boxed, CONSTANTS: constants}

    def inputs(self, pictures: np.ndarray, faces: np.ndarray | None) -> dict:
        """See `pipeline.Functions`."""
        grid = self.components.grid
        if faces is None:
            faces = np.tile([0.0, 0.0, 1.0, 1.0], (len(pictures), 1))
        masks = [picture_lib.face_mask(tuple(box), grid) for box in faces]
        result = {"pictures": pictures, "face_mask": np.concatenate(masks)}
        if self.preset.image is not None:
            side = self.preset.image.picture
            fitted = [clip_pictures.prepare(p, side, fit="stretch") for p in pictures]
            result["image"] = np.stack(fitted)
        return result

    def begin(
        self, params: dict, inputs: dict, keys: jax.Array
    ) -> tuple[Start, causal.StreamState, DecoderInput]:
        """See `pipeline.Functions`."""
        parts, preset = self.components, self.preset
        picture = pixels.to_float(inputs["pictures"])
        reference = parts.vae.begin(params, params[CONSTANTS], picture)
        context = self.context(params, inputs, "prompt")
        sink = conditioning_lib.channels(preset.conditioning, reference.condition, 1)
        state = causal.begin(
            parts.dit, params["transformer"], reference.latent, sink[:, 0], context,
            pipeline.keys_of(keys), preset.timing.latents_per_chunk, preset.student.num_steps,
            preset.student.policy, preset.student.view,
        )
        start = Start(context=context, condition=reference.condition)
        return start, state, DecoderInput(picture=picture, latent=reference.latent)

    def context(self, params: dict, inputs: dict, prompt: str) -> transformer.Context:
        """Embeds the constant conditioning of streams.

        Args:
          params: Parameters by part.
          inputs: Result of `inputs`.
          prompt: "prompt" or "negative".
        """
        preset, text, image = self.preset, None, None
        if preset.text is not None:
            text = params[CONSTANTS][prompt]
            text = jnp.broadcast_to(text, (len(inputs["pictures"]), *text.shape[1:]))
        if preset.image is not None:
            model = clip_encoder.CLIPVision(preset.image, jnp.dtype(preset.dtype))
            image = model.apply({"params": params["image"]}, inputs["image"])
        context = self.components.dit.apply(
            {"params": params["transformer"]}, text, image, inputs["face_mask"],
            method="context",
        )
        return typing.cast(transformer.Context, context)

    def begin_decoder(self, params: dict, given: DecoderInput) -> Any:
        """See `pipeline.Functions`."""
        return self.components.vae.begin_decoder(params, given.picture, given.latent)

    def encode_audio(
        self, params: dict, samples: jax.Array, known: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """See `pipeline.Functions`."""
        return self.components.audio.encode(params, samples, known)

    def encode_partner(self, params: dict, samples: jax.Array) -> jax.Array:
        """See `pipeline.Functions`."""
        known = jnp.full((len(samples),), samples.shape[1], jnp.int32)
        return self.components.audio.encode(params, samples, known)[0]

    def denoise(
        self, params: dict, state: causal.StreamState, start: Start, windows: jax.Array,
        mode: jax.Array, partner: jax.Array | None
    ) -> tuple[jax.Array, causal.StreamState]:
        """See `pipeline.Functions`."""
        preset = self.preset
        channels = conditioning_lib.channels(
            preset.conditioning, start.condition, mode.shape[1], first=1
        )
        given = conditioning_lib.Conditioning(
            channels=channels, audio=windows, partner_audio=partner, mode=mode
        )
        return causal.next_chunk(
            self.components.dit, params["transformer"], state, given, start.context,
            preset.sigmas, preset.student.policy, preset.student.temperature,
        )

    def decode(self, params: dict, latents: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        """See `pipeline.Functions`."""
        frames, state = self.components.vae.decode_chunk(params, latents, state)
        return pixels.to_uint8(frames), state

