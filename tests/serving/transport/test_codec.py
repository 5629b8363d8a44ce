"""Messages: there and back, limits, and garbage that must never raise anything else."""

import dataclasses
import json
import pathlib
import re
import typing

import pytest

from tm_jax.serving.transport import codec
from tm_jax.serving.transport import messages
from tm_jax.serving.transport import protocol

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")

_DOCS = pathlib.Path(__file__).parents[3] / "docs" / "protocol.md"
_QUICK = hypothesis.settings(deadline=None, max_examples=200)


def values(field, hint):
    """A strategy for one field of a message."""
    kinds = typing.get_args(hint) or (hint,)
    choices = field.metadata.get("choices")
    by_kind = {
        str: st.sampled_from(choices) if choices else st.text(max_size=200),
        int: st.integers(0, 2**32 - 1), bool: st.booleans(), type(None): st.none(),
        float: st.floats(allow_nan=False, allow_infinity=False),
        dict: st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
        list: st.lists(st.integers(), max_size=3),
    }  # fmt: skip
    return st.one_of(*(by_kind[kind] for kind in kinds))


def strategy(kind):
    hints = typing.get_type_hints(kind)
    return st.builds(
        kind, **{f.name: values(f, hints[f.name]) for f in dataclasses.fields(kind)}
    )


@pytest.mark.parametrize("name", sorted({**messages.FROM_CLIENT, **messages.FROM_SERVER}))
def test_every_message_comes_back_as_it_was(name):
    kind = {**messages.FROM_CLIENT, **messages.FROM_SERVER}[name]
    read = codec.from_client if name in messages.FROM_CLIENT else codec.from_server

    @hypothesis.settings(deadline=None, max_examples=25)
    @hypothesis.given(strategy(kind))
    def check(message):
        text = codec.to_text(message)
        assert json.loads(text)["type"] == name
        assert read(text) == message

    check()


@_QUICK
@hypothesis.given(st.text())
@hypothesis.example("9" * 5000)
@hypothesis.example("[" * 10000)
@hypothesis.example('{"type":"ping","t":1e999}')
@hypothesis.example('{"type":"hello","version":true}')
@hypothesis.example('{"type":"hello","version":"1"}')
@hypothesis.example('{"type":["hello"]}')
@hypothesis.example('{"type":"character","character":"\\ud800"}')
def test_text_that_is_not_a_message_is_explained(text):
    try:
        codec.from_client(text)
    except protocol.ProtocolError as error:
        assert error.code in protocol.ERRORS and str(error) and "\n" not in str(error)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@_QUICK
@hypothesis.given(
    st.sampled_from(sorted(messages.FROM_CLIENT)),
    st.dictionaries(
        st.sampled_from(["version", "token", "mode", "character", "generation", "frame", "t"]),
        _json, max_size=5,
    ),
)
def test_wrong_fields_are_explained(name, fields):
    text = json.dumps({"type": name, **fields})
    try:
        message = codec.from_client(text)
    except protocol.ProtocolError as error:
        assert error.code in ("bad_message", "too_large")
    else:
        assert type(message) is messages.FROM_CLIENT[name]


@_QUICK
@hypothesis.given(
    st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1),
    st.binary(min_size=2, max_size=300).filter(lambda b: len(b) % 2 == 0),
)
def test_sound_comes_back(sequence, position, captured_ms, pcm):
    sound = messages.Sound(
        sequence=sequence, position=position, captured_ms=captured_ms, pcm=pcm
    )
    assert codec.sound_from_bytes(codec.sound_to_bytes(sound)) == sound


@_QUICK
@hypothesis.given(
    st.builds(
        messages.Frames, generation=st.integers(0, 2**32 - 1), frame=st.integers(0, 2**32 - 1),
        pts=st.integers(0, 2**32 - 1), source=st.integers(0, 2**32 - 1), first=st.booleans(),
        speaking=st.booleans(), own_voice=st.booleans(), pcm=st.binary(max_size=100),
        jpegs=st.lists(st.binary(max_size=30), min_size=1, max_size=5).map(tuple),
    )
)
def test_frames_come_back(frames):
    assert codec.frames_from_bytes(codec.frames_to_bytes(frames)) == frames


@_QUICK
@hypothesis.given(st.binary(max_size=400), st.integers(0, 3), st.booleans())
def test_bytes_that_are_no_message_are_explained(data, kind, headed):
    if headed:  # Past the first check, where mistakes would hide.
        data = bytes((0x54, 1, kind)) + data
    for read in (codec.sound_from_bytes, codec.frames_from_bytes):
        try:
            read(data)
        except protocol.ProtocolError as error:
            assert error.code in protocol.ERRORS


def test_a_frame_message_is_laid_out_as_described():
    data = codec.frames_to_bytes(
        messages.Frames(
            generation=1, frame=2, pts=3, source=4, first=True, own_voice=True,
            pcm=b"pcm!", jpegs=(b"one", b"three"),
        )
    )
    assert data[:4] == bytes((0x54, 1, 1, 5))
    words = [int.from_bytes(data[i : i + 4], "little") for i in (4, 8, 12, 16, 24, 28, 32)]
    assert words == [1, 2, 3, 4, 4, 3, 5] and data[20:24] == bytes((2, 0, 0, 0))
    assert data[36:] == b"pcm!onethree"


def test_limits_of_sizes():
    assert protocol.JSON_BYTES == 16384
    with pytest.raises(protocol.ProtocolError, match="16384 bytes") as error:
        codec.from_client('{"type":"ping"}' + " " * protocol.JSON_BYTES)
    assert error.value.code == "too_large"
    with pytest.raises(protocol.ProtocolError, match="48000 bytes") as error:
        codec.sound_from_bytes(
            codec.sound_to_bytes(
                messages.Sound(sequence=0, position=0, captured_ms=0, pcm=bytes(48002))
            )
        )
    assert error.value.code == "too_large"
    with pytest.raises(protocol.ProtocolError, match="longer than 256"):
        codec.from_client(json.dumps({"type": "character", "character": "x" * 257}))


def test_the_description_names_every_message_and_code():
    text = _DOCS.read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+)`", text))
    assert set(messages.FROM_CLIENT) | set(messages.FROM_SERVER) <= named
    assert set(protocol.ERRORS) <= named and set(protocol.SPANS) <= named
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| `")}
    for name, kind in messages.FROM_CLIENT.items():
        for field in dataclasses.fields(kind):
            assert f"`{field.name}`" in rows[f"`{name}`"] or name == "start", (name, field.name)
    codes = {str(c) for c in protocol.ERRORS.values() if c} | {"4000", "4003"}
    assert all(re.search(rf"\b{code}\b", text) for code in codes)
