"""Measures the nano preset on held-out voices and characters, from pixels alone.

  python -m experiments.nano.quality --weights=runs/nano --corpus=runs/corpus

Keys of the result: `summary` holds medians over clips by arm and group, `clips` every clip,
`silence` the mouth without an own voice relative to speech, `long` drift over a long stream,
`seed` whether a seed fixes the video. `seams` is the change at chunk borders relative to the
change inside the chunks beside (`chunk`), relative to that at the borders of latents inside
them (`chunk_to_latent`), and at borders of latents relative to the rest (`latent`). Arms:
`auto` and `speak` are sessions in these modes, `truth` is the renderer with the true motion,
`autoencoder` the same after encoding and decoding, `static` the reference picture.
"""

import functools
import pathlib

from absl import app
from absl import flags
from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from experiments.nano import contact
from experiments.nano import facts
from experiments.nano import scenes
from tm_jax.data import drawn
from tm_jax.data import speech
from tm_jax.evaluation import identity
from tm_jax.evaluation import lipsync
from tm_jax.evaluation import mouth
from tm_jax.evaluation import seams
from tm_jax.inference import bundle as bundle_lib
from tm_jax.inference import session as session_lib
from tm_jax.models import face as face_lib
from tm_jax.models.motion import config as motion_config

_WEIGHTS = flags.DEFINE_string("weights", None, "Folder of weights; the shipped ones by default.")
_CORPUS = flags.DEFINE_string("corpus", "runs/corpus", "Folder written by launch/corpus.py.")
_OUT = flags.DEFINE_string(
    "out", str(pathlib.Path(__file__).parent / "results" / "quality.json"), "JSON to write."
)
_SHEET = flags.DEFINE_string("sheet", None, "PNG to write with frames to look at.")
_CLIPS = flags.DEFINE_integer("clips", 24, "Clips with human voices.", lower_bound=1)
_SYNTHETIC = flags.DEFINE_integer("synthetic_clips", 4, "Clips with a synthetic voice.")
_SILENT = flags.DEFINE_integer("silent_clips", 8, "Of the first, how many are also silent.")
_SECONDS = flags.DEFINE_float("seconds", 8, "Length of a clip.", lower_bound=2)
_LONG = flags.DEFINE_float("long_seconds", 300, "Length of the long clip; 0 for none.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of scenes and noise.")

ARMS = ("auto", "speak", "truth", "autoencoder", "static")
_WINDOW_S = 10.0
_SYNC_S = 30.0
_OPEN = 0.01  # Least opening of speech that others are compared with.
_CHECK_EVERY = 50  # Chunks between looks at the state.


