"""The audio-driven video transformer: teacher and student share these parameters."""

from collections.abc import Callable
import dataclasses
import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from tm_jax.core import axes
from tm_jax.core import shapes
from tm_jax.diffusion import flow_matching
from tm_jax.models.dit import attention_patterns
from tm_jax.models.dit import audio_projection as audio_lib
from tm_jax.models.dit import blocks
from tm_jax.models.dit import conditioning as conditioning_lib
from tm_jax.models.dit import config as config_lib
from tm_jax.models.dit import preconditioning
from tm_jax.nn import embeddings
from tm_jax.nn import linear
from tm_jax.nn import norms
from tm_jax.nn import parameters

_TOKENS = (axes.BATCH, axes.FRAMES, axes.TOKENS, axes.WIDTH)


@flax.struct.dataclass
class Context:
    """Conditioning that is constant in a stream, ready for use in every layer.

    Attributes:
      layers: Per block: dictionary from "text" / "image" to keys and values.
      face_mask: [B, P] in 0..1.
    """

    layers: list
    face_mask: jax.Array


@flax.struct.dataclass
class Embedded:
    """A `conditioning.Conditioning` ready for use in every layer.

    Attributes:
      channels: Conditioning channels [B, T, H, W, Cc].
      mode: 0 listening, 1 speaking, [B, T] int32.
      audio: Per block: dictionary from "audio" / "partner" to keys and values [B, T, A, N, K].
      context: What is constant in a stream.
    """

    channels: jax.Array
    mode: jax.Array
    audio: list
    context: Context


# Velocity [B, T, H, W, C] and the keys and values of self-attention of every layer.
Output = tuple[jax.Array, list[blocks.KeyValue]]


class Embedding(nn.Module):
    """Two-layer perceptron of Wan's time and text embeddings.

    Attributes:
      width: Output width.
      activation: Between the layers.
      dtype: Dtype of the products.
    """

    width: int
    activation: Callable[[jax.Array], jax.Array]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        """Maps [..., in] to [..., width]."""
        x = linear.Dense(self.width, (axes.EMBED, axes.MLP), self.dtype, name="in")(x)
        x = self.activation(x)
        return linear.Dense(self.width, (axes.MLP, axes.EMBED), self.dtype, name="out")(x)


class ImageEmbedding(nn.Module):
    """Perceptron between layer norms that maps image-encoder tokens to the token width.

    Attributes:
      width: Output width.
      dtype: Dtype of the products.
    """

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        """Maps [B, L, in] to [B, L, width]."""
        inner = x.shape[-1]
        x = norms.LayerNorm(epsilon=1e-5, name="norm_in")(x)
        x = linear.Dense(inner, (axes.EMBED, axes.MLP), self.dtype, name="in")(x)
        x = nn.gelu(x, approximate=False)
        x = linear.Dense(self.width, (axes.MLP, axes.EMBED), self.dtype, name="out")(x)
        return norms.LayerNorm(epsilon=1e-5, name="norm_out")(x)


