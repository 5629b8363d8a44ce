"""The strict tables from published tensor names to the parameters of `UMT5Encoder`.

| layout | whose names |
|---|---|
| transformers | `UMT5EncoderModel` and the encoder of `UMT5Model` |
| transformers-untied | the same where the token table stands under the encoder alone |
| original | `models_t5_umt5-xxl-enc-bf16.pth` of the Wan2.1 checkpoints (`wan/modules/t5.py`) |
"""

from tm_jax.checkpoints import mapping
from tm_jax.models.text import config as config_lib

_TABLE = {
    "transformers": "shared.weight",
    "transformers-untied": "encoder.embed_tokens.weight",
    "original": "token_embedding.weight",
}
LAYOUTS = tuple(_TABLE)

# Published tensors that the encoder does not need: a second name of the token table, and
# the decoder half of a complete model.
IGNORED = {
    "transformers": ("encoder.embed_tokens.weight", "decoder.*", "lm_head.weight"),
    "transformers-untied": ("decoder.*", "lm_head.weight"),
    "original": (),
}

_ATTENTION = "encoder.block.*.layer.0"
_MLP = "encoder.block.*.layer.1"

# Source in transformers' names, in Wan's own, our path, kind.
_BLOCK = [
    (f"{_ATTENTION}.layer_norm", "blocks.*.norm1", "norm_attention/scale", "copy"),
    *(
        (f"{_ATTENTION}.SelfAttention.{n}", f"blocks.*.attn.{n}", f"{n}/kernel", "matrix")
        for n in "qkvo"
    ),
    (
        f"{_ATTENTION}.SelfAttention.relative_attention_bias",
        "blocks.*.pos_embedding.embedding", "position_bias", "copy",
    ),
    (f"{_MLP}.layer_norm", "blocks.*.norm2", "norm_mlp/scale", "copy"),
    (f"{_MLP}.DenseReluDense.wi_0", "blocks.*.ffn.gate.0", "gate/kernel", "matrix"),
    (f"{_MLP}.DenseReluDense.wi_1", "blocks.*.ffn.fc1", "mlp_in/kernel", "matrix"),
    (f"{_MLP}.DenseReluDense.wo", "blocks.*.ffn.fc2", "mlp_out/kernel", "matrix"),
]


def rows(config: config_lib.UMT5Config, layout: str = "original") -> list[mapping.Row]:
    """The table of one size and layout.

    Raises:
      ValueError: Unknown layout.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {LAYOUTS}, got {layout!r}.")
    own = layout == "original"
    block: list[mapping.Row] = [
        (f"{wan if own else hf}.weight", f"blocks_*/{target}", kind)
        for hf, wan, target, kind in _BLOCK
    ]
    last = "norm.weight" if own else "encoder.final_layer_norm.weight"
    return [
        (_TABLE[layout], "token_embedding", "copy"),
        *mapping.repeat(block, config.num_layers),
        (last, "norm/scale", "copy"),
    ]


def settings(config: config_lib.UMT5Config, layout: str) -> dict | None:
    """Content of `config.json` for transformers; Wan's own layout has none."""
    if layout == "original":
        return None
    c = config
    return {
        "architectures": ["UMT5EncoderModel"], "model_type": "umt5", "vocab_size": c.vocab,
        "d_model": c.width, "d_kv": c.head_width, "d_ff": c.mlp_width,
        "num_layers": c.num_layers, "num_heads": c.num_heads,
        "relative_attention_num_buckets": c.buckets,
        "relative_attention_max_distance": c.max_distance,
        "layer_norm_epsilon": c.epsilon, "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": True, "tie_word_embeddings": False,
    }


def sizes(facts: dict) -> config_lib.UMT5Config:
    """Sizes from the contents of transformers' `config.json`.

    Raises:
      ValueError: A kind of model that this encoder is not.
    """
    if facts.get("feed_forward_proj", "gated-gelu") != "gated-gelu":
        raise ValueError(
            f"UMT5: feed_forward_proj must be 'gated-gelu', got {facts['feed_forward_proj']!r}."
        )
    return config_lib.UMT5Config(
        vocab=facts["vocab_size"], width=facts["d_model"], num_layers=facts["num_layers"],
        num_heads=facts["num_heads"], head_width=facts["d_kv"], mlp_width=facts["d_ff"],
        buckets=facts.get("relative_attention_num_buckets", 32),
        max_distance=facts.get("relative_attention_max_distance", 128),
        epsilon=facts.get("layer_norm_epsilon", 1e-6),
    )
