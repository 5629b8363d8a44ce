"""Starts the video autoencoder as the best linear code of measured motion.

All blocks of the network start as identities, so encoder and decoder start as products of
matrices. Here these are set so that the first latent channels are the principal components of the
motion (`small_vae.motion`) in a place of 32 x 32 pixels and 4 frames, and the decoder's flow is
rebuilt from them. Training starts with heads that move, and not with a still picture.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.data import drawn
from tm_jax.models.small_vae import config as config_lib
from tm_jax.models.small_vae import layers
from tm_jax.models.small_vae import motion
from tm_jax.models.small_vae import network


def components(
    config: config_lib.SmallVAEConfig, batches: Iterable[np.ndarray], count: int
) -> np.ndarray:
    """Principal components of measured motion.

    Args:
      config: Sizes.
      batches: Clips, uint8 [B, 1 + F, H, W, 3], F a multiple of `frames_per_latent`.
      count: How many components.

    Returns:
      [512, count] for 4 frames and places of 4 pixels, scaled so that the codes of the batches have
      a mean square of 1 over all channels; in the order of the encoder's channels.
    """

    @jax.jit
    def products(clips):
        clips = drawn.to_float(clips)
        flow = motion.estimate(clips[:, 0], clips[:, 1:]) / config.cell
        flow = flow.reshape(-1, config.frames_per_latent, *flow.shape[2:])
        x = network.abreast(flow, config.cell // motion.PLACE)
        x = layers.to_cells(layers.to_cells(x, 2), 2)
        x = x.reshape(-1, x.shape[-1])
        return x.T @ x / len(x)

    total = sum(np.float64(products(clips)) for clips in batches)
    values, vectors = np.linalg.eigh(total)
    values, vectors = values[::-1][:count], vectors[:, ::-1][:, :count]
    return np.float32(vectors / np.sqrt(values.mean()))


def start(params: dict, config: config_lib.SmallVAEConfig, basis: np.ndarray) -> dict:
    """Fresh parameters with the linear code of motion in them.

    Args:
      params: Parameters as initialised.
      config: Sizes.
      basis: Result of `components`; at most as many as there are latent channels.

    Returns:
      The same tree, other values.

    Raises:
      ValueError: The widths do not hold the motion's channels.
    """
    count, per_cell = basis.shape[1], basis.shape[0] // 16
    widths = zip(config.encoder_widths, config.decoder_widths)
    needed = (per_cell, 4 * per_cell, count)
    if any(min(have) < want for have, want in zip(widths, needed)):
        raise ValueError(
            f"encoder_widths and decoder_widths must be at least {needed} for this start, got "
            f"{config.encoder_widths} and {config.decoder_widths}."
        )
    # The scale of the codes is undone in the decoder.
    back = basis / np.sum(np.square(basis), 0)
    params = jax.tree.map(np.array, params)
    encoder, decoder = params["encoder"], params["decoder"]
    fine, middle, _ = config.encoder_widths
    _own(encoder, "motion", ("cells", "fine"), np.eye(per_cell))
    _own(encoder, "down_16", (), _spread(np.eye(4 * per_cell), per_cell, fine))
    _own(encoder, "down_32", (), _spread(basis, 4 * per_cell, middle))
    _own(encoder, "latent", (), np.eye(count))
    fine, middle, _ = config.decoder_widths
    _own(decoder, "latent", ("still_32",), np.eye(count))
    _own(decoder, "up_16", ("still_16",), back.T, 4 * per_cell, middle)
    _own(decoder, "up_8", ("still_8",), np.eye(4 * per_cell), per_cell, fine)
    _own(decoder, "flow", (), np.eye(per_cell))
    return jax.tree.map(jnp.asarray, params)


def _spread(matrix, used, width):
    """Rows for four cells of `used` channels, to rows for four cells of `width`."""
    wide = np.zeros((4, width, matrix.shape[1]), np.float32)
    wide[:, :used] = matrix.reshape(4, used, -1)
    return wide.reshape(4 * width, -1)


def _own(tree, name, others, matrix, used=None, width=None):
    """Sets the first columns of a kernel; nothing else may add to them.

    With `used` the columns are for four cells of `used` channels in cells of `width`.
    """
    rows, columns = matrix.shape
    if used is None:
        at = np.arange(columns)
        also = at
    else:
        at = (np.arange(4)[:, None] * width + np.arange(used)).reshape(-1)
        also = np.arange(used)
    for other in others:
        tree[other]["kernel"][:, also] = 0
    kernel = tree[name]["kernel"]
    kernel[:, at] = 0
    kernel[:rows, at] = matrix
