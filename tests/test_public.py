"""Public functions and methods of the library are annotated; they and classes have docstrings.

Public is what no name with a leading underscore hides, in a module or in a class of one. Functions
inside functions are exempt, and so are methods that Python or flax calls by name.
"""

import ast
import pathlib

import pytest

_LIBRARY = pathlib.Path(__file__).parent.parent / "tm_jax"
_HOOKS = ("setup",)  # Of flax modules.
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def _public(name: str) -> bool:
    return not name.startswith("_") and name not in _HOOKS


def _decorators(function) -> list[str]:
    return [ast.unparse(decorator) for decorator in function.decorator_list]


def _lacks(function, method: bool) -> list[str]:
    """What a function lacks: annotations of parameters and of the result, a docstring."""
    decorators, given = _decorators(function), function.args
    parameters = [*given.posonlyargs, *given.args]
    if method and "staticmethod" not in decorators:
        parameters = parameters[1:]
    parameters += [*given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
    lacks = [f"annotation of {p.arg}" for p in parameters if p.annotation is None]
    if function.returns is None:
        lacks.append("annotation of the result")
    overload = any(name.rpartition(".")[2] == "overload" for name in decorators)
    if ast.get_docstring(function) is None and not overload:
        lacks.append("docstring")
    return lacks


def _faults(tree, prefix: str = "") -> list[str]:
    """What the public names of a module, or of a class, lack."""
    found = []
    for node in tree.body:
        if not isinstance(node, (*_FUNCTIONS, ast.ClassDef)) or not _public(node.name):
            continue
        name = prefix + node.name
        if isinstance(node, _FUNCTIONS):
            found += [f"{name}: {what}" for what in _lacks(node, method=bool(prefix))]
            continue
        if ast.get_docstring(node) is None:
            found.append(f"{name}: docstring")
        found += _faults(node, name + ".")
    return found


def test_public_names_are_annotated_and_described():
    faults = [
        f"{path.relative_to(_LIBRARY.parent)} {fault}"
        for path in sorted(_LIBRARY.rglob("*.py"))
        for fault in _faults(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not faults, "these lack:\n" + "\n".join(faults)


_SAMPLE = '''
def good(x: int, *rest: int, y: int = 1, **others: int) -> int:
    """Adds."""
    def nested(a):
        return a
    return nested(x)

class Good:
    """Holds."""
    def __init__(self, x):
        self.x = x
    @staticmethod
    def make(x: int) -> "Good":
        """Makes."""
    def setup(self):
        pass
    def _hidden(self, x):
        pass
'''


@pytest.mark.parametrize(
    "change, fault",
    [
        ((") -> int:", "):"), "good: annotation of the result"),
        (("x: int, *rest", "x, *rest"), "good: annotation of x"),
        (("*rest: int", "*rest"), "good: annotation of rest"),
        (("y: int = 1", "y=1"), "good: annotation of y"),
        (("**others: int", "**others"), "good: annotation of others"),
        (('    """Adds."""\n', ""), "good: docstring"),
        (('    """Holds."""\n', ""), "Good: docstring"),
        (("make(x: int)", "make(x)"), "Good.make: annotation of x"),
        (('        """Makes."""\n', "        pass\n"), "Good.make: docstring"),
    ],
)
def test_what_is_missing_is_named(change, fault):
    assert _faults(ast.parse(_SAMPLE)) == []
    assert _SAMPLE.count(change[0]) == 1
    assert _faults(ast.parse(_SAMPLE.replace(*change))) == [fault]
