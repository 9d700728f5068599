"""Releases: the bounds in setup.py are those of the oldest set, and the versions here are inside them."""

import re
import sys
from importlib import metadata
from pathlib import Path

import setuptools
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from processes import ROOT


def settings(monkeypatch) -> dict:
    """What setup.py says, without doing it."""
    found: dict = {}
    monkeypatch.setattr(setuptools, "setup", found.update)
    exec(compile((ROOT / "setup.py").read_text(), ROOT / "setup.py", "exec"), {"__file__": str(ROOT / "setup.py")})
    return found


def needed(monkeypatch) -> list[Requirement]:
    """By the program and its tests."""
    told = settings(monkeypatch)
    return [Requirement(line) for line in [*told["install_requires"], *told["extras_require"]["test"]]]


def lowest(specifiers: SpecifierSet) -> str:
    (least,) = [held.version for held in specifiers if held.operator == ">="]
    return least


def test_releases_lower_bounds_are_the_oldest_set_and_nothing_else(monkeypatch):
    lines = (ROOT / "tests" / "oldest.txt").read_text().splitlines()
    oldest = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert {held.name: lowest(held.specifier) for held in needed(monkeypatch)} == oldest


def test_releases_here_are_inside_the_bounds(monkeypatch):
    for held in needed(monkeypatch):
        assert metadata.version(held.name) in held.specifier, held.name
    python = SpecifierSet(settings(monkeypatch)["python_requires"])
    assert Version(".".join(map(str, sys.version_info[:3]))) in python


def test_releases_classifiers_are_inside_the_bounds_of_python(monkeypatch):
    told = settings(monkeypatch)
    python = SpecifierSet(told["python_requires"])
    named = [line.rpartition(" ")[2] for line in told["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert named
    assert all(Version(version) in python for version in named)
    assert lowest(python) == named[0]


def test_releases_everything_for_development_is_in_one_extra(monkeypatch):
    extras = settings(monkeypatch)["extras_require"]
    assert set(extras["huggingface"]) < set(extras["test"]) < set(extras["dev"])


def test_releases_that_make_compares_are_tests_that_there_are():
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    patterns = re.search(r"^ACROSS \?= (.*)$", makefile, re.MULTILINE)[1].split()
    assert len(patterns) > 5
    for pattern in patterns:
        assert list(Path(ROOT).glob(pattern)), pattern
