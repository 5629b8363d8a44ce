"""Collectives read from HLO: programs with known ones, and texts by hand."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from tm_jax.parallel import rules
from tm_jax.planning import collectives

_TEXT = """HloModule step, num_partitions=8

%body (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %p = (s32[], f32[8,16]{1,0}) parameter(0)
  %x = f32[8,16]{1,0} get-tuple-element(%p), index=1
  %r = f32[8,16]{1,0} all-reduce(%x), replica_groups=GROUPS, to_apply=%add
  ROOT %t = (s32[], f32[8,16]{1,0}) tuple(%p, %r)
}

%all-reduce-scatter.1 (input: f32[8,16]) -> f32[2,16] {
  %input = f32[8,16]{1,0} parameter(0)
  %all-reduce.3 = f32[8,16]{1,0:T(8,128)} all-reduce(%input), replica_groups=GROUPS, to_apply=%add
  ROOT %slice = f32[2,16]{1,0} dynamic-slice(%all-reduce.3), dynamic_slice_sizes={2,16}
}

ENTRY %main (a: f32[8,16]) -> f32[2,16] {
  %a = f32[8,16]{1,0} parameter(0)
  %g = (bf16[2,16]{1,0}, bf16[8,16]{1,0:T(8,128)(2,1)}) all-gather-start(%a), replica_groups=GROUPS, dimensions={0}
  %gd = bf16[8,16]{1,0} all-gather-done(%g)
  %m = (f32[4]{0}, f32[4]{0}, u32[]{:S(2)}, u32[]) collective-permute-start(%a), source_target_pairs={{0,1},{1,0},{2,4}}
  %s = f32[2,16]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1
  %w = (s32[], f32[8,16]{1,0}) while(%a), condition=%cond, body=%bodyKNOWN
  ROOT %o = f32[2,16]{1,0} add(%s, %s)
}
"""
# Devices 0, 2, 4, 6 together and 1, 3, 5, 7, in every form that XLA writes.
_GROUPS = (
    "{{0,2,4,6},{1,3,5,7}}", "[2,4]<=[4,2]T(1,0)", "mesh['a'=4,'b'=2] {'a'}",
    "mesh['b'=2,'a'=4], device_ids=([4,2]T(1,0)) {'a'}", "mesh['c'=8] {'c':(1)4}",
)  # fmt: skip


def _by_kind(found):
    return {one.kind: one for one in found}


@pytest.mark.parametrize("groups", _GROUPS[:4])
def test_a_text_by_hand(groups):
    text = _TEXT.replace("GROUPS", groups).replace(
        "KNOWN", ', backend_config={"known_trip_count":{"n":"5"}}'
    )
    found = _by_kind(collectives.parse(text, 8, group=4, trips=99))
    assert set(found) == {
        "all-gather", "all-reduce", "reduce-scatter", "collective-permute"
    }
    whole = 8 * 16 * 4
    # Rings of four: three quarters of the array, twice for an all-reduce; five passes.
    assert found["all-reduce"].wire_bytes == 5 * 2 * whole * 3 / 4
    assert (found["all-reduce"].count, found["all-reduce"].members) == (5, 4)
    assert found["all-reduce"].together == 2  # Devices 0 and 2 are among the first four.
    assert found["reduce-scatter"].wire_bytes == whole * 3 / 4
    assert found["all-gather"].wire_bytes == pytest.approx(whole / 2 * 3 / 4)
    assert found["collective-permute"].wire_bytes == 16
    assert found["collective-permute"].together == 1  # Device 2 sends to the other group.


def test_loops_that_the_text_does_not_count():
    text = _TEXT.replace("GROUPS", _GROUPS[0]).replace("KNOWN", "")
    found = _by_kind(collectives.parse(text, 8, trips=7))
    assert found["all-reduce"].count == 7 and found["reduce-scatter"].count == 1
    assert found["all-reduce"].together == 4


def test_a_part_of_an_axis():
    text = _TEXT.replace("GROUPS", _GROUPS[4]).replace("KNOWN", "")
    assert _by_kind(collectives.parse(text, 8, group=4))["all-gather"].together == 2


def test_a_text_without_an_entry():
    with pytest.raises(ValueError, match="no ENTRY"):
        collectives.parse("HloModule x", 8)


def test_a_compiled_program_with_known_collectives():
    """fsdp over 4 of 8 devices, in a loop of 3: gather weights, sum what data splits."""
    mesh = rules.make_mesh(data=2, fsdp=4)
    width, rows = 64, 16

    def shape(spec, *sizes):
        return jax.ShapeDtypeStruct(sizes, jnp.float32, sharding=NamedSharding(mesh, spec))

    def step(x, w):
        def body(x, _):
            whole = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, P()))
            return x @ whole, None

        x, _ = jax.lax.scan(body, x, None, length=3)
        return x.sum()

    arguments = shape(P("data", None), rows, width), shape(P("fsdp", None), width, width)
    compiled = jax.jit(step).lower(*arguments).compile()
    found = _by_kind(collectives.parse(compiled.as_text(), 8))
    gather, reduce = found["all-gather"], found["all-reduce"]
    assert (gather.members, reduce.members) == (4, 2)
    # The compiler may lift the gathering out of the loop, or not.
    assert gather.count in (1, 3)
    assert gather.wire_bytes == gather.count * width * width * 4 * 3 / 4
    assert reduce.wire_bytes == 2 * 4 / 2
    assert np.isclose(sum(one.count for one in found.values()), gather.count + reduce.count)
