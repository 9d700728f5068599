"""The catalogue gives the keys of every shipped part as the imported class has them, and nothing of it needs torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_data import write_recipe

from mim.config import catalogue, schema
from mim.registry import keys_of

HEAVY = ("torch", "torchvision", "timm", "numpy", "PIL", "scipy", "sklearn", "matplotlib")
LOAD = """
import json, sys
from mim.config import load_config
from mim.config.keys import keys_text
problems = []
load_config(sys.argv[1])
for overrides in json.loads(sys.argv[2]):
    try:
        load_config(sys.argv[1], overrides)
    except ValueError as error:
        problems.append(str(error))
keys_text()
print(json.dumps([problems, sorted(sys.modules)]))
"""
MISTAKES = [
    {"TRAIN.epoch": 3},
    {"TRAIN.epochs": "many"},
    {"TRAIN.epochs": 0},
    {"ENCODER.name": "vitt"},
    {"ENCODER.widht": 3},
    {"AUGMENT.flip": 2},
    ["TRAIN.epochs", "1", "TRAIN.epochs", "2"],
    {"RECIPE": "mae/vit_bse"},
]


@pytest.mark.parametrize("section", schema.FAMILIES)
def test_catalogue_has_the_keys_of_every_shipped_part(section: str) -> None:
    module = schema.FAMILIES[section].module
    shipped = {
        name: part for name, part in schema.family(section).members().items() if part.__module__.startswith("mim.")
    }
    assert set(catalogue.names(module)) == set(shipped)
    for name, part in shipped.items():
        keys = catalogue.keys(module, name)
        assert list(keys) == list(keys_of(part)), name
        assert keys == keys_of(part), name


def test_config_and_its_mistakes_and_its_keys_need_no_torch(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOAD, str(write_recipe(tmp_path)), json.dumps(MISTAKES)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    problems, imported = json.loads(answer.stdout)
    assert len(problems) == len(MISTAKES), problems
    assert not {*imported} & {*HEAVY}


def test_part_that_is_no_plain_source_is_refused_by_the_catalogue(tmp_path: Path, monkeypatch) -> None:
    package = tmp_path / "maskers"
    package.mkdir()
    (package / "base.py").write_text("class Masker:\n    pass\n")
    (package / "odd.py").write_text(
        "from mim.maskers.base import Masker\n\n"
        "class Odd(Masker, name='odd'):\n    def __init__(self, *, key: int = len('abc')):\n        pass\n"
    )
    monkeypatch.setattr(catalogue, "ROOT", tmp_path)
    for function in (catalogue._parts, catalogue._definitions, catalogue.keys):
        function.cache_clear()
    try:
        with pytest.raises(TypeError, match=r"len\('abc'\)"):
            catalogue.keys("mim.maskers.base", "odd")
    finally:
        for function in (catalogue._parts, catalogue._definitions, catalogue.keys):
            function.cache_clear()
