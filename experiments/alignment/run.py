"""How far phone times found from a recording are from the true ones.

  python -m experiments.alignment.run --corpus=runs/corpus
"""

import json
import pathlib

from absl import app
from absl import flags
import numpy as np
import tqdm

from tm_jax.data.corpus import alignment
from tm_jax.data.corpus import refinement
from tm_jax.data.corpus import speech
from tm_jax.data.synthetic import visemes
from tm_jax.evaluation import tables

_CORPUS = flags.DEFINE_string("corpus", "runs/corpus", "Folder written by launch/corpus.py.")
_UTTERANCES = flags.DEFINE_integer("utterances", 150, "At the most, of each voice.")

_HERE = pathlib.Path(__file__).parent
# Voices cut from recordings of people, whose programs tell when they begin each phone.
_PROGRAMS = ("festival", "flite")
_WORD = 5  # Phones of one word of the transcript.
_FPS = 25
_SIL = speech.PHONE_ID["SIL"]


def words(phones: np.ndarray) -> list[list[int]]:
    """Phone ids as a transcript without times or pauses."""
    spoken = [int(phone) for phone in phones[:, 2] if phone != _SIL]
    return [spoken[at : at + _WORD] for at in range(0, len(spoken), _WORD)]


def differences(truth: list, found: list) -> dict:
    """Distances of phone starts in milliseconds, and of the mouth they make.

    Args:
      truth: Utterances (audio, phones).
      found: The same with other times.
    """
    late_ms, mouths = [], ([], [])
    for (audio, own), (_, other) in zip(truth, found):
        own, other = np.asarray(own), np.asarray(other)
        starts = [rows[rows[:, 2] != _SIL, 0] for rows in (own, other)]
        late_ms.append(1000 * (starts[1] - starts[0]))
        frames = len(audio) * _FPS // speech.SAMPLE_RATE
        for kept, rows in zip(mouths, (own, other)):
            kept.append(visemes.mouth_curves(rows, frames, _FPS, audio)[:, 0])
    late_ms = np.concatenate(late_ms)
    opening = [np.concatenate(part) for part in mouths]
    return {
        "late_ms": round(float(np.median(late_ms)), 1) + 0.0,
        "distance_ms": round(float(np.median(np.abs(late_ms))), 1),
        "distance_p90_ms": round(float(np.percentile(np.abs(late_ms), 90)), 1),
        "mouth_correlation": round(float(np.corrcoef(*opening)[0, 1]), 4),
    }


def measure(speaker: speech.Speaker) -> dict:
    """Aligns what a voice said with its phones and compares with what the voice tells."""
    aligner = alignment.Aligner()
    truth, found = [], []
    for index in range(min(len(speaker), _UTTERANCES.value)):
        audio, phones = speaker.utterance(index)
        aligned = aligner.spelt(audio, words(phones)) or []
        # A phone to which the aligner gives no time is left out of its answer.
        if sum(phone != _SIL for *_, phone in aligned) == (phones[:, 2] != _SIL).sum():
            truth.append((audio, phones))
            found.append((audio, aligned))
    return {
        "minutes": round(sum(len(audio) for audio, _ in truth) / speech.SAMPLE_RATE / 60, 1),
        "aligned": differences(truth, found),
        "refined": differences(truth, refinement.refine(found)),
    }


def render(results: dict) -> str:
    """The table of the page."""
    rows = []
    for voice, found in results.items():
        pair = found["aligned"], found["refined"]
        rows.append([voice, tables.number(found["minutes"], 1)] + [
            f"{tables.number(pair[0][name], digits)} → {tables.number(pair[1][name], digits)}"
            for name, digits in (
                ("late_ms", 1), ("distance_ms", 0), ("distance_p90_ms", 0),
                ("mouth_correlation", 2),
            )
        ])  # fmt: skip
    head = ["voice", "minutes", "late, ms", "distance, ms", "9 of 10 within, ms", "mouth"]
    return "\n".join(tables.table(head, rows)).strip()


def main(argv: list[str]) -> None:
    """Writes `results.json` and the table."""
    del argv
    speakers = [
        speaker for split in speech.SPLITS for speaker in speech.load(_CORPUS.value, split)
        if speech.synthesiser(speaker.name) in _PROGRAMS
    ]  # fmt: skip
    results = {speaker.name: measure(speaker) for speaker in tqdm.tqdm(speakers)}
    (_HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    tables.put(_HERE / "README.md", render(results))


if __name__ == "__main__":
    app.run(main)
