"""Conversion of weights from one layout to another, tensor by tensor.

Whatever comes in is read as our parameters, one at a time, through the table of its
layout; whatever goes out is made from those through another table. `ours` is a safetensors
file (or shards) with the paths of our parameters, `orbax` the same tree as a checkpoint.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import json
import os
import shutil

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from tm_jax.checkpoints import mapping
from tm_jax.checkpoints import orbax_tree
from tm_jax.checkpoints import parts
from tm_jax.checkpoints import sinks
from tm_jax.checkpoints import sources
from tm_jax.checkpoints import states
from tm_jax.core import trees
from tm_jax.parallel import rules

_FILES = (".safetensors", ".pth", ".pt")

Opened = sources.Source | states.Renamed | orbax_tree.Tree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Shape and dtype of a tensor that will be written.

    Attributes:
      shape: Its shape.
      dtype: Its dtype.
    """

    shape: tuple[int, ...]
    dtype: np.dtype


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What a conversion did, or would do.

    Attributes:
      part: Name of the part.
      source: Path and layout that were read.
      target: Path and layout of the result.
      read: Tensors and bytes of the source.
      written: Tensors and bytes of the result.
      notes: Further remarks, a sentence each.
    """

    part: str
    source: tuple[str, str]
    target: tuple[str, str]
    read: tuple[int, int]
    written: tuple[int, int]
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """The report in words."""

        def size(value):
            return f"{value[0]} tensors, {value[1] / 1e9:.3g} GB"

        return [
            f"{self.part}: {self.source[0]} ({self.source[1]}; {size(self.read)})",
            f"  -> {self.target[0]} ({self.target[1]}; {size(self.written)})",
            *(f"  {note}" for note in self.notes),
        ]


class Parameters(Mapping):
    """Our parameters by path, made from the tensors of a source when they are asked for."""

    def __init__(self, source: Mapping, rows: list[mapping.Row]):
        self._source = source
        self._rows = {t: row for row in rows for t in mapping.names(row[1])}

    def __getitem__(self, path: str) -> np.ndarray:
        for target, value in mapping.stream(self._source, [self._rows[path]]):
            if target == path:
                return value
        raise KeyError(path)

    def __contains__(self, path) -> bool:
        return path in self._rows  # Without making it.

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def dtype(self, path: str) -> np.dtype:
        """Dtype that a parameter has in the source."""
        return self._source[mapping.names(self._rows[path][0])[0]].dtype

    def files(self, path: str) -> list[str]:
        """Tensors of the source that a parameter is made of."""
        return list(mapping.names(self._rows[path][0]))


def open_any(
    path: str, part: parts.Part, layout: str = "auto", state: str | None = None
) -> tuple[str, Opened, Parameters]:
    """Opens weights in any layout and checks them by their headers.

    Args:
      path: File or folder of the part, or a folder of all parts as they are published.
      part: What they should be.
      layout: "auto", "ours", "orbax" or a layout of the part.
      state: Which of several dictionaries of a PyTorch checkpoint, see `states.choose`.

    Returns:
      The layout, the source, and `Parameters`.

    Raises:
      ValueError: They do not fit.
    """
    allowed = ("auto", *parts.OURS, *part.layouts)
    if layout not in allowed:
        raise ValueError(f"layout must be one of {', '.join(allowed)}, got {layout!r}.")
    path = parts.locate(path, part)
    if layout == "orbax" or (layout == "auto" and orbax_tree.is_tree(path)):
        if state is not None:
            raise ValueError(f"{path}: state {state!r} is asked for; an Orbax tree has none.")
        source, layout = orbax_tree.Tree(path), "orbax"
    else:
        source = states.unwrap(sources.open_source(path, state), _known(part))
    shapes = trees.flatten(rules.unbox(part.boxed))
    if layout == "auto":
        layout = detect(source, part)
    rows, ignore = table(source, part, layout)
    filled = {t for row in rows for t in mapping.names(row[1])}
    fitting = {name: x for name, x in shapes.items() if name in filled or not part.is_own(name)}
    mapping.check(source, rows, trees.unflatten(fitting), ignore=ignore)
    return layout, source, Parameters(source, rows)


def table(
    source: Mapping, part: parts.Part, layout: str
) -> tuple[list[mapping.Row], tuple[str, ...]]:
    """Rows and ignored names of a layout; ours may hold our own parameters or lack them."""
    if layout not in parts.OURS:
        return part.rows(layout), part.ignore(layout)
    paths = trees.flatten(rules.unbox(part.boxed))
    return [(p, p, "copy") for p in paths if p in source or not part.is_own(p)], ()


def _names(part: parts.Part) -> dict[str, set[str]]:
    """Names of the tensors of a part in every layout."""
    names = {"ours": set(trees.flatten(rules.unbox(part.boxed)))}
    for layout in part.layouts:
        names[layout] = {n for row in part.rows(layout) for n in mapping.names(row[0])}
    return names


def _known(part: parts.Part) -> set[str]:
    """Names of the tensors of a part in any layout."""
    return set().union(*_names(part).values())


def detect(source: Mapping, part: parts.Part) -> str:
    """The layout whose names a source has most of.

    Raises:
      ValueError: It has none of them.
    """
    names = _names(part)
    found = {layout: len(wanted & set(source)) for layout, wanted in names.items()}
    best = max(found, key=lambda layout: found[layout])
    if not found[best]:
        raise ValueError(
            f"{mapping.origin(source)}: expected the {part.name} in layout "
            f"{' or '.join(names)}, got tensors such as {mapping.listed(sorted(source)[:3])}."
        )
    return best


def convert(
    part: parts.Part, path: str, out: str, *, layout: str = "auto", to: str = "ours",
    dtype: npt.DTypeLike | None = None, shard_bytes: int = 5 * 10**9, dry_run: bool = False,
    state: str | None = None, facts: Mapping[str, str] | None = None
) -> Report:
    """Converts weights; headers are checked before anything is written.

    Args:
      part: What is converted.
      path: What to read, see `open_any`.
      out: What to write: a folder, or a `.safetensors` or `.pth` file.
      layout: Layout of `path`, "auto" to recognise it by its names.
      to: "ours", "orbax" or a layout of the part.
      dtype: Dtype of floating-point tensors; None keeps them.
      shard_bytes: Size of one file in a folder.
      dry_run: Read headers and report, write nothing.
      state: Which of several dictionaries of a PyTorch checkpoint, see `states.choose`.
      facts: Strings for the metadata of safetensors files, such as where the source is from.

    Returns:
      The report.

    Raises:
      ValueError: The source does not fit, or `to` is unknown.
      FileNotFoundError: No such source, or no folder to write into.
    """
    if to not in (*parts.OURS, *part.layouts):
        choices = ", ".join((*parts.OURS, *part.layouts))
        raise ValueError(f"to must be one of {choices}, got {to!r}.")
    ending = os.path.splitext(out)[1]
    if (to == "orbax" and ending in _FILES) or (to == "ours" and ending in _FILES[1:]):
        raise ValueError(f"{out}: layout {to} is not written as {ending}; name a folder.")
    layout, source, ours = open_any(path, part, layout, state)
    facts = {"part": part.name} | dict(facts or {})
    if source.state is not None:
        facts["state"] = source.state
    rows = [(p, p, "copy") for p in ours]
    if to not in parts.OURS:
        rows = part.rows(to)
    items = _items(ours, rows, part, dtype)
    report = Report(
        part=part.name, source=(source.path, layout), target=(out, to),
        read=(len(source), source.nbytes),
        written=(len(items), sum(map(sinks.nbytes, items.values()))),
        notes=tuple(_notes(part, ours, source, layout, to)),
    )
    # Orbax gets its tree from an interim file (`_write_orbax`).
    _check_space(out, report.written[1] * (2 if to == "orbax" else 1))
    if not dry_run:
        with sinks.replacing(out) as temporary:
            if to == "orbax":
                _write_orbax(temporary, items, ours, rows)
            else:
                _write(temporary, part, to, items, ours, rows, shard_bytes, facts)
    return report


def _check_space(out: str, size: int):
    """Whether the disk has room: better now than after an hour.

    Raises:
      FileNotFoundError: No folder to write into.
      ValueError: There is too little room.
    """
    folder = os.path.dirname(os.path.abspath(out))
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{folder}: no such folder.")
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ValueError(
            f"{folder}: expected room for {size / 1e9:.3g} GB, got {free / 1e9:.3g} GB; choose "
            "another disk."
        )


def _items(ours: Parameters, rows, part, dtype) -> dict[str, Shape]:
    """Shapes and dtypes of everything that will be written, in order."""
    shapes, items = trees.flatten(rules.unbox(part.boxed)), {}
    for row in rows:
        kept = ours.dtype(mapping.names(row[1])[0])
        floating = jnp.issubdtype(kept, jnp.floating)
        result = np.dtype(dtype) if dtype is not None and floating else kept
        for name, shape in zip(mapping.names(row[0]), mapping.source_shapes(row, shapes)):
            items[name] = Shape(shape=shape, dtype=result)
    return items


def _notes(part, ours, source, layout, to) -> Iterator[str]:
    if source.state is not None:
        others = f"; the file also has {', '.join(source.others)}" if source.others else ""
        yield f"state {source.state} was read{others}"
    if source.removed:
        yield f"names were read without {' and '.join(source.removed)}"
    own = [p for p in trees.flatten(rules.unbox(part.boxed)) if part.is_own(p)]
    here = [p for p in own if p in ours]
    if to in parts.OURS and len(here) < len(own):
        yield (
            f"{len(own) - len(here)} parameters of ours are not in the source and will start "
            f"at their initial values: {mapping.listed(p for p in own if p not in ours)}"
        )
    if to not in parts.OURS and here:
        yield (
            f"{len(here)} parameters have no place in layout {to} and stay behind: "
            f"{mapping.listed(here)}"
        )
    used = {n for p in ours for n in ours.files(p)}
    unused = [n for n in source if n not in used]
    if unused:
        yield f"{len(unused)} tensors carry nothing and are left out: {mapping.listed(unused)}"


def _write(path, part, to, items, ours, rows, shard_bytes, facts):
    tensors = _tensors(ours, rows, items)
    if path.endswith(_FILES[1:]):
        sinks.write_pickled(path, items, tensors)
        return
    stem = "model" if to == "ours" else part.stems(to)
    sinks.write_safetensors(
        path, items, tensors, stem=stem, limit=shard_bytes, metadata=facts
    )
    settings = None if to == "ours" else part.settings(to)
    if settings is not None and not path.endswith(_FILES):
        with open(os.path.join(path, "config.json"), "w", encoding="utf-8") as stream:
            json.dump(settings, stream, indent=2)


def _write_orbax(path, items, ours, rows):
    """Orbax takes the whole tree at once: it gets one that is mapped from a file."""
    interim = f"{path}.safetensors"
    sinks.write_safetensors(interim, items, _tensors(ours, rows, items))
    orbax_tree.write(path, sources.open_source(interim))
    os.remove(interim)


def _tensors(ours: Parameters, rows, items) -> Iterator[tuple[str, np.ndarray]]:
    for name, value in mapping.stream_back(ours, rows):
        yield name, value.astype(items[name].dtype, copy=False)
