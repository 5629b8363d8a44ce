"""Settings of a run as a JSON file beside it, which the next run can read back."""

import dataclasses
import json
import os
import types
import typing
from typing import Any

from tm_jax.core import trees


def write(path: str, record: dict) -> None:
    """Writes a record of dataclasses, numbers, texts, lists and dictionaries; atomically."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path + ".tmp", "w", encoding="utf-8") as file:
        file.write(text(record) + "\n")
    os.replace(path + ".tmp", path)


def text(record: dict) -> str:
    """The JSON that `write` writes."""
    return json.dumps(record, default=dataclasses.asdict, indent=2)


def read(path: str) -> dict:
    """A record that `write` wrote.

    Raises:
      FileNotFoundError: No such file.
      ValueError: It is no JSON object.
    """
    try:
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(record).__name__}.")
    return record


def fill(config: Any, values: dict, where: str = "") -> Any:
    """A frozen dataclass with the values of a record, groups within groups.

    Args:
      config: Dataclass that gives the types, and what the record does not name.
      values: Part of a record.
      where: Name of the group, for messages.

    Raises:
      ValueError: An unknown name (the message lists the valid ones) or a value of another type.
    """
    hints = typing.get_type_hints(type(config))
    known = [field.name for field in dataclasses.fields(config)]
    new = {}
    for name, value in values.items():
        path = f"{where}{name}"
        if name not in known:
            raise ValueError(
                f"{path}: {type(config).__name__} has no {name!r}; it has {', '.join(known)}."
            )
        current = getattr(config, name)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, dict):
                raise ValueError(f"{path}: expected a group of settings, got {value!r}.")
            new[name] = fill(current, value, f"{path}.")
            continue
        value = _frozen(value)
        if not _fits(value, hints[name]):
            raise ValueError(f"{path}: expected {hints[name]}, got {value!r}.")
        new[name] = value
    return dataclasses.replace(config, **new)


def _frozen(value: Any) -> Any:
    """JSON lists as tuples, at every depth."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value has the outer type of a hint; a whole number is a float as well."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return any(_fits(value, choice) for choice in typing.get_args(hint))
    if hint is float and isinstance(value, int):
        return not isinstance(value, bool)
    kind = typing.get_origin(hint) or hint
    if kind is int and isinstance(value, bool):
        return False
    return not isinstance(kind, type) or isinstance(value, kind)


def differences(one: dict, other: dict) -> list[str]:
    """Names whose values differ between two records, as `name: before -> now`."""
    first, second = (trees.flatten(json.loads(text(record))) for record in (one, other))
    missing = object()
    return [
        f"{name.replace('/', '.')}: {first.get(name)} -> {second.get(name)}"
        for name in dict.fromkeys((*first, *second))
        if first.get(name, missing) != second.get(name, missing)
    ]
