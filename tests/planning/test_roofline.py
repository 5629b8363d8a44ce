"""Chips, topologies, FLOPs and the roofline against arithmetic by hand."""

import jax
import jax.numpy as jnp
import pytest

from tm_jax.planning import chips
from tm_jax.planning import collectives
from tm_jax.planning import flops
from tm_jax.planning import roofline


def _sent(members, together, size):
    return collectives.Collective(
        kind="all-gather", members=members, together=together, count=1, wire_bytes=size
    )


def test_a_roofline_by_hand():
    topology = chips.parse("v5p:4x4x4")
    assert (topology.count, topology.name) == (64, "v5p:4x4x4")
    time = roofline.time(topology, 459e12, 2765e9 / 2, [_sent(64, 64, 600e9 / 4)])
    assert (time.compute_s, time.memory_s, time.network_s) == pytest.approx((1, 0.5, 0.25))
    assert time.least_s == pytest.approx(1) and time.serial_s == pytest.approx(1.75)
    assert time.bound == "compute"


def test_what_crosses_hosts_goes_through_their_cards():
    topology = chips.parse("h100:64")
    assert topology.bandwidth(8, 8) == 450e9  # NVLink alone.
    assert topology.bandwidth(64, 8) == 400e9  # Eight cards of 50 GB/s for each host.
    assert topology.bandwidth(8, 1) == 50e9  # One of each host: its own card.
    assert roofline.time(topology, 0, 0, [_sent(8, 1, 100e9)]).network_s == pytest.approx(2)


@pytest.mark.parametrize(
    "text, message",
    [
        ("v9:4x4", "unknown chip 'v9'; choose from v5e, v5p"), ("h100", "such as h100:8"),
        ("v5p:4x4", "v5p has 3 dimensions, got 2 sizes"), ("h100:0", "such as h100:8"),
        ("v6e:4xfour", "such as v6e:4x4"), ("h100:2x2", "h100 has 1 dimension, got 2"),
    ],
)
def test_wrong_topologies(text, message):
    with pytest.raises(ValueError, match=message):
        chips.parse(text)


def test_every_chip_has_a_source_and_figures():
    for chip in chips.CHIPS.values():
        assert chip.source.startswith("https://")
        assert min(chip.memory_gib, chip.tflops, chip.memory_gbps, chip.link_gbps) > 0
        assert (chip.group > 0) == (chip.network_gbps > 0) == (chip.platform == "gpu")


def _layer(x, w):
    return jnp.tanh(x @ w)


def test_products_are_counted_with_loops_and_recomputation():
    x, w = jnp.zeros((4, 8)), jnp.zeros((8, 8))
    one = 2 * 4 * 8 * 8

    def loss(w, layer):
        y, _ = jax.lax.scan(lambda x, _: (layer(x, w), None), x, None, length=3)
        return y.sum()

    plain = flops.count(jax.make_jaxpr(lambda w: loss(w, _layer))(w))
    assert (plain.total, plain.once, plain.recomputed) == (3 * one, one, 0)
    gradient = jax.make_jaxpr(jax.grad(lambda w: loss(w, jax.checkpoint(_layer))))(w)
    found = flops.count(gradient)
    # Forward, once more, and two products backward; the mathematics needs three of the four.
    assert (found.total, found.model) == (3 * 4 * one, 3 * 3 * one)
    unknown = jax.make_jaxpr(
        lambda n: jax.lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, _layer(c[1], w)),
                                     (0, x))
    )(3)
    assert flops.count(unknown, trips=5).total == 5 * one


def test_convolutions_are_counted():
    x, kernel = jnp.zeros((1, 6, 6, 4)), jnp.zeros((3, 3, 4, 5))

    def run(x):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    assert flops.count(jax.make_jaxpr(run)(x)).total == 2 * 36 * 5 * 9 * 4
