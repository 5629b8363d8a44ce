"""Imports point left: walks every import of the repository with `ast`."""

import ast
import pathlib

import pytest

_ROOT = pathlib.Path(__file__).parent.parent

# HOUSE style, section B. A package may import packages of earlier levels and itself.
# `media` (reading and writing of clips) stands beside `data`; `evaluation` measures pixels
# and sound, knows no model and may be used by whatever runs one.
_LEVELS = (
    ("core",),
    ("nn", "diffusion"),
    ("models", "parallel"),
    ("configs",),
    ("checkpoints", "data", "media"),
    ("evaluation",),
    ("training", "inference"),
    ("serving", "planning"),
    ("integrations",),
    ("launch", "experiments"),
)
_LEVEL = {name: level for level, names in enumerate(_LEVELS) for name in names}

# Two packages of one level that may know each other, in this direction only.
_BESIDE = {("data", "media")}


def _files():
    for folder in ("tm_jax", "launch", "experiments"):
        yield from sorted((_ROOT / folder).rglob("*.py"))


def _package(path: pathlib.Path) -> str | None:
    """The package that a file belongs to; None for tm_jax/__init__.py."""
    parts = path.relative_to(_ROOT).parts
    if parts[0] != "tm_jax":
        return parts[0]
    return parts[1] if len(parts) > 2 else None


def _imported(node) -> list[str]:
    """Packages of ours that an import statement names."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        assert not node.level, "imports are absolute"
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
        return []
    found = []
    for name in names:
        parts = name.split(".")
        if parts[0] == "tm_jax" and len(parts) > 1:
            found.append(parts[1])
        elif parts[0] in ("launch", "experiments"):
            found.append(parts[0])
    return found


def allowed(importer: str, imported: str) -> bool:
    """Whether one package may import another."""
    if importer == imported or (importer, imported) in _BESIDE:
        return True
    return _LEVEL[imported] < _LEVEL[importer]


def violations() -> list[str]:
    """Every import that points right or sideways."""
    found = []
    for path in _files():
        importer = _package(path)
        for node in ast.walk(ast.parse(path.read_text())):
            for imported in _imported(node):
                where = f"{path.relative_to(_ROOT)}:{getattr(node, 'lineno', 0)}"
                if imported not in _LEVEL:
                    found.append(f"{where} imports {imported}, which has no level")
                elif importer is None or not allowed(importer, imported):
                    found.append(f"{where}: {importer} imports {imported}")
    return found


def test_imports_point_left():
    assert violations() == []


def test_every_package_has_a_level():
    packages = {p.parent.name for p in (_ROOT / "tm_jax").glob("*/__init__.py")}
    assert packages <= set(_LEVEL), packages - set(_LEVEL)


@pytest.mark.parametrize(
    "importer, imported, expected",
    [
        ("training", "models", True), ("models", "training", False),
        ("training", "inference", False), ("nn", "diffusion", False),
        ("models", "models", True), ("evaluation", "training", False),
        ("data", "launch", False), ("training", "media", True), ("media", "data", False),
    ],
)
def test_the_order(importer, imported, expected):
    assert allowed(importer, imported) == expected


def test_importing_names_is_seen():
    tree = ast.parse("from tm_jax.nn import rope\nimport tm_jax.configs.presets\nfrom tm_jax import core")
    assert [_imported(node) for node in tree.body] == [["nn"], ["configs"], ["core"]]
