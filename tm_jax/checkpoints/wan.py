"""The strict table from published Wan2.1 tensor names to the parameters of `DiT`.

A line names a tensor in the original checkpoints (Wan2.1-T2V-1.3B, -T2V-14B, -I2V-14B;
`wan/modules/model.py`), in their diffusers edition (`transformer/`), and here; `*` stands
for the number of a block. `rows` picks the column of one layout.
"""

from tm_jax.checkpoints import mapping
from tm_jax.models.dit import config as config_lib

LAYOUTS = ("original", "diffusers")


def _linear(original, diffusers, target):
    return [
        (f"{original}.weight", f"{diffusers}.weight", f"{target}/kernel", "matrix"),
        (f"{original}.bias", f"{diffusers}.bias", f"{target}/bias", "copy"),
    ]


def _norm(original, diffusers, target):
    return [
        (f"{original}.weight", f"{diffusers}.weight", f"{target}/scale", "copy"),
        (f"{original}.bias", f"{diffusers}.bias", f"{target}/bias", "copy"),
    ]


def _scale(original, diffusers, target):
    return [(f"{original}.weight", f"{diffusers}.weight", f"{target}/scale", "copy")]


_EMBED = "condition_embedder"
_BASE = [
    ("patch_embedding.weight", "patch_embedding.weight", "patch_embedding/kernel", "patches"),
    ("patch_embedding.bias", "patch_embedding.bias", "patch_embedding/bias", "copy"),
    *_linear("time_embedding.0", f"{_EMBED}.time_embedder.linear_1", "time_embedding/in"),
    *_linear("time_embedding.2", f"{_EMBED}.time_embedder.linear_2", "time_embedding/out"),
    *_linear("time_projection.1", f"{_EMBED}.time_proj", "time_projection"),
    ("head.modulation", "scale_shift_table", "head_modulation", "squeeze"),
    *_linear("head.head", "proj_out", "head"),
]
_TEXT = [
    *_linear("text_embedding.0", f"{_EMBED}.text_embedder.linear_1", "text_embedding/in"),
    *_linear("text_embedding.2", f"{_EMBED}.text_embedder.linear_2", "text_embedding/out"),
]
_PICTURE = f"{_EMBED}.image_embedder"
_IMAGE = [
    *_norm("img_emb.proj.0", f"{_PICTURE}.norm1", "image_embedding/norm_in"),
    *_linear("img_emb.proj.1", f"{_PICTURE}.ff.net.0.proj", "image_embedding/in"),
    *_linear("img_emb.proj.3", f"{_PICTURE}.ff.net.2", "image_embedding/out"),
    *_norm("img_emb.proj.4", f"{_PICTURE}.norm2", "image_embedding/norm_out"),
]
_SELF, _SELF_D = "blocks.*.self_attn", "blocks.*.attn1"
_CROSS, _CROSS_D, _OURS = "blocks.*.cross_attn", "blocks.*.attn2", "blocks_*/cross"
_BLOCK = [
    ("blocks.*.modulation", "blocks.*.scale_shift_table", "blocks_*/modulation", "squeeze"),
    *_linear(f"{_SELF}.q", f"{_SELF_D}.to_q", "blocks_*/q"),
    *_linear(f"{_SELF}.k", f"{_SELF_D}.to_k", "blocks_*/k"),
    *_linear(f"{_SELF}.v", f"{_SELF_D}.to_v", "blocks_*/v"),
    *_linear(f"{_SELF}.o", f"{_SELF_D}.to_out.0", "blocks_*/o"),
    *_scale(f"{_SELF}.norm_q", f"{_SELF_D}.norm_q", "blocks_*/norm_q"),
    *_scale(f"{_SELF}.norm_k", f"{_SELF_D}.norm_k", "blocks_*/norm_k"),
    # The editions number the norms of a block differently; only this one has parameters.
    *_norm("blocks.*.norm3", "blocks.*.norm2", "blocks_*/cross_norm"),
    *_linear(f"{_CROSS}.q", f"{_CROSS_D}.to_q", f"{_OURS}/q"),
    *_scale(f"{_CROSS}.norm_q", f"{_CROSS_D}.norm_q", f"{_OURS}/norm_q"),
    *_linear(f"{_CROSS}.o", f"{_CROSS_D}.to_out.0", f"{_OURS}/o"),
    *_linear("blocks.*.ffn.0", "blocks.*.ffn.net.0.proj", "blocks_*/mlp_in"),
    *_linear("blocks.*.ffn.2", "blocks.*.ffn.net.2", "blocks_*/mlp_out"),
]
_BLOCK_TEXT = [
    *_linear(f"{_CROSS}.k", f"{_CROSS_D}.to_k", f"{_OURS}/k"),
    *_linear(f"{_CROSS}.v", f"{_CROSS_D}.to_v", f"{_OURS}/v"),
    *_scale(f"{_CROSS}.norm_k", f"{_CROSS_D}.norm_k", f"{_OURS}/norm_k"),
]
_BLOCK_IMAGE = [
    *_linear(f"{_CROSS}.k_img", f"{_CROSS_D}.add_k_proj", f"{_OURS}/k_image"),
    *_linear(f"{_CROSS}.v_img", f"{_CROSS_D}.add_v_proj", f"{_OURS}/v_image"),
    *_scale(f"{_CROSS}.norm_k_img", f"{_CROSS_D}.norm_added_k", f"{_OURS}/norm_k_image"),
]

