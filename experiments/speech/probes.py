"""What can be read off features: small networks on the windows that the transformer has.

A window belongs to a latent frame of four video frames. The labels of the drawn mouth are
a measure here: no encoder ever sees them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tm_jax.core import timing as timing_lib
from tm_jax.models.dit import audio_projection as dit_audio

WINDOW = 6  # Feature frames of a latent frame, as in preset `nano`.
BEFORE, AFTER = dit_audio.margins(WINDOW, timing_lib.Timing())
_GROUP = timing_lib.Timing().frames_per_latent
_HIDDEN, _BATCH, _EPOCHS, _RATE, _DECAY = 128, 128, 20, 1e-3, 0.1


def windows(features: np.ndarray) -> np.ndarray:
    """Windows [n / 4, 6 U] of features [BEFORE + n + AFTER, U]."""
    found = dit_audio.windows(jnp.asarray(features)[None], WINDOW, timing_lib.Timing())[0]
    return np.asarray(found, np.float32).reshape(len(found), -1)


def grouped(labels: np.ndarray) -> np.ndarray:
    """Labels [n, ...] by latent frame, [n / 4, 4, ...]."""
    return labels.reshape(-1, _GROUP, *labels.shape[1:])


class Scale:
    """Brings inputs to zero mean and unit deviation, as they are in training data."""

    def __init__(self, x: np.ndarray):
        self._mean, self._spread = x.mean(0), x.std(0) + 1e-3

    def __call__(self, x):
        return (x - self._mean) / self._spread


def ridge(x: np.ndarray, y: np.ndarray, weight: float = 1e-3):
    """Linear regression of y [N, m] on x [N, d] with a penalty.

    Args:
      x: Inputs.
      y: Truth.
      weight: Penalty as a share of the inputs' mean square.

    Returns:
      Function (inputs) -> estimates.
    """
    scale = Scale(x)
    x, mean = scale(x).astype(np.float64), y.mean(0)
    gram = x.T @ x
    penalty = weight * np.trace(gram) / len(gram) * np.eye(len(gram))
    matrix = np.linalg.solve(gram + penalty, x.T @ (y - mean))
    return lambda inputs: scale(inputs) @ matrix + mean


@functools.cache
def _step(classes, steps):
    optimizer = optax.adamw(optax.cosine_decay_schedule(_RATE, steps), weight_decay=_DECAY)

    def loss(params, x, y):
        out = _network(params, x)
        if classes:
            out = out.reshape(*y.shape, classes)
            lost = optax.softmax_cross_entropy_with_integer_labels(out, jnp.maximum(y, 0))
            return jnp.sum(lost * (y >= 0)) / jnp.maximum(jnp.sum(y >= 0), 1)
        return jnp.mean(jnp.square(out - y))

    @jax.jit
    def step(params, state, x, y):
        gradient = jax.grad(loss)(params, x, y)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    return optimizer, step


def _network(params, x):
    return jax.nn.gelu(x @ params["in"] + params["bias"]) @ params["out"] + params["mean"]


def network(x: np.ndarray, y: np.ndarray, classes: int = 0, seed: int = 0):
    """A two-layer network from x [N, d] to y [N, m].

    Args:
      x: Inputs.
      y: Numbers, or class ids, of which negative ones count for nothing.
      classes: Number of classes; 0 for numbers.
      seed: Seed of weights and order.

    Returns:
      Function (inputs) -> estimates [N, m], or logits [N, m, classes].
    """
    scale, outputs = Scale(x), y.shape[1] * max(classes, 1)
    rng = np.random.default_rng(seed)
    x = scale(x).astype(np.float32)
    params = {
        "in": jnp.asarray(rng.standard_normal((x.shape[1], _HIDDEN)) / np.sqrt(x.shape[1])),
        "bias": jnp.zeros(_HIDDEN), "out": jnp.zeros((_HIDDEN, outputs)),
        "mean": jnp.zeros(outputs) if classes else jnp.asarray(y.mean(0)),
    }
    params = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    optimizer, step = _step(classes, _EPOCHS * max(len(x) // _BATCH, 1))
    state = optimizer.init(params)
    for _ in range(_EPOCHS):
        order = rng.permutation(len(x))
        for at in range(0, len(x) - _BATCH + 1, _BATCH):
            chosen = order[at : at + _BATCH]
            params, state = step(params, state, x[chosen], y[chosen])

    def apply(inputs):
        out = np.asarray(_network(params, scale(inputs).astype(np.float32)))
        return out.reshape(len(out), y.shape[1], classes) if classes else out

    return apply
