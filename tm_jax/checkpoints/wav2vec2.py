"""The strict tables from published tensor names to the parameters of `Wav2Vec2`.

The positional convolution's kernel is published as a length and a direction, under newer
names (`parametrizations.weight.original0`, `original1`) or older ones (`weight_g`,
`weight_v`), and the encoder by itself or inside a model with a head (below `wav2vec2.`):

| layout | kernel's names | encoder |
|---|---|---|
| transformers | newer | by itself |
| transformers-headed | newer | inside a model |
| original | older | by itself |
| original-headed | older | inside a model |
"""

from tm_jax.checkpoints import mapping
from tm_jax.models.audio.wav2vec2 import config as config_lib

_NEW = ("parametrizations.weight.original0", "parametrizations.weight.original1")
_OLD = ("weight_g", "weight_v")
_FORM = {
    "transformers": ("", _NEW),
    "transformers-headed": ("wav2vec2.", _NEW),
    "original": ("", _OLD),
    "original-headed": ("wav2vec2.", _OLD),
}
LAYOUTS = tuple(_FORM)

# Published tensors that hidden states do not need: what stands in for masked sound in
# training, and the heads of pre-training and of transcription.
IGNORED = {
    layout: (
        f"{prefix}masked_spec_embed",
        *(("lm_head.*", "quantizer.*", "project_q.*", "project_hid.*") if prefix else ()),
    )
    for layout, (prefix, _) in _FORM.items()
}

_CONV = "encoder.pos_conv_embed.conv"


def rows(config: config_lib.Wav2Vec2Config, layout: str = "transformers") -> list[mapping.Row]:
    """The table of one size and layout.

    Raises:
      ValueError: Unknown layout.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {LAYOUTS}, got {layout!r}.")
    prefix, (length, direction) = _FORM[layout]
    conv = f"{prefix}{_CONV}"
    encoder = f"{prefix}encoder"
    return [
        *_convolutions(config, f"{prefix}feature_extractor.conv_layers"),
        *mapping.norm(f"{prefix}feature_projection.layer_norm", "norm_features"),
        *mapping.linear(f"{prefix}feature_projection.projection", "project"),
        (f"{conv}.{length}", "position/scale", mapping.vector(before=2)),
        (f"{conv}.{direction}", "position/direction", "conv1d"),
        (f"{conv}.bias", "position/bias", "copy"),
        *mapping.norm(f"{encoder}.layer_norm", "norm"),
        *mapping.repeat(_layer(f"{encoder}.layers.*", "blocks_*"), config.num_layers),
    ]


def _convolutions(c, source) -> list[mapping.Row]:
    count = len(c.channels)
    normed = 1 if c.feature_norm == "group" else count
    convs = mapping.convolution(f"{source}.*.conv", "convs_*", 1, c.conv_bias)
    norms = mapping.norm(f"{source}.*.layer_norm", "conv_norms_*")
    return mapping.repeat(convs, count) + mapping.repeat(norms, normed)


def _layer(source, target) -> list[mapping.Row]:
    parts = (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"), ("out_proj", "o"))
    return [
        *(
            row for theirs, ours in parts
            for row in mapping.linear(f"{source}.attention.{theirs}", f"{target}/{ours}")
        ),
        *mapping.norm(f"{source}.layer_norm", f"{target}/norm_attention"),
        *mapping.linear(f"{source}.feed_forward.intermediate_dense", f"{target}/mlp_in"),
        *mapping.linear(f"{source}.feed_forward.output_dense", f"{target}/mlp_out"),
        *mapping.norm(f"{source}.final_layer_norm", f"{target}/norm_mlp"),
    ]


def settings(config: config_lib.Wav2Vec2Config, layout: str) -> dict | None:
    """Content of `config.json` for transformers."""
    c = config
    return {
        "architectures": ["Wav2Vec2Model"], "model_type": "wav2vec2",
        "hidden_size": c.width, "intermediate_size": c.mlp_width,
        "num_hidden_layers": c.num_layers, "num_attention_heads": c.num_heads,
        "hidden_act": "gelu", "feat_extract_activation": "gelu",
        "feat_extract_norm": c.feature_norm, "conv_bias": c.conv_bias,
        "do_stable_layer_norm": c.pre_norm, "conv_dim": list(c.channels),
        "conv_kernel": list(c.taps), "conv_stride": list(c.strides),
        "num_feat_extract_layers": len(c.channels),
        "num_conv_pos_embeddings": c.position_taps,
        "num_conv_pos_embedding_groups": c.position_groups, "layer_norm_eps": c.epsilon,
        # The vector that stands in for masked sound is used in training alone.
        "mask_time_prob": 0.0, "mask_feature_prob": 0.0,
    }


def sizes(facts: dict, preprocessor: dict | None = None) -> config_lib.Wav2Vec2Config:
    """Sizes from the contents of transformers' `config.json`.

    Args:
      facts: The model's `config.json`.
      preprocessor: `preprocessor_config.json`, with the preparation of the sound; without
        it 16 kHz and a normalised level are taken.

    Raises:
      ValueError: A kind of model that this encoder is not.
    """
    for name, expected in (
        ("hidden_act", "gelu"), ("feat_extract_activation", "gelu"), ("add_adapter", False),
        ("adapter_attn_dim", None),
    ):
        if facts.get(name, expected) != expected:
            raise ValueError(f"wav2vec2: {name} must be {expected!r}, got {facts[name]!r}.")
    preprocessor = preprocessor or {}
    return config_lib.Wav2Vec2Config(
        width=facts["hidden_size"], num_layers=facts["num_hidden_layers"],
        num_heads=facts["num_attention_heads"], mlp_width=facts["intermediate_size"],
        feature_norm=facts["feat_extract_norm"], conv_bias=facts["conv_bias"],
        pre_norm=facts["do_stable_layer_norm"], channels=tuple(facts["conv_dim"]),
        taps=tuple(facts["conv_kernel"]), strides=tuple(facts["conv_stride"]),
        position_taps=facts["num_conv_pos_embeddings"],
        position_groups=facts["num_conv_pos_embedding_groups"],
        epsilon=facts["layer_norm_eps"],
        sample_rate=preprocessor.get("sampling_rate", 16000),
        normalise=preprocessor.get("do_normalize", True),
    )
