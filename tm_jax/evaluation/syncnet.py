"""SyncNet: distance and confidence of lips and sound, with published weights of the user's.

Chung and Zisserman (2016), "Out of time: automated lip sync in the wild", in the form of
the published checkpoint `syncnet_v2.model`. Its inputs, as published:

  picture  5 frames at 25 per second of the face, 224 x 224, values 0..255 in the order blue,
           green, red: the crop reaches from 1 face size above the face's centre to 1.8 below
           it, 1.4 to each side, where the size is half the longer side of the face's box.
  sound    20 windows of 13 cepstra (`mfcc.py`), 0.2 s: window 4 t belongs to frame t.

The networks map both to 1024 numbers. The offset is the shift at which their mean distance
over the clip is least; the confidence is how far that minimum lies below the median over shifts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import scipy.signal

from tm_jax.checkpoints import pickled
from tm_jax.core import trees
from tm_jax.evaluation import mfcc

SIDE = 224
FRAMES = 5
WINDOWS = 20  # windows of sound of one input
PER_FRAME = 4  # windows of sound per frame
_WIDTH = 1024
_REACH = 15  # frames of offset that are tried, as in the published evaluation
_GREY = 110  # around the picture
_ABOVE, _BELOW, _BESIDE = 1.0, 1.8, 1.4  # face sizes
_BATCH = 8


class Sync(NamedTuple):
    """SyncNet's measures of a clip.

    Attributes:
      offset: Frames by which the picture comes later than the sound; the published sign.
      distance: Least mean distance over shifts.
      confidence: Median over shifts minus the least.
    """

    offset: int
    distance: float
    confidence: float


class _Unit(nn.Module):
    """Convolution, normalisation with fixed statistics, and rectifier.

    Attributes:
      width: Channels of the output.
      size: Size of the kernel.
      stride: Steps; 1 along every axis if None.
      pad: Zeros on both sides of every axis; none if None.
    """

    width: int
    size: tuple[int, ...]
    stride: tuple[int, ...] | None = None
    pad: tuple[int, ...] | None = None

    @nn.compact
    def __call__(self, x):
        pad = [(p, p) for p in self.pad or (0,) * len(self.size)]
        x = nn.Conv(self.width, self.size, self.stride, pad, name="conv")(x)
        return nn.relu(_norm("norm")(x))


def _norm(name: str) -> nn.BatchNorm:
    return nn.BatchNorm(use_running_average=True, epsilon=1e-5, name=name)


def _pool(x, size, stride, pad=None):
    return nn.max_pool(x, size, stride, [(p, p) for p in pad or (0,) * len(size)])


class _Head(nn.Module):
    """Two dense layers on what is left of a stack."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(512, name="first")(x.reshape(x.shape[0], -1))
        return nn.Dense(_WIDTH, name="second")(nn.relu(_norm("norm")(x)))


class _Sound(nn.Module):
    """Sound [B, 13, 20, 1] to [B, 1024]."""

    @nn.compact
    def __call__(self, x):
        same = (1, 1)
        x = _Unit(64, (3, 3), pad=same, name="conv0")(x)
        x = _Unit(192, (3, 3), pad=same, name="conv1")(x)
        x = _pool(x, (3, 3), (1, 2))
        x = _Unit(384, (3, 3), pad=same, name="conv2")(x)
        x = _Unit(256, (3, 3), pad=same, name="conv3")(x)
        x = _Unit(256, (3, 3), pad=same, name="conv4")(x)
        x = _pool(x, (3, 3), (2, 2))
        x = _Unit(512, (5, 4), name="conv5")(x)  # [B, 1, 1, 512]
        return _Head(name="head")(x)


