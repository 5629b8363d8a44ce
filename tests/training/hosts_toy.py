"""A stage that is small enough for many processes on two cores."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.core import axes
from tm_jax.training import loop
from tm_jax.training import optimizer as optimizer_lib
from tm_jax.training import sources

BATCH, COUNT, STEPS = 8, 300, 24
LOOP = loop.LoopConfig(checkpoint_every_s=0.0, log_every=1, sample_every=0, mesh="fsdp=2")
READ: set[int] = set()  # Items that this process has read.


def stage() -> loop.Stage:
    """The stage; a loss that depends on the order of samples, and on noise."""

    def one(index):
        READ.add(int(index))
        rng = np.random.default_rng((7, int(index)))
        return {"x": rng.standard_normal(4).astype(np.float32)}

    def init(key):
        box = nn.LogicallyPartitioned(jax.random.normal(key, (4, 4)), (axes.EMBED, axes.MLP))
        return {"kernel": box}

    def loss(params, frozen, batch, key):
        noise = 0.1 * jax.random.normal(key, batch["x"].shape)
        error = (batch["x"] + noise) @ params["kernel"] - batch["x"]
        return jnp.mean(jnp.square(error)), {"largest": jnp.abs(error).max()}

    return loop.Stage(
        name="toy", init=init, loss=loss, frozen={}, finish=lambda params, frozen: params,
        batches=lambda seed, rows=None: sources.stream(one, COUNT, BATCH, seed, rows),
        sample=lambda params, frozen, path: {}, batch=BATCH,
        optimizer=optimizer_lib.OptimizerConfig(learning_rate=0.05, warmup_steps=2),
    )
