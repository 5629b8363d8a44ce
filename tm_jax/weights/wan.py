"""The strict table from published Wan2.1 tensor names to the parameters of `DiT`.

Rows are `(source, target, kind)`; `*` stands for the number of a block. The names are those of
the original checkpoints of Wan2.1-T2V-1.3B and Wan2.1-I2V-14B (`wan/modules/model.py`).
"""

from collections.abc import Callable

from tm_jax.models.wan import config as config_lib


def _matrix(x):
    """torch.nn.Linear [out, in] to [in, out]."""
    return x.T


def _patches(x):
    """Patch embedding [D, C, 1, 2, 2] to [C * 2 * 2, D], channel slowest."""
    return x.reshape(x.shape[0], -1).T


def _squeeze(x):
    """Modulation [1, n, D] to [n, D]."""
    return x[0]


TRANSFORMS: dict[str, Callable] = {
    "copy": lambda x: x, "matrix": _matrix, "patches": _patches, "squeeze": _squeeze,
}


def _linear(source, target):
    return [
        (f"{source}.weight", f"{target}/kernel", "matrix"),
        (f"{source}.bias", f"{target}/bias", "copy"),
    ]


def _layer_norm(source, target):
    return [
        (f"{source}.weight", f"{target}/scale", "copy"),
        (f"{source}.bias", f"{target}/bias", "copy"),
    ]


_BASE = [
    ("patch_embedding.weight", "patch_embedding/kernel", "patches"),
    ("patch_embedding.bias", "patch_embedding/bias", "copy"),
    *_linear("time_embedding.0", "time_embedding/in"),
    *_linear("time_embedding.2", "time_embedding/out"),
    *_linear("time_projection.1", "time_projection"),
    ("head.modulation", "head_modulation", "squeeze"),
    *_linear("head.head", "head"),
]
_TEXT = [
    *_linear("text_embedding.0", "text_embedding/in"),
    *_linear("text_embedding.2", "text_embedding/out"),
]
_IMAGE = [
    *_layer_norm("img_emb.proj.0", "image_embedding/norm_in"),
    *_linear("img_emb.proj.1", "image_embedding/in"),
    *_linear("img_emb.proj.3", "image_embedding/out"),
    *_layer_norm("img_emb.proj.4", "image_embedding/norm_out"),
]
_BLOCK = [
    ("blocks.*.modulation", "blocks_*/modulation", "squeeze"),
    *(row for n in "qkvo" for row in _linear(f"blocks.*.self_attn.{n}", f"blocks_*/{n}")),
    ("blocks.*.self_attn.norm_q.weight", "blocks_*/norm_q/scale", "copy"),
    ("blocks.*.self_attn.norm_k.weight", "blocks_*/norm_k/scale", "copy"),
    *_layer_norm("blocks.*.norm3", "blocks_*/cross_norm"),
    *_linear("blocks.*.cross_attn.q", "blocks_*/cross/q"),
    ("blocks.*.cross_attn.norm_q.weight", "blocks_*/cross/norm_q/scale", "copy"),
    *_linear("blocks.*.cross_attn.o", "blocks_*/cross/o"),
    *_linear("blocks.*.ffn.0", "blocks_*/mlp_in"),
    *_linear("blocks.*.ffn.2", "blocks_*/mlp_out"),
]
_BLOCK_TEXT = [
    *_linear("blocks.*.cross_attn.k", "blocks_*/cross/k"),
    *_linear("blocks.*.cross_attn.v", "blocks_*/cross/v"),
    ("blocks.*.cross_attn.norm_k.weight", "blocks_*/cross/norm_k/scale", "copy"),
]
_BLOCK_IMAGE = [
    *_linear("blocks.*.cross_attn.k_img", "blocks_*/cross/k_image"),
    *_linear("blocks.*.cross_attn.v_img", "blocks_*/cross/v_image"),
    ("blocks.*.cross_attn.norm_k_img.weight", "blocks_*/cross/norm_k_image/scale", "copy"),
]

# Ours alone: no published tensor fills them, they keep their initial values.
OWN = (
    "mode_embedding",
    "audio_projection/",
    "blocks_*/cross/k_audio/",
    "blocks_*/cross/v_audio/",
    "blocks_*/cross/norm_k_audio/",
)


def rows(config: config_lib.DiTConfig) -> list[tuple[str, str, str]]:
    """The table of one size: (source name, our path, kind of transform) per tensor."""
    once = list(_BASE)
    block = list(_BLOCK)
    if config.text_width is not None:
        once += _TEXT
        block += _BLOCK_TEXT
    if config.image_width is not None:
        once += _IMAGE
        block += _BLOCK_IMAGE
    numbered = [
        (source.replace("*", str(i)), target.replace("*", str(i)), kind)
        for i in range(config.num_layers)
        for source, target, kind in block
    ]
    return once + numbered


def is_own(path: str) -> bool:
    """Whether a parameter of ours has no counterpart in the published checkpoints."""
    parts = path.split("/")
    if parts[0].startswith("blocks_"):
        parts[0] = "blocks_*"
    return "/".join(parts).startswith(OWN)
