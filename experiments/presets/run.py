"""Counts the parameters of the large presets by shape alone and writes the table.

Claim: `wan-1.3b` holds every published Wan2.1-T2V-1.3B tensor and `tm-18b` is the paper's
model of 18 B parameters. Nothing is computed: `jax.eval_shape` of the initialisation.
"""

import json
import pathlib
import re

from absl import app

from tm_jax.checkpoints import wan
from tm_jax.configs import presets
from tm_jax.core import trees
from tm_jax.evaluation import tables
from tm_jax.models.dit import transformer
from tm_jax.parallel import rules

_FOLDER = pathlib.Path(__file__).parent
_NAMES = ("wan-1.3b", "tm-18b")

# The first pattern that a parameter's path matches names its part.
_PARTS = (
    ("audio projection", r"^audio_projection/"),
    ("audio keys and values", r"/cross/\w+_audio/"),
    ("image keys and values", r"/cross/\w+_image/"),
    ("image embedding", r"^image_embedding/"),
    ("cross-attention", r"/cross/"),
    ("feed-forward", r"/mlp_"),
    ("self-attention", r"^blocks_\d+/(q|k|v|o|norm_q|norm_k)/"),
    ("embeddings, modulation and head", r""),
)


def shapes(config) -> dict:
    """Parameter shapes of a transformer by path."""
    return trees.flatten(rules.unbox(transformer.boxed_shapes(config)))


def measure(name: str) -> dict:
    """Parameters per part, in all, and how many of them a published checkpoint fills."""
    flat = shapes(presets.get(name).dit)
    parts = {part: 0 for part, _ in _PARTS}
    for path, leaf in flat.items():
        part = next(part for part, pattern in _PARTS if re.search(pattern, path))
        parts[part] += trees.count(leaf)
    own = sum(trees.count(leaf) for path, leaf in flat.items() if wan.is_own(path))
    total = trees.count(flat)
    return {"parts": parts, "published": total - own, "own": own, "total": total}


def table(results: dict) -> str:
    """Markdown table, millions of parameters."""
    lines = ["| part | " + " | ".join(results) + " |", "|---|" + "---:|" * len(results)]
    rows = {part: [r["parts"][part] for r in results.values()] for part, _ in _PARTS}
    rows["**filled by the published checkpoint**"] = [r["published"] for r in results.values()]
    rows["**audio and modes, ours**"] = [r["own"] for r in results.values()]
    rows["**total**"] = [r["total"] for r in results.values()]
    for name, counts in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{c / 1e6:,.1f}" for c in counts) + " |")
    return "\n".join(lines)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    results = {name: measure(name) for name in _NAMES}
    (_FOLDER / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    tables.put(_FOLDER / "README.md", table(results))
    print(table(results))


if __name__ == "__main__":
    app.run(main)
