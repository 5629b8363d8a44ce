"""The measuring caller: its clock, and its figures against a server of known speed."""

import numpy as np
import pytest

from tm_jax.serving.transport import messages
from tm_jax.serving.transport import protocol

pytest.importorskip("aiohttp")
from tm_jax.serving.runtime import load


def frame(number, generation=0):
    return messages.Frames(
        generation=generation, frame=number, pts=960 * number, pcm=bytes(1920), jpegs=(b"x",)
    )


def test_the_player_counts_what_a_viewer_would_see():
    player = load.Player(fps=25, buffer_s=0.1)
    assert player.play(frame(0), 10.0) == pytest.approx(10.1)
    assert player.play(frame(1), 10.0) == pytest.approx(10.14)
    assert player.play(frame(2), 10.17) == pytest.approx(10.18)
    assert (player.late, player.underruns, player.missing) == (0, 0, 0)
    assert player.play(frame(3), 10.23) == pytest.approx(10.23)  # 10 ms after its time.
    assert (player.late, player.underruns) == (0, 1)
    assert player.play(frame(4), 10.24) == pytest.approx(10.32)  # All moved back by 60 ms.
    player.play(frame(7), 10.25)
    assert player.missing == 2
    player.play(frame(8), 20.0)
    assert (player.late, player.underruns) == (1, 2)
    assert player.play(frame(9, generation=1), 21.0) == pytest.approx(21.1)  # Begins anew.
    assert (player.late, player.underruns) == (1, 2)


def test_figures_of_a_call_and_of_a_refusal(net):
    async def go():
        async with net.serve(lanes=1, chunk_frames=6, step_s=0.02) as server:
            said = (8000 * np.sin(np.arange(24000) / 20)).astype(np.int16)
            found = await load.storm(server.url, said, 2.5, 2, stagger_s=0.1)
            assert (found["callers"], found["served"]) == (2, 1)
            assert "full" in found["errors"][0]
            assert 20 < found["frames_per_second"] < 27
            assert found["first_frame_ms"]["p50"] > 20  # The devices need as long.
            # A chunk of 240 ms, look-ahead of 88, 20 of devices, 100 of buffer.
            assert 430 < found["voice_to_lips_ms"]["p50"] < 900
            assert set(protocol.SPANS) - {"playout"} <= set(found["spans_ms"])

    net.run(go())
