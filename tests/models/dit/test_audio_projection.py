"""Audio windows against the definition of DESIGN.md: latent k shows frames 4k-3 ... 4k."""

import jax.numpy as jnp
import numpy as np
import pytest

from tm_jax.core import timing
from tm_jax.models.dit import audio_projection

_T = timing.Timing()


@pytest.mark.parametrize("window", [4, 5, 6, 7, 8])
def test_windows_surround_the_frames_of_each_latent(window):
    before, after = audio_projection.margins(window, _T)
    assert before + after == window - 4
    assert before - after in (0, 1)  # The past gets the odd frame.
    latents = 3
    # The value of a feature is its pixel frame; `before` sounds with frame 1.
    frames = np.arange(1 - before, 4 * latents + after + 1, dtype=np.float32)
    features = jnp.asarray(np.stack([frames, -frames], -1)[None])
    cut = np.asarray(audio_projection.windows(features, window, _T))
    assert cut.shape == (1, latents, window, 2)
    for k in range(1, latents + 1):
        expected = range(4 * k - 3 - before, 4 * k + after + 1)
        np.testing.assert_array_equal(cut[0, k - 1, :, 0], list(expected))
        np.testing.assert_array_equal(cut[0, k - 1, :, 1], [-f for f in expected])


def test_a_window_shorter_than_a_latent_is_refused():
    with pytest.raises(ValueError, match="audio_window=3 is shorter than a latent frame"):
        audio_projection.margins(3, _T)
