"""What the features of speech encoders tell of a mouth, of phones and of voice activity.

  python -m experiments.speech.run --corpus=runs/corpus \
    --weights="phones=runs/nano/speech/audio.safetensors"
"""

import json
import pathlib

from absl import app
from absl import flags
import numpy as np

from experiments.speech import features as features_lib
from experiments.speech import probes
from experiments.speech import report
from tm_jax.data.corpus import acoustics
from tm_jax.data.corpus import speech
from tm_jax.data.corpus import spoken
from tm_jax.data.corpus import tracks
from tm_jax.data.synthetic import visemes
from tm_jax.evaluation import facts
from tm_jax.evaluation import lipsync

_CORPUS = flags.DEFINE_string("corpus", "runs/corpus", "Folder written by launch/corpus.py.")
_WEIGHTS = flags.DEFINE_multi_string("weights", [], "LABEL=FILE of a small speech encoder.")
_COMPONENTS = flags.DEFINE_multi_integer(
    "components", [], "Also so many principal components of every small encoder."
)
_RECOGNISERS = flags.DEFINE_bool("recognisers", True, "Also the recognisers that are installed.")
_TRACKS = flags.DEFINE_integer("tracks", 3, "Training tracks of every voice.")
_TESTS = flags.DEFINE_integer("tests", 6, "Test tracks of every held-out voice.")
_OUT = flags.DEFINE_string(
    "out", str(pathlib.Path(__file__).parent / "results.json"), "JSON to write; what it holds is kept."
)

_FRAMES = 400  # Of a track's labels: 16 s.
_LEAD, _REST = 48, 8  # Frames before and after them.
_SHUT = 0.05  # Opening below which the lips of a label are shut.
_CLASSES = len(speech.PHONES)
_SILENCE = speech.PHONE_ID["SIL"]


def draw(speaker, count: int, seed: int, damaged: bool) -> list[dict]:
    """Tracks of one speaker with what is measured.

    Returns:
      Dictionaries of `audio` [640 (lead + n + rest)], `opening` [n], `phones` [n], `active`
      [n] and `closed` [n].
    """
    found, total = [], _LEAD + _FRAMES + _REST
    kept = slice(_LEAD, _LEAD + _FRAMES)
    for index in range(count):
        # The same seed lays the same utterances in both.
        mouth = tracks.track(speaker, np.random.default_rng((seed, index)), total)
        said = spoken.track(speaker, np.random.default_rng((seed, index)), total)
        audio = mouth.audio
        if damaged:
            audio = acoustics.damage(np.random.default_rng((seed, index, 1)), audio)
        opening = mouth.mouth[kept, visemes.COLUMNS.index("mouth_open")]
        phones = said.phones[kept, spoken.PARTS // 2]
        lips = np.isin(phones, [speech.PHONE_ID[name] for name in "MBP"])
        found.append({
            "audio": audio, "opening": opening, "phones": phones, "active": said.active[kept],
            "closed": lips & (opening < _SHUT),
        })  # fmt: skip
    return found


def seen(source, items: list[dict]) -> np.ndarray:
    """Windows of all tracks, [N, 6 U]."""
    kept = slice(_LEAD - probes.BEFORE, _LEAD + _FRAMES + probes.AFTER)
    return np.concatenate(
        [probes.windows(source.features(item["audio"])[kept]) for item in items]
    )


def labels(items: list[dict], name: str) -> np.ndarray:
    """One label of all tracks by latent frame, [N, 4]."""
    return np.concatenate([probes.grouped(item[name]) for item in items])


def judge(items, opening, logits) -> dict:
    """Measures of one voice.

    Args:
      items: Its tracks.
      opening: Estimated openings [N, 4].
      logits: Of phones, [N, 4, classes].
    """
    truth, found = labels(items, "opening").ravel(), opening.ravel()
    phones = labels(items, "phones").ravel()
    spoke = (phones != _SILENCE) & (phones != spoken.UNKNOWN)
    shut = lipsync.closures(found, labels(items, "closed").ravel(), spoke)
    return {
        "correlation": lipsync.correlation(found, truth),
        "lag_frames": lipsync.best_lag(found, truth).frames,
        "lips_shut": shut.kept, "lips_shut_by_chance": shut.chance,
        "phones": float((logits.reshape(-1, _CLASSES).argmax(-1) == phones)[spoke].mean()),
    }


def heard(source, items) -> float | None:
    """Mean of the shares of speech and of silence that the encoder itself finds."""
    if source.voice is None:
        return None
    kept = slice(_LEAD, _LEAD + _FRAMES)
    told = np.concatenate([source.voice(item["audio"])[kept] > 0 for item in items])
    active = np.concatenate([item["active"] for item in items])
    return float((told[active == 1].mean() + (~told[active == 0]).mean()) / 2)


def measure(source, training: list[dict], tests: dict) -> dict:
    """Trains the probes on features of training voices and tests them on held-out ones."""
    x = seen(source, training)
    truth, phones = labels(training, "opening"), labels(training, "phones")
    line = probes.ridge(x, truth)
    mouth = probes.network(x, truth.astype(np.float32))
    phone = probes.network(x, phones, _CLASSES)
    voices = {}
    for (name, condition), items in tests.items():
        inputs = seen(source, items)
        found = judge(items, mouth(inputs), phone(inputs))
        found["correlation_linear"] = lipsync.correlation(
            line(inputs).ravel(), labels(items, "opening").ravel()
        )
        found["voice"] = heard(source, items)
        voices.setdefault(name, {})[condition] = found
    return {
        "width": x.shape[1] // probes.WINDOW, "lookahead_ms": source.lookahead_ms,
        "voices": voices,
    }


def sources(training: list[dict]) -> list:
    """The spectrum, the encoders of the command line, the recognisers that are installed."""
    sounds = [item["audio"] for item in training]
    found = [features_lib.spectrum()]
    for text in _WEIGHTS.value:
        small = features_lib.small(*text.split("=", 1))
        found.append(small)
        found += [features_lib.components(small, width, sounds) for width in _COMPONENTS.value]
    return found + (features_lib.installed() if _RECOGNISERS.value else [])


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    out = pathlib.Path(_OUT.value)
    results = json.loads(out.read_text()) if out.exists() else {"sources": {}}
    training = []
    for index, speaker in enumerate(tracks.Voices(_CORPUS.value, "train").speakers):
        training += draw(speaker, _TRACKS.value, 100 + index, True)
    tests = {}
    for index, speaker in enumerate(tracks.Voices(_CORPUS.value, "held_out").speakers):
        for condition in ("clean", "damaged"):
            items = draw(speaker, _TESTS.value, 10 + index, condition == "damaged")
            tests[speaker.name, condition] = items
    results["training_tracks"], results["track_s"] = len(training), _FRAMES / 25
    about = facts.collect(None, tracks=_TRACKS.value, tests=_TESTS.value)
    results["facts"] = about | {"weights": "of each row as named"}
    for source in sources(training):
        if source.name in results["sources"]:
            continue  # Of an earlier run on the same tracks.
        results["sources"][source.name] = measure(source, training, tests)
        facts.write(str(out), results)
    report.put(results)


if __name__ == "__main__":
    app.run(main)
