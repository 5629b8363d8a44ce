"""Phone times of one speaker, on made sounds whose borders are exact."""

import numpy as np

from tm_jax.data.corpus import refinement
from tm_jax.data.corpus import speech

_RATE = speech.SAMPLE_RATE
_NAMES = ("SIL", "AA", "M", "S", "IY", "B", "SH", "UW")


def _speaker(rng, count):
    """Utterances of noise whose spectrum is its phone's own, with their true times."""
    shapes = {}
    for name in _NAMES:
        place = np.cumsum(rng.standard_normal(257)) / 4
        shapes[name] = np.exp(place - place.mean()) * (0.01 if name == "SIL" else 1.0)
    utterances = []
    for _ in range(count):
        spoken = rng.choice(_NAMES[1:], 14)
        names, edges, parts = ["SIL", *spoken, "SIL"], [0.0], []
        for name in names:
            samples = int(rng.uniform(0.06, 0.16) * _RATE)
            white = np.fft.rfft(rng.standard_normal(samples))
            shape = np.interp(np.linspace(0, 256, len(white)), np.arange(257), shapes[name])
            parts.append(np.fft.irfft(white * shape, samples))
            edges.append(edges[-1] + samples / _RATE)
        phones = [(s, e, speech.PHONE_ID[n]) for s, e, n in zip(edges, edges[1:], names)]
        utterances.append((0.05 * np.concatenate(parts), phones))
    return utterances


def _moved(rng, phones):
    """The same phones with borders 15 ms early and up to 25 ms beside."""
    edges = np.array([start for start, _, _ in phones[1:]])
    edges = edges - 0.015 + rng.uniform(-0.025, 0.025, len(edges))
    edges = np.concatenate([[0.0], edges, [phones[-1][1]]])
    return [(s, e, p) for s, e, (*_, p) in zip(edges, edges[1:], phones)]


def _distance(found, truth):
    return np.median([
        abs(a[0] - b[0]) for (_, x), (_, y) in zip(found, truth) for a, b in zip(x[1:], y[1:])
    ])  # fmt: skip


def test_borders_come_back_to_where_the_sound_changes():
    rng = np.random.default_rng(0)
    truth = _speaker(rng, 40)
    given = [(audio, _moved(rng, phones)) for audio, phones in truth]
    found = refinement.refine(given)
    assert _distance(given, truth) > 0.012
    assert _distance(found, truth) < 0.004
    for (audio, phones), (_, before) in zip(found, given):
        table = np.array(phones)
        assert [p[2] for p in phones] == [p[2] for p in before]
        assert table[0, 0] == 0 and abs(table[-1, 1] - len(audio) / _RATE) < 1e-9
        np.testing.assert_array_equal(table[1:, 0], table[:-1, 1])
        assert (table[:, 1] > table[:, 0]).all()


def test_an_utterance_too_short_for_its_phones_stays():
    rng = np.random.default_rng(1)
    truth = _speaker(rng, 10)
    ids = [speech.PHONE_ID[name] for name in ("AA", "M", "S", "IY")]
    short = rng.standard_normal(400) * 0.05, [
        (0.00625 * k, 0.00625 * (k + 1), phone) for k, phone in enumerate(ids)
    ]
    assert refinement.refine([*truth, short])[-1][1] == short[1]
