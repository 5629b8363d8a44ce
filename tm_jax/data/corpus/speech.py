"""Recorded and synthetic speech with phone times: the inventory, the files, the split.

A corpus is a folder with one `.npz` per speaker and a `corpus.json` that describes
them. Every utterance is a slice of one int16 array at 16 kHz, and every phone is a
row (start, end, id) in seconds from the start of its utterance.

The split goes by speaker, never by utterance, and is a rule on the speaker's name
(`split_of`), so that no rebuild can move a voice from one side to the other:

  held_out  the LibriVox reader and the other small recordings of pocketsphinx-testdata,
            the Italian man (Carlo), the Russian speaker, and the flite voice "awb";
  train     everyone else: Allison in English and Spanish, June in French, the Czech and
            Dutch actors of Fish Fillets, the other flite voices, those of Festival, and all
            espeak-ng variants.
"""

from collections.abc import Sequence
import dataclasses
import json
import os
from typing import Any

import numpy as np

SAMPLE_RATE = 16000

# ARPAbet (39) with the schwa AX, silence, and four sounds of other languages.
# The order is the file format: append only.
PHONES = tuple(
    "SIL AA AE AH AO AW AX AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R "
    "S SH T TH UH UW V W Y Z ZH "
    "KH RR UE OE".split()  # ach/ich and the French r; trilled r; u umlaut; o umlaut.
)
PHONE_ID = {name: index for index, name in enumerate(PHONES)}

_HELD_OUT = ("librivox_", "testdata_", "asterisk_it_", "asterisk_ru_", "flite_awb")
SPLITS = ("train", "held_out")
_INDEX = "corpus.json"


_SYNTHESISERS = ("espeak", "flite", "festival")


def synthesiser(speaker: str) -> str | None:
    """The program that speaks, by a speaker's name; None for a recorded person."""
    return next((name for name in _SYNTHESISERS if speaker.startswith(name)), None)


