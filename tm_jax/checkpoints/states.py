"""What a trainer leaves around the tensors of a model: several states, wrapped names.

A file of Self-Forcing, Causal Forcing and their kin holds `{"generator": ..., "critic": ...,
"generator_ema": ...}`, or some of these; one of CausVid `{"generator": ...}` or
`{"model": ...}`. Inside, the model is a member of another (`model.`), and what was sharded
while it was saved shows the wrapper in its names (`model._fsdp_wrapped_module.`). Behind all
that stand the names of the original layout.
"""

from collections.abc import Collection, Iterator, Mapping, Set
import re

from tm_jax.checkpoints import sources

# A moving average makes the better pictures; a file may hold what it averages as well.
PREFERRED = ("generator_ema", "model_ema", "ema", "generator", "model")
_OTHERS = re.compile("critic|discriminator|fake|real_score|optim")  # Never what is meant.
_WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
_PREFIXES = (
    "model.", "module.", "module.model.", "diffusion_model.", "model.diffusion_model.",
)
ITSELF = ""  # Name of the state that is the whole file.


def choose(file: str, found: Collection[str], wanted: str | None = None) -> str:
    """The state of a file to read.

    Args:
      file: The file, for messages.
      found: Names of its states; `ITSELF` where the tensors stand in no dictionary.
      wanted: Name of one; None for the moving average, or else for what it averages.

    Returns:
      A name in `found`.

    Raises:
      ValueError: There is none such.
    """
    shown = ", ".join(name or "tensors outside of any" for name in found)
    if wanted is not None:
        if wanted not in found or wanted == ITSELF:
            raise ValueError(f"{file}: expected a state {wanted!r}, got {shown}; name another.")
        return wanted
    for name in PREFERRED:
        if name in found:
            return name
    models = [name for name in found if not _OTHERS.search(name)]
    if len(models) == 1:
        return models[0]
    raise ValueError(
        f"{file}: expected one dictionary of tensors, or one of {', '.join(PREFERRED)} among "
        f"several, got {'several' if len(found) > 1 else 'only'} ({shown}); name one by --state."
    )


class Renamed(Mapping):
    """Tensors of a source by other names.

    `removed` lists what was taken off its own.
    """

    def __init__(self, source: sources.Source, names: dict[str, str], removed: tuple[str, ...]):
        self._source = source
        self._names = names
        self.removed = removed
        self.path = source.path
        self.state, self.others = source.state, source.others

    def __getitem__(self, name: str):
        return self._source[self._names[name]]

    def __contains__(self, name) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def origin(self, name: str | None = None) -> str:
        """The file of a tensor, or the path that was opened."""
        return self._source.origin(None if name is None else self._names.get(name))

    @property
    def nbytes(self) -> int:
        """Size of all data."""
        return self._source.nbytes


def unwrap(source: sources.Source, known: Set[str]) -> sources.Source | Renamed:
    """A source without the wrappers in its names; one that has none comes back as it is.

    Args:
      source: Tensors by name.
      known: Names that the model may have; a prefix is taken off only if that leads to them.

    Raises:
      ValueError: Two tensors would have one name.
    """
    plain = {name: name for name in source}
    removed = tuple(w for w in _WRAPPERS if any(w in name for name in source))
    for wrapper in removed:
        plain = {old: new.replace(wrapper, "") for old, new in plain.items()}
    if known.isdisjoint(plain.values()):
        prefix = _prefix(plain.values(), known)
        if prefix:
            plain = {old: new.removeprefix(prefix) for old, new in plain.items()}
            removed = (prefix, *removed)
    if not removed:
        return source
    names: dict[str, str] = {}
    for old, new in plain.items():
        if new in names:
            raise ValueError(
                f"{source.origin(old)}: tensors {names[new]} and {old} are the same parameter "
                f"{new} without {' and '.join(removed)}; expected one of them."
            )
        names[new] = old
    return Renamed(source, names, removed)


def _prefix(names: Collection[str], known: Set[str]) -> str:
    """The prefix behind which most of the known names stand, "" if there is none."""

    def hits(prefix: str) -> int:
        return sum(n.startswith(prefix) and n.removeprefix(prefix) in known for n in names)

    best = max(_PREFIXES, key=hits)
    return best if hits(best) else ""
