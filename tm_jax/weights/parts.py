"""Every part of the system that has published weights: its tables, sizes and file names.

A part is imported when it is asked for: the registry itself knows only names.
"""

from collections.abc import Callable
import dataclasses
import os

import jax
import jax.numpy as jnp

from tm_jax.models import presets
from tm_jax.weights import mapping

OURS = ("ours", "orbax")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One model whose weights can be converted.

    Attributes:
      name: Name of the part and its size.
      layouts: Published layouts.
      boxed: Tree of parameter shapes, with logical axis names where the model has them.
      rows: Layout to table.
      init: Random key to boxed parameters; gives the values of what no file fills.
      is_own: Whether a parameter has no published counterpart.
      ignore: Layout to patterns of published tensors that carry nothing.
      places: Where the part lies in a folder of all parts, as it is published.
      stems: Layout to the beginning of published file names.
      settings: Layout to the content of `config.json`, None where there is none.
    """

    name: str
    layouts: tuple[str, ...]
    boxed: dict
    rows: Callable[[str], list[mapping.Row]]
    init: Callable
    is_own: Callable[[str], bool] = lambda path: False
    ignore: Callable[[str], tuple[str, ...]] = lambda layout: ()
    places: tuple[str, ...] = ()
    stems: Callable[[str], str] = lambda layout: "model"
    settings: Callable[[str], dict | None] = lambda layout: None


def locate(path: str, part: Part) -> str:
    """The file or folder of a part, given that or a folder of all parts."""
    for place in part.places:
        inside = os.path.join(path, place)
        if os.path.exists(inside):
            return inside
    return path


def transformer(preset: presets.Preset) -> Part:
    """The video transformer in the size of a preset."""
    from tm_jax.models.wan import transformer as dit
    from tm_jax.weights import wan

    c = preset.dit
    model = dit.DiT(c)

    def init(key):
        return model.init(key, method=_touch_transformer)["params"]

    return Part(
        name=f"transformer of {preset.name}", layouts=wan.LAYOUTS,
        boxed=jax.eval_shape(init, jax.random.key(0)),
        rows=lambda layout: wan.rows(c, layout), init=init, is_own=wan.is_own,
        ignore=wan.IGNORED.__getitem__, places=("transformer",),
        stems=lambda layout: "diffusion_pytorch_model",
        settings=lambda layout: wan.settings(c, layout),
    )


def _touch_transformer(model):
    """Runs a transformer once on zeros, so that every parameter comes into being."""
    from tm_jax.models.wan import patterns

    c, side = model.config, 2 * model.config.patch
    text = image = None
    if c.text_width is not None:
        text = jnp.zeros((1, c.text_length, c.text_width))
    if c.image_width is not None:
        image = jnp.zeros((1, c.image_length, c.image_width))
    context = model.context(text, image, jnp.ones((1, 4)))
    audio = model.audio(jnp.zeros((1, 1, c.audio_window, c.audio_feature_width)))
    return model(
        jnp.zeros((1, 1, side, side, c.latent_channels)),
        jnp.zeros((1, 1, side, side, c.condition_channels)),
        jnp.zeros((1, 1)), jnp.zeros((1, 1), jnp.int32), context, audio,
        lambda layer: patterns.bidirectional(patterns.Grid(2, 2, 1)),
    )


_BUILDERS = {"transformer": transformer}
PARTS = tuple(_BUILDERS)


def get(name: str, preset: str) -> Part:
    """A part in the size that a preset uses.

    Raises:
      ValueError: Unknown part or preset.
    """
    if name not in _BUILDERS:
        raise ValueError(f"unknown part {name!r}; choose one of {', '.join(_BUILDERS)}.")
    return _BUILDERS[name](presets.get(preset))
