"""Draws a synthetic character: a portrait as PNG, or a video of it as MP4 with sound.

  python launch/character.py --seed=3 --style=clay --out=clay.png
  python launch/character.py --seed=3 --video=clip.mp4 --seconds=8
  python launch/character.py --seed=3 --style=person --video=clip.mp4   # extra people
  python launch/character.py --video=talk.mp4 --kind=conversing --partner   # two channels
"""

import pathlib
import sys

from absl import flags
import imageio.v3 as imageio

try:
    from launch import common
except ModuleNotFoundError as error:
    if error.name not in ("launch", "launch.common"):
        raise
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    from launch import common

from tm_jax.data.synthetic import drawn_videos

_SEED = flags.DEFINE_integer("seed", 0, "Which character; the same seed draws the same one.")
_STYLE = flags.DEFINE_string(
    "style", None, f"One of {', '.join(drawn_videos.STYLES)}; the seed chooses one of the drawn "
    "styles by default.",
)
_OUT = flags.DEFINE_string("out", "character.png", "PNG file to write.")
_SIZE = flags.DEFINE_integer("size", 256, "Side of the picture in pixels.", lower_bound=16)
_VIDEO = flags.DEFINE_string("video", None, "MP4 file to write instead of a portrait.")
_SECONDS = flags.DEFINE_float("seconds", 6.0, "Length of the video.")
_KIND = flags.DEFINE_enum("kind", "talking", drawn_videos.KINDS, "What the video shows.")
_VOICE = flags.DEFINE_string(
    "voice", None, "Name of the voice in the video: one of the package's recordings "
    "(dashwood_amiable, dashwood_leisure) or a speaker of --corpus; by default any of them.",
)
_CORPUS = flags.DEFINE_string("corpus", None, "Speech corpus of launch/corpus.py.")
_WORDS = flags.DEFINE_integer("words", 0, "Seed of the video's words and motion.")
_PARTNER = flags.DEFINE_bool(
    "partner", False, "Write a right channel with the voice of the other party."
)


def draw(seed: int, style: str | None, out: pathlib.Path, size: int) -> None:
    """Writes the neutral portrait of one character."""
    if seed < 0:
        raise ValueError(f"--seed must not be negative, got {seed}.")
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out must name a .png file, got {out}.")
    if not out.parent.is_dir():
        raise ValueError(f"--out: there is no folder {out.parent}.")
    imageio.imwrite(out, drawn_videos.portrait(seed, style, size))


def _speakers() -> list:
    speakers = drawn_videos.voices(_CORPUS.value)
    if _VOICE.value is None:
        return speakers
    named = [speaker for speaker in speakers if speaker.name == _VOICE.value]
    if not named:
        names = ", ".join(speaker.name for speaker in speakers)
        raise ValueError(f"--voice: there is no {_VOICE.value!r}; choose from {names}.")
    # A conversation needs a second voice.
    return named + [speaker for speaker in speakers if speaker.name != _VOICE.value]


def main() -> None:
    """Draws what the flags describe."""
    if _VIDEO.value is None:
        out = pathlib.Path(_OUT.value)
        draw(_SEED.value, _STYLE.value, out, _SIZE.value)
        print(f"Wrote {out}.")
        return
    if min(_SEED.value, _WORDS.value) < 0:
        raise ValueError("--seed and --words must not be negative.")
    config = drawn_videos.Config(
        seconds=_SECONDS.value, size=_SIZE.value, kind=_KIND.value, partner=_PARTNER.value
    )
    drawn_videos.draw(
        _VIDEO.value, _speakers(), seed=_WORDS.value, character=_SEED.value, style=_STYLE.value,
        config=config, own=0 if _VOICE.value else None,
    )
    print(f"Wrote {_VIDEO.value}: {config.frames} frames, {config.kind}.")


if __name__ == "__main__":
    common.run("character", main)
