"""The strict tables from published tensor names to the parameters of `CLIPVision`.

| layout | whose names |
|---|---|
| transformers | `image_encoder` of Wan's diffusers checkpoints, `CLIPModel` and its parts |
| transformers-bare | a `CLIPVisionModel` saved by transformers 5 by itself |
| original | `models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth` (`wan/modules/clip.py`) |
"""

from tm_jax.checkpoints import mapping
from tm_jax.models.image import config as config_lib

_PREFIX = {"transformers": "vision_model.", "transformers-bare": "", "original": "visual."}
LAYOUTS = tuple(_PREFIX)

# Published tensors that the vision tower's hidden states do not need: the text tower, the
# projections of the contrastive loss, and counters.
IGNORED = {
    "transformers": (
        "*position_ids", "visual_projection.weight", "text_projection.weight",
        "text_model.*", "logit_scale",
    ),
    "transformers-bare": ("*position_ids",),
    "original": ("visual.head", "textual.*", "log_scale"),
}


def _transformers(c: config_lib.CLIPConfig, prefix: str) -> list[mapping.Row]:
    layer, ours = f"{prefix}encoder.layers.*", "blocks_*"
    parts = (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"), ("out_proj", "o"))
    block = [
        *mapping.norm(f"{layer}.layer_norm1", f"{ours}/norm_attention"),
        *(
            row for theirs, name in parts
            for row in mapping.linear(f"{layer}.self_attn.{theirs}", f"{ours}/{name}")
        ),
        *mapping.norm(f"{layer}.layer_norm2", f"{ours}/norm_mlp"),
        *mapping.linear(f"{layer}.mlp.fc1", f"{ours}/mlp_in"),
        *mapping.linear(f"{layer}.mlp.fc2", f"{ours}/mlp_out"),
    ]
    start = f"{prefix}embeddings"
    return [
        (f"{start}.class_embedding", "class_embedding", "copy"),
        (
            f"{start}.patch_embedding.weight", "patch_embedding/kernel",
            mapping.patches(c.patch, c.patch),
        ),
        (f"{start}.position_embedding.weight", "position_embedding", "copy"),
        *mapping.norm(f"{prefix}pre_layrnorm", "norm_in"),  # The published spelling.
        *mapping.repeat(block, c.num_layers),
        *mapping.norm(f"{prefix}post_layernorm", "norm_out"),
    ]


def _original(c: config_lib.CLIPConfig, prefix: str) -> list[mapping.Row]:
    layer, ours = f"{prefix}transformer.*", "blocks_*"

    def three(name):
        return tuple(f"{ours}/{part}/{name}" for part in "qkv")

    block = [
        *mapping.norm(f"{layer}.norm1", f"{ours}/norm_attention"),
        (f"{layer}.attn.to_qkv.weight", three("kernel"), "qkv"),
        (f"{layer}.attn.to_qkv.bias", three("bias"), "qkv_bias"),
        *mapping.linear(f"{layer}.attn.proj", f"{ours}/o"),
        *mapping.norm(f"{layer}.norm2", f"{ours}/norm_mlp"),
        *mapping.linear(f"{layer}.mlp.0", f"{ours}/mlp_in"),
        *mapping.linear(f"{layer}.mlp.2", f"{ours}/mlp_out"),
    ]
    return [
        (f"{prefix}cls_embedding", "class_embedding", mapping.vector(before=2)),
        (
            f"{prefix}patch_embedding.weight", "patch_embedding/kernel",
            mapping.patches(c.patch, c.patch),
        ),
        (f"{prefix}pos_embedding", "position_embedding", "squeeze"),
        *mapping.norm(f"{prefix}pre_norm", "norm_in"),
        *mapping.repeat(block, c.num_layers),
        *mapping.norm(f"{prefix}post_norm", "norm_out"),
    ]


def rows(config: config_lib.CLIPConfig, layout: str = "original") -> list[mapping.Row]:
    """The table of one size and layout.

    Raises:
      ValueError: Unknown layout.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {LAYOUTS}, got {layout!r}.")
    make = _original if layout == "original" else _transformers
    return make(config, _PREFIX[layout])


def settings(config: config_lib.CLIPConfig, layout: str) -> dict | None:
    """Content of `config.json` for transformers; Wan's own layout has none."""
    if layout == "original":
        return None
    c = config
    return {
        "architectures": ["CLIPVisionModel"], "model_type": "clip_vision_model",
        "hidden_size": c.width, "intermediate_size": c.mlp_width,
        "num_hidden_layers": c.num_layers, "num_attention_heads": c.num_heads,
        "image_size": c.picture, "patch_size": c.patch, "hidden_act": "gelu",
        "layer_norm_eps": c.epsilon, "num_channels": 3,
    }


def sizes(facts: dict) -> config_lib.CLIPConfig:
    """Sizes from the contents of transformers' `config.json`.

    Raises:
      ValueError: A kind of model that this encoder is not.
    """
    facts = facts.get("vision_config") or facts
    activation = facts.get("hidden_act", "quick_gelu")
    if activation != "gelu":
        raise ValueError(f"CLIP: hidden_act must be 'gelu', got {activation!r}.")
    return config_lib.CLIPConfig(
        width=facts["hidden_size"], num_layers=facts["num_hidden_layers"],
        num_heads=facts["num_attention_heads"], mlp_width=facts["intermediate_size"],
        picture=facts["image_size"], patch=facts["patch_size"],
        epsilon=facts.get("layer_norm_eps", 1e-5),
    )
