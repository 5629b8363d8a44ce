"""One door for all presets: what is loaded, and which session runs it, follow from the preset."""

from collections.abc import Callable
import functools
from typing import Any

from tm_jax.models import presets
from tm_jax.weights import hub

SAMPLERS = ("student", "teacher")
_LOAD = ("prompt", "decoder", "aspect")
_TEACHER = ("steps", "guidance")
OPTIONS = (*_LOAD, "sampler", "face", *_TEACHER)


def is_full_size(preset: str) -> bool:
    """Whether a preset is made of Wan's own parts; False for an unknown name."""
    return preset in presets.PRESETS and presets.PRESETS[preset].vae is None


def load(preset: str = "nano", weights: str | None = None, **options) -> Any:
    """Loads a preset: `wan.load` for those of full size, `bundle.load` for the others.

    Args:
      preset: Name in `presets.PRESETS`.
      weights: Folder with weights, or `hf:OWNER/NAME[/PATH][@REVISION]` of the Hugging Face
        Hub (`weights.hub`); by default those that come with the package.
      **options: What `wan.load` or `bundle.load` takes.

    Returns:
      `wan.WanBundle` or `bundle.Bundle`.
    """
    weights = hub.resolve(weights)
    if is_full_size(preset):
        from tm_jax.inference import wan

        return wan.load(preset, weights, **options)
    from tm_jax.inference import bundle

    return bundle.load(preset, weights, **options)


def prepare(preset: str, weights: str | None, options: dict) -> tuple[Any, Callable | None]:
    """Loads a preset and chooses its session.

    Args:
      preset: Name of the preset.
      weights: Folder with weights, what `load` takes on the Hub, or None.
      options: Any of `OPTIONS` for a preset of full size: prompt, decoder, aspect (`wan.load`),
        face (`wan_session`), sampler ("student" or "teacher"), and steps and guidance of the
        teacher.

    Returns:
      The bundle, and what makes a session of it; None for the usual one.

    Raises:
      ValueError: An option that the preset or the sampler does not have, or whatever loading
        raises.
    """
    if not is_full_size(preset):
        if options and preset in presets.PRESETS:
            raise ValueError(
                f"--{next(iter(options))} belongs to presets of full size (wan-1.3b, tm-18b), "
                f"not to {preset}."
            )
        return load(preset, weights), None
    from tm_jax.inference import wan

    sampler = options.get("sampler", "student")
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}.")
    teacher = {name: options[name] for name in _TEACHER if name in options}
    if teacher and sampler != "teacher":
        raise ValueError(f"--{next(iter(teacher))} needs --sampler=teacher.")
    chosen = {"face": options["face"]} if "face" in options else {}
    if sampler == "teacher":
        chosen["plan"] = wan.Plan(**teacher)
    loaded = load(preset, weights, **{n: options[n] for n in _LOAD if n in options})
    from tm_jax.inference import wan_session

    session = wan_session.Teacher if sampler == "teacher" else wan_session.Student
    return loaded, functools.partial(session, **chosen)


def session_of(bundle: Any) -> Callable:
    """The usual session of a bundle."""
    from tm_jax.inference import wan

    if isinstance(bundle, wan.WanBundle):
        from tm_jax.inference import wan_session

        return wan_session.Student
    from tm_jax.inference import session

    return session.Session
