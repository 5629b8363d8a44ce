"""The Wan autoencoder against diffusers' `AutoencoderKLWan`, and TAEHV against its layers.

There is no TAEHV in diffusers: its reference is written here in PyTorch, layer by layer in
the order in which the published file (`taew2_1.pth`) names them.
"""

from collections.abc import Iterator
import functools
import os
import tempfile

import diffusers
import jax.numpy as jnp
import numpy as np
import torch

from experiments.parity import compare
from tm_jax.checkpoints import loading
from tm_jax.checkpoints import parts
from tm_jax.models.vae.tiny import autoencoder as taehv
from tm_jax.models.vae.tiny import config as taehv_config
from tm_jax.models.vae.wan import autoencoder as wan_vae
from tm_jax.models.vae.wan import clips
from tm_jax.models.vae.wan import config as vae_config

VAE = vae_config.PRESETS["pico"]
TAEHV = taehv_config.PRESETS["pico"]


def vae_reference(config: vae_config.WanVAEConfig = VAE) -> diffusers.AutoencoderKLWan:
    """Random weights everywhere; queries and keys large enough for sharp attention."""
    torch.manual_seed(0)
    model = diffusers.AutoencoderKLWan(
        base_dim=config.base_width, num_res_blocks=config.num_res_blocks
    ).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("gamma"):
                value.add_(0.2 * torch.randn_like(value))
            if "to_qkv" in name:
                value.mul_(6)
    return model


@functools.cache
def vae_pair():
    """The reference, and our parameters read from its own file."""
    reference = vae_reference()
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        return reference, loading.load_part(parts.vae(VAE), folder)


@torch.no_grad()
def their_moments(reference, frames) -> np.ndarray:
    """[B, T, h, w, 2 C] of the reference for channels-last frames."""
    x = torch.tensor(frames).permute(0, 4, 1, 2, 3)
    posterior = reference.encode(x).latent_dist
    moments = torch.cat([posterior.mean, posterior.logvar], 1)
    return moments.permute(0, 2, 3, 4, 1).numpy()


@torch.no_grad()
def their_frames(reference, z) -> np.ndarray:
    """Frames of the reference for normalised latents, channels last."""
    x = torch.tensor(raw_latents(z), dtype=reference.dtype).permute(0, 4, 1, 2, 3)
    frames = reference.decode(x).sample.float().permute(0, 2, 3, 4, 1).numpy()
    assert np.mean(np.abs(frames) == 1) < 0.2  # Clipped values would hide differences.
    return frames


def raw_latents(z) -> np.ndarray:
    """Latents as the reference has them, of normalised ones."""
    return np.asarray(z) * np.float32(VAE.latent_std) + np.float32(VAE.latent_mean)


def frames_of(seed: int, *shape: int) -> np.ndarray:
    """Random pixels in -1..1, [*shape, 3]."""
    return np.random.default_rng(seed).uniform(-1, 1, (*shape, 3)).astype(np.float32)


