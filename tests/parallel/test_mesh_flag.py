"""Meshes as launchers are given them: what they mean, and what a mistake is told."""

import jax
import pytest

from tm_jax.parallel import mesh_flag
from tm_jax.parallel import rules


@pytest.mark.parametrize(
    "text, devices, expected",
    [
        ("", 8, (8, 1, 1, 1)),
        ("fsdp=8,seq=2", 16, (1, 8, 2, 1)),
        ("fsdp=8,seq=2", 64, (4, 8, 2, 1)),
        (" tensor = 2 , seq=4 ", 8, (1, 1, 4, 2)),
        ("data=2,fsdp=2,seq=2,tensor=1", 8, (2, 2, 2, 1)),
        ("data=1", 1, (1, 1, 1, 1)),
    ],
)
def test_sizes_of_all_axes(text, devices, expected):
    sizes = mesh_flag.parse(text, devices)
    assert sizes == dict(zip(rules.MESH_AXES, expected))
    assert tuple(sizes) == rules.MESH_AXES


def test_named_sizes_need_no_devices():
    assert mesh_flag.sizes("fsdp=4096, seq=2") == {"fsdp": 4096, "seq": 2}
    assert mesh_flag.sizes("") == {}
    with pytest.raises(ValueError, match="unknown axis 'fdsp'"):
        mesh_flag.sizes("fdsp=8")


def test_make_mesh_takes_them():
    mesh = rules.make_mesh(**mesh_flag.parse("seq=2,tensor=2", len(jax.devices())))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 1, "seq": 2, "tensor": 2}


@pytest.mark.parametrize(
    "text, devices, message",
    [
        ("fsdp", 8, "expected axis=number, got 'fsdp'; for example --mesh=fsdp=8,seq=2"),
        ("fsdp:8", 8, "expected axis=number, got 'fsdp:8'"),
        ("fdsp=8", 8, "unknown axis 'fdsp'; choose from data, fsdp, seq, tensor"),
        ("fsdp=2,fsdp=4", 8, "axis fsdp is named twice"),
        ("seq=two", 8, "the size of seq must be a whole number from 1, got 'two'"),
        ("seq=0", 8, "whole number from 1, got '0'"),
        ("seq=-2", 8, "whole number from 1, got '-2'"),
        ("seq=2.5", 8, "whole number from 1, got '2.5'"),
        ("seq=²", 8, "whole number from 1, got '²'"),
        ("seq=", 8, "whole number from 1, got ''"),
        (
            "fsdp=8,seq=2", 8,
            "needs 16 devices or a multiple, there are 8; "
            "--mesh=fsdp=4,seq=2 or --mesh=fsdp=8,seq=1 or --mesh=fsdp=2,seq=2 would fit",
        ),
        ("tensor=3", 8, "--mesh=tensor=4 or --mesh=tensor=2 or --mesh=tensor=8 would fit"),
        ("data=3", 8, "needs exactly 3 devices, there are 8; --mesh=data=8 would fit"),
        ("seq=2", 1, "there is 1; --mesh=seq=1 would fit"),
    ],
)
def test_a_mistake_is_told_what_would_be_right(text, devices, message):
    with pytest.raises(ValueError) as error:
        mesh_flag.parse(text, devices)
    assert str(error.value).startswith(f"--mesh={text}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["fsdp=8,seq=2", "tensor=3,seq=5", "data=4,seq=3"])
@pytest.mark.parametrize("devices", [1, 6, 12, 40])
def test_what_a_message_proposes_fits(text, devices):
    try:
        mesh_flag.parse(text, devices)
        proposals = []
    except ValueError as error:
        proposals = [w for w in str(error).split("; ")[-1].split() if w.startswith("--mesh=")]
        assert proposals
    for proposal in proposals:
        mesh_flag.parse(proposal.removeprefix("--mesh="), devices)