# Policies of `jax.checkpoint` by what they keep of a block; "products" are those with weights.
REMAT_KEEPS = {
    "nothing": jax.checkpoint_policies.nothing_saveable,
    "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class DiT(nn.Module):
    """Video transformer with per-latent-frame time.

    Attributes:
      config: Sizes.
      dtype: Dtype of the projections; softmax, norms, modulation and time stay float32.
      remat: Recompute every block in the backward pass.
      remat_keeps: What of a recomputed block is kept all the same: a name in `REMAT_KEEPS`.
    """

    config: config_lib.DiTConfig
    dtype: jnp.dtype = jnp.float32
    remat: bool = False
    remat_keeps: str = "nothing"

    def setup(self):
        c, dtype = self.config, self.dtype
        self.patch_embedding = linear.Dense(c.width, (axes.EMBED, axes.WIDTH), dtype)
        self.time_embedding = Embedding(c.width, nn.silu, jnp.float32)
        self.time_projection = linear.Dense(6 * c.width, (axes.EMBED, axes.MLP))
        zeros = parameters.named(nn.initializers.zeros, (None, axes.WIDTH))
        self.mode_embedding = self.param("mode_embedding", zeros, (c.modes, c.width))
        if c.text_width is not None:
            self.text_embedding = Embedding(c.width, nn.gelu, dtype)
        if c.image_width is not None:
            self.image_embedding = ImageEmbedding(c.width, dtype)
        self.audio_projection = audio_lib.AudioProjection(c, dtype)
        if c.partner_audio:
            self.partner_projection = audio_lib.AudioProjection(c, dtype)
        block = blocks.Block
        if self.remat:
            policy = REMAT_KEEPS[self.remat_keeps]
            block = nn.remat(blocks.Block, static_argnums=(3,), policy=policy)
        self.blocks = [block(c, dtype) for _ in range(c.num_layers)]
        normal = parameters.named(nn.initializers.normal(c.width**-0.5), (None, axes.WIDTH))
        self.head_modulation = self.param("head_modulation", normal, (2, c.width))
        self.head = linear.Dense(
            c.latent_channels * c.patch**2, (axes.EMBED, None), dtype, zero=True
        )

    def context(
        self, text: jax.Array | None = None, image: jax.Array | None = None,
        face_mask: jax.Array | None = None,
    ) -> Context:
        """Embeds what never changes in a stream.

        Args:
          text: Text features [B, text_length, text_width], when the config has text.
          image: Image-encoder tokens [B, image_length, image_width], likewise.
          face_mask: [B, P] in 0..1; always needed.

        Returns:
          Context for `__call__`.

        Raises:
          ValueError: The mask is missing, or a shape differs from the config.
        """
        c = self.config
        if face_mask is None:
            raise ValueError("face_mask: expected weights [B, P], got None.")
        shapes.check(face_mask, "B P", "face_mask")
        if c.text_width is not None:
            shapes.check(text, "B L D", "text", L=c.text_length, D=c.text_width)
            text = self.text_embedding(text)
        if c.image_width is not None:
            shapes.check(image, "B L D", "image", L=c.image_length, D=c.image_width)
            image = self.image_embedding(image)
        layers = [block.context(text, image) for block in self.blocks]
        return Context(layers=layers, face_mask=face_mask)

    def audio(
        self, windows: jax.Array, partner: jax.Array | None = None
    ) -> list[dict[str, blocks.KeyValue]]:
        """Audio keys and values of every layer from windows [B, T, R, U] of both parties.

        Raises:
          ValueError: The model has the other party's audio as input and none is given.
        """
        tokens, heard = self.audio_projection(windows), None
        if self.config.partner_audio:
            if partner is None:
                raise ValueError("partner_audio: expected windows [B, T, R, U], got None.")
            heard = self.partner_projection(partner)
        return [block.audio(tokens, heard) for block in self.blocks]

    def embed(
        self, conditioning: conditioning_lib.Conditioning, context: Context | None = None
    ) -> Embedded:
        """Keys and values of a conditioning.

        Args:
          conditioning: Inputs of T latent frames.
          context: Result of `context` where it is known already; `conditioning` then needs
            no text, image and face mask.

        Returns:
          What `__call__` takes.
        """
        c = conditioning
        if context is None:
            context = self.context(c.text, c.image, c.face_mask)
        return Embedded(
            channels=c.channels, mode=c.mode, audio=self.audio(c.audio, c.partner_audio),
            context=context,
        )

    def __call__(self, x, sigma, given: Embedded, pattern):
        """Velocity of a few latent frames.

        Args:
          x: Noisy latents [B, T, H, W, C].
          sigma: Noise level of each latent frame, [B, T], float32.
          given: Result of `embed`.
          pattern: Function (layer index) -> attention pattern (`patterns.py`).

        Returns:
          Velocity [B, T, H, W, C] in float32, and the unrotated self-attention
          `blocks.KeyValue` of every layer, [B, T, P, N, K].

        Raises:
          ValueError: Shapes that do not fit the config or each other.
        """
        c = self.config
        sizes = shapes.check(x, "B T H W C", "x", C=c.latent_channels)
        shapes.check(
            given.channels, "B T H W C", "channels", **{**sizes, "C": c.condition_channels}
        )
        shapes.check(sigma, "B T", "sigma", B=sizes["B"], T=sizes["T"])
        shapes.check(given.mode, "B T", "mode", B=sizes["B"], T=sizes["T"])
        x = x.astype(jnp.float32)
        level = sigma[..., None, None, None]
        inner = x
        if c.clean_std is not None:
            inner = preconditioning.scale_input(x, level, c.clean_std)
        inner = jnp.concatenate([inner, given.channels.astype(jnp.float32)], -1)
        tokens = self.patch_embedding(embeddings.patchify(inner, c.patch))
        tokens = nn.with_logical_constraint(tokens, _TOKENS)

        features = embeddings.sinusoid(flow_matching.model_time(sigma), c.frequency_width)
        # The mode joins before the projection, so that it reaches every modulation.
        time = self.time_embedding(features) + self.mode_embedding[given.mode]  # [B, T, D]
        modulation = self.time_projection(nn.silu(time))
        modulation = modulation.reshape(*sigma.shape, 6, c.width)

        states = []
        for i, block in enumerate(self.blocks):
            tokens, state = block(
                tokens, modulation, pattern(i), given.context.layers[i], given.audio[i],
                given.context.face_mask,
            )
            states.append(state)

        shift, scale = jnp.moveaxis(
            (self.head_modulation + time[:, :, None])[:, :, None], -2, 0
        )
        out = self.head(norms.modulate(tokens, shift, scale).astype(self.dtype))
        out = embeddings.unpatchify(
            out.astype(jnp.float32), c.patch, sizes["H"] // c.patch, c.latent_channels
        )
        if c.clean_std is not None:
            out = preconditioning.to_velocity(out, x, level, c.clean_std)
        return out, states


def silent(
    config: config_lib.DiTConfig, channels: jax.Array
) -> conditioning_lib.Conditioning:
    """Conditioning of listening in silence, as the sink has it, of channels [B, T, H, W, Cc]."""
    batch, frames = channels.shape[:2]
    audio = jnp.zeros((batch, frames, config.audio_window, config.audio_feature_width))
    return conditioning_lib.Conditioning(
        channels=channels, audio=audio, partner_audio=audio if config.partner_audio else None,
        mode=jnp.zeros((batch, frames), jnp.int32),
    )


def touch(model: DiT) -> Output:
    """Runs a transformer once on zeros: `model.init(key, method=touch)` makes all parameters.

    Parameters depend on no size of a picture, so the smallest one serves every preset.
    """
    c, side = model.config, 2 * model.config.patch
    text = image = None
    if c.text_width is not None:
        text = jnp.zeros((1, c.text_length, c.text_width))
    if c.image_width is not None:
        image = jnp.zeros((1, c.image_length, c.image_width))
    given = dataclasses.replace(
        silent(c, jnp.zeros((1, 1, side, side, c.condition_channels))),
        face_mask=jnp.ones((1, 4)), text=text, image=image,
    )
    x = jnp.zeros((1, 1, side, side, c.latent_channels))
    pattern = attention_patterns.bidirectional(attention_patterns.Grid(2, 2, 1))
    return model(x, jnp.zeros((1, 1)), model.embed(given), lambda layer: pattern)


@functools.cache
def boxed_shapes(config: config_lib.DiTConfig) -> dict:
    """Boxed parameter shapes of a transformer; no parameter is computed or stored."""
    model = DiT(config)
    key = jax.random.key(0)
    return jax.eval_shape(lambda key: model.init(key, method=touch)["params"], key)
