"""Damaged messages, pictures and sound files are refused in words, and nothing else."""

import pytest

from experiments.call import targets

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")

_EXAMPLES = targets.examples()
_COUNT = {"text": 150, "binary": 150, "picture": 150, "sound": 40}


@st.composite
def _damaged(draw, name):
    """An example that is cut short, has bytes changed, put in or repeated; or only noise."""
    data = bytearray(draw(st.sampled_from([*_EXAMPLES[name], b""])))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, min(len(data), 400))))  # Headers are where harm is.
        piece = draw(st.binary(min_size=1, max_size=8))
        match draw(st.sampled_from(("cut", "change", "insert", "repeat"))):
            case "cut":
                del data[at:]
            case "change":
                data[at : at + len(piece)] = piece
            case "insert":
                data[at:at] = piece
            case "repeat":
                data[at:at] = data[at : at + 64]
    return bytes(data)


@pytest.mark.parametrize("name", sorted(targets.TARGETS))
def test_examples_are_taken_or_refused(name):
    for example in _EXAMPLES[name]:
        targets.TARGETS[name](example)


@pytest.mark.parametrize("name", sorted(targets.TARGETS))
@pytest.mark.filterwarnings("ignore")
def test_damage_never_breaks_a_decoder(name):
    @hypothesis.settings(
        deadline=None, max_examples=_COUNT[name],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(_damaged(name))
    def check(data):
        targets.TARGETS[name](data)

    check()
