"""The Wan transformer against diffusers' `WanTransformer3DModel`, forward and backward.

The reference gets random weights, is saved in its own format in several files, and those
are read through the table of `tm_jax/checkpoints/wan.py`.
"""

from collections.abc import Iterator
import dataclasses
import functools
import os
import tempfile

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch

from experiments.parity import compare
from tm_jax.checkpoints import loading
from tm_jax.checkpoints import mapping
from tm_jax.checkpoints import parts
from tm_jax.checkpoints import wan
from tm_jax.models.dit import attention_patterns
from tm_jax.models.dit import conditioning
from tm_jax.models.dit import config as config_lib
from tm_jax.models.dit import transformer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One configuration of model and inputs.

    Attributes:
      heads: Attention heads.
      head_width: Width of a head.
      image: Image-to-video: 36 input channels and 257 image tokens.
      batch: Samples.
      frames: Latent frames.
      height: Latent height.
      width: Latent width.
      time: "one" for all, one per "sample", or one per latent "frame".
      layers: Transformer blocks.
      mlp_width: Width of the feed-forward layers; odd sizes by default.
      text_width: Width of text features.
    """

    heads: int
    head_width: int
    image: bool
    batch: int
    frames: int
    height: int
    width: int
    time: str = "sample"
    layers: int = 2
    mlp_width: int | None = None
    text_width: int = 40

    @property
    def words(self) -> str:
        """Short description."""
        kind = "I2V" if self.image else "T2V"
        return (
            f"{kind}, {self.layers} layers, {self.heads}x{self.head_width} heads, batch "
            f"{self.batch}, {self.frames}x{self.height}x{self.width} latents, time per "
            f"{self.time}"
        )


CASES = {
    "t2v": Case(heads=2, head_width=12, image=False, batch=1, frames=1, height=6, width=4, time="one"),
    "t2v-odd": Case(heads=3, head_width=16, image=False, batch=3, frames=5, height=4, width=10),
    "t2v-frames": Case(
        heads=4, head_width=20, image=False, batch=2, frames=3, height=6, width=4, time="frame"
    ),
    "t2v-128": Case(heads=2, head_width=128, image=False, batch=1, frames=7, height=10, width=6),
    "i2v": Case(heads=4, head_width=16, image=True, batch=2, frames=3, height=4, width=6),
    "i2v-odd": Case(heads=5, head_width=24, image=True, batch=3, frames=5, height=10, width=4),
    "i2v-128": Case(heads=1, head_width=128, image=True, batch=1, frames=3, height=6, width=8),
}


def config(case: Case) -> config_lib.DiTConfig:
    """Our sizes of a case. Text is 512 tokens long, as the reference takes for granted."""
    return config_lib.DiTConfig(
        width=case.heads * case.head_width, num_heads=case.heads, num_layers=case.layers,
        mlp_width=case.mlp_width or 3 * case.heads * case.head_width + 8,
        condition_channels=20 if case.image else 0, frequency_width=64,
        text_width=case.text_width,
        image_width=24 if case.image else None, audio_feature_width=12, audio_hidden=16,
        audio_tokens=3, audio_width=20,
    )


def part(case: Case) -> parts.Part:
    """The transformer of a case as something to convert."""
    return parts.transformer_of(config(case), "parity")


def reference(case: Case, seed: int = 0) -> diffusers.WanTransformer3DModel:
    """The reference with random values in every parameter, also where it starts at 0 or 1."""
    torch.manual_seed(seed)
    settings = wan.settings(config(case), "diffusers")
    model = diffusers.WanTransformer3DModel.from_config(settings).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape)
            if value.ndim == 1:
                scale = "norm" in name and name.endswith("weight")
                value.copy_(1 + 0.2 * noise if scale else 0.1 * noise)
            elif value.ndim == 3:
                value.copy_(0.3 * noise)  # Modulation tables.
            else:
                value.copy_(noise / value[0].numel() ** 0.5)
    return model


def save(model, folder: str) -> str:
    """Saves the reference as its publishers do: several files and an index."""
    model.save_pretrained(folder, max_shard_size="100KB")
    assert any(name.endswith(".index.json") for name in os.listdir(folder))
    return folder


@functools.cache
def pair(case: Case):
    """The reference, our model, and our parameters read from the reference's files."""
    model = reference(case)
    with tempfile.TemporaryDirectory() as folder:
        params = loading.load_part(part(case), save(model, folder))
    return model, transformer.DiT(config(case)), params


