"""What a component of a preset offers, and the components of every preset behind it.

A pipeline uses three protocols: `VideoVAE`, `AudioEncoder` and the transformer's
`conditioning.Conditioning`. Their parameters are one dictionary of trees by the name of the
part; each component takes what it needs from it.
"""

import dataclasses
import functools
import typing
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp

from tm_jax.configs import presets
from tm_jax.models.audio.causal import config as causal_config
from tm_jax.models.audio.causal import encoder as causal_encoder
from tm_jax.models.audio.wav2vec2 import config as wav2vec2_config
from tm_jax.models.audio.wav2vec2 import encoder as wav2vec2
from tm_jax.models.audio.wav2vec2 import stream as wav2vec2_stream
from tm_jax.models.dit import attention_patterns
from tm_jax.models.dit import audio_projection as dit_audio
from tm_jax.models.dit import transformer
from tm_jax.models.vae.small import config as small_vae_config
from tm_jax.models.vae.small import network as small_vae
from tm_jax.models.vae.tiny import autoencoder as taehv
from tm_jax.models.vae.wan import autoencoder as wan_vae
from tm_jax.models.vae.wan import clips
from tm_jax.models.vae.wan import config as wan_vae_config

VOICE_RMS = 0.01  # -40 dB: a frame of sound above it counts as voice where nothing better is.


@flax.struct.dataclass
class Reference:
    """What a reference picture gives to a stream.

    Attributes:
      latent: Latent of the picture alone, the attention sink, [B, H, W, C].
      condition: What conditioning channels are made of (`conditioning.channels`),
        [B, 1 + K, H, W, R].
    """

    latent: jax.Array
    condition: jax.Array


