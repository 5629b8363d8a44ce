"""Draws clips of whole frames into a store for stage `vae` of preset nano.

  python experiments/nano/draw_clips.py --out=/tmp/clips/train --count=1450 --frames=8
  python experiments/nano/draw_clips.py --out=/tmp/clips/held_out --count=60 --frames=12 --held_out

`--people` draws three-dimensional people instead of drawn characters (extra `people`).
"""

import pathlib
import sys
import time

from absl import app
from absl import flags
from absl import logging

try:
    from tm_jax.data import frame_store
    from tm_jax.data.synthetic import drawn_frames
    from tm_jax.data.synthetic.people import clip as people
except ModuleNotFoundError as error:
    if error.name != "tm_jax":
        raise
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
    from tm_jax.data import frame_store
    from tm_jax.data.synthetic import drawn_frames
    from tm_jax.data.synthetic.people import clip as people

_OUT = flags.DEFINE_string("out", None, "Folder of the store.", required=True)
_COUNT = flags.DEFINE_integer("count", 1450, "Clips.", lower_bound=1)
_FRAMES = flags.DEFINE_integer("frames", 8, "Frames after the reference picture.", lower_bound=1)
_HELD_OUT = flags.DEFINE_bool("held_out", False, "Draw held-out characters.")
_PEOPLE = flags.DEFINE_bool("people", False, "Draw three-dimensional people.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of characters and motion.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected argument {argv[1]!r}.")
    start = time.monotonic()
    clips = drawn_frames.clips(
        _SEED.value, _COUNT.value, _FRAMES.value, _HELD_OUT.value,
        people.Studio().draw if _PEOPLE.value else drawn_frames.draw,
    )
    written = frame_store.write(_OUT.value, clips)
    logging.info("%s: %d clips in %.0f s", _OUT.value, written, time.monotonic() - start)


if __name__ == "__main__":
    app.run(main)
