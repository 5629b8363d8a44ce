"""Generates a video of a character that speaks a recording.

  python launch/generate.py --image=face.png --audio=speech.wav --out=clip.mp4

Without --audio the character listens for --seconds.
"""

import pathlib
import sys

from absl import flags
import tqdm

try:
    from launch import common
except ModuleNotFoundError as error:
    if error.name not in ("launch", "launch.common"):
        raise
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    from launch import common

_IMAGE = flags.DEFINE_string("image", None, "Picture of the character.", required=True)
_AUDIO = flags.DEFINE_string("audio", None, "Sound file, or a video with sound.")
_OUT = flags.DEFINE_string("out", "clip.mp4", "MP4 file to write.")
_PRESET = flags.DEFINE_string("preset", "nano", "Which model.")
_WEIGHTS = flags.DEFINE_string("weights", None, "Weights to use instead of the preset's own.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the noise.", lower_bound=0)
_MODE = flags.DEFINE_enum(
    "mode", "auto", ["auto", "speak", "listen"], "What to do; auto follows the sound."
)
_SECONDS = flags.DEFINE_float(
    "seconds", None, "Duration; by default that of the sound. The rest is listening."
)


def main() -> None:
    """Generates the clip that the flags describe."""
    from tm_jax.inference import offline  # Brings no JAX: wrong inputs are told at once.

    offline.check(_IMAGE.value, _AUDIO.value, _OUT.value, _MODE.value, _SECONDS.value)
    common.cache_compilations()
    from tm_jax.inference import bundle

    models = bundle.load(_PRESET.value, _WEIGHTS.value)
    with tqdm.tqdm(unit="frame", disable=None, dynamic_ncols=True) as bar:

        def progress(done: int, expected: int | None) -> None:
            bar.total = expected
            bar.update(done - bar.n)

        report = offline.generate(
            models,
            _IMAGE.value,
            _AUDIO.value,
            _OUT.value,
            seed=_SEED.value,
            mode=_MODE.value,
            seconds=_SECONDS.value,
            progress=progress,
        )
    print(f"Wrote {_OUT.value}: {report.line()}.")


if __name__ == "__main__":
    common.run("generate", main)
