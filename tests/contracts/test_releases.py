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
    keywords: dict = {}
    monkeypatch.setattr(setuptools, "setup", keywords.update)
    exec(compile((ROOT / "setup.py").read_text(), ROOT / "setup.py", "exec"), {"__file__": str(ROOT / "setup.py")})
    return keywords


def requirements(monkeypatch) -> list[Requirement]:
    """By the program and its tests."""
    keywords = settings(monkeypatch)
    return [Requirement(line) for line in [*keywords["install_requires"], *keywords["extras_require"]["test"]]]


def lowest(specifiers: SpecifierSet) -> str:
    (least,) = [specifier.version for specifier in specifiers if specifier.operator == ">="]
    return least


def test_releases_lower_bounds_are_the_oldest_set_and_nothing_else(monkeypatch):
    lines = (ROOT / "tests" / "oldest.txt").read_text().splitlines()
    oldest = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert {requirement.name: lowest(requirement.specifier) for requirement in requirements(monkeypatch)} == oldest


def test_releases_here_are_inside_the_bounds(monkeypatch):
    for requirement in requirements(monkeypatch):
        assert metadata.version(requirement.name) in requirement.specifier, requirement.name
    python = SpecifierSet(settings(monkeypatch)["python_requires"])
    assert Version(".".join(map(str, sys.version_info[:3]))) in python


def test_releases_classifiers_are_inside_the_bounds_of_python(monkeypatch):
    keywords = settings(monkeypatch)
    python = SpecifierSet(keywords["python_requires"])
    named = [line.rpartition(" ")[2] for line in keywords["classifiers"] if re.search(r":: 3\.\d+$", line)]
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
