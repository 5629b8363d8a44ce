"""CLIP vision tower: a picture to a token per patch."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from tm_jax.core import axes
from tm_jax.core import shapes
from tm_jax.models.image import config as config_lib
from tm_jax.nn import embeddings
from tm_jax.nn import encoder_layer
from tm_jax.nn import linear
from tm_jax.nn import norms
from tm_jax.nn import parameters


class CLIPVision(nn.Module):
    """Vision transformer with a class token and learned positions.

    Attributes:
      config: Sizes.
      dtype: Dtype of the products and of the residual stream.
    """

    config: config_lib.CLIPConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        c = self.config

        def table(name, *shape):
            names = (None,) * (len(shape) - 1) + (axes.WIDTH,)
            init = parameters.named(nn.initializers.normal(c.width**-0.5), names)
            return self.param(name, init, shape)

        self.patch_embedding = linear.Dense(
            c.width, (None, axes.EMBED), self.dtype, bias=False
        )
        self.class_embedding = table("class_embedding", c.width)
        self.position_embedding = table("position_embedding", c.tokens, c.width)
        self.norm_in = norms.LayerNorm(c.epsilon)
        self.blocks = [
            encoder_layer.EncoderLayer(
                c.width, c.num_heads, c.mlp_width, True, c.epsilon, self.dtype
            )
            for _ in range(c.num_layers)
        ]
        self.norm_out = norms.LayerNorm(c.epsilon)

    def embed(self, pictures: jax.Array) -> jax.Array:
        """Normalised pictures [B, S, S, 3] to the input of the first layer, [B, L, D]."""
        c = self.config
        shapes.check(pictures, "B S S C", "pictures", S=c.picture, C=3)
        patches = embeddings.patchify(pictures[:, None], c.patch)[:, 0]  # [B, L - 1, 3 * p * p]
        x = self.patch_embedding(patches)
        first = jnp.broadcast_to(self.class_embedding, (x.shape[0], 1, c.width))
        x = jnp.concatenate([first.astype(x.dtype), x], 1)  # [B, L, D]
        x = self.norm_in(x + self.position_embedding.astype(x.dtype))
        return nn.with_logical_constraint(x, encoder_layer.STREAM)

    def __call__(self, pictures: jax.Array) -> jax.Array:
        """What Wan's transformer reads: the penultimate layer's output, not normalised.

        Args:
          pictures: Normalised pictures (`pictures.prepare`), [B, S, S, 3].

        Returns:
          Tokens [B, L, D], the class token first.
        """
        x = self.embed(pictures)
        for block in self.blocks[:-1]:
            x = block(x)
        return x

    def hidden_states(self, pictures: jax.Array) -> tuple[list[jax.Array], jax.Array]:
        """Everything that the reference can return.

        Args:
          pictures: As in `__call__`.

        Returns:
          The input of the first layer and the output of each, `num_layers` + 1 arrays
          [B, L, D], and the normalised class token of the last, [B, D].
        """
        states = [self.embed(pictures)]
        for block in self.blocks:
            states.append(block(states[-1]))
        return states, self.norm_out(states[-1][:, 0])


def init(config: config_lib.CLIPConfig, key: jax.Array) -> dict:
    """Random parameters, boxed with their logical axis names."""
    model = CLIPVision(config)
    pictures = jnp.zeros((1, config.picture, config.picture, 3))
    return dict(model.init(key, pictures, method=model.hidden_states)["params"])
