"""Animates photographs that packages carry, and measures by a face mesh what the mouths do.

  python -m experiments.portraits.run [--weights=FOLDER] [--out=experiments/portraits]

Needs the extras `reference`, `evaluate` and `people`: photographs of packages, and the face
mesh. Writes `results.json`, `portraits.jpg` and the table of README.md. Beside the photographs stand a
drawn character and a 3-D person of those that were never trained on, each also as drawn by the
renderer that made the training videos: what the mesh sees of true lips.
"""

from collections.abc import Callable
import functools
import json
import pathlib
import tempfile

from absl import app
from absl import flags
import numpy as np
from PIL import Image

import tm_jax
from tm_jax.data import faces
from tm_jax.data.synthetic import characters
from tm_jax.data.synthetic import drawn_videos
from tm_jax.evaluation import facts
from tm_jax.evaluation import recorded
from tm_jax.evaluation import tables

_FOLDER = pathlib.Path(__file__).parent
_VOICE = pathlib.Path(tm_jax.__file__).parent / "assets" / "voices" / "dashwood_amiable.flac"

_WEIGHTS = flags.DEFINE_string("weights", None, "Folder of weights; the shipped ones by default.")
_OUT = flags.DEFINE_string("out", str(_FOLDER), "Folder for results and pictures.")
_SECONDS = flags.DEFINE_float("seconds", 12, "Length of a clip.", lower_bound=3)
_ZOOM = flags.DEFINE_float("zoom", 3.0, "Height of the picture over that of the face in it.")
_SHOWN = 6  # Frames of each clip on the sheet.


def _astronaut() -> np.ndarray:
    import skimage.data

    return skimage.data.astronaut()


def _hopper() -> np.ndarray:
    from matplotlib import cbook

    with cbook.get_sample_data("grace_hopper.jpg") as file:
        return np.asarray(Image.open(file).convert("RGB"))


_PERSON, _CHARACTER = characters.held_out_seed(7), characters.held_out_seed(2)
# Name -> (where it is from, function that gives the picture, whether its face is cut out).
_PICTURES: dict[str, tuple[str, Callable[[], np.ndarray], bool]] = {
    "Eileen Collins": ("scikit-image, by NASA, in the public domain", _astronaut, True),
    "Grace Hopper": ("matplotlib, by the US Navy, in the public domain", _hopper, True),
    "3-D person": (
        "drawn, seed never trained on",
        lambda: drawn_videos.portrait(_PERSON, drawn_videos.PERSON), False,
    ),
    "drawn character": (
        "drawn, seed never trained on",
        lambda: drawn_videos.portrait(_CHARACTER, "clay"), False,
    ),
}
# Name -> (seed, style) of what the renderer draws.
_TRUTHS = {
    "3-D person, rendered": (_PERSON, drawn_videos.PERSON),
    "drawn character, rendered": (_CHARACTER, "clay"),
}


def cut(picture: np.ndarray, side: int, zoom: float) -> np.ndarray:
    """The square around the face of a photograph, uint8 [side, side, 3].

    Raises:
      ValueError: There is no face in it.
    """
    height, width, _ = picture.shape
    found = faces.BlazeFace()(picture)
    if not found:
        raise ValueError("no face was found in the photograph.")
    part = faces.crop(found[0], width / height, 1.0, zoom)
    box = (part.left * width, part.top * height, part.right * width, part.bottom * height)
    small = Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS, box)
    return np.asarray(small)


def measure(make: Callable[[pathlib.Path], object]) -> tuple[dict, np.ndarray]:
    """What the mesh sees of a clip that a function writes, and frames of it, uint8 [N, H, W, 3]."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "clip.mp4"
        make(path)
        found = recorded.measure(path)
        frames = list(recorded.read(path))
    at = np.linspace(0, len(frames) - 1, _SHOWN + 1).round().astype(int)[1:]
    return found, np.stack([frames[i] for i in at])


def report(results: dict) -> str:
    """The table of README.md."""
    head = [
        "picture", "from", "frames with a face", "mouth against loudness", "best lag, frames",
        "movement in pauses", "widest opening", "blinks a minute",
    ]
    rows = []
    for name, row in results["pictures"].items():
        lips = row["lips"]
        rows.append([
            name, row["from"], tables.share(row["face_share"]), tables.number(lips["correlation"]),
            tables.number(lips["lag_frames"], 0), tables.share(lips["silence_ratio"]),
            tables.number(lips["opening_p95"], 3), tables.number(row["blinks_per_minute"], 0),
        ])
    return "\n".join([tables.facts(results), "", *tables.table(head, rows)])


def main(argv: list[str]) -> None:
    """Animates, measures and writes."""
    del argv
    avatar = tm_jax.load("nano", _WEIGHTS.value)
    out = pathlib.Path(_OUT.value)
    results = facts.collect(_WEIGHTS.value, seconds=_SECONDS.value, zoom=_ZOOM.value)
    results["pictures"], rows = {}, []
    for name, (origin, read, photographed) in _PICTURES.items():
        picture = read()
        if photographed:
            picture = cut(picture, avatar.preset.height, _ZOOM.value)
        found, frames = measure(functools.partial(
            tm_jax.generate, avatar, picture, _VOICE, seconds=_SECONDS.value
        ))
        results["pictures"][name] = {"from": origin, **found}
        rows.append(np.concatenate([picture, *frames], 1))
    voices, config = drawn_videos.shipped_voices(), drawn_videos.Config(seconds=_SECONDS.value)
    for name, (seed, style) in _TRUTHS.items():
        found, _ = measure(lambda path, seed=seed, style=style: drawn_videos.draw(
            path, voices, seed=0, character=seed, style=style, config=config
        ))
        results["pictures"][name] = {"from": "the renderer, the same voice", **found}
    results = facts.plain(results)
    facts.write(str(out / "results.json"), results)
    Image.fromarray(np.concatenate(rows)).save(out / "portraits.jpg", quality=88)
    if out == _FOLDER:
        tables.put(_FOLDER / "README.md", report(results))
    print(json.dumps(results["pictures"], indent=1))


if __name__ == "__main__":
    app.run(main)
