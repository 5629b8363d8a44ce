"""Launchers that are run in this process, with flags of their own."""

from collections.abc import Callable
import importlib
import sys

from absl import flags

import launch
from launch import common

_KINDS = ("string", "integer", "enum", "float", "bool", "list", "multi_string")


def launcher(monkeypatch, name: str) -> Callable[..., None]:
    """A launcher as a function of its arguments.

    It does what the script does, but for the compilation cache; what would be its line on
    stderr and its exit code come as SystemExit.

    Args:
      monkeypatch: The fixture.
      name: Module of the package launch.
    """
    values = flags.FlagValues()
    for kind in _KINDS:
        define = getattr(flags, f"DEFINE_{kind}")

        def own(*args, define=define, **options):
            return define(*args, flag_values=values, **options)

        monkeypatch.setattr(flags, f"DEFINE_{kind}", own)
    for part in ("weights", name):  # The first defines a flag too.
        monkeypatch.delattr(launch, part, raising=False)
        monkeypatch.delitem(sys.modules, f"launch.{part}", raising=False)
    module = importlib.import_module(f"launch.{name}")
    monkeypatch.delitem(sys.modules, f"launch.{name}")
    monkeypatch.setattr(common, "cache_compilations", lambda: None)

    def run(*arguments):
        values.unparse_flags()
        values([name, *arguments])
        common.guard(name, module.main)

    return run