def inputs(case: Case, seed: int = 1) -> dict[str, np.ndarray]:
    """Random inputs by name, channels last."""
    rng, c = np.random.default_rng(seed), config(case)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    count = {"one": (1, 1), "sample": (case.batch, 1), "frame": (case.batch, case.frames)}
    sigma = rng.uniform(0.02, 1, count[case.time]).astype(np.float32)
    space = (case.batch, case.frames, case.height, case.width)
    tokens = case.height * case.width // c.patch**2
    return {
        "x": normal(*space, c.latent_channels),
        "condition": normal(*space, c.condition_channels),
        "sigma": np.broadcast_to(sigma, (case.batch, case.frames)).copy(),
        "text": normal(case.batch, c.text_length, c.text_width),
        "image": normal(case.batch, c.image_length, c.image_width) if case.image else None,
        "mode": rng.integers(0, c.modes, (case.batch, case.frames)).astype(np.int32),
        "windows": normal(case.batch, case.frames, c.audio_window, c.audio_feature_width),
        "face_mask": rng.uniform(0.2, 1, (case.batch, tokens)).astype(np.float32),
    }


def run_reference(model, case: Case, i: dict) -> torch.Tensor:
    """Velocity of the reference, channels last [B, T, H, W, C]."""
    x = np.concatenate([i["x"], i["condition"]], -1)
    time = torch.tensor(np.float32(1000) * i["sigma"])
    if case.time == "frame":
        tokens = i["face_mask"].shape[1]
        time = time.repeat_interleave(tokens, 1)  # One per token, [B, T * P].
    else:
        time = time[:, 0]
    image = None if i["image"] is None else torch.tensor(i["image"])
    out = model(
        hidden_states=torch.tensor(x).permute(0, 4, 1, 2, 3), timestep=time,
        encoder_hidden_states=torch.tensor(i["text"]), encoder_hidden_states_image=image,
    ).sample
    return out.permute(0, 2, 3, 4, 1)


def given(i: dict) -> conditioning.Conditioning:
    """The conditioning among the inputs of `inputs`."""
    return conditioning.Conditioning(
        channels=i["condition"], audio=i["windows"], mode=i["mode"], face_mask=i["face_mask"],
        text=i["text"], image=i["image"],
    )


def velocity(model: transformer.DiT, params, i: dict) -> jax.Array:
    """Velocity of ours with the teacher's attention, [B, T, H, W, C]."""
    c = model.config
    height, width = i["x"].shape[2:4]
    grid = attention_patterns.Grid(height // c.patch, width // c.patch, i["x"].shape[1])

    def run(dit):
        pattern = attention_patterns.bidirectional(grid)
        return dit(i["x"], i["sigma"], dit.embed(given(i)), lambda layer: pattern)[0]

    return model.apply({"params": params}, method=run)


def forward(name: str, dtype: str = "float32") -> compare.Row:
    """Compares one forward pass of ours in a dtype with the reference's in float32."""
    case = CASES[name]
    theirs, ours, params = pair(case)
    ours = dataclasses.replace(ours, dtype=jnp.dtype(dtype))
    i = inputs(case)
    with torch.no_grad():
        expected = run_reference(theirs, case, i)
    actual = compare.jit(functools.partial(velocity, ours))(params, i)
    return compare.row("transformer", case.words, dtype, actual, expected.numpy())


def gradients(name: str) -> compare.Row:
    """Compares the gradients of every parameter after one backward pass."""
    case = CASES[name]
    theirs, ours, params = pair(case)
    i, c = inputs(case), config(case)
    weights = np.random.default_rng(2).standard_normal(i["x"].shape).astype(np.float32)

    theirs.zero_grad()
    (run_reference(theirs, case, i) * torch.tensor(weights)).sum().backward()
    expected = {n: p.grad.numpy() for n, p in theirs.named_parameters()}

    def loss(params):
        return jnp.sum(velocity(ours, params, i) * weights)

    found = compare.jit(jax.grad(loss))(params)
    actual = mapping.write(found, wan.rows(c, "diffusers"), own=wan.is_own)
    return compare.row("transformer gradients", case.words, "float32", actual, expected)


def rows() -> Iterator[compare.Row]:
    """All comparisons of this part."""
    for name in CASES:
        yield forward(name)
    for name in ("t2v-odd", "i2v-odd"):
        yield forward(name, "bfloat16")
    for name in ("t2v-odd", "i2v"):
        yield gradients(name)