def split_of(speaker: str) -> str:
    """Returns "train" or "held_out", by the rule in the module docstring."""
    return "held_out" if speaker.startswith(_HELD_OUT) else "train"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speaker:
    """All utterances of one voice.

    Attributes:
      name: File name without extension.
      language: Two-letter code.
      split: "train" or "held_out".
      audio: All utterances end to end, int16 [samples].
      bounds: Sample range of every utterance, int64 [U, 2].
      phone_start: Seconds from the start of the utterance, float32 [N].
      phone_end: Seconds from the start of the utterance, float32 [N].
      phone_id: Index into `PHONES`, int16 [N].
      phone_range: Rows of the phone arrays that belong to each utterance, [U, 2].
    """

    name: str
    language: str
    split: str
    audio: np.ndarray
    bounds: np.ndarray
    phone_start: np.ndarray
    phone_end: np.ndarray
    phone_id: np.ndarray
    phone_range: np.ndarray

    def __len__(self):
        return len(self.bounds)

    @property
    def minutes(self) -> float:
        """Length of all its speech in minutes."""
        return len(self.audio) / SAMPLE_RATE / 60

    def utterance(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns one utterance.

        Args:
          index: Utterance number in [0, len(self)).

        Returns:
          Audio in [-1, 1], float32 [samples], and its phones as float64 [N, 3] with
          the columns start in seconds, end in seconds, id.
        """
        start, stop = self.bounds[index]
        rows = slice(*self.phone_range[index])
        phones = np.stack(
            [self.phone_start[rows], self.phone_end[rows], self.phone_id[rows]],
            axis=1,
        )  # [N, 3]
        audio = self.audio[start:stop].astype(np.float32) / 32768
        return audio, phones.astype(np.float64)


def save(
    folder: str | os.PathLike, name: str, utterances: Sequence[tuple[np.ndarray, Any]],
    **facts: Any
) -> dict[str, Any]:
    """Writes one speaker and adds it to the index of the corpus.

    Args:
      folder: Corpus folder; created if missing.
      name: Speaker name; decides the split.
      utterances: List of (audio float [samples] in [-1, 1], phones [(start, end, id)]).
      **facts: Strings kept in the index: language, source, licence, alignment.

    Returns:
      The entry written to the index.
    """
    if not utterances:
        raise ValueError(f"{name}: expected at least one utterance, got none.")
    ends = np.cumsum([len(audio) for audio, _ in utterances])
    starts = np.concatenate([[0], ends[:-1]])
    rows = np.concatenate([_checked(name, p) for _, p in utterances])  # [N, 3]
    owner = np.repeat(np.arange(len(utterances)), [len(p) for _, p in utterances])
    pcm = np.concatenate([audio for audio, _ in utterances])
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, f"{name}.npz")
    with open(path + ".part", "wb") as file:
        np.savez(
            file,
            audio=np.round(np.clip(pcm, -1, 32767 / 32768) * 32768).astype(np.int16),
            bounds=np.stack([starts, ends], axis=1).astype(np.int64),
            phone_start=rows[:, 0].astype(np.float32),
            phone_end=rows[:, 1].astype(np.float32),
            phone_id=rows[:, 2].astype(np.int16),
            phone_utterance=owner.astype(np.int32),
        )
    os.replace(path + ".part", path)
    entry = dict(
        facts,
        split=split_of(name),
        minutes=round(len(pcm) / SAMPLE_RATE / 60, 2),
        utterances=len(utterances),
        phones=len(rows),
    )
    index = read_index(folder)
    index[name] = entry
    with open(os.path.join(folder, _INDEX + ".part"), "w") as file:
        json.dump(index, file, indent=2, sort_keys=True, ensure_ascii=False)
    os.replace(os.path.join(folder, _INDEX + ".part"), os.path.join(folder, _INDEX))
    return entry


def read_index(folder: str | os.PathLike) -> dict[str, dict]:
    """Returns the index {speaker: facts} of a corpus; empty if there is none yet."""
    try:
        with open(os.path.join(folder, _INDEX)) as file:
            return json.load(file)
    except FileNotFoundError:
        return {}


def lost(folder: str | os.PathLike) -> list[str]:
    """Returns the speakers of the index whose file is no longer there, in order."""
    return [
        name for name in sorted(read_index(folder))
        if not os.path.exists(os.path.join(folder, f"{name}.npz"))
    ]


def load(folder: str | os.PathLike, split: str) -> list[Speaker]:
    """Loads the speakers of one split, in the order of their names.

    Args:
      folder: Corpus folder written by `save`.
      split: "train" or "held_out".

    Returns:
      List of `Speaker`.

    Raises:
      ValueError: No such split; no corpus here, or not all of it.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {SPLITS}, got {split!r}.")
    index = read_index(folder)
    if not index:
        raise ValueError(
            f"{folder}: no {_INDEX} here; build it with "
            f"`python -m launch.corpus --out {folder}`."
        )
    if gone := lost(folder):
        raise ValueError(
            f"{folder}: {_INDEX} names {', '.join(gone)}, but there is no {gone[0]}.npz; make "
            f"what is missing with `python -m launch.corpus --out {folder}`."
        )
    names = sorted(name for name in index if split_of(name) == split)
    return [_read(folder, name, index[name]) for name in names]


def read_audio(path: str | os.PathLike) -> np.ndarray:
    """Decodes a sound file to float32 [samples] at 16 kHz."""
    import av  # Needed to build a corpus, not to read one.

    kind = "g722" if str(path).endswith(".g722") else None
    resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
    chunks = [np.zeros(0, np.int16)]  # Some recordings are empty.
    with av.open(str(path), "r", format=kind) as container:
        for frame in container.decode(audio=0):
            chunks += [f.to_ndarray()[0] for f in resampler.resample(frame)]
        chunks += [f.to_ndarray()[0] for f in resampler.resample(None)]
    return np.concatenate(chunks).astype(np.float32) / 32768


def _read(folder, name, entry):
    with np.load(os.path.join(folder, f"{name}.npz")) as file:
        arrays = {key: file[key] for key in file.files}
    owner = arrays.pop("phone_utterance")
    count = np.arange(len(arrays["bounds"]))
    ranges = np.stack(
        [np.searchsorted(owner, count), np.searchsorted(owner, count, side="right")],
        axis=1,
    )  # [U, 2]
    return Speaker(
        name=name,
        language=entry["language"],
        split=split_of(name),
        phone_range=ranges,
        **arrays,
    )


def _checked(name, phones):
    phones = np.asarray(phones, np.float64).reshape(-1, 3)
    if not len(phones):
        raise ValueError(f"{name}: expected phones in every utterance, got none.")
    if np.any(phones[:, 1] <= phones[:, 0]) or np.any(np.diff(phones[:, 0]) < 0):
        raise ValueError(f"{name}: phone times are not increasing: {phones[:8]}.")
    if phones[:, 2].min() < 0 or phones[:, 2].max() >= len(PHONES):
        raise ValueError(f"{name}: phone ids must lie in [0, {len(PHONES)}).")
    return phones