def stream(bundle, picture, sound, mode, seed):
    """Yields (session, chunk) for as many chunks as the sound lasts, rounded up."""
    session = session_lib.Session(bundle, picture, seed=seed, mode=mode)
    step = bundle.preset.timing.samples_per_chunk
    left = -(-len(sound) // step)
    fed = 0
    while left:
        chunk = session.pull()
        if chunk is not None:
            left -= 1
            yield session, chunk
        elif fed < len(sound):
            session.push_audio(sound[fed : fed + step])
            fed += step
        else:
            session.end_audio()
    session.close()


def speak(bundle, scene, sound, mode, seed):
    """Frames for a sound, uint8 [T, H, W, 3], and the share of chunks in which it speaks."""
    chunks = [chunk for _, chunk in stream(bundle, scene.picture, sound, mode, seed)]
    frames = np.concatenate([chunk.frames for chunk in chunks])
    return frames[: len(scene.motion)], float(np.mean([chunk.speaking for chunk in chunks]))


class Autoencoder:
    """Encodes and decodes frames with the bundle's autoencoder, chunk by chunk."""

    def __init__(self, bundle):
        self._bundle = bundle
        models = bundle.models

        @jax.jit
        def encode(params, frames, place, picture):
            squares = face_lib.cut(drawn.to_float(frames[None]), place.square, models.preset.crop)
            return models.vae.apply({"params": params}, squares, picture, method=models.vae.encode)

        self._encode = functools.partial(encode, bundle.params["vae"])

    def __call__(self, picture: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """Returns frames [T, H, W, 3] as a stream of the true latents would show them."""
        bundle, step = self._bundle, self._bundle.preset.timing.frames_per_chunk
        key = bundle_lib.stream_key(0)[None]
        start, _, state = bundle.begin(bundle.params, picture[None], key)
        still = np.zeros((1, step, len(motion_config.POSE)), np.float32)
        shown = []
        for at in range(0, len(frames), step):
            part = frames[at : at + step]
            part = np.concatenate([part, np.repeat(part[-1:], step - len(part), 0)])
            z = self._encode(part, start.place, state.picture)
            scored = bundle_lib.Scored(latents=z, pose=still, place=start.place)
            pixels, state = bundle.decode(bundle.params, scored, state)
            shown.append(np.asarray(pixels[0]))
        return np.concatenate(shown)[: len(frames)]


def opened(scene: scenes.Scene, frames: np.ndarray) -> np.ndarray:
    """Measured opening [T], 0 for lips shut as in the reference."""
    return np.maximum(mouth.opening(frames, scene.mouth_box) - scene.rest, 0)


def travel(opening: np.ndarray) -> float:
    """How much a measured opening changes from frame to frame, on average."""
    return float(np.abs(np.diff(opening)).mean())


def measure(scene: scenes.Scene, frames: np.ndarray) -> dict:
    """What the mouth of one clip does."""
    opening, truth = opened(scene, frames), scene.track.mouth[:, 0]
    lag = lipsync.best_lag(opening, truth)
    shut = lipsync.closures(opening, scene.closed, scene.spoken)
    return {
        "correlation": lipsync.correlation(opening, truth),
        "lag_frames": lag.frames,
        "correlation_at_lag": lag.correlation,
        "closures_kept": shut.kept,
        "closures_by_chance": shut.chance,
        "closures": shut.count,
        "opening_p95": float(np.percentile(opening, 95)),
        "travel": travel(opening),
        "movement": float(mouth.movement(frames, scene.mouth_box).mean()),
    }


def silent_measures(bundle, scene, overheard, speaking: dict) -> dict:
    """The mouth without an own voice relative to the same character's speech."""
    frames = len(scene.motion)
    arms = {
        "auto_silence": (np.zeros_like(scene.track.audio), "auto"),
        "auto_noise": (scenes.room(scene.index, frames), "auto"),
        "listen_overheard": (overheard, "listen"),
    }
    videos = {
        name: speak(bundle, scene, sound, mode, _SEED.value) for name, (sound, mode) in arms.items()
    }
    videos["truth_listening"] = (scene.draw(scene.listening()), 0.0)
    result = {"scene": scene.index, "style": scene.style}
    for name, (video, share) in videos.items():
        base = speaking["truth" if name.startswith("truth") else "auto"]
        opening = opened(scene, video)
        moving = mouth.movement(video, scene.mouth_box).mean()
        result[name] = {
            "travel_ratio": travel(opening) / max(base["travel"], 1e-4),
            "movement_ratio": float(moving / max(base["movement"], 1e-6)),
            "opening_ratio": float(np.percentile(opening, 95) / max(base["opening_p95"], _OPEN)),
            "speaking": share,
        }
    return result


def summarise(clips: list[dict]) -> dict:
    """Medians over clips of every arm: all human voices, by voice, by style, synthetic."""
    human = [c for c in clips if not c["synthetic"]]
    groups = {"human": human, "synthetic": [c for c in clips if c["synthetic"]]}
    for key in ("speaker", "style"):
        chosen = clips if key == "speaker" else human
        for name in sorted({c[key] for c in chosen}):
            groups[f"{key} {name}"] = [c for c in chosen if c[key] == name]
    return {
        group: {"clips": len(rows), **{arm: _medians([r[arm] for r in rows]) for arm in ARMS}}
        for group, rows in groups.items() if rows
    }


def _medians(rows: list[dict]) -> dict:
    result = {}
    for key in rows[0]:
        values = np.array([row[key] for row in rows], float)
        if key in ("closures_kept", "closures_by_chance"):  # Shares of all closures together.
            counts = np.array([row["closures"] for row in rows], float)
            known = np.isfinite(values) & (counts > 0)
            total = counts[known].sum()
            result[key] = float((values[known] * counts[known]).sum() / total) if total else None
        elif key == "closures":
            result[key] = int(values.sum())
        else:
            result[key] = float(np.median(values))
    return result


def silence_summary(rows: list[dict]) -> dict:
    """Medians over clips of every arm of `silent_measures`."""
    arms = [key for key in rows[0] if isinstance(rows[0][key], dict)]
    return {
        arm: {key: float(np.median([row[arm][key] for row in rows])) for key in rows[0][arm]}
        for arm in arms
    }


def _finite(session) -> bool:
    """Whether the state is finite. Pixels cannot tell: they are integers.

    A number that is not finite stays in the cache and spoils all that follows, so the state
    now and then tells of all chunks before.
    """
    leaves = jax.tree.leaves((session._state, session._decoder))
    floats = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]
    return all(bool(jnp.isfinite(x).all()) for x in floats)


def long_measures(bundle, scene: scenes.Scene) -> dict:
    """Identity, colour, lips and seams of one long stream; frames are not kept."""
    timing, size = bundle.preset.timing, bundle.preset.height
    y0, x0, y1, x1 = np.round(scene.mouth_box * size).astype(int)
    top, left, bottom, right = scene.face_box
    upper = np.array([top, left, top + 0.55 * (bottom - top), right])
    crops, change, last = [], [], None
    values = {"colour_distance": [], "picture_distance": [], "likeness": []}
    finite = True
    count = -(-len(scene.track.audio) // timing.samples_per_chunk)
    video = stream(bundle, scene.picture, scene.track.audio, "auto", _SEED.value)
    for index, (session, chunk) in enumerate(video):
        crops.append(chunk.frames[:, y0:y1, x0:x1].copy())
        change.append(seams.changes(chunk.frames, last))
        last = chunk.frames[-1]
        values["colour_distance"].append(identity.colour_distance(last[None], scene.picture)[0])
        values["picture_distance"].append(identity.picture_distance(last[None], scene.picture)[0])
        values["likeness"].append(identity.likeness(last[None], scene.picture, upper)[0])
        if (index + 1) % _CHECK_EVERY == 0 or index + 1 == count:
            finite = finite and _finite(session)
            logging.info("Long clip: %.0f s.", (index + 1) * timing.chunk_s)
    frames = len(scene.motion)
    opening = mouth.opening(np.concatenate(crops)[:frames], np.array([0, 0, 1, 1]))
    part = min(round(_SYNC_S * timing.fps), frames // 2)
    truth = scene.track.mouth[:, 0]
    rate = 1 / timing.chunk_s
    return {
        "seconds": frames / timing.fps, "speaker": scene.speaker, "style": scene.style,
        "finite": finite,
        "drift": {k: identity.drift(np.array(v), rate, _WINDOW_S) for k, v in values.items()},
        "correlation": lipsync.correlation(opening, truth),
        "correlation_first_30_s": lipsync.correlation(opening[:part], truth[:part]),
        "correlation_last_30_s": lipsync.correlation(opening[-part:], truth[-part:]),
        "seams": seam_measures(np.concatenate(change), timing),
    }


def seed_measures(bundle, scene: scenes.Scene) -> dict:
    """Whether the same seed gives the same video, and how much another one changes."""
    sound = scene.track.audio[: 2 * bundle.preset.timing.sample_rate]
    a, b, c = (speak(bundle, scene, sound, "auto", seed)[0] for seed in (1, 1, 2))
    other = np.abs(a.astype(np.int16) - c).mean() / 255
    return {"same_seed_same_video": bool((a == b).all()), "other_seed_difference": float(other)}


def seam_measures(change: np.ndarray, timing) -> dict[str, seams.Seams]:
    """Seams of one video: of chunks, of chunks against latents, and of latents."""
    chunk, latent = timing.frames_per_chunk, timing.frames_per_latent
    return {
        "chunk": seams.measure(change, chunk),
        "chunk_to_latent": seams.measure(change, chunk, among=latent),
        "latent": seams.measure(change, latent),
    }


def pooled_seams(change: dict[str, list[np.ndarray]], timing) -> dict:
    """Seams of every arm: medians over clips of each clip's median and 95th percentile."""
    result = {}
    for arm, rows in change.items():
        found = [seam_measures(row, timing) for row in rows]
        result[arm] = {
            kind: {
                "median": float(np.median([f[kind].median for f in found])),
                "p95": float(np.median([f[kind].p95 for f in found])),
                "borders": sum(f[kind].borders for f in found),
            }
            for kind in found[0]
        }
    return result


def run(bundle, speakers: list[speech.Speaker]) -> dict:
    """Measures everything; returns the result without facts."""
    preset = bundle.preset
    make = functools.partial(scenes.make, size=preset.height, seed=_SEED.value)
    frames = round(_SECONDS.value * preset.timing.fps)
    human = [s for s in speakers if not scenes.is_synthetic(s)]
    machine = [s for s in speakers if scenes.is_synthetic(s)]
    plan = [(human, i) for i in range(_CLIPS.value)]
    plan += [(machine, _CLIPS.value + i) for i in range(_SYNTHETIC.value) if machine]
    code = Autoencoder(bundle)
    clips, silence, sheet, change = [], [], [], {arm: [] for arm in ARMS[:-1]}
    overheard = None
    for voices, index in plan:
        scene = make(voices, index, frames)
        truth = scene.draw(scene.motion)
        videos = {
            mode: speak(bundle, scene, scene.track.audio, mode, _SEED.value) for mode in ARMS[:2]
        }
        share = videos["auto"][1]
        videos = {mode: video for mode, (video, _) in videos.items()}
        videos |= {"truth": truth, "autoencoder": code(scene.picture, truth)}
        videos["static"] = np.repeat(scene.picture[None], len(truth), 0)
        row = {arm: measure(scene, video) for arm, video in videos.items()}
        for arm in change:
            change[arm].append(seams.changes(videos[arm]))
        clips.append({
            "scene": index, "speaker": scene.speaker, "synthetic": scene.synthetic,
            "style": scene.style, "speaking": share, **row,
        })  # fmt: skip
        if index < _SILENT.value:
            if overheard is None:
                overheard = make(human, len(plan) + 4, frames).track.audio
            silence.append(silent_measures(bundle, scene, overheard, row))
        overheard = scene.track.audio
        if len(sheet) < 4:
            sheet.append((scene, truth, videos["auto"]))
        logging.info(
            "Clip %d of %d, %s, %s: correlation %.2f (truth %.2f).", len(clips), len(plan),
            scene.speaker, scene.style, row["auto"]["correlation"], row["truth"]["correlation"],
        )
    if _SHEET.value:
        contact.draw(sheet).save(_SHEET.value)
    result = {"summary": summarise(clips)}
    if silence:
        result["silence"] = silence_summary(silence)
    result["seams"] = pooled_seams(change, preset.timing)
    result["seed"] = seed_measures(bundle, make(human, 0, frames))
    if _LONG.value:
        scene = make(human, 0, round(_LONG.value * preset.timing.fps))
        result["long"] = long_measures(bundle, scene)
    return result | {"clips": clips, "silent_clips": silence}


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.INFO)
    speakers = speech.load(_CORPUS.value, "held_out")
    bundle = bundle_lib.load("nano", _WEIGHTS.value)
    settings = {
        "clips": _CLIPS.value, "synthetic_clips": _SYNTHETIC.value, "seed": _SEED.value,
        "silent_clips": _SILENT.value, "seconds": _SECONDS.value, "long_seconds": _LONG.value,
    }
    facts.write(_OUT.value, facts.collect(_WEIGHTS.value, **settings) | run(bundle, speakers))


if __name__ == "__main__":
    app.run(main)
