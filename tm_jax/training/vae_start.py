"""Starts the video autoencoder as the best linear code of what is measured in pixels.

All blocks of the network start as identities, so encoder and decoder start as products of
matrices. Here these are set so that the first latent channels are the principal components of the
motion (`small_vae.motion`) in a place of 32 x 32 pixels and 4 frames, the others those of what
motion leaves unexplained, and the decoder's flow and residual are rebuilt from them. Training
starts with heads that move, and not with a still picture.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.core import pixels as pixels_lib
from tm_jax.models.vae.small import config as config_lib
from tm_jax.models.vae.small import layers
from tm_jax.models.vae.small import motion
from tm_jax.models.vae.small import network


@dataclasses.dataclass(frozen=True)
class Basis:
    """Principal components of one kind of features, from fine to coarse places.

    Attributes:
      cell: [N, a] for a place of 8 pixels and 4 frames.
      middle: [4 a, b] for four of them.
      coarse: [4 b, c] for four of those; columns scaled so that codes have a mean square of 1.
    """

    cell: np.ndarray
    middle: np.ndarray
    coarse: np.ndarray


def measure_motion(
    config: config_lib.SmallVAEConfig, batches: list[np.ndarray], count: int
) -> Basis:
    """Components of measured motion; complete but for the last grid.

    Args:
      config: Sizes.
      batches: Clips, uint8 [B, 1 + F, H, W, 3], F a multiple of `frames_per_latent`.
      count: Latent channels for it.
    """

    def features(clips):
        flow = motion.estimate(clips[:, 0], clips[:, 1:]) / config.cell
        flow = flow.reshape(-1, config.frames_per_latent, *flow.shape[2:])
        return network.abreast(flow, config.cell // motion.PLACE)

    size = 2 * config.frames_per_latent * (config.cell // motion.PLACE) ** 2
    return _basis(features, batches, (size, 4 * size, count))


def measure_change(
    config: config_lib.SmallVAEConfig, batches: list[np.ndarray], count: int
) -> Basis:
    """Components of frames minus the picture as measured motion moves it; see `measure_motion`.

    On the finer grids they take the channels that motion leaves free.
    """
    taken = 2 * config.frames_per_latent * (config.cell // motion.PLACE) ** 2

    def features(clips):
        flow = motion.estimate(clips[:, 0], clips[:, 1:])
        moved = layers.warp(clips[:, 0], layers.resize(flow, motion.PLACE))
        change = clips[:, 1:] - moved
        change = change.reshape(-1, config.frames_per_latent, *change.shape[2:])
        return network.abreast(change, config.cell)

    widths = [min(both) for both in zip(config.encoder_widths, config.decoder_widths)]
    fine = min(widths[0] - taken, config.paint_width // 2)
    return _basis(features, batches, (fine, widths[1] - 4 * taken, count))


def _basis(features, batches, counts) -> Basis:
    """Principal components of features [N, H, W, .] on three grids."""
    compiled = jax.jit(lambda clips: features(pixels_lib.to_float(clips)))
    seen = [np.asarray(compiled(clips)) for clips in batches]
    kept = []
    for count in counts:
        if kept:
            seen = [np.asarray(layers.to_cells(jnp.asarray(x @ kept[-1]), 2)) for x in seen]
        rows = [x.reshape(-1, x.shape[-1]) for x in seen]
        total = sum(np.float64(x.T @ x) for x in rows) / sum(map(len, rows))
        values, vectors = np.linalg.eigh(total)
        kept.append(vectors[:, ::-1][:, :count].astype(np.float32))
    scale = np.sqrt(values[::-1][:count].mean())
    return Basis(kept[0], kept[1], kept[2] / np.float32(scale))


def save(path: str, moves: Basis, changes: Basis) -> None:
    """Writes both codes to an .npz file."""
    values = {
        f"{name}_{key}": value
        for name, basis in (("moves", moves), ("changes", changes))
        for key, value in vars(basis).items()
    }
    np.savez(path, **values)


def load(path: str) -> tuple[Basis, Basis]:
    """Reads a file of `save`."""
    with np.load(path) as file:
        moves, changes = (
            Basis(**{f.name: file[f"{name}_{f.name}"] for f in dataclasses.fields(Basis)})
            for name in ("moves", "changes")
        )
    return moves, changes


def start(
    params: dict, config: config_lib.SmallVAEConfig, moves: Basis, changes: Basis
) -> dict:
    """Fresh parameters with a linear code in them.

    Args:
      params: Parameters as initialised.
      config: Sizes.
      moves: Result of `measure_motion`.
      changes: Result of `measure_change`.

    Returns:
      The same tree, other values.

    Raises:
      ValueError: The widths or latent channels do not hold both codes.
    """
    sizes = [
        (a.shape[1] + b.shape[1])
        for a, b in zip(dataclasses.astuple(moves), dataclasses.astuple(changes))
    ]
    for widths in (config.encoder_widths, config.decoder_widths):
        if any(have < want for have, want in zip(widths, sizes)):
            raise ValueError(f"widths must be at least {sizes} for this start, got {widths}.")
    if sizes[2] > config.latent_channels:
        raise ValueError(f"{sizes[2]} components do not fit {config.latent_channels} channels.")
    params = jax.tree.map(np.array, params)
    encoder, decoder = params["encoder"], params["decoder"]
    at = np.zeros(3, int)
    for basis, first in ((moves, "motion"), (changes, "cells")):
        _encode(encoder, first, basis, at, config.encoder_widths)
        _decode(decoder, basis, at, config.decoder_widths)
        at += [m.shape[1] for m in dataclasses.astuple(basis)]
    fine = moves.cell.shape[1]
    _set(decoder, "flow", moves.cell.T, np.arange(fine), np.arange(len(moves.cell)))
    count = changes.cell.shape[1]
    _set(decoder, "moved", np.eye(count), fine + np.arange(count), np.arange(count))
    decoder["seen"]["kernel"][:, :count] = 0
    _set(
        decoder, "residual", changes.cell.T, np.arange(count), np.arange(len(changes.cell))
    )
    return jax.tree.map(jnp.asarray, params)


def _encode(tree, first, basis, at, widths):
    """Sets the encoder's matrices; `at` are the first channels of this code on three grids."""
    a, b, c = (m.shape[1] for m in dataclasses.astuple(basis))
    for name in ("motion", "cells", "fine"):
        tree[name]["kernel"][:, at[0] : at[0] + a] = 0
    _set(tree, first, basis.cell, np.arange(len(basis.cell)), at[0] + np.arange(a))
    _set(tree, "down_16", basis.middle, _four(at[0], a, widths[0]), at[1] + np.arange(b))
    _set(tree, "down_32", basis.coarse, _four(at[1], b, widths[1]), at[2] + np.arange(c))
    _set(tree, "latent", np.eye(c), at[2] + np.arange(c), at[2] + np.arange(c))


def _decode(tree, basis, at, widths):
    """Sets the decoder's matrices up to the features of 8-pixel places."""
    a, b, c = (m.shape[1] for m in dataclasses.astuple(basis))
    back = basis.coarse / np.sum(np.square(basis.coarse), 0)  # The scale of codes is undone.
    for name, start_, count in zip(("still_8", "still_16", "still_32"), at, (a, b, c)):
        tree[name]["kernel"][:, start_ : start_ + count] = 0
    _set(tree, "latent", np.eye(c), at[2] + np.arange(c), at[2] + np.arange(c))
    _set(tree, "up_16", back.T, at[2] + np.arange(c), _four(at[1], b, widths[1]))
    _set(tree, "up_8", basis.middle.T, at[1] + np.arange(b), _four(at[0], a, widths[0]))


def _four(first, count, width):
    """Channels `first` ... of each of four cells of `width` channels side by side."""
    return (np.arange(4)[:, None] * width + first + np.arange(count)).reshape(-1)


def _set(tree, name, matrix, rows, columns):
    """Sets columns of a kernel; other rows do not add to them."""
    kernel = tree[name]["kernel"]
    kernel[:, columns] = 0
    kernel[np.ix_(rows, columns)] = matrix