def latents_of(seed: int, *shape: int) -> np.ndarray:
    """Random latents of unit size."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def encoding(frames: int, chunk: int = 0, dtype: str = "float32") -> compare.Row:
    """A clip encoded whole (chunk 0) or in a stream of so many latents at a time."""
    reference, params = vae_pair()
    x = frames_of(frames, 1, frames, 16, 24)
    expected = their_moments(reference, x)[..., : VAE.latent_channels]
    z = _run(wan_vae.WanVAE(VAE, jnp.dtype(dtype)), params, "encode", x, chunk)
    words = _words(f"{frames} frames", chunk)
    return compare.row("VAE encoder", words, dtype, raw_latents(z), expected)


def decoding(latents: int, chunk: int = 0, dtype: str = "float32") -> compare.Row:
    """A clip decoded whole (chunk 0) or in a stream of so many latents at a time."""
    reference, params = vae_pair()
    z = latents_of(latents, 1, latents, 2, 3, VAE.latent_channels)
    expected = their_frames(reference, z)
    frames = _run(wan_vae.WanVAE(VAE, jnp.dtype(dtype)), params, "decode", z, chunk)
    words = _words(f"{expected.shape[1]} frames", chunk)
    return compare.row("VAE decoder", words, dtype, frames, expected)


def _words(what, chunk):
    return f"{what}, streamed by {chunk} latents" if chunk else f"{what}, whole clip"


def _run(model, params, direction, x, chunk):
    if chunk:
        run = getattr(clips, direction)
        return np.asarray(compare.jit(lambda p, x: run(model, p, x, chunk))(params, x))
    whole = compare.jit(lambda p, x: model.apply({"params": p}, x, method=direction))
    return np.asarray(whole(params, x))


class _Memory(torch.nn.Module):
    """Frames [T, C, H, W]; every frame also sees the input of the frame before it."""

    def __init__(self, width):
        super().__init__()
        layers = [_conv(2 * width, width)]
        for _ in range(2):
            layers += [torch.nn.ReLU(), _conv(width, width)]
        self.conv = torch.nn.Sequential(*layers)

    def forward(self, x):
        shifted = torch.cat([torch.zeros_like(x[:1]), x[:-1]])
        return torch.relu(self.conv(torch.cat([x, shifted], 1)) + x)


class _Time(torch.nn.Module):
    """1x1 map of channels that joins `before` frames and splits into `after`."""

    def __init__(self, width, before, after):
        super().__init__()
        self.conv = torch.nn.Conv2d(width * before, width * after, 1, bias=False)
        self.before, self.after = before, after

    def forward(self, x):
        x = self.conv(x.flatten(0, 1).unflatten(0, (-1, self.before * x.shape[1])))
        return x.flatten(0, 1).unflatten(0, (-1, x.shape[1] // self.after))


class _Soft(torch.nn.Module):
    def forward(self, x):
        return 3 * torch.tanh(x / 3)


def _conv(inputs, outputs, **options):
    return torch.nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def taehv_layers(c: taehv_config.TAEHVConfig) -> torch.nn.ModuleDict:
    """Both halves as sequences, so that names are positions."""
    encoder = [_conv(3, c.encoder_width), torch.nn.ReLU()]
    for pool in c.encoder_pools:
        encoder.append(_Time(c.encoder_width, pool, 1))
        encoder.append(_conv(c.encoder_width, c.encoder_width, stride=2, bias=False))
        encoder += [_Memory(c.encoder_width) for _ in range(c.num_blocks)]
    encoder.append(_conv(c.encoder_width, c.latent_channels))
    decoder = [_Soft(), _conv(c.latent_channels, c.decoder_widths[0]), torch.nn.ReLU()]
    for grow, width, after in zip(c.decoder_grows, c.decoder_widths, c.decoder_widths[1:]):
        decoder += [_Memory(width) for _ in range(c.num_blocks)]
        decoder += [torch.nn.Upsample(scale_factor=2), _Time(width, 1, grow)]
        decoder.append(_conv(width, after, bias=False))
    decoder += [torch.nn.ReLU(), _conv(c.decoder_widths[-1], 3)]
    return torch.nn.ModuleDict(
        {"encoder": torch.nn.Sequential(*encoder), "decoder": torch.nn.Sequential(*decoder)}
    )


def taehv_reference(config: taehv_config.TAEHVConfig = TAEHV) -> torch.nn.ModuleDict:
    """Gains of about one, so that the memory of early frames is not lost on the way."""
    torch.manual_seed(0)
    model = taehv_layers(config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("weight"):
                value.mul_(1.8)
        model["decoder"][-1].bias.add_(0.5)  # The middle of the range of pixels.
        model["decoder"][-1].weight.mul_(0.1)
    return model


@functools.cache
def taehv_pair():
    """The reference, and our parameters read from a file as the published one."""
    reference = taehv_reference()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "taew2_1.pth")
        torch.save(reference.state_dict(), path)
        return reference, loading.load_part(parts.taehv(TAEHV), path)


@torch.no_grad()
def by_clips(half, x) -> np.ndarray:
    """One half of the TAEHV reference on [B, T, H, W, C], clip by clip."""
    x = torch.tensor(x).permute(0, 1, 4, 2, 3)
    return torch.stack([half(clip).permute(0, 2, 3, 1) for clip in x]).numpy()


def tiny(direction: str, dtype: str = "float32") -> compare.Row:
    """TAEHV on a whole clip; `tests/models/vae/test_tiny.py` also streams it."""
    reference, params = taehv_pair()
    if direction == "encode":
        x = frames_of(0, 2, 12, 16, 24)
        expected = by_clips(reference["encoder"], (x + 1) / 2)
    else:
        x = latents_of(0, 2, 5, 3, 2, TAEHV.latent_channels)
        expected = np.clip(by_clips(reference["decoder"], x)[:, 3:], 0, 1) * 2 - 1
    model = taehv.TAEHV(TAEHV, jnp.dtype(dtype))
    words = f"{'12' if direction == 'encode' else '17'} frames, batch 2"
    return compare.row(
        f"TAEHV {direction}r", words, dtype, _run(model, params, direction, x, 0), expected
    )


def rows() -> Iterator[compare.Row]:
    """All comparisons of both autoencoders."""
    for latents in (1, 2, 3, 4, 21):
        yield encoding(1 + 4 * (latents - 1), chunk=3 if latents == 21 else 0)
        yield decoding(latents, chunk=3 if latents == 21 else 0)
    for chunk in (1, 2, 3):
        yield encoding(25, chunk)
        yield decoding(7, chunk)
    yield encoding(9, dtype="bfloat16")
    yield decoding(3, dtype="bfloat16")
    for dtype in ("float32", "bfloat16"):
        yield tiny("encode", dtype)
        yield tiny("decode", dtype)
