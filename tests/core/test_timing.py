"""Clocks against counting by hand."""

import pytest

from tm_jax.core import timing

_T = timing.Timing()


def test_one_chunk_is_twelve_frames_of_640_samples():
    assert _T.samples_per_frame == 640
    assert _T.frames_per_chunk == 12
    assert _T.samples_per_chunk == 7680
    assert _T.chunk_s == pytest.approx(0.48)


def test_clip_of_the_paper():
    # 81 frames are 21 latents: the sink, then 20 latents of 4 frames (DESIGN.md, section 4).
    assert 1 + 20 * _T.frames_per_latent == 81
    assert [_T.latents(chunks) for chunks in range(4)] == [1, 4, 7, 10]


@pytest.mark.parametrize(
    "seconds, chunks", [(0.0, 1), (0.01, 1), (0.48, 1), (0.4801, 2), (0.96, 2), (60, 125)]
)
def test_chunks_cover_the_sound(seconds, chunks):
    assert _T.chunks_for(seconds) == chunks
    assert chunks * _T.chunk_s >= seconds


def test_a_rate_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="sample_rate=16000 is not a multiple of fps=30"):
        timing.Timing(fps=30)
