"""Converts weights between this package and the layouts in which Wan2.1 is published.

  python launch/convert.py --part=transformer --preset=wan-1.3b \
    --source=Wan2.1-T2V-1.3B --out=weights/transformer
  python launch/convert.py --part=transformer --preset=wan-1.3b \
    --source=hf:gdhe17/Self-Forcing/checkpoints/self_forcing_dmd.pt --out=weights/transformer

Headers are checked before anything is written; --dry_run stops there (after it has fetched what
lies on the Hub). docs/weights.md lists what is read.
"""

import pathlib
import sys

from absl import flags

try:
    from launch import common
except ModuleNotFoundError as error:
    if error.name not in ("launch", "launch.common"):
        raise
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    from launch import common
from launch import weights

_PART = flags.DEFINE_string(
    "part", "transformer", "Model: transformer, vae, taehv, text, image or audio."
)
_PRESET = flags.DEFINE_string(
    "preset", "wan-1.3b", "Preset that gives its size, or a size of the part by its own name, "
    "such as large-lv60 for audio.",
)
_SOURCE = flags.DEFINE_string(
    "source", None, "File or folder of the part, or a published folder of all parts; "
    "hf:OWNER/NAME[/PATH][@REVISION] fetches them from the Hugging Face Hub.", required=True,
)
_STATE = flags.DEFINE_string(
    "state", None, "Dictionary of tensors to read where a PyTorch checkpoint holds several, such "
    "as generator; by default the moving average (generator_ema), else what it averages.",
)
_LAYOUT = flags.DEFINE_string(
    "layout", "auto", "Layout of the source, such as original; auto tells it by its names."
)
_OUT = flags.DEFINE_string(
    "out", None, "New folder, or a .safetensors or .pth file.", required=True
)
_TO = flags.DEFINE_string(
    "to", "ours", "Layout to write: ours, orbax, original, diffusers or transformers."
)
_DTYPE = flags.DEFINE_enum(
    "dtype", None, ("float32", "bfloat16", "float16"),
    "Dtype of the numbers written; by default that of the source.",
)
_SHARD_GB = flags.DEFINE_float("shard_gb", 5.0, "Size of one file in a folder.", lower_bound=1e-6)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Read headers, say what would happen, stop.")


def main() -> None:
    """Converts what the flags describe."""
    # Weights stay on the host: no accelerator is needed, and none is taken from others.
    import jax

    jax.config.update("jax_platforms", "cpu")
    import jax.numpy as jnp

    from tm_jax.checkpoints import convert
    from tm_jax.checkpoints import hub
    from tm_jax.checkpoints import parts

    part, source, facts = parts.get(_PART.value, _PRESET.value), _SOURCE.value, {}
    if hub.is_spec(source):
        found = weights.fetch(source, part.places)
        source, facts = found.path, {"source": found.origin}
    report = convert.convert(
        part, source, _OUT.value, facts=facts,
        layout=_LAYOUT.value, to=_TO.value, state=_STATE.value,
        dtype=jnp.dtype(_DTYPE.value) if _DTYPE.value else None,
        shard_bytes=int(_SHARD_GB.value * 1e9), dry_run=_DRY_RUN.value,
    )
    print("\n".join(report.lines()))
    print("Nothing was written." if _DRY_RUN.value else f"Wrote {_OUT.value}.")


if __name__ == "__main__":
    common.run("convert", main)
