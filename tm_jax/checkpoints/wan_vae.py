"""The strict table from published tensors of the Wan2.1 autoencoder to `WanVAE`.

A line names a tensor in the original checkpoint (`Wan2.1_VAE.pth`, `wan/modules/vae.py`), in
its diffusers edition (`vae/diffusion_pytorch_model.safetensors`, `AutoencoderKLWan`), and
here; `rows` picks the column of one layout.
"""

from tm_jax.checkpoints import mapping
from tm_jax.models.vae.wan import config as config_lib

LAYOUTS = ("original", "diffusers")
IGNORED = dict.fromkeys(LAYOUTS, ())  # Every published tensor is used.


def _layer(original, diffusers, target, kind):
    return [
        (f"{original}.weight", f"{diffusers}.weight", f"{target}/kernel", kind),
        (f"{original}.bias", f"{diffusers}.bias", f"{target}/bias", "copy"),
    ]


def _norm(original, diffusers, target, kind="vector3"):
    return [(f"{original}.gamma", f"{diffusers}.gamma", f"{target}/scale", kind)]


def _res_block(original, diffusers, target, shortcut=False):
    lines = [
        *_norm(f"{original}.residual.0", f"{diffusers}.norm1", f"{target}/norm_1"),
        *_layer(f"{original}.residual.2", f"{diffusers}.conv1", f"{target}/conv_1", "conv3d"),
        *_norm(f"{original}.residual.3", f"{diffusers}.norm2", f"{target}/norm_2"),
        *_layer(f"{original}.residual.6", f"{diffusers}.conv2", f"{target}/conv_2", "conv3d"),
    ]
    if shortcut:
        lines += _layer(f"{original}.shortcut", f"{diffusers}.conv_shortcut",
                        f"{target}/shortcut", "pointwise3d")
    return lines


def _sample(original, diffusers, target, temporal):
    lines = _layer(f"{original}.resample.1", f"{diffusers}.resample.1", f"{target}/space",
                   "conv2d")
    if temporal:
        lines += _layer(f"{original}.time_conv", f"{diffusers}.time_conv", f"{target}/time",
                        "conv3d")
    return lines


def _ends(coder):
    """Input, middle and output of encoder or decoder."""
    middle, blocks, ours = f"{coder}.middle", f"{coder}.mid_block", f"{coder}/middle"
    attention = f"{blocks}.attentions.0"
    return [
        *_layer(f"{coder}.conv1", f"{coder}.conv_in", f"{coder}/entry/conv", "conv3d"),
        *_res_block(f"{middle}.0", f"{blocks}.resnets.0", f"{ours}/res_0"),
        *_norm(f"{middle}.1.norm", f"{attention}.norm", f"{ours}/attention/norm", "vector2"),
        *_layer(f"{middle}.1.to_qkv", f"{attention}.to_qkv", f"{ours}/attention/qkv",
                "pointwise2d"),
        *_layer(f"{middle}.1.proj", f"{attention}.proj", f"{ours}/attention/out",
                "pointwise2d"),
        *_res_block(f"{middle}.2", f"{blocks}.resnets.1", f"{ours}/res_1"),
        *_norm(f"{coder}.head.0", f"{coder}.norm_out", f"{coder}/exit/norm"),
        *_layer(f"{coder}.head.2", f"{coder}.conv_out", f"{coder}/exit/conv", "conv3d"),
    ]


def _down(c: config_lib.WanVAEConfig):
    """Encoder blocks; both layouts count residual blocks and steps down together."""
    lines, count, before = [], 0, c.widths[0]
    for level, width in enumerate(c.widths):
        for i in range(c.num_res_blocks):
            lines += _res_block(
                f"encoder.downsamples.{count}", f"encoder.down_blocks.{count}",
                f"encoder/down_{level}_res_{i}", shortcut=before != width,
            )
            count, before = count + 1, width
        if level < len(c.temporal_strides):
            lines += _sample(
                f"encoder.downsamples.{count}", f"encoder.down_blocks.{count}",
                f"encoder/down_{level}_sample", c.temporal_strides[level],
            )
            count += 1
    return lines


def _up(c: config_lib.WanVAEConfig):
    """Decoder blocks, coarsest first; the diffusers layout groups them by resolution."""
    lines, count, before = [], 0, c.widths[-1]
    for group, level in enumerate(reversed(range(len(c.widths)))):
        theirs, width = f"decoder.up_blocks.{group}", c.widths[level]
        for i in range(c.num_res_blocks + 1):
            lines += _res_block(
                f"decoder.upsamples.{count}", f"{theirs}.resnets.{i}",
                f"decoder/up_{level}_res_{i}", shortcut=before != width,
            )
            count, before = count + 1, width
        if level:
            lines += _sample(
                f"decoder.upsamples.{count}", f"{theirs}.upsamplers.0",
                f"decoder/up_{level}_sample", c.temporal_strides[level - 1],
            )
            count, before = count + 1, width // 2  # A step up halves the channels.
    return lines


def rows(config: config_lib.WanVAEConfig, layout: str = "original") -> list[mapping.Row]:
    """The table of one size.

    Args:
      config: Sizes of the autoencoder.
      layout: "original" (the names of `Wan2.1_VAE.pth`) or "diffusers".

    Returns:
      (source name, our path, kind) of every tensor.

    Raises:
      ValueError: Unknown layout.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {LAYOUTS}, got {layout!r}.")
    lines = [
        *_ends("encoder"), *_down(config), *_ends("decoder"), *_up(config),
        *_layer("conv1", "quant_conv", "quant", "pointwise3d"),
        *_layer("conv2", "post_quant_conv", "post_quant", "pointwise3d"),
    ]
    column = LAYOUTS.index(layout)
    return [(line[column], line[2], line[3]) for line in lines]


def settings(config: config_lib.WanVAEConfig, layout: str) -> dict | None:
    """Content of `config.json` for diffusers; Wan's own layout has none."""
    c = config
    if layout == "original":
        return None
    return {
        "_class_name": "AutoencoderKLWan", "_diffusers_version": "0.33.0", "attn_scales": [],
        "base_dim": c.base_width, "dim_mult": list(c.multipliers), "dropout": 0.0,
        "latents_mean": list(c.latent_mean), "latents_std": list(c.latent_std),
        "num_res_blocks": c.num_res_blocks, "temperal_downsample": list(c.temporal_strides),
        "z_dim": c.latent_channels,  # The key before is spelt so in the published file.
    }
