"""Large pages: what is asked for where, and that a program that restarts stays the same one."""

import os
import pathlib
import platform
import subprocess
import sys

import pytest

from tm_jax.core import huge_pages

_ROOT = pathlib.Path(__file__).parents[2]
_ON_REQUEST = "always [madvise] never\n"


@pytest.fixture
def linux(monkeypatch, tmp_path):
    """A Linux system that gives large pages on request; returns the file that says so."""
    mode = tmp_path / "enabled"
    mode.write_text(_ON_REQUEST)
    monkeypatch.setattr(huge_pages, "_MODE", str(mode))
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.35"))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    return mode


def test_asks_where_pages_are_given_on_request(linux, monkeypatch):
    assert huge_pages.environment() == {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1")
    expected = "glibc.malloc.check=1:glibc.malloc.hugetlb=1"
    assert huge_pages.environment() == {"GLIBC_TUNABLES": expected}


@pytest.mark.parametrize("text", ["[always] madvise never", "always madvise [never]"])
def test_asks_for_nothing_where_it_would_change_nothing(linux, text):
    linux.write_text(text)
    assert huge_pages.environment() == {}


def test_a_choice_of_the_user_stays(linux, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    assert huge_pages.environment() == {}


@pytest.mark.parametrize("library", [("glibc", "2.34"), ("", "")])
def test_other_libraries_are_left_alone(linux, monkeypatch, library):
    monkeypatch.setattr(platform, "libc_ver", lambda: library)
    assert huge_pages.environment() == {}


def test_other_systems_are_left_alone(linux, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert huge_pages.environment() == {}
    monkeypatch.setattr(sys, "platform", "linux")
    linux.unlink()
    assert huge_pages.environment() == {}


_PROGRAM = """
import os, sys
from tm_jax.core import huge_pages
huge_pages._MODE = sys.argv[1]
print(os.getpid(), sys.argv[2:], os.environ.get("GLIBC_TUNABLES"))
huge_pages.restart()
print("here")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux's C library has the setting")
def test_a_program_restarts_once_with_its_arguments(linux, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(_PROGRAM)
    command = [sys.executable, str(program), str(linux), "--flag=a b"]
    environment = os.environ | {"PYTHONPATH": str(_ROOT)}
    lines = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    if len(lines) == 2:
        pytest.skip("this C library does not know the setting")
    process = lines[0].split()[0]
    assert lines == [
        f"{process} ['--flag=a b'] None",
        f"{process} ['--flag=a b'] glibc.malloc.hugetlb=1", "here",
    ]
