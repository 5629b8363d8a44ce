"""Draws three-dimensional people: a contact sheet, the mouth of every viseme, a spoken clip.

  python experiments/people/run.py --out=out/people
"""

from collections.abc import Sequence
import json
import pathlib
import sys
import time

from absl import app
from absl import flags
from absl import logging
import numpy as np
from PIL import Image
from PIL import ImageDraw
from PIL import ImageFont
import soundfile

try:
    import tm_jax  # noqa: F401  Found when installed.
except ModuleNotFoundError:
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from tm_jax.data.corpus import speech
from tm_jax.data.synthetic import motion as motion_lib
from tm_jax.data.synthetic import visemes
from tm_jax.data.synthetic.people import actions
from tm_jax.data.synthetic.people import assets
from tm_jax.data.synthetic.people import clip
from tm_jax.data.synthetic.people import identity
from tm_jax.data.synthetic.people import pose
from tm_jax.media import video

_OUT = flags.DEFINE_string("out", "out/people", "Folder for the pictures and the clip.")
_SEED = flags.DEFINE_integer("seed", 10, "Who shows the visemes and speaks.", lower_bound=0)
_SIZE = flags.DEFINE_integer("size", 256, "Side of the frames.", lower_bound=64)
_COUNT = flags.DEFINE_integer("count", 24, "People on the sheet.", lower_bound=1)
_VOICE = flags.DEFINE_string("voice", "dashwood_amiable", "Recording in tm_jax/assets/voices.")
_PARTS = flags.DEFINE_multi_enum(
    "part", ["sheet", "visemes", "clip"], ["sheet", "visemes", "clip"], "What to draw."
)

_FPS = 25
_VISEMES = (
    "SIL", "M", "F", "TH", "T", "S", "SH", "K", "N", "R",
    "L", "AA", "AE", "AH", "EH", "IY", "IH", "AO", "UW", "W",
)  # fmt: skip
_VOICES = pathlib.Path(motion_lib.__file__).parents[2] / "assets" / "voices"


def _grid(tiles: list[np.ndarray], columns: int, names: Sequence[str] | None = None) -> Image.Image:
    size = tiles[0].shape[0]
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * size, rows * size))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=size // 8)
    for index, tile in enumerate(tiles):
        at = (index % columns * size, index // columns * size)
        sheet.paste(Image.fromarray(tile), at)
        if names:
            pen.text((at[0] + 6, at[1] + 4), names[index], (255, 255, 255), font)
    return sheet


def contact_sheet(studio: clip.Studio, count: int) -> Image.Image:
    """The first training people, each in a moment of talking."""
    tiles = []
    for index in range(count):
        rng = np.random.default_rng(index)
        motion = motion_lib.talking(rng, np.zeros((80, 6), np.float32), _FPS)
        motion[:, [6, 7]] = 0
        motion[:, 5] = rng.uniform(0, 0.7)
        motion[:, motion_lib.COLUMNS.index("yaw")] = rng.uniform(-0.6, 0.6)
        tiles.append(studio.draw(identity.training_seed(index), motion[60:61])[0])
    return _grid(tiles, 6)


def viseme_sheet(studio: clip.Studio, seed: int) -> Image.Image:
    """The mouth of one person for phones held alone."""
    studio.show(identity.sample(seed))
    size, tiles = studio.size, []
    for phone in _VISEMES:
        frame = Image.fromarray(studio.frame(actions.viseme(phone), pose.Pose(yaw=0.15)))
        box = tuple(round(size * x) for x in (0.33, 0.36, 0.67, 0.70))
        tiles.append(np.asarray(frame.crop(box).resize((128, 128), Image.Resampling.BICUBIC)))
    return _grid(tiles, 10, _VISEMES)


def recording(name: str) -> tuple[np.ndarray, np.ndarray]:
    """A shipped recording [samples] at 16 kHz and its phones [N, 3]."""
    sound, rate = soundfile.read(_VOICES / f"{name}.flac", dtype="float32")
    with open(_VOICES / f"{name}.json") as file:
        facts = json.load(file)
    if rate != speech.SAMPLE_RATE:
        raise ValueError(f"{name}: expected {speech.SAMPLE_RATE} Hz, got {rate}.")
    phones = [(start, end, speech.PHONE_ID[phone]) for start, end, phone in facts["phones"]]
    return sound, np.array(phones)


def spoken_clip(studio: clip.Studio, seed: int, voice: str, path: pathlib.Path) -> dict:
    """Writes an MP4 of a person who speaks a recording; returns what was measured."""
    sound, phones = recording(voice)
    count = int(len(sound) / speech.SAMPLE_RATE * _FPS)
    curves = visemes.mouth_curves(phones, count, _FPS, sound)
    motion = motion_lib.talking(np.random.default_rng(seed), curves, _FPS)
    mouth = actions.speech(phones, count, _FPS, sound)
    begun = time.perf_counter()
    studio.draw(seed, motion[:1], mouth[:1])
    loaded = time.perf_counter()
    frames = studio.draw(seed, motion, mouth)
    wall_s = time.perf_counter() - loaded
    size = studio.size
    with video.Writer(path, _FPS, size, size, speech.SAMPLE_RATE, 1) as writer:
        writer.write_sound(sound[:, None])
        writer.write_frames(frames)
    return dict(
        size=size, frames=count, load_s=round(loaded - begun, 2),
        frames_per_second=round(count / wall_s, 1), **_cpu_ms(studio, mouth),
    )  # fmt: skip


def _cpu_ms(studio: clip.Studio, mouth: np.ndarray) -> dict:
    """Processor time of a frame, all threads together, which other processes disturb less."""
    times = []
    for row in mouth:
        begun = time.process_time()
        studio.frame(row)
        times.append(1e3 * (time.process_time() - begun))
    low, middle = np.percentile(times, (5, 50))
    return dict(cpu_ms_per_frame=round(float(middle), 1), cpu_ms_undisturbed=round(float(low), 1))


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected argument {argv[1]!r}.")
    out = pathlib.Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    try:
        studio = clip.Studio(_SIZE.value)
    except assets.Missing as error:
        sys.exit(str(error))
    if "sheet" in _PARTS.value:
        contact_sheet(studio, _COUNT.value).save(out / "people.jpg", quality=82)
    if "visemes" in _PARTS.value:
        viseme_sheet(clip.Studio(512), _SEED.value).save(out / "visemes.jpg", quality=88)
    if "clip" in _PARTS.value:
        facts = spoken_clip(studio, _SEED.value, _VOICE.value, out / "speaking.mp4")
        logging.info("Measured: %s", facts)
        (out / "speed.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(f"Wrote {out}.")


if __name__ == "__main__":
    app.run(main)