class _Lips(nn.Module):
    """Frames [B, 5, 224, 224, 3] to [B, 1024]."""

    @nn.compact
    def __call__(self, x):
        same, half = (0, 1, 1), (1, 2, 2)
        x = _Unit(96, (5, 7, 7), half, name="conv0")(x)
        x = _pool(x, (1, 3, 3), half)
        x = _Unit(256, (1, 5, 5), half, same, name="conv1")(x)
        x = _pool(x, (1, 3, 3), half, same)
        x = _Unit(256, (1, 3, 3), pad=same, name="conv2")(x)
        x = _Unit(256, (1, 3, 3), pad=same, name="conv3")(x)
        x = _Unit(256, (1, 3, 3), pad=same, name="conv4")(x)
        x = _pool(x, (1, 3, 3), half)
        x = _Unit(512, (1, 6, 6), name="conv5")(x)  # [B, 1, 1, 1, 512]
        return _Head(name="head")(x)


# Numbers of the convolutions in the checkpoint's two stacks; each is followed by its norm.
_CONVS = {"netcnnaud": (0, 4, 8, 11, 14, 18), "netcnnlip": (0, 4, 8, 11, 14, 18)}
_PARTS = {"sound": ("netcnnaud", "netfcaud"), "lips": ("netcnnlip", "netfclip")}


class SyncNet:
    """The two networks with weights.

    Attributes:
      variables: Parameters and statistics by part, "sound" and "lips".
    """

    def __init__(self, path: str):
        """Reads the published PyTorch checkpoint, without running anything in it.

        Raises:
          ValueError: Not a checkpoint of this network.
          FileNotFoundError: No such file.
        """
        self.variables = _convert(path)
        self._apply = {
            "sound": jax.jit(_Sound().apply), "lips": jax.jit(_Lips().apply)
        }

    def sound(self, cepstra: np.ndarray) -> np.ndarray:
        """Sound to points.

        Args:
          cepstra: [B, 13, 20].

        Returns:
          [B, 1024].
        """
        return self._run("sound", np.asarray(cepstra, np.float32)[..., None])

    def lips(self, frames: np.ndarray) -> np.ndarray:
        """Frames to points.

        Args:
          frames: Blue, green, red in 0..255, [B, 5, 224, 224, 3].

        Returns:
          [B, 1024].
        """
        return self._run("lips", np.asarray(frames))

    def _run(self, part: str, x: np.ndarray) -> np.ndarray:
        found = []
        for at in range(0, len(x), _BATCH):
            piece = x[at : at + _BATCH]
            full = np.concatenate([piece, np.repeat(piece[-1:], _BATCH - len(piece), 0)])
            points = self._apply[part](self.variables[part], jnp.asarray(full, jnp.float32))
            found.append(np.asarray(points)[: len(piece)])
        return np.concatenate(found)


def _convert(path: str) -> dict:
    """Variables by part from a checkpoint; every tensor is used once and has the right shape."""
    entries = pickled.read_header(path).entries
    entries = {k: v for k, v in entries.items() if not k.endswith("num_batches_tracked")}
    result, used = {}, set()
    for part, (stack, dense) in _PARTS.items():
        model = _Sound() if part == "sound" else _Lips()
        x = (1, mfcc.CEPSTRA, WINDOWS, 1) if part == "sound" else (1, FRAMES, SIDE, SIDE, 3)
        shapes = jax.eval_shape(
            lambda key, m=model, x=x: m.init(key, jnp.zeros(x)), jax.random.key(0)
        )
        flat = trees.flatten(shapes)
        values = {}
        for name, shape in flat.items():
            source = _source(name, stack, dense)
            if source not in entries:
                raise ValueError(
                    f"{path}: no tensor {source}; the published SyncNet (syncnet_v2.model) is "
                    "expected."
                )
            value = _layout(np.asarray(entries[source], np.float32))
            if value.shape != shape.shape:
                raise ValueError(
                    f"{path}: {source} has the shape {value.shape} in our order of axes, "
                    f"expected {shape.shape}."
                )
            values[name] = jnp.asarray(value)
            used.add(source)
        result[part] = trees.unflatten(values)
    left = sorted(set(entries) - used)
    if left:
        raise ValueError(f"{path}: unknown tensors {', '.join(left[:4])}.")
    return result


