"""TalkingMachines in JAX: a streaming, audio-driven talking character.

The whole of it in a few lines:

  import tm_jax

  avatar = tm_jax.load("nano")
  picture = tm_jax.draw_character(seed=9, style="clay")
  print(tm_jax.generate(avatar, picture, "speech.wav", "clip.mp4").line())

or live: `tm_jax.Session(avatar, picture)` takes sound by `push_audio` and gives frames by
`pull`. Nothing is imported or compiled before it is used.
"""

import importlib

__version__ = "0.1.0"

# Public name -> (module, attribute); imported on first use, because JAX takes seconds.
_PUBLIC = {
    "load": ("tm_jax.inference.loading", "load"),
    "Session": ("tm_jax.inference.session", "Session"),
    "generate": ("tm_jax.inference.offline", "generate"),
    "draw_character": ("tm_jax.data.synthetic.characters", "draw"),
    "load_picture": ("tm_jax.media.picture", "load"),
    "PRESETS": ("tm_jax.configs.presets", "PRESETS"),
}
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module tm_jax has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__():
    return sorted(__all__)
