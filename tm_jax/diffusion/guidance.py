"""Guidance over several conditions, as a pure function of a velocity function."""

from collections.abc import Callable
import dataclasses
import math

import jax


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guidance:
    """How strongly text and audio steer the samples; a factor of 1 is off and costs nothing.

    A factor g means uncond + g * (cond - uncond) for its condition. Another common form,
    cond + g * (cond - uncond), means g + 1 here.

    Attributes:
      text: Factor of the text.
      audio: Factor of the audio.
    """

    text: float = 1.0
    audio: float = 1.0

    def __post_init__(self):
        for name in ("text", "audio"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"guidance.{name} must be finite, got {getattr(self, name)}.")

    @property
    def dropped(self) -> tuple[str, ...]:
        """Conditions that a pass of its own runs without."""
        return tuple(name for name in ("text", "audio") if getattr(self, name) != 1.0)


def guided(run: Callable[[str | None], jax.Array], guidance: Guidance) -> jax.Array:
    """Combines passes with all conditions and with each of the guided ones dropped.

    full + (g_text - 1) (full - no_text) + (g_audio - 1) (full - no_audio)

    With one condition guided this is uncond + g (cond - uncond). With both, the audio term is
    that of uncond + g_text (text - uncond) + g_audio (full - text). Differs from that form in
    the text term, which is taken in the presence of the audio: so each factor of 1 saves its
    pass, and results are continuous there.

    Args:
      run: Function (name of the dropped condition, None for none) -> velocity or x0.
      guidance: Factors.
    """
    full = run(None)
    result = full
    for name in guidance.dropped:
        result = result + (getattr(guidance, name) - 1.0) * (full - run(name))
    return result