class VideoVAE(Protocol):
    """A video autoencoder; the whole clip equals its chunks."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parameter trees that it needs."""
        ...

    @property
    def decoder_parts(self) -> tuple[str, ...]:
        """Names of those that decoding needs."""
        ...

    @property
    def decodes_beside_picture(self) -> bool:
        """Whether `begin_decoder` needs the picture, not only its latent."""
        ...

    def constants(self, params: dict) -> dict:
        """What is computed once for all streams, a tree of arrays."""

    def begin(self, params: dict, constants: dict, picture: jax.Array) -> Reference:
        """The reference of streams that start from pictures [B, H, W, 3] in -1..1."""

    def begin_decoder(self, params: dict, picture: jax.Array, latent: jax.Array) -> Any:
        """State before the first chunk is decoded, of pictures and their latents."""

    def encode(self, params: dict, clip: jax.Array) -> jax.Array:
        """Latents [B, 1 + k, H, W, C] of clips [B, 1 + 4 k, H, W, 3]; frame 0 is the picture."""

    def decode_chunk(self, params: dict, latents: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        """Frames [B, 4 T, H, W, 3] in -1..1 of the next latents [B, T, H, W, C], next state."""


class AudioEncoder(Protocol):
    """A speech encoder; a stream gives it a window of sound for every chunk."""

    @property
    def before(self) -> int:
        """Samples ahead of a chunk that it needs."""
        ...

    @property
    def after(self) -> int:
        """Samples after the chunk that it needs: the look-ahead."""
        ...

    def encode(
        self, params: dict, samples: jax.Array, known: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Audio windows of a chunk and its voice activity.

        Args:
          params: Parameters by part.
          samples: [B, before + samples of a chunk + after] at the timing's rate.
          known: How many of them, from the end, belong to the stream, int32 [B]; what is
            before the stream's start does not count as silence.

        Returns:
          Windows [B, T, R, U], and the probability of a voice, [B, T] in 0..1.
        """


@dataclasses.dataclass(frozen=True)
class WanVideoVAE:
    """Wan's autoencoder, with its own decoder or the tiny one.

    Attributes:
      preset: Sizes.
      tiny: Whether the tiny decoder decodes.
    """

    preset: presets.Preset
    tiny: bool = False
    decodes_beside_picture = False

    def __post_init__(self):
        if self.tiny and self.preset.taehv is None:
            raise ValueError(f"preset {self.preset.name} has no tiny decoder.")

    @property
    def config(self) -> wan_vae_config.WanVAEConfig:
        """Sizes of the autoencoder."""
        config = self.preset.vae
        assert isinstance(config, wan_vae_config.WanVAEConfig)  # `video_vae` chooses by it.
        return config

    @property
    def model(self) -> wan_vae.WanVAE:
        """The autoencoder's module."""
        return wan_vae.WanVAE(self.config, jnp.dtype(self.preset.dtype))

    @property
    def decoder(self) -> wan_vae.WanVAE | taehv.TAEHV:
        """The decoder's module."""
        if not self.tiny:
            return self.model
        assert self.preset.taehv is not None  # Checked at the start.
        return taehv.TAEHV(self.preset.taehv, jnp.dtype(self.preset.dtype))

    @property
    def parts(self) -> tuple[str, ...]:
        """See `VideoVAE`."""
        return ("vae", "taehv") if self.tiny else ("vae",)

    @property
    def decoder_parts(self) -> tuple[str, ...]:
        """See `VideoVAE`."""
        return self.parts[-1:]

    def constants(self, params: dict) -> dict:
        """`empty`: latent [H, W, C] of a frame in a long run of empty (grey) frames."""
        preset = self.preset
        if preset.conditioning != "first_frame":
            return {}
        config, variables = self.config, {"params": params["vae"]}
        size = (preset.height, preset.width)
        first = jnp.zeros((1, 1, *size, 3))
        z, state = self.model.apply(variables, first, method="encode_first")
        more = jnp.zeros((1, config.frames_per_latent, *size, 3))

        def step(carry, _):
            return self.model.apply(variables, more, carry[1], method="encode_chunk"), None

        (z, _), _ = jax.lax.scan(step, (z, state), length=settled_latents(config))
        return {"empty": z[0, 0]}

    def begin(self, params: dict, constants: dict, picture: jax.Array) -> Reference:
        """See `VideoVAE`. In a stream all frames after the picture are empty ones."""
        encoded = self.model.apply({"params": params["vae"]}, picture[:, None], method="encode")
        condition = latent = typing.cast(jax.Array, encoded)
        if "empty" in constants:
            empty = jnp.broadcast_to(constants["empty"].astype(latent.dtype), latent.shape)
            condition = jnp.concatenate([latent, empty], 1)
        return Reference(latent=latent[:, 0], condition=condition)

    def clip_condition(self, params: dict, picture: jax.Array, latents: int) -> jax.Array:
        """Latents [B, T, H, W, C] of pictures and the empty frames after them."""
        frames = 1 + (latents - 1) * self.preset.vae.frames_per_latent
        clip = jnp.zeros((picture.shape[0], frames, *picture.shape[1:])).at[:, 0].set(picture)
        return clips.encode(self.model, params["vae"], clip)

    def begin_decoder(self, params: dict, picture: jax.Array, latent: jax.Array) -> Any:
        """See `VideoVAE`."""
        del picture  # The latent determines all of it.
        [part] = self.decoder_parts
        _, state = self.decoder.apply(
            {"params": params[part]}, latent[:, None], method="decode_first"
        )
        return state

    def encode(self, params: dict, clip: jax.Array) -> jax.Array:
        """See `VideoVAE`."""
        return clips.encode(self.model, params["vae"], clip)

    def decode_chunk(self, params: dict, latents: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        """See `VideoVAE`."""
        [part] = self.decoder_parts
        return self.decoder.apply({"params": params[part]}, latents, state, method="decode_chunk")


def settled_latents(config: wan_vae_config.WanVAEConfig) -> int:
    """Latents after which the encoder's output no longer depends on a clip's first frame."""
    past, frames = 2, 1  # The entry reads 2 frames before its own.
    for level in range(len(config.multipliers)):
        past += 4 * config.num_res_blocks * frames  # Two convolutions of three taps each.
        if level < len(config.temporal_strides) and config.temporal_strides[level]:
            past, frames = past + 2 * frames, 2 * frames
    past += (2 * 4 + 2) * frames  # Two blocks in the middle, and the exit.
    return 1 + -(-past // config.frames_per_latent)


@dataclasses.dataclass(frozen=True)
class SmallVideoVAE:
    """The small autoencoder with a reference picture.

    Attributes:
      config: Its sizes.
      dtype: Dtype of the products.
    """

    config: small_vae_config.SmallVAEConfig
    dtype: str = "float32"
    parts = ("vae",)
    decoder_parts = ("vae",)
    decodes_beside_picture = True

    def _apply(self, params: dict, method: str, *args) -> Any:
        model = small_vae.SmallVAE(self.config, jnp.dtype(self.dtype))
        return model.apply({"params": params["vae"]}, *args, method=method)

    def constants(self, params: dict) -> dict:
        """See `VideoVAE`; there are none."""
        del params
        return {}

    def begin(self, params: dict, constants: dict, picture: jax.Array) -> Reference:
        """See `VideoVAE`. The condition is the same for every frame."""
        del constants
        found, _ = self._apply(params, "begin", picture)
        return Reference(latent=found.latent, condition=found.condition[:, None])

    def begin_decoder(self, params: dict, picture: jax.Array, latent: jax.Array) -> Any:
        """See `VideoVAE`; the decoder needs the picture, not its latent."""
        del latent
        return self._apply(params, "begin", picture)[1]

    def encode(self, params: dict, clip: jax.Array) -> jax.Array:
        """See `VideoVAE`."""
        return self._apply(params, "encode", clip)

    def decode_chunk(self, params: dict, latents: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        """See `VideoVAE`."""
        return self._apply(params, "decode_chunk", latents, state)


@dataclasses.dataclass(frozen=True)
class Wav2Vec2Audio:
    """wav2vec 2.0 on a sliding window.

    Attributes:
      preset: Sizes.
      latents: Latent frames of a chunk.
    """

    preset: presets.Preset
    latents: int

    @functools.cached_property
    def window(self) -> wav2vec2_config.WindowConfig:
        """The window of sound of one chunk."""
        preset = self.preset
        timing = dataclasses.replace(preset.timing, latents_per_chunk=self.latents)
        before, after = dit_audio.margins(preset.dit.audio_window, timing)
        return wav2vec2_config.WindowConfig(
            timing=timing, past_frames=max(50, before),
            future_frames=max(preset.audio_future_frames, after + 1),
            before_frames=before, after_frames=after,
        )

    @property
    def before(self) -> int:
        """See `AudioEncoder`."""
        return self.window.past_frames * self.window.timing.samples_per_frame

    @property
    def after(self) -> int:
        """See `AudioEncoder`."""
        return self.window.future_samples

    def encode(
        self, params: dict, samples: jax.Array, known: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """See `AudioEncoder`. A frame whose level is above `VOICE_RMS` counts as voice."""
        window, timing, config = self.window, self.window.timing, self.preset.audio
        assert isinstance(config, wav2vec2_config.Wav2Vec2Config)  # `audio_encoder` chooses by it.
        features = wav2vec2_stream.window_features(
            wav2vec2.Wav2Vec2(config), params["audio"], window, samples,
            jnp.minimum(known, window.samples),
        )
        windows = dit_audio.windows(features, self.preset.dit.audio_window, timing)
        chunk = samples[:, self.before : self.before + timing.samples_per_chunk]
        frames = jnp.square(chunk.reshape(len(chunk), -1, timing.samples_per_frame))
        loud = (jnp.sqrt(frames.mean(-1)) > VOICE_RMS).astype(jnp.float32)  # [B, F]
        return windows, loud.reshape(len(chunk), -1, timing.frames_per_latent).max(-1)


@dataclasses.dataclass(frozen=True)
class CausalAudio:
    """The small convolutional speech encoder, which detects voice itself.

    Attributes:
      preset: Sizes.
      latents: Latent frames of a chunk.
    """

    preset: presets.Preset
    latents: int

    @property
    def config(self) -> causal_config.AudioEncoderConfig:
        """Sizes of the encoder."""
        config = self.preset.audio
        # `audio_encoder` chooses by it.
        assert isinstance(config, causal_config.AudioEncoderConfig)
        return config

    @property
    def _margins(self) -> tuple[int, int]:
        return dit_audio.margins(self.preset.dit.audio_window, self.preset.timing)

    @property
    def before(self) -> int:
        """See `AudioEncoder`."""
        frames = self._margins[0] + self.config.history
        return frames * causal_encoder.FRAME + causal_encoder.MARGIN

    @property
    def after(self) -> int:
        """See `AudioEncoder`."""
        frames = self._margins[1] + self.config.future
        return frames * causal_encoder.FRAME + causal_encoder.MARGIN

    def encode(
        self, params: dict, samples: jax.Array, known: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """See `AudioEncoder`. What is before the stream is silence."""
        del known
        preset = self.preset
        model = causal_encoder.AudioEncoder(self.config)
        variables = {"params": params["audio"]}
        features = typing.cast(jax.Array, model.apply(variables, samples))
        predicted = model.apply(variables, features, method=model.predict)
        labels = typing.cast(jax.Array, predicted)
        before, frames = self._margins[0], self.latents * preset.timing.frames_per_latent
        voice = jax.nn.sigmoid(labels[:, before : before + frames, -1])  # [B, F]
        voice = voice.reshape(len(samples), -1, preset.timing.frames_per_latent).max(-1)
        return dit_audio.windows(features, preset.dit.audio_window, preset.timing), voice


def audio_encoder(preset: presets.Preset, latents: int | None = None) -> AudioEncoder:
    """The speech encoder of a preset, for chunks of so many latent frames."""
    bidirectional = isinstance(preset.audio, wav2vec2_config.Wav2Vec2Config)
    kind = Wav2Vec2Audio if bidirectional else CausalAudio
    return kind(preset, latents or preset.timing.latents_per_chunk)


def video_vae(preset: presets.Preset, tiny: bool = False) -> VideoVAE:
    """The video autoencoder of a preset.

    Args:
      preset: The preset.
      tiny: Whether its faster decoder decodes.

    Raises:
      ValueError: The preset has no such decoder.
    """
    if isinstance(preset.vae, wan_vae_config.WanVAEConfig):
        return WanVideoVAE(preset, tiny)
    if tiny:
        raise ValueError(f"preset {preset.name} has no tiny decoder.")
    return SmallVideoVAE(preset.vae, preset.dtype)


@dataclasses.dataclass(frozen=True)
class Components:
    """The components of a preset, without weights.

    Attributes:
      preset: Their sizes.
      dit: Video transformer.
      vae: Video autoencoder.
      audio: Speech encoder of a stream's chunks.
    """

    preset: presets.Preset
    dit: transformer.DiT
    vae: VideoVAE
    audio: AudioEncoder

    @property
    def grid(self) -> attention_patterns.Grid:
        """Token grid of one latent frame, and the chunk length."""
        height, width, _ = self.preset.latent_shape
        return attention_patterns.Grid.of(
            self.preset.dit, height, width, self.preset.timing.latents_per_chunk
        )

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parameter trees that a stream needs."""
        image = () if self.preset.image is None else ("image",)
        return ("transformer", "audio", *image, *self.vae.parts)


def build(preset: presets.Preset, tiny: bool = False) -> Components:
    """The components of a preset; arguments as of `video_vae`."""
    return Components(
        preset=preset, dit=transformer.DiT(preset.dit, jnp.dtype(preset.dtype)),
        vae=video_vae(preset, tiny), audio=audio_encoder(preset),
    )

