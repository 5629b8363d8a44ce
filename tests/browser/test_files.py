"""What the page's files may not contain; needs no browser."""

import pathlib
import re

import pytest

_PAGE = pathlib.Path(__file__).parents[2] / "tm_jax" / "serving" / "page"
_MODULES = sorted(_PAGE.glob("js/*.js"))
_UNSAFE = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc|javascript:"
)


@pytest.mark.parametrize("path", _MODULES, ids=lambda p: p.name)
def test_text_of_the_server_never_becomes_html(path):
    assert not _UNSAFE.search(path.read_text())


@pytest.mark.parametrize("path", _MODULES, ids=lambda p: p.name)
def test_every_module_says_why_it_exists_and_fits_a_screenful_or_ten(path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith("// ") and len(lines) < 500


def test_modules_are_all_used_and_all_there():
    imported = {"main.js", "capture-worklet.js"}
    for path in _MODULES:
        imported |= set(re.findall(r'from "\./([\w-]+\.js)"', path.read_text()))
    assert imported == {path.name for path in _MODULES}


def test_the_document_needs_no_other_host_and_no_inline_code():
    text = (_PAGE / "index.html").read_text() + (_PAGE / "style.css").read_text()
    assert not re.search(r"https?://", text)
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text)
    assert "@import" not in text


def test_every_element_that_modules_look_up_exists():
    html = (_PAGE / "index.html").read_text()
    ids = set(re.findall(r'\sid="([\w-]+)"', html))
    assert len(ids) == len(re.findall(r'\sid="', html))  # none twice
    for path in _MODULES:
        assert set(re.findall(r'byId\("([\w-]+)"\)', path.read_text())) <= ids, path.name
    icons = {i[2:] for i in ids if i.startswith("i-")}
    used = set(re.findall(r'href="#i-([\w-]+)"', html))
    for path in _MODULES:
        text = path.read_text()
        used |= set(re.findall(r'\bicon\("([\w-]+)"\)', text))
        for a, b in re.findall(r'setIcon\([^;]*\? "([\w-]+)" : "([\w-]+)"', text):
            used |= {a, b}
    assert used == icons