def _source(name: str, stack: str, dense: str) -> str:
    """Name in the checkpoint of one of our leaves."""
    *path, leaf = name.split("/")
    kind = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean",
            "var": "running_var"}[leaf]  # fmt: skip
    if "head" in path:
        return f"{dense}.{('first', 'norm', '', 'second').index(path[-1])}.{kind}"
    unit = next(p for p in path if p.startswith("conv") and p != "conv")
    number = _CONVS[stack][int(unit[4:])]
    return f"{stack}.{number + (path[-1] == 'norm')}.{kind}"


def _layout(x: np.ndarray) -> np.ndarray:
    """Kernels from PyTorch's order, outputs and inputs first, to outputs last."""
    return np.moveaxis(x, (0, 1), (-1, -2)) if x.ndim > 1 else x


def crops(frames: Sequence[np.ndarray], boxes: np.ndarray) -> np.ndarray:
    """Faces as the network expects them.

    Args:
      frames: Frames at 25 a second, uint8 [H, W, 3] each, red first.
      boxes: Box (y0, x0, y1, x1) in 0..1 of the face in every frame, [T, 4].

    Returns:
      uint8 [T, 224, 224, 3], blue first.
    """
    height, width = frames[0].shape[:2]
    y0, x0, y1, x1 = (np.asarray(boxes, float) * [height, width, height, width]).T
    size = np.maximum(y1 - y0, x1 - x0) / 2
    rows, columns = (y0 + y1) / 2, (x0 + x1) / 2
    taps = min(13, len(frames) - (len(frames) + 1) % 2)
    size, rows, columns = (scipy.signal.medfilt(v, taps) for v in (size, rows, columns))
    made = []
    for frame, s, y, x in zip(frames, size, rows, columns):
        pad = int(np.ceil(s * _BELOW))
        wide = np.pad(frame, ((pad, pad), (pad, pad), (0, 0)), constant_values=_GREY)
        y, x = y + pad, x + pad
        area = wide[
            max(0, int(y - _ABOVE * s)) : int(y + _BELOW * s),
            max(0, int(x - _BESIDE * s)) : int(x + _BESIDE * s),
        ]
        small = Image.fromarray(area).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        made.append(np.asarray(small)[..., ::-1])
    return np.stack(made)


def compare(lips: np.ndarray, sound: np.ndarray, reach: int = _REACH) -> Sync:
    """Offset, distance and confidence of two series of points.

    Args:
      lips: Points of the picture, [N, D].
      sound: Points of the sound, [N, D].
      reach: Largest shift in frames. Beyond its ends the sound counts as zeros, as published.
    """
    padded = np.pad(sound, ((reach, reach), (0, 0)))
    means = [
        # PyTorch's pairwise distance adds 1e-6 to every difference.
        np.linalg.norm(lips - padded[i : i + len(lips)] + 1e-6, axis=1).mean()
        for i in range(2 * reach + 1)
    ]
    best = int(np.argmin(means))
    # PyTorch's median is the lower of the two in the middle; the number of shifts is odd.
    return Sync(reach - best, float(means[best]), float(np.median(means) - means[best]))


def measure(net: SyncNet, faces: np.ndarray, samples: np.ndarray) -> Sync:
    """Distance and confidence of a clip.

    Args:
      net: The networks.
      faces: Result of `crops`, [T, 224, 224, 3], at 25 frames a second.
      samples: Mono sound at 16 kHz in -1..1, [n], from the first frame on.
    """
    cepstra = mfcc.mfcc(np.round(np.clip(samples, -1, 1) * 32767))
    count = min(len(faces), len(samples) // (PER_FRAME * mfcc.HOP)) - FRAMES
    if count < 1:
        raise ValueError(f"SyncNet needs more than {FRAMES} frames with sound.")
    windows = [cepstra[PER_FRAME * t : PER_FRAME * t + WINDOWS].T for t in range(count)]
    sound = net.sound(np.stack(windows))
    lips = []
    for at in range(0, count, _BATCH):  # Windows overlap: a few at a time fit in memory.
        part = [faces[t : t + FRAMES] for t in range(at, min(at + _BATCH, count))]
        lips.append(net.lips(np.stack(part)))
    return compare(np.concatenate(lips), sound)
