"""Sections that are lists of parts: TARGET and LOSS, from files and overrides, in the tree and back."""

import copy
import pickle
from pathlib import Path

import pytest
import yaml
from small_data import RECIPE, logged, write_recipe
from yacs.config import CfgNode

from mim import ConfigError, Target
from mim.config import Config, PartConfig, PartList, change_config, differing, load_config, parse_config, schema
from mim.config.keys import OF_LISTS, keys_text
from mim.io.sections import LISTS, flatten, places
from mim.tasks.settings import TargetSettings

TWO = "TARGET: [{name: pixels, normalize: patch}, {name: hog, weight: .5}]\n"
LOSSES = "LOSS: [{name: mse}, {name: l1, eps: 1}]\n"
SINGLE = "TARGET: {name: pixels, normalize: patch}\n"


@pytest.fixture
def two() -> Config:
    return parse_config(TWO + LOSSES)


def refusal(text: str, *overrides: object) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, overrides[0] if len(overrides) == 1 else overrides)
    return str(caught.value)


def names(cfg: Config) -> list[tuple[str, float]]:
    return [(part.name, part.weight) for part in cfg.parts("TARGET")]


# -------------------------------------------------------------------- the tree


def test_list_is_a_part_for_each_entry(two: Config) -> None:
    assert isinstance(two.TARGET, PartList)
    assert two.parts("TARGET") == two.TARGET.parts
    assert names(two) == [("pixels", 1.0), ("hog", 0.5)]
    assert [(part.name, part.eps) for part in two.parts("LOSS")] == [("mse", 0.0), ("l1", 1.0)]
    assert two.TARGET.parts[1].shared == TargetSettings(weight=0.5)
    assert "weight" not in two.TARGET.parts[1].arguments
    with pytest.raises(AttributeError, match=r'TARGET is a list of 2 parts.*no key name: see cfg\.parts\("TARGET"\)'):
        _ = two.TARGET.name
    assert pickle.loads(pickle.dumps(two)) == copy.deepcopy(two) == two


def test_mapping_is_one_part_with_the_shared_keys() -> None:
    cfg = parse_config(SINGLE)
    assert isinstance(cfg.TARGET, PartConfig)
    assert cfg.parts("TARGET") == (cfg.TARGET,)
    assert (cfg.TARGET.weight, cfg.TARGET.shared.weight, cfg.TARGET.normalize) == (1.0, 1.0, "patch")
    assert [part.name for part in cfg.parts("ENCODER")] == ["vit"]
    with pytest.raises(AttributeError, match="TARGET is no section of TASK finetune"):
        parse_config("TASK: finetune\n").parts("TARGET")


def test_flat_keys_of_a_list_have_its_positions(two: Config) -> None:
    flat = two.flat()
    assert (flat["TARGET.0.normalize"], flat["TARGET.1.weight"], flat["LOSS.1.name"]) == ("patch", 0.5, "l1")
    assert "TARGET.weight" not in flat
    assert two.values()["TARGET"][1] == {"name": "hog", "weight": 0.5, "bins": 9, "cell": 8, "window": 16}


def test_list_of_one_is_its_mapping() -> None:
    one, mapping = (
        parse_config(f"TARGET: {text}\n") for text in ("[{name: hog, weight: 2}]", "{name: hog, weight: 2}")
    )
    assert one == mapping
    assert parse_config("TARGET: [{name: hog}]\n", ["TARGET.weight", "2"]) == mapping


def test_lists_and_what_they_mean_are_of_the_same_sections() -> None:
    assert set(OF_LISTS) == set(LISTS) <= set(schema.FAMILIES)


def test_plain_sections_are_flattened_by_place() -> None:
    sections = {"SEED": 1, "PLUGINS": ["a"], "TRAIN": {"epochs": 2}, "TARGET": [{"weight": 3}, {}, {"weight": 4}]}
    assert flatten(sections) == {
        **{"SEED": 1, "PLUGINS": ["a"], "TRAIN.epochs": 2},
        **{"TARGET.0.weight": 3, "TARGET.2.weight": 4},
    }
    assert list(places("TARGET", [{}, {}])) == ["TARGET.0", "TARGET.1"]
    assert list(places("TRAIN", [{}, {}])) == ["TRAIN"]


# -------------------------------------------------------------------- and back


def test_dump_of_a_list_loads_back_to_the_same_config(two: Config, tmp_path: Path) -> None:
    again = load_config(write_recipe(tmp_path, two.to_yaml()))
    assert again == two
    assert differing(again, two) == []
    assert again.to_yaml() == two.to_yaml()
    node = CfgNode.load_cfg(two.to_yaml())
    assert node.TARGET[1]["weight"] == 0.5


