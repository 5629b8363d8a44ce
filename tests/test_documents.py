"""The documents name files, launchers and flags that exist."""

import ast
import functools
import pathlib
import re
import subprocess
import sys

import pytest

from experiments.plans import run as plans

_ROOT = pathlib.Path(__file__).parent.parent
_PAGES = [
    path.relative_to(_ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "experiments/*/README.md")
    for path in sorted(_ROOT.glob(pattern))
]


def _text(page: str) -> str:
    return (_ROOT / page).read_text(encoding="utf-8")


@functools.cache
def _flags(script: str) -> frozenset[str]:
    """Flags that a script defines, or a module of launch/ that it imports."""
    tree = ast.parse(_text(script))
    shared = {
        f"launch/{alias.name}.py" for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "launch" for alias in node.names
    }  # fmt: skip
    found = {"help"}
    for text in (_text(name) for name in {script, *shared}):
        for kind, name in re.findall(r'flags\.DEFINE_(\w+)\(\s*"(\w+)"', text):
            found |= {name, "no" + name} if kind == "bool" else {name}
        found |= set(re.findall(r'add_argument\("--(\w+)"', text))
    return frozenset(found)


def _script(name: str) -> str:
    return name if name.endswith(".py") else name.replace(".", "/") + ".py"


def _commands(text: str) -> list[tuple[str, list[str]]]:
    """Scripts and flags of the commands in a page: (path, names of flags)."""
    text = text.replace("\\\n", " ")
    spans = re.findall(r"```(?:sh|bash)\n(.*?)```", text, re.S) + re.findall(
        r"(?<!`)`([^`]+)`(?!`)", text
    )
    found = []
    for span in spans:
        for line in re.sub(r"\n(?=\s*--)", " ", span).splitlines():
            call = re.search(
                r"python (?:-m )?((?:launch|experiments)[./][\w./]+)(.*)", line.partition("  #")[0]
            )
            if call:
                found.append((_script(call[1]), re.findall(r"(?<!\S)\[?--(\w+)", call[2])))
    return found


@pytest.mark.parametrize("page", _PAGES)
def test_a_page_names_what_exists(page):
    text = _text(page)
    folder = (_ROOT / page).parent
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert target.startswith("http") or (folder / target).exists(), target
    for script, names in _commands(text):
        if script.endswith(".py"):
            assert (_ROOT / script).is_file(), script
            assert set(names) <= _flags(script), script


@pytest.mark.parametrize("path", sorted(_ROOT.glob("launch/*.py")), ids=lambda path: path.stem)
def test_a_launcher_starts_from_any_folder(path, tmp_path):
    if "__main__" not in path.read_text(encoding="utf-8"):
        return  # A module of launchers.
    done = subprocess.run(
        [sys.executable, str(path), "--helpshort"], cwd=tmp_path, capture_output=True, text=True
    )
    assert path.name in done.stdout and "Traceback" not in done.stderr, done.stderr


def test_commands_are_found():
    page = "```sh\n.venv/bin/python launch/x.py --a=1 \\\n  --b 2\n```\n`python -m launch.y --c`"
    found = _commands(page)
    assert found == [("launch/x.py", ["a", "b"]), ("launch/y.py", ["c"])]
    assert sum(len(_commands(_text(page))) for page in _PAGES) > 40
    assert {"stage", "dry_run", "nodry_run"} <= _flags("launch/train.py")


def test_plans_are_on_their_pages():
    for page in plans.PAGES:
        assert plans.table(plans.found()) in page.read_text(encoding="utf-8"), page
