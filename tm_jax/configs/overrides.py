"""Typed overrides such as `optimizer.learning_rate=1e-3` on nested frozen dataclasses."""

import ast
from collections.abc import Iterable
import dataclasses
import types
import typing

Config = typing.TypeVar("Config")


def apply(config: Config, assignments: Iterable[str]) -> Config:
    """Returns `config` with every assignment made.

    Args:
      config: Frozen dataclass, nested at will.
      assignments: Strings "a.b=value".

    Raises:
      ValueError: Not an assignment, an unknown name (the message lists the valid ones), or a
        value of another type.
    """
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name:
            raise ValueError(f"--set {assignment!r}: expected name=value, e.g. batch=4.")
        config = _set(config, name.split("."), value, name)
    return config


def _set(config, path, value, whole):
    fields = {f.name: f for f in dataclasses.fields(config)}
    first, *rest = path
    if first not in fields:
        raise ValueError(
            f"--set {whole}: {type(config).__name__} has no {first!r}; it has "
            f"{', '.join(fields)}."
        )
    current = getattr(config, first)
    if rest:
        if not dataclasses.is_dataclass(current):
            raise ValueError(f"--set {whole}: {first} is a value, it has no {rest[0]!r}.")
        return dataclasses.replace(config, **{first: _set(current, rest, value, whole)})
    if dataclasses.is_dataclass(current):
        names = ", ".join(f.name for f in dataclasses.fields(current))
        raise ValueError(f"--set {whole}: {first} is a group; set one of {names} in it.")
    hint = typing.get_type_hints(type(config))[first]
    return dataclasses.replace(config, **{first: _parse(value, hint, whole)})


def _parse(text, hint, whole):
    """Reads `text` as a value of type `hint`."""
    choices = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if text == "None" and type(None) in choices:
        return None
    for kind in choices:
        if kind is str:
            return text
        if kind is bool and text in ("True", "False", "true", "false"):
            return text.lower() == "true"
        if kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                continue
        if typing.get_origin(kind) is tuple:
            try:
                value = ast.literal_eval(text)
            except (ValueError, SyntaxError):
                continue
            if isinstance(value, tuple):
                return value
    raise ValueError(f"--set {whole}: expected {hint}, got {text!r}.")