def test_set_keys_of_a_list_are_kept_with_its_length(two: Config) -> None:
    assert {"TARGET.0.normalize", "TARGET.1.weight", "LOSS.1.eps"} <= set(two.set_keys or ())
    assert "TARGET.0.weight" not in (two.set_keys or ())
    kept = yaml.safe_load(parse_config("TARGET: [{}, {weight: 2}]\n").set_keys_yaml())
    assert kept == {"TARGET": [{}, {"weight": 2.0}]}
    assert change_config(two, ["TARGET.1.bins", "4"]).parts("TARGET")[1].bins == 4
    assert change_config(two, {}) == two


def test_replace_reaches_a_part_of_a_list(two: Config) -> None:
    other = two.replace({"TARGET.1.weight": 3, "LOSS.0.eps": 1e-5})
    assert (names(other), other.parts("LOSS")[0].eps) == ([("pixels", 1.0), ("hog", 3.0)], 1e-5)
    assert names(two) == [("pixels", 1.0), ("hog", 0.5)]
    for key in ("TARGET.weight", "TARGET.2.weight", "TARGET.1", "TARGET.1.nothing"):
        with pytest.raises(ValueError, match=f"unknown key {key}"):
            two.replace({key: 3})


def test_differing_names_the_parts_of_a_list(two: Config) -> None:
    other = parse_config(TWO + LOSSES, ["TARGET.1.weight", "2"])
    assert differing(other, two) == ["TARGET.1.weight: 0.5 there, 2.0 here"]
    lines = differing(two, parse_config(SINGLE + "LOSS: {name: mse}\n"))
    assert "TARGET.name: pixels there, absent here" in lines
    assert "TARGET.1.name: absent there, hog here" in lines


# -------------------------------------------------------------------- overrides


def test_override_names_a_part_by_its_position(tmp_path: Path) -> None:
    assert names(parse_config(TWO, ["TARGET.1.weight", ".25"])) == [("pixels", 1.0), ("hog", 0.25)]
    with logged() as lines:
        cfg = load_config(write_recipe(tmp_path, TWO), ["TARGET.0.name", "hog"])
    assert names(cfg) == [("hog", 1.0), ("hog", 0.5)]
    assert lines == [
        "TARGET.0.normalize of the file has no effect: it is a key of pixels, and TARGET.0.name is now hog"
    ]


@pytest.mark.parametrize(
    "overrides",
    [
        ["TARGET", "[{name: hog, bins: 4}, {weight: 2}]"],
        {"TARGET": [{"name": "hog", "bins": 4}, {"weight": 2.0}]},
        [("TARGET", ({"name": "hog", "bins": 4}, {"weight": 2}))],
        ["TARGET", "[{name: hog}, {name: pixels}]", "TARGET.0.bins", "4", "TARGET.1.weight", "2"],
    ],
)
@pytest.mark.parametrize("text", [SINGLE, TWO, "SEED: 3\n"])
def test_override_gives_all_of_a_section(text: str, overrides: object) -> None:
    cfg = parse_config(text, overrides)
    assert names(cfg) == [("hog", 1.0), ("pixels", 2.0)]
    assert (cfg.parts("TARGET")[0].bins, cfg.parts("TARGET")[1].normalize) == (4, "none")
    assert change_config(cfg, {}) == cfg


def test_override_makes_one_part_of_a_list() -> None:
    for value in ("{name: hog}", "[{name: hog}]", {"name": "hog"}):
        assert parse_config(TWO, {"TARGET": value}).TARGET == parse_config("TARGET: {name: hog}\n").TARGET


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        (TWO, "TARGET.weight", "TARGET is a list of 2 here. Write TARGET.0.weight or TARGET.1.weight"),
        (TWO, "TARGET.name", "TARGET is a list of 2 here. Write TARGET.0.name or TARGET.1.name"),
        (TWO, "TARGET.2.weight", "TARGET is a list of 2 here. Write TARGET.0.weight or TARGET.1.weight"),
        (TWO, "TARGET.01.weight", "TARGET is a list of 2 here. Write TARGET.0.weight or TARGET.1.weight"),
        (TWO, "TARGET.1", "TARGET.1 is one part of a list: name one of its keys, as in TARGET.1.KEY VALUE"),
        (TWO, "TARGET.1.foo", "unknown key TARGET.1.foo of hog: "),
        (TWO, "TARGET.1.weight.x", "unknown key TARGET.1.weight.x of hog: did you mean 'weight'?"),
        (SINGLE, "TARGET.0.weight", 'TARGET is no list here. Write TARGET.weight, or give all of it, as in TARGET "[{'),
        (TWO, "LOSS.1.name", 'LOSS is no list here. Write LOSS.name, or give all of it, as in LOSS "[{'),
        (SINGLE, "TARGET", "TARGET is a section: name one of its keys, as in TARGET.KEY VALUE, or all of it, as in "),
        (SINGLE, "HEAD", "HEAD is a section: name one of its keys, as in HEAD.KEY VALUE"),
    ],
)
def test_override_that_fits_no_part_says_what_to_write(text: str, key: str, message: str) -> None:
    assert message in refusal(text, key, "2")


