"""Draws the portrait of a synthetic character as PNG.

  python launch/character.py --seed=3 --style=clay --out=clay.png
"""

import pathlib
import sys

from absl import app
from absl import flags
from absl import logging
import imageio.v3 as imageio
import numpy as np

try:
    from tm_jax.data import characters
except ModuleNotFoundError as error:
    if error.name != "tm_jax":
        raise
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    from tm_jax.data import characters

_SEED = flags.DEFINE_integer("seed", 0, "Which character; the same seed draws the same one.")
_STYLE = flags.DEFINE_string("style", None, "Style of the drawing; the seed chooses by default.")
_OUT = flags.DEFINE_string("out", "character.png", "PNG file to write.")
_SIZE = flags.DEFINE_integer("size", 256, "Side of the picture in pixels.", lower_bound=16)


def draw(seed: int, style: str | None, out: pathlib.Path, size: int) -> None:
    """Writes the neutral portrait of one character."""
    if seed < 0:
        raise ValueError(f"--seed must not be negative, got {seed}.")
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out must name a .png file, got {out}.")
    if not out.parent.is_dir():
        raise ValueError(f"--out: there is no folder {out.parent}.")
    character = characters.stack([characters.sample(seed, style)])
    video = characters.render(character, characters.neutral()[None, None], size)
    imageio.imwrite(out, np.asarray(video[0, 0]))


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected argument {argv[1]!r}.")
    logging.set_verbosity(logging.WARNING)
    out = pathlib.Path(_OUT.value)
    try:
        draw(_SEED.value, _STYLE.value, out, _SIZE.value)
    except (ValueError, OSError) as error:
        sys.exit(f"character: {error}")
    print(f"Wrote {out}.")


if __name__ == "__main__":
    app.run(main)