# Published tensors that no model reads: an earlier edition normalised a query of its own for
# the image, which Wan does not have.
IGNORED = {"original": (), "diffusers": ("blocks.*.attn2.norm_added_q.weight",)}

# Ours alone: no published tensor fills them, they keep their initial values.
OWN = (
    "mode_embedding",
    "audio_projection/", "partner_projection/",
    "blocks_*/cross/k_audio/", "blocks_*/cross/v_audio/", "blocks_*/cross/norm_k_audio/",
    "blocks_*/cross/k_partner/", "blocks_*/cross/v_partner/", "blocks_*/cross/norm_k_partner/",
)


def rows(config: config_lib.DiTConfig, layout: str = "original") -> list[mapping.Row]:
    """The table of one size: (source name, our path, kind of transform) per tensor.

    Raises:
      ValueError: Unknown layout.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {LAYOUTS}, got {layout!r}.")
    column = LAYOUTS.index(layout)
    once, block = list(_BASE), list(_BLOCK)
    if config.text_width is not None:
        once += _TEXT
        block += _BLOCK_TEXT
    if config.image_width is not None:
        once += _IMAGE
        block += _BLOCK_IMAGE

    def pick(lines):
        return [(line[column], line[2], line[3]) for line in lines]

    return pick(once) + mapping.repeat(pick(block), config.num_layers)


def is_own(path: str) -> bool:
    """Whether a parameter of ours has no counterpart in the published checkpoints."""
    parts = path.split("/")
    if parts[0].startswith("blocks_"):
        parts[0] = "blocks_*"
    return "/".join(parts).startswith(OWN)


def settings(config: config_lib.DiTConfig, layout: str) -> dict:
    """Content of the `config.json` that stands beside a published checkpoint."""
    c, picture = config, config.image_width is not None
    channels = c.latent_channels + c.condition_channels
    if layout == "original":
        return {
            "_class_name": "WanModel", "_diffusers_version": "0.30.0", "dim": c.width,
            "eps": 1e-6, "ffn_dim": c.mlp_width, "freq_dim": c.frequency_width,
            "in_dim": channels, "model_type": "i2v" if picture else "t2v",
            "num_heads": c.num_heads, "num_layers": c.num_layers,
            "out_dim": c.latent_channels, "text_len": c.text_length,
        }
    return {
        "_class_name": "WanTransformer3DModel", "_diffusers_version": "0.33.0",
        "added_kv_proj_dim": c.width if picture else None,
        "attention_head_dim": c.head_width, "cross_attn_norm": True, "eps": 1e-6,
        "ffn_dim": c.mlp_width, "freq_dim": c.frequency_width, "image_dim": c.image_width,
        "in_channels": channels, "num_attention_heads": c.num_heads,
        "num_layers": c.num_layers, "out_channels": c.latent_channels,
        "patch_size": [1, c.patch, c.patch], "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 1024, "text_dim": c.text_width,
    }