# -------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TARGET: []\n", "TARGET is an empty list: name at least one part"),
        ("TARGET: [hog, {name: pixels}]\n", "TARGET.0 is 'hog': it must be a mapping of keys"),
        ("TARGET: hog\n", "TARGET is 'hog': it must be a mapping of keys, or a list of them"),
        ("ENCODER: [{name: vit}, {}]\n", "it must be a mapping of keys"),
        ("TARGET: [{}, {foo: 1}]\n", "unknown key TARGET.1.foo of pixels: "),
        ("TARGET: [{}, {name: hogg}]\n", "TARGET.1.name 'hogg' is unknown: did you mean 'hog'?"),
        ("TARGET: [{}, {weight: 0}]\n", "TARGET.1.weight is 0.0: it must be above 0 and finite"),
        ("TARGET: {weight: -1}\n", "TARGET.weight is -1.0: it must be above 0 and finite"),
        ("TARGET: [{}, {weight: inf}]\n", "TARGET.1.weight is 'inf': it must be a finite number"),
        (
            "TARGET: [{}, {stride: 9999999999999999999999}]\n",
            "TARGET.1.stride is 9999999999999999999999: it must be at",
        ),
        (TWO + "LOSS: [{}, {}, {}]\n", "LOSS is a list of 3, and TARGET has 2: give one loss for each target, or LOSS"),
        ("LOSS: [{}, {}]\n", "LOSS is a list of 2, and TARGET has 1"),
        ("TASK: finetune\n" + TWO, "TARGET is no section of TASK finetune"),
        (TWO + "INIT: {keep: [TARGET.0.windo]}\n", "TARGET.0.windo: TARGET.0.name pixels has no such key"),
        (TWO + "INIT: {keep: [TARGET.window]}\n", "not there: write TARGET.0.window or TARGET.1.window"),
        (SINGLE + "INIT: {keep: [TARGET.0.window]}\n", "not there: write TARGET.window"),
    ],
)
def test_mistake_in_a_list_names_its_key(text: str, message: str) -> None:
    assert message in refusal(text)


def test_override_of_a_whole_section_that_is_no_yaml_names_it() -> None:
    assert "TARGET is '[{name: pixels}': it is not as YAML writes it" in refusal(SINGLE, "TARGET", "[{name: pixels}")


def test_part_with_a_key_that_all_parts_have_is_refused() -> None:
    class Weighted(Target, name="weighted_of_test_lists"):
        def __init__(self, image: object, encoder: object, *, weight: float = 1.0):
            super().__init__()

    try:
        message = "TARGET.name weighted_of_test_lists: its key weight is one of all parts of TARGET: rename it"
        assert message in refusal("TARGET: {name: weighted_of_test_lists}\n")
    finally:
        del Target._members["weighted_of_test_lists"]


def test_error_of_a_part_names_its_position() -> None:
    part = parse_config("TARGET: [{}, {name: hog, bins: 1}]\n").parts("TARGET")[1]
    with pytest.raises(ValueError, match=r"^TARGET\.1\.bins is 1: "):
        part.build(None, None)


def test_weights_must_be_above_zero_and_finite() -> None:
    for weight in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"TARGET\.weight is"):
            TargetSettings(weight=weight)


def test_keys_text_says_that_a_section_may_be_a_list() -> None:
    for section in LISTS:
        assert f"{section}: [{{" in keys_text(section)
    assert "`weight` (a finite number; default 1): factor" in keys_text("TARGET.weight")
    assert "TARGET: [{" in keys_text("TARGET.hog")


def test_config_of_old_without_weights_is_as_before() -> None:
    assert parse_config(RECIPE) == parse_config(RECIPE, ["TARGET.weight", "1"])
