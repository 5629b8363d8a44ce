"""`Attributes:` of every dataclass and linen module lists exactly its fields."""

import ast
import pathlib
import re

_ROOT = pathlib.Path(__file__).parent.parent
_FILES = sorted((_ROOT / "tm_jax").rglob("*.py"))


def _is_record(node: ast.ClassDef) -> bool:
    """Whether a class is a dataclass, a flax struct or a linen module."""
    decorators = [ast.unparse(d) for d in node.decorator_list]
    bases = [ast.unparse(b) for b in node.bases]
    return any("dataclass" in d for d in decorators) or any(
        b.endswith("nn.Module") or b.endswith("linen.Module") for b in bases
    )


def fields(node: ast.ClassDef) -> list[str]:
    """Annotated public fields in order."""
    return [
        item.target.id for item in node.body
        if isinstance(item, ast.AnnAssign) and "ClassVar" not in ast.unparse(item.annotation)
        and not item.target.id.startswith("_")
    ]


def documented(node: ast.ClassDef) -> list[str]:
    """Names below `Attributes:` of the docstring, in order."""
    text = ast.get_docstring(node) or ""
    _, found, section = text.partition("Attributes:\n")
    if not found:
        return []
    section = re.split(r"\n(?=\S)", section)[0]
    return re.findall(r"^  (\w+):", section, re.MULTILINE)


def _trees():
    """Every file of the library by name, parsed one after another."""
    for path in _FILES:
        yield str(path.relative_to(_ROOT)), ast.parse(path.read_text())


def test_attributes_list_exactly_the_fields():
    count, wrong = 0, {}
    for name, tree in _trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and _is_record(node):
                count += 1
                if documented(node) != fields(node):
                    wrong[f"{name}:{node.name}"] = documented(node), fields(node)
    assert not wrong and count > 200


def test_every_file_says_why_it_exists():
    assert not [name for name, tree in _trees() if not ast.get_docstring(tree)]


def test_a_missing_field_is_noticed():
    source = '''
@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes.

    Attributes:
      width: Width, for
        example 3.
    """

    width: int
    depth: int = 1
'''
    node = ast.parse(source).body[0]
    assert _is_record(node)
    assert (documented(node), fields(node)) == (["width"], ["width", "depth"])
