"""Generates a video of a character that speaks a recording.

  python launch/generate.py --image=face.png --audio=speech.wav --out=clip.mp4

Without --audio the character listens for --seconds. It hears the voice of --other_audio, if
there is one:

  python launch/generate.py --image=face.png --other_audio=question.wav --out=clip.mp4

Presets other than nano take a folder of converted weights:

  python launch/generate.py --preset=tm-18b --weights=FOLDER --image=face.png \
    --audio=speech.wav --out=clip.mp4 [--sampler=teacher --steps=50 --guidance=5]
"""

from typing import Any
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
from launch import weights

_IMAGE = flags.DEFINE_string("image", None, "Picture of the character.", required=True)
_AUDIO = flags.DEFINE_string("audio", None, "Sound file, or a video with sound.")
_OTHER_AUDIO = flags.DEFINE_string(
    "other_audio", None, "nano: sound file of the other party, whom the character hears while "
    "it listens; begins with the first frame.",
)
_OUT = flags.DEFINE_string("out", "clip.mp4", "MP4 file to write.")
_PRESET = flags.DEFINE_string("preset", "nano", "Which model.")
_WEIGHTS = flags.DEFINE_string(
    "weights", None, "Folder of weights to use instead of the preset's own, or "
    "hf:OWNER/NAME[/PATH][@REVISION] of the Hugging Face Hub.",
)
_MESH = common.mesh_flag()
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the noise.", lower_bound=0)
_MODE = flags.DEFINE_enum(
    "mode", "auto", ["auto", "speak", "listen"], "What to do; auto follows the sound."
)
_SECONDS = flags.DEFINE_float(
    "seconds", None, "Duration; by default that of the sound. The rest is listening."
)

# Of presets with a text encoder alone; what is not given is left to the library.
_FULL = {
    "prompt": flags.DEFINE_string("prompt", None, "wan-1.3b, tm-18b: what the video shows."),
    "face": flags.DEFINE_string(
        "face", None, "wan-1.3b, tm-18b: top,left,bottom,right in 0..1 of the video, the part "
        "that listens to the sound; by default all of it.",
    ),
    "aspect": flags.DEFINE_string(
        "aspect", None, "wan-1.3b, tm-18b: WIDTH:HEIGHT, such as 9:16, of the same area."
    ),
    "sampler": flags.DEFINE_enum(
        "sampler", None, ["student", "teacher"], "wan-1.3b, tm-18b: the causal student chunk "
        "by chunk (default), or the teacher in clips of 81 frames.",
    ),
    "steps": flags.DEFINE_integer(
        "steps", None, "Steps of --sampler=teacher, by default 50.", lower_bound=1
    ),
    "guidance": flags.DEFINE_float(
        "guidance", None, "Guidance of --sampler=teacher, by default 5; 1 is without."
    ),
    "attention": common.attention_flag(),
    "matrices": common.matrices_flag(),
    "decoder": flags.DEFINE_enum(
        "decoder", None, ["wan", "tiny"], "wan-1.3b, tm-18b: Wan's own decoder (default), or "
        "the tiny one.",
    ),
}


def _options() -> dict:
    """The given options of presets with a text encoder."""
    options: dict[str, Any] = {
        name: flag.value for name, flag in _FULL.items() if flag.value is not None
    }
    if "face" in options:
        options["face"] = common.numbers("face", options["face"], ",", 4)
    if "aspect" in options:
        options["aspect"] = common.aspect(options["aspect"])
    return options


def main() -> None:
    """Generates the clip that the flags describe."""
    from tm_jax.inference import offline  # Brings no JAX: wrong inputs are told at once.

    options = _options()
    offline.check(
        _IMAGE.value, _AUDIO.value, _OUT.value, _MODE.value, _SECONDS.value, _OTHER_AUDIO.value
    )
    folder = weights.local(_WEIGHTS.value)
    common.cache_compilations()
    from tm_jax.inference import loading

    from tm_jax.inference import pipeline

    sizes = common.mesh_sizes(_MESH.value)
    placement = pipeline.Placement(mesh=sizes) if sizes else None
    models, session_factory = loading.prepare(_PRESET.value, folder, options, placement)
    if _OTHER_AUDIO.value is not None and not models.functions.partner:
        raise ValueError(
            f"--other_audio: preset {_PRESET.value} takes the character's own sound alone; nano "
            "takes the other party's, too."
        )
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
            session_factory=session_factory,
            other_audio=_OTHER_AUDIO.value,
        )
    print(f"Wrote {_OUT.value}: {report.line()}.")


if __name__ == "__main__":
    common.run("generate", main)
