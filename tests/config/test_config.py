"""Configs: what is refused, and how it says so; what is understood; what comes back from a dump."""

import copy
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from small_data import FINETUNE, PROBE, RECIPE, RECIPES, logged, write_recipe
from yacs.config import CfgNode

from mim import ConfigError, Masker, load_config
from mim.build import build_without_memory, engine_settings
from mim.config import differing, schema
from mim.data.settings import DataSettings
from mim.engine.optim import LARS
from mim.engine.settings import TrainSettings

Refuse = Callable[..., str]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path)


@pytest.fixture
def refuse(tmp_path: Path) -> Refuse:
    """The message under which a recipe is refused, with one of its lines replaced and overrides on top."""

    def refused(*overrides: str, task: str = "pretrain", **sections: str) -> str:
        path = write_recipe(tmp_path, with_sections(RECIPES[task], **sections))
        with pytest.raises(ConfigError) as caught:
            load_config(path, overrides)
        assert overrides or str(path) in str(caught.value)
        return str(caught.value)

    return refused


def with_sections(text: str = RECIPE, **sections: str) -> str:
    """The recipe with some sections replaced, or added."""
    lines = [line for line in text.splitlines() if line.partition(":")[0] not in sections]
    return "\n".join([*lines, *(f"{section}: {text}" for section, text in sections.items())]) + "\n"


# -------------------------------------------------------------------- names


def test_config_unknown_key_names_the_nearest(refuse: Refuse) -> None:
    message = refuse(TRAIN="{epoch: 3}")
    assert "TRAIN.epoch" in message
    assert "did you mean 'epochs'?" in message


def test_config_unknown_key_of_a_part_names_the_part_and_all_its_keys(refuse: Refuse) -> None:
    message = refuse("HEAD.depht", "3")
    assert "HEAD.depht of transformer" in message
    assert "did you mean 'depth'?" in message
    allowed = message.partition("Allowed: ")[2].partition(".")[0].split(", ")
    assert {"depth", "heads", "mlp_ratio", "name", "width", "positions_of"} <= set(allowed)


def test_config_key_of_another_part_is_refused_in_the_file(refuse: Refuse) -> None:
    assert "MASKER.one_of of random" in refuse(MASKER="{name: random, cell: 8, one_of: 4}")


@pytest.mark.parametrize(
    ("overrides", "sections", "nearest"),
    [((), {"ENCODR": "{width: 16}"}, "ENCODER"), (("TRIAN.epochs", "3"), {}, "TRAIN"), ((), {"SED": "3"}, "SEED")],
)
def test_config_unknown_section_names_the_nearest(
    refuse: Refuse, overrides: tuple, sections: dict, nearest: str
) -> None:
    message = refuse(*overrides, **sections)
    assert next(iter(sections or ["TRIAN"])) in message
    assert f"did you mean {nearest!r}?" in message


def test_config_unknown_part_names_the_nearest_and_all(refuse: Refuse) -> None:
    for message in (refuse(ENCODER="{name: vitt}"), refuse("ENCODER.name", "vitt")):
        assert "ENCODER.name 'vitt'" in message
        assert "did you mean 'vit'?" in message
        assert "swin" in message


def test_config_override_must_name_a_key_and_not_a_section(refuse: Refuse) -> None:
    assert "ENCODER is a section" in refuse("ENCODER", "vit")


def test_config_override_below_a_plain_key_is_refused(refuse: Refuse) -> None:
    assert "unknown key SEED.more" in refuse("SEED.more", "3")


def test_config_override_three_levels_deep_is_refused(refuse: Refuse) -> None:
    assert "ENCODER.width.more" in refuse("ENCODER.width.more", "3")


# -------------------------------------------------------------------- types


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("TRAIN.epochs", "1.5", "an integer"),
        ("TRAIN.epochs", "many", "an integer"),
        ("TRAIN.epochs", "1e3", "an integer"),
        ("TRAIN.clip", "much", "a finite number"),
        ("TRAIN.clip", "nan", "a finite number"),
        ("TRAIN.clip", "inf", "a finite number"),
        ("TRAIN.compile", "yes", "true or false"),
        ("TRAIN.compile", "1", "true or false"),
        ("TRAIN.deterministic", "maybe", "true or false or auto"),
        ("TRAIN.precision", "fp8", "one of auto, bf16, fp16, fp32"),
        ("TASK", "pretraining", "one of pretrain, finetune, probe"),
    ],
)
def test_config_scalar_of_the_wrong_type_names_key_value_and_what_is_allowed(
    refuse: Refuse, key: str, value: str, allowed: str
) -> None:
    section, _, inner = key.partition(".")
    in_file = {section: f"{{{inner}: {value}}}" if inner else value}
    for message in (refuse(key, value), refuse(**in_file)):
        assert f"{key} is {value!r}: it must be {allowed}" in message


@pytest.mark.parametrize("value", ["[32]", "[32, 32, 32]", "[32, a]", "[32, 1.5]", "32"])
def test_config_pair_of_the_wrong_type_is_refused(refuse: Refuse, value: str) -> None:
    in_file = refuse(DATA=f"{{name: digits, channels: 1, image_size: {value}}}")
    for message in (refuse("DATA.image_size", value), in_file):
        assert "DATA.image_size is " in message
        assert "a list of 2 integers" in message
        assert value.strip("[]").split(", ")[-1] in message


@pytest.mark.parametrize("value", ["guess", "[0.5, much]", "0.5"])
def test_config_numbers_or_estimate_refuses_all_else(refuse: Refuse, value: str) -> None:
    message = refuse("DATA.mean", value)
    assert "DATA.mean is " in message
    assert "a list of finite numbers or estimate" in message


@pytest.mark.parametrize("value", ["[3]", "{three: 3}", ""])
def test_config_scalar_refuses_a_list_a_mapping_and_nothing(refuse: Refuse, value: str) -> None:
    assert "TRAIN.epochs is " in refuse(TRAIN=f"{{epochs: {value}}}")


def test_config_list_that_is_not_closed_is_refused(refuse: Refuse) -> None:
    message = refuse("DATA.image_size", "[32, 32")
    assert "DATA.image_size" in message
    assert "[32, 32" in message


def test_config_section_must_be_a_mapping(refuse: Refuse) -> None:
    message = refuse(TRAIN="100")
    assert "TRAIN is '100'" in message
    assert "mapping" in message


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("TRAIN.clip", "5", 5.0),
        ("TRAIN.clip", "1e-4", 1e-4),
        ("OPTIMIZER.base_lr", "1.5e-4", 1.5e-4),
        ("OPTIMIZER.base_lr", "1E-4", 1e-4),
        ("TRAIN.compile", "true", True),
        ("TRAIN.compile", "True", True),
        ("TRAIN.compile", "false", False),
        ("TRAIN.deterministic", "FALSE", False),
        ("TRAIN.deterministic", "auto", "auto"),
        ("DATA.mean", "estimate", "estimate"),
        ("TRAIN.epochs", "7", 7),
        ("AUGMENT.crop_scale", "[1, 1]", (1.0, 1.0)),
        ("OPTIMIZER.no_decay", "[]", ()),
        ("OPTIMIZER.no_decay", "[pos_embed, encoder.mask_token]", ("pos_embed", "encoder.mask_token")),
    ],
)
def test_config_value_is_parsed_by_its_key_in_the_file_and_on_the_command_line(
    tmp_path: Path, key: str, text: str, value: object
) -> None:
    section, inner = key.split(".")
    recipe_text = with_sections(**{section: f"{{{inner}: {text}}}"})
    if section == "DATA":
        recipe_text = RECIPE.replace("name: digits", f"name: digits, {inner}: {text}")
    for cfg in (
        load_config(write_recipe(tmp_path, recipe_text)),
        load_config(write_recipe(tmp_path, RECIPE), [key, text]),
    ):
        assert cfg.flat()[key] == value
        assert type(cfg.flat()[key]) is type(value)
        if isinstance(value, tuple):
            assert list(map(type, cfg.flat()[key])) == list(map(type, value))


@pytest.mark.parametrize("path", ["007", "2024", "1e5", "0x1f", "true", "null", "1_000", "~", "2024-01-01"])
def test_config_path_that_looks_like_something_else_stays_text(tmp_path: Path, path: str) -> None:
    text = RECIPE.replace("name: digits", f"name: digits, path: {path}")
    for cfg in (
        load_config(write_recipe(tmp_path, text)),
        load_config(write_recipe(tmp_path), ["DATA.path", path]),
    ):
        assert cfg.DATA.path == path
        reloaded = load_config(write_recipe(tmp_path, cfg.to_yaml(), "again.yaml"))
        assert reloaded.DATA.path == path


def test_config_image_size_override_is_a_list(recipe: Path) -> None:
    cfg = load_config(recipe, ["DATA.image_size", "[96,160]"])
    assert cfg.DATA.image_size == (96, 160)
    model = build_without_memory(cfg)
    assert model is not None
    assert model.encoder.spec.grid == (12, 20)


# -------------------------------------------------------------------- files and command lines


def test_config_key_that_stands_twice_in_the_file_names_the_line(tmp_path: Path) -> None:
    for text, line, key in (
        (RECIPE + "TASK: pretrain\n", 8, "TASK"),
        (RECIPE + "TRAIN:\n  epochs: 2\n  clip: 1\n  epochs: 3\n", 11, "epochs"),
    ):
        path = write_recipe(tmp_path, text)
        with pytest.raises(ConfigError, match=f"line {line}: key '{key}' (stands|appears) twice") as caught:
            load_config(path)
        assert str(path) in str(caught.value)


def test_config_key_that_stands_twice_on_the_command_line_names_both_values(recipe: Path) -> None:
    with pytest.raises(ConfigError, match=r"TRAIN.epochs is given twice.*2 and 3"):
        load_config(recipe, ["TRAIN.epochs", "2", "TRAIN.epochs", "3"])


def test_config_odd_number_of_overrides_names_the_last(recipe: Path) -> None:
    with pytest.raises(ConfigError, match=r"'TRAIN.clip' has no value"):
        load_config(recipe, ["TRAIN.epochs", "2", "TRAIN.clip"])


def test_config_missing_file_is_named(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none.yaml", "does not exist"), (tmp_path, "is no file")):
        with pytest.raises(ConfigError, match=reason) as caught:
            load_config(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n- list\n", "text\n"])
def test_config_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = write_recipe(tmp_path, text)
    with pytest.raises(ConfigError, match="mapping of sections") as caught:
        load_config(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["TRAIN: {epochs: 3\n", "TRAIN:\n\tepochs: 3\n", "TRAIN: *nowhere\n", "[a]: b: c\n"])
def test_config_invalid_yaml_names_the_file_and_the_line(tmp_path: Path, text: str) -> None:
    path = write_recipe(tmp_path, text)
    with pytest.raises(ConfigError, match="line") as caught:
        load_config(path)
    assert str(path) in str(caught.value)


def test_config_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


# -------------------------------------------------------------------- parts that must fit each other


def test_config_size_that_does_not_divide_names_the_axis(refuse: Refuse) -> None:
    for size, axis in (("[36, 32]", "height 36"), ("[32, 36]", "width 36")):
        assert axis in refuse("DATA.image_size", size)
    message = refuse("DATA.image_size", "[32, 36]", "MASKER.cell", "4")
    assert "ENCODER.patch 8 does not divide the image width 36" in message


def test_config_size_below_one_cell_offers_only_sizes_that_work(refuse: Refuse) -> None:
    message = refuse("DATA.image_size", "[5, 32]")
    assert "height of 8" in message
    assert "8 or 8" not in message


def test_config_beit_that_drops_names_the_alternative(refuse: Refuse) -> None:
    message = refuse(ENCODER="{name: beit, hidden: drop, patch: 8, width: 16, depth: 1, heads: 2}")
    assert "ENCODER.hidden" in message
    assert "drop" in message
    assert "ENCODER.hidden replace" in message
    assert "vit" in message


@pytest.mark.parametrize("ratio", ["0", "1", "-0.5", "1.5"])
def test_config_ratio_at_or_beyond_its_ends_is_refused(refuse: Refuse, ratio: str) -> None:
    message = refuse("MASKER.ratio", ratio)
    assert f"MASKER.ratio is {float(ratio)}" in message
    assert "between 0 and 1" in message


def test_config_ratio_that_leaves_nothing_to_see_is_refused(refuse: Refuse) -> None:
    assert "at least one cell must be visible" in refuse("MASKER.ratio", "0.99")


def test_config_pixel_shuffle_on_a_dropping_encoder_names_the_transformer(refuse: Refuse) -> None:
    message = refuse(HEAD="{name: pixel_shuffle}")
    assert "HEAD.name pixel_shuffle" in message
    assert "transformer" in message


def test_config_cells_finer_than_patches_are_refused(refuse: Refuse) -> None:
    message = refuse("MASKER.cell", "4")
    assert "MASKER.cell 4" in message
    assert "ENCODER.patch 8" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("SEED", "-1"), ("TRAIN.epochs", "0"), ("TRAIN.ema", "1"), ("DATA.batch_size", "0"), ("DATA.workers", "-1")),
        *(("AUGMENT.crop_scale", "[0.5, 0.2]"), ("AUGMENT.flip", "2"), ("OPTIMIZER.betas", "[0.9, 1]")),
        *(("SCHEDULE.warmup_lr", "-1"), ("CHECKPOINT.keep", "0"), ("LOG.every_steps", "0"), ("DATA.std", "[0]")),
        *(("ENCODER.width", "0"), ("ENCODER.heads", "3"), ("ENCODER.mlp_ratio", "-1"), ("ENCODER.drop_path", "1.5")),
        *(("ENCODER.patch", "0"), ("HEAD.mlp_ratio", "-1"), ("HEAD.depth", "0"), ("MASKER.cell", "0")),
    ],
)
def test_config_value_out_of_range_is_refused_by_its_key(refuse: Refuse, key: str, value: str) -> None:
    more = ("DATA.mean", "[0.5]") if key == "DATA.std" else ()
    assert key in refuse(key, value, *more)


def test_config_channels_without_as_many_means_are_refused(refuse: Refuse) -> None:
    message = refuse("DATA.mean", "[0.5, 0.5]", "DATA.std", "[0.5, 0.5]")
    assert "DATA.mean has 2 numbers and DATA.channels is 1" in message
    assert "both" in refuse("DATA.mean", "[0.5]")


# -------------------------------------------------------------------- overrides


def test_config_override_of_one_key_leaves_its_section_alone(recipe: Path) -> None:
    plain, changed = load_config(recipe), load_config(recipe, ["ENCODER.width", "32"])
    assert differing(changed, plain) == ["ENCODER.width: 16 there, 32 here"]


def test_config_override_adds_a_key_that_the_file_lacks(recipe: Path) -> None:
    cfg = load_config(recipe, ["ENCODER.mlp_ratio", "2", "TRAIN.epochs", "3"])
    assert (cfg.ENCODER.mlp_ratio, cfg.TRAIN.epochs) == (2.0, 3)


def test_config_other_part_by_override_drops_the_files_foreign_keys_with_a_warning(recipe: Path) -> None:
    with logged() as lines:
        cfg = load_config(recipe, ["MASKER.name", "grid"])
    assert cfg.MASKER.values() == {"name": "grid", "cell": 8, "one_of": 4}
    assert len(lines) == 1
    assert "MASKER.ratio of the file has no effect" in lines[0]
    assert "random" in lines[0]
    assert "grid" in lines[0]


def test_config_names_all_foreign_keys_of_a_part_in_one_line(recipe: Path) -> None:
    with logged() as lines:
        load_config(recipe, ["ENCODER.name", "timm", "ENCODER.options", "[patch_size=8]", "MASKER.cell", "16"])
    assert len(lines) == 1
    assert "ENCODER.depth, heads, patch, width of the file have no effect: they are keys of vit" in lines[0]


@pytest.mark.parametrize("labels", ["folders", "auto"])
def test_config_other_part_by_override_keeps_no_value_that_it_does_not_allow(recipe: Path, labels: str) -> None:
    recipe.write_text(with_sections(DATA=f"{{name: folder, path: images, labels: {labels}, val_share: 0.25}}"))
    with logged() as lines:
        cfg = load_config(recipe, ["DATA.name", "webdataset", "DATA.path", "a-{0..3}.tar"])
    assert (cfg.DATA.values()["labels"], cfg.DATA.values()["val_share"]) == ("auto", 0.25)
    assert ("DATA.labels of the file has no effect: 'folders' is a value of folder" in "".join(lines)) == (
        labels == "folders"
    )


def test_config_other_part_by_override_still_refuses_a_value_that_no_part_allows(recipe: Path) -> None:
    recipe.write_text(with_sections(DATA="{name: folder, path: images, labels: folder}"))
    with pytest.raises(ConfigError, match=r"DATA\.labels is 'folder': it must be one of auto, cls"):
        load_config(recipe, ["DATA.name", "webdataset", "DATA.path", "a-{0..3}.tar"])


def test_config_one_value_for_a_list_is_refused_with_the_list(refuse: Refuse) -> None:
    assert "INIT.take is 'ENCODER': it must be a list of texts, as in \"[ENCODER]\"" in refuse("INIT.take", "ENCODER")
    assert "as in" not in refuse("DATA.image_size", "32")


def test_config_other_part_by_override_keeps_the_keys_that_both_have(recipe: Path) -> None:
    with logged() as lines:
        cfg = load_config(recipe, ["MASKER.name", "block"])
    assert (cfg.MASKER.ratio, cfg.MASKER.cell, cfg.MASKER.min_cells) == (0.75, 8, 16)
    assert lines == []


def test_config_other_part_by_override_drops_keys_of_the_default_part(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, RECIPE.replace("name: random, ", ""))
    with logged() as lines:
        cfg = load_config(path, ["MASKER.name", "grid"])
    assert cfg.MASKER.values() == {"name": "grid", "cell": 8, "one_of": 4}
    assert len(lines) == 1


def test_config_other_part_by_override_still_refuses_what_is_nobodys_key(refuse: Refuse) -> None:
    message = refuse("MASKER.name", "grid", MASKER="{name: random, cell: 8, ration: 0.75}")
    assert "MASKER.ration" in message


def test_config_other_part_by_override_refuses_the_old_parts_key_on_the_command_line(refuse: Refuse) -> None:
    assert "unknown key MASKER.ratio of grid" in refuse("MASKER.name", "grid", "MASKER.ratio", "0.5")


# -------------------------------------------------------------------- what comes out


def test_config_is_complete(recipe: Path, tmp_path: Path) -> None:
    cfg = load_config(write_recipe(tmp_path, "SEED: 3\nENCODER: {patch: 16}\nDATA: {image_size: [32, 32]}\n"))
    assert list(cfg.values()) == ["TASK", "SEED", "RECIPE", "PLUGINS", *schema.sections("pretrain")]
    assert cfg.MASKER.name == "random"
    assert engine_settings(cfg).seed == 3


@pytest.mark.parametrize("task", RECIPES)
def test_config_holds_every_key_of_every_section_of_its_task(tmp_path: Path, task: str) -> None:
    cfg = load_config(write_recipe(tmp_path, RECIPES[task]))
    for section in schema.sections(task):
        keys = {*schema.section_keys(task, section, cfg.values()[section].get("name", ""))}
        assert set(cfg.values()[section]) == keys | ({"name"} if section in schema.FAMILIES else set()), section
        assert (section in schema.FAMILIES) == ("name" in cfg.values()[section])


def test_config_dump_loads_back_to_the_same_config(recipe: Path, tmp_path: Path) -> None:
    words = ["TRAIN.clip", "1e-7", "DATA.path", "a: b # [c]"]
    words += ["SCHEDULE.name", "multistep", "SCHEDULE.milestones", "[1.5, 2]"]
    cfg = load_config(recipe, words)
    reloaded = load_config(write_recipe(tmp_path, cfg.to_yaml(), "again.yaml"))
    assert reloaded == cfg
    assert differing(reloaded, cfg) == []
    assert reloaded.to_yaml() == cfg.to_yaml()


def test_config_dump_of_swin_loads_back_to_the_same_config(tmp_path: Path) -> None:
    swin = "{name: swin, patch: 4, width: 16, depths: [1, 1], heads: [2, 2], window: 4, drop_path: 0.1}"
    cfg = load_config(write_recipe(tmp_path, with_sections(ENCODER=swin, HEAD="{name: pixel_shuffle}")))
    assert cfg.ENCODER.depths == (1, 1)
    assert load_config(write_recipe(tmp_path, cfg.to_yaml())) == cfg


def test_config_is_frozen(recipe: Path) -> None:
    cfg = load_config(recipe)
    with pytest.raises(AttributeError):
        cfg.SEED = 3
    with pytest.raises(AttributeError):
        cfg.TRAIN.epochs = 3


def test_config_differing_lists_each_key_with_both_values(recipe: Path) -> None:
    plain = load_config(recipe)
    with logged():
        other = load_config(recipe, ["SEED", "3", "TRAIN.epochs", "2", "MASKER.name", "grid"])
    assert differing(plain, plain) == []
    assert set(differing(other, plain)) == {
        "SEED: 0 there, 3 here",
        f"TRAIN.epochs: {plain.TRAIN.epochs} there, 2 here",
        "MASKER.name: random there, grid here",
        "MASKER.one_of: absent there, 4 here",
        "MASKER.ratio: 0.75 there, absent here",
        "MASKER.rounding: floor_visible there, absent here",
    }


def test_config_overrides_are_words_pairs_or_a_dict_of_plain_values(recipe: Path) -> None:
    expected = load_config(recipe, ["TRAIN.epochs", "2", "DATA.image_size", "[96, 160]", "TRAIN.compile", "true"])
    values = {"TRAIN.epochs": 2, "DATA.image_size": (96, 160), "TRAIN.compile": True}
    words = [word for pair in values.items() for word in pair]
    for overrides in (values, list(values.items()), [list(pair) for pair in values.items()], words):
        assert load_config(recipe, overrides) == expected
    assert load_config(recipe, {"OPTIMIZER.base_lr": 1.5e-7}).OPTIMIZER.base_lr == 1.5e-7
    for overrides in ({"TRAIN.epochs": 1.5}, [("TRAIN.epochs", 1.5)], ["TRAIN.epochs", 1.5]):
        with pytest.raises(ConfigError, match=r"TRAIN\.epochs is '1\.5': it must be an integer"):
            load_config(recipe, overrides)


@pytest.mark.parametrize("overrides", [[("TRAIN.epochs",)], {3: 4}, [("TRAIN.epochs", 1), ("TRAIN.epochs", 2)], [1, 2]])
def test_config_overrides_that_are_no_pairs_are_refused(recipe: Path, overrides: object) -> None:
    with pytest.raises(ConfigError):
        load_config(recipe, overrides)


def test_config_sections_are_settings_and_parts(recipe: Path) -> None:
    cfg = load_config(recipe)
    assert isinstance(cfg.TRAIN, TrainSettings)
    assert (cfg.ENCODER.name, cfg.ENCODER.width, cfg.DATA.batch_size, cfg.DATA.shared.batch_size) == ("vit", 16, 8, 8)
    assert isinstance(cfg.DATA.shared, DataSettings)
    with pytest.raises(AttributeError, match="FREEZE is no section of TASK pretrain"):
        _ = cfg.FREEZE
    with pytest.raises(AttributeError, match=r"ENCODER\.name vit has no key widht: did you mean 'width'"):
        _ = cfg.ENCODER.widht
    assert pickle.loads(pickle.dumps(cfg)) == copy.deepcopy(cfg) == cfg


def test_config_replace_gives_another_config_with_checked_values(recipe: Path) -> None:
    cfg = load_config(recipe)
    other = cfg.replace({"DATA.mean": [0.25], "DATA.std": (0.5,), "SEED": 3, "ENCODER.width": 32})
    assert (other.DATA.mean, other.DATA.shared.std, other.SEED, other.ENCODER.width) == ((0.25,), (0.5,), 3, 32)
    assert (cfg.DATA.mean, cfg.SEED, cfg.ENCODER.width) == ("estimate", 0, 16)
    for values, key in (
        *(({"TRAIN.epoch": 1}, "TRAIN.epoch"), ({"TRAIN.epochs": 0}, "TRAIN.epochs"), ({"DATA": 1}, "DATA")),
        *(({"DATA.mean": [0.5]}, "DATA.mean"), ({"TRAIN.epochs": "many"}, "TRAIN.epochs"), ({"X.y": 1}, "X.y")),
    ):
        with pytest.raises(ValueError, match=key):
            cfg.replace(values)


def test_config_yaml_is_read_by_yacs_to_the_same_values(recipe: Path) -> None:
    cfg = load_config(recipe)
    node = CfgNode.load_cfg(cfg.to_yaml())
    assert node.TRAIN.epochs == cfg.TRAIN.epochs
    assert tuple(node.DATA.image_size) == cfg.DATA.image_size


# -------------------------------------------------------------------- tasks

SHARED = {"DATA", "AUGMENT", "ENCODER", "INIT", "TRAIN", "OPTIMIZER", "SCHEDULE", "EVALUATE", "CHECKPOINT", "LOG"}
SHARED |= {"AUGMENTATION", "DISTRIBUTED"}
TASK_SECTIONS = {
    "pretrain": {"MASKER", "HEAD", "TARGET", "LOSS"},
    "finetune": {"LABELS", "READOUT", "CRITERION", "FREEZE"},
    "probe": {"LABELS", "READOUT", "CRITERION", "PROBE"},
}
FOREIGN = [
    (task, section)
    for task in TASK_SECTIONS
    for section in sorted(set().union(*TASK_SECTIONS.values()) - TASK_SECTIONS[task])
]


def test_schema_gives_each_task_its_sections_in_one_order() -> None:
    assert set(schema.TASKS) == set(TASK_SECTIONS) == set(schema.SETTINGS) == set(RECIPES)
    for task, sections in TASK_SECTIONS.items():
        assert set(schema.sections(task)) == SHARED | sections
        assert list(schema.sections(task)) == [section for section in schema.ORDER if section in SHARED | sections]
    assert all(family.default in schema.family(section).members() for section, family in schema.FAMILIES.items())


def test_config_of_each_task_is_complete_without_a_line_of_its_own(tmp_path: Path) -> None:
    for task in ("finetune", "probe"):
        cfg = load_config(write_recipe(tmp_path, f"TASK: {task}\nENCODER: {{hidden: none}}\n"))
        assert task == cfg.TASK
        assert (cfg.DATA.name, cfg.ENCODER.name, cfg.OPTIMIZER.name) == ("digits", "vit", "adamw")


@pytest.mark.parametrize(("task", "section"), FOREIGN)
def test_config_section_of_another_task_is_refused_by_name_with_those_there_are(
    refuse: Refuse, task: str, section: str
) -> None:
    for message in (
        refuse(task=task, **{section: "{}"}),
        refuse(f"{section}.seed", "1", task=task),
        refuse(section, "1", task=task),
    ):
        assert f"{section} is no section of TASK {task}" in message
        allowed = message.partition("Allowed: ")[2].split(", ")
        assert set(allowed) == {"TASK", "SEED", "RECIPE", "PLUGINS"} | SHARED | TASK_SECTIONS[task]


def test_config_task_on_the_command_line_decides_which_sections_there_are(tmp_path: Path, refuse: Refuse) -> None:
    path = write_recipe(tmp_path, FINETUNE)
    assert "FREEZE" not in load_config(path, ["TASK", "probe"]).sections
    assert "FREEZE" in load_config(write_recipe(tmp_path, PROBE), ["TASK", "finetune"]).sections
    assert "MASKER is no section of TASK finetune" in refuse("TASK", "finetune")


@pytest.mark.parametrize("value", ["fine-tune", "linear probe", "Pretrain", "", "[pretrain]"])
def test_config_unknown_task_names_all_three(refuse: Refuse, value: str) -> None:
    message = refuse("TASK", value)
    assert f"TASK is {value!r}: it must be one of pretrain, finetune, probe" in message


@pytest.mark.parametrize(
    ("task", "key"),
    [
        *(("pretrain", key) for key in ("AUGMENT.mixup", "AUGMENT.randaugment", "EVALUATE.confusion")),
        *(("probe", key) for key in ("AUGMENT.cutmix", "AUGMENT.erase", "EVALUATE.knn")),
        *(("finetune", "READOUT.rates"), ("finetune", "EVALUATE.knn")),
    ],
)
def test_config_key_of_another_task_is_refused(refuse: Refuse, task: str, key: str) -> None:
    section, inner = key.split(".")
    for message in (refuse(key, "1", task=task), refuse(task=task, **{section: f"{{{inner}: 1}}"})):
        assert f"unknown key {key}" in message


@pytest.mark.parametrize("task", ["finetune", "probe"])
@pytest.mark.parametrize("hidden", ["drop", "replace"])
def test_config_classifier_on_an_encoder_that_hides_is_told_to_hide_nothing(
    refuse: Refuse, task: str, hidden: str
) -> None:
    message = refuse("ENCODER.hidden", hidden, task=task)
    assert f"ENCODER.hidden is {hidden}" in message
    assert "must be none" in message


def test_config_classifier_without_a_class_token_to_pool_is_told_to_take_the_mean(
    tmp_path: Path, refuse: Refuse
) -> None:
    swin = "{name: swin, hidden: none, patch: 4, width: 16, depths: [1, 1], heads: [2, 2], window: 4}"
    for pool in ("class", "both"):
        for more, sections in ((("ENCODER.class_token", "false"), {}), ((), {"ENCODER": swin})):
            message = refuse("READOUT.pool", pool, *more, task="probe", **sections)
            assert f"READOUT.pool is {pool}, and this encoder has no class token: use mean" in message
    text = with_sections(PROBE, ENCODER=swin)
    assert load_config(write_recipe(tmp_path, text), ["READOUT.pool", "mean"]).READOUT.pool == "mean"


def test_config_clipping_would_couple_the_rates_of_a_probe(tmp_path: Path, refuse: Refuse) -> None:
    message = refuse("TRAIN.clip", "2", "PROBE.rates", "[0.1, 1]", task="probe")
    assert "TRAIN.clip is 2: " in message
    assert "the settings of PROBE" in message
    assert "TRAIN.clip 0" in message
    path = write_recipe(tmp_path, PROBE)
    assert load_config(path, ["TRAIN.clip", "2"]).TRAIN.clip == 2  # one layer couples with nothing
    assert load_config(path, ["PROBE.rates", "[0.1, 1]"]).PROBE.rates == (0.1, 1.0)


@pytest.mark.parametrize("key", ["AUGMENT.mixup", "AUGMENT.cutmix"])
def test_config_mixing_needs_an_even_batch(tmp_path: Path, refuse: Refuse, key: str) -> None:
    message = refuse(key, "0.8", "DATA.batch_size", "7", task="finetune")
    assert "DATA.batch_size is 7" in message
    assert "AUGMENT.mixup" in message
    assert "must be even" in message
    path = write_recipe(tmp_path, FINETUNE)
    assert load_config(path, [key, "0.8", "DATA.batch_size", "6"]).DATA.batch_size == 6
    assert load_config(path, [key, "0", "DATA.batch_size", "7"]).DATA.batch_size == 7


@pytest.mark.parametrize("word", ["nonsense", "rand-m9-q3", "rand-m9.5", "RAND-m9", "original", "rand m9"])
def test_config_randaugment_that_timm_does_not_know_is_refused(refuse: Refuse, word: str) -> None:
    message = refuse("AUGMENT.randaugment", word, task="finetune")
    assert f"AUGMENT.randaugment is {word!r}" in message
    assert "rand-m9-mstd0.5-inc1" in message


@pytest.mark.parametrize(("key", "value"), [("AUGMENT.randaugment", "rand-m9-mstd0.5-inc1"), ("AUGMENT.jitter", "0.4")])
def test_config_colours_of_twelve_channels_are_refused(tmp_path: Path, refuse: Refuse, key: str, value: str) -> None:
    message = refuse(key, value, "DATA.channels", "12", task="finetune")
    assert f"{key} is {value}" in message
    assert "DATA.channels is 12" in message
    path = write_recipe(tmp_path, FINETUNE)
    for channels in ("1", "3"):
        assert load_config(path, [key, value, "DATA.channels", channels]).DATA.channels == int(channels)
    colourless = ["AUGMENT.mixup", "0.8", "AUGMENT.erase", "0.25", "DATA.channels", "12"]
    assert load_config(path, colourless).AUGMENT.erase == 0.25


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("0.3", "FREEZE.tune_blocks is 0.3: it must be 0, 0.5, 1, 1.5 ... or all"),
        ("-1", "FREEZE.tune_blocks is -1.0: it must be 0, 0.5, 1, 1.5 ... or all"),
        ("-0.5", "FREEZE.tune_blocks is -0.5: it must be 0, 0.5, 1, 1.5 ... or all"),
        ("3", "FREEZE.tune_blocks is 3, and ENCODER.name vit has 2 blocks: use fewer, or all"),
        ("2.5", "FREEZE.tune_blocks is 2.5, and ENCODER.name vit has 2 blocks: use fewer, or all"),
        ("none", "FREEZE.tune_blocks is 'none': it must be a finite number or all"),
        ("nan", "FREEZE.tune_blocks is 'nan': it must be a finite number or all"),
    ],
)
def test_config_tune_blocks_that_cannot_be_is_refused(refuse: Refuse, value: str, message: str) -> None:
    assert message in refuse("FREEZE.tune_blocks", value, task="finetune")
    assert message in refuse(task="finetune", FREEZE=f"{{tune_blocks: {value}}}")


def test_config_labels_by_share_and_by_number_exclude_each_other(refuse: Refuse) -> None:
    for task in ("finetune", "probe"):
        message = refuse("LABELS.share", "0.5", "LABELS.per_class", "3", task=task)
        assert "LABELS.share 0.5 and LABELS.per_class 3: give one of them" in message


CLASSIFYING = [
    *(("LABELS.share", "0"), ("LABELS.share", "1.5"), ("LABELS.share", "-0.1"), ("LABELS.per_class", "-1")),
    *(("LABELS.seed", "-1"), ("EVALUATE.crop_pct", "0"), ("EVALUATE.crop_pct", "1.01"), ("EVALUATE.samples", "-1")),
    *(("EVALUATE.every_epochs", "-1"), ("READOUT.init_std", "-0.1"), ("AUGMENT.flip", "1.5")),
    *(("OPTIMIZER.layer_decay", "0"), ("OPTIMIZER.layer_decay", "1.1"), ("OPTIMIZER.per_batch", "0")),
    *(("OPTIMIZER.base_lr", "-1"), ("OPTIMIZER.weight_decay", "-1"), ("SCHEDULE.warmup_epochs", "-1")),
]


@pytest.mark.parametrize(
    ("task", "key", "value"),
    [
        *((task, *pair) for task in ("finetune", "probe") for pair in CLASSIFYING),
        *(("finetune", f"AUGMENT.{key}", value) for key in ("erase", "jitter") for value in ("-0.1", "1.1")),
        *(("finetune", f"AUGMENT.{key}", "-0.1") for key in ("mixup", "cutmix")),
        *(("finetune", "CRITERION.smoothing", value) for value in ("-0.1", "1.1")),
        *(("probe", "PROBE.rates", value) for value in ("[]", "[0]", "[1, -1]", "[1, 2, 1.0]")),
        *(("pretrain", "EVALUATE.crop_pct", value) for value in ("0", "1.01")),
        *(("pretrain", "OPTIMIZER.eps", "-1"), ("pretrain", "OPTIMIZER.layer_decay", "0")),
    ],
)
def test_config_value_out_of_range_of_any_task_is_refused_by_its_key_and_value(
    refuse: Refuse, task: str, key: str, value: str
) -> None:
    message = refuse(key, value, task=task)
    parsed = [float(item) for item in yaml.safe_load(value)] if value.startswith("[") else float(value)
    assert any(f"{key} is {form}" in message for form in (parsed, value)), message


def test_config_lars_has_keys_and_ranges_of_its_own(tmp_path: Path, refuse: Refuse) -> None:
    lars = "{name: lars, base_lr: 0.1, momentum: 0.8, trust: 0.002, weight_decay: 0}"
    optimizer = engine_settings(load_config(write_recipe(tmp_path, with_sections(PROBE, OPTIMIZER=lars)))).optimizer
    assert isinstance(optimizer, LARS)
    assert (optimizer.base_lr, optimizer.momentum, optimizer.trust, optimizer.weight_decay) == (0.1, 0.8, 0.002, 0)
    assert "unknown key OPTIMIZER.betas of lars" in refuse(OPTIMIZER="{name: lars, betas: [0.9, 0.9]}")
    assert "unknown key OPTIMIZER.trust of adamw" in refuse(OPTIMIZER="{trust: 0.1}")
    assert "OPTIMIZER.momentum is 1.0" in refuse(OPTIMIZER="{name: lars, momentum: 1}")
    assert "OPTIMIZER.trust is 0.0" in refuse(OPTIMIZER="{name: lars, trust: 0}")
    message = refuse(OPTIMIZER="{name: sgd}")
    assert "OPTIMIZER.name 'sgd' is unknown" in message
    assert "adamw, lars, muon, schedulefree, timm. A part of yours needs its module in PLUGINS" in message
    assert "and timm's are OPTIMIZER.name timm OPTIMIZER.optimizer NAME" in message


def test_config_name_of_a_timm_model_is_told_where_it_stands(refuse: Refuse) -> None:
    message = refuse(ENCODER="{name: resnet26}")
    assert message.endswith("its module in PLUGINS, and a model of timm is ENCODER.name timm ENCODER.model NAME")


def test_config_other_optimizer_by_override_keeps_the_shared_keys(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, with_sections(PROBE, OPTIMIZER="{base_lr: 0.3, per_batch: 64, betas: [0.9, 0.99]}"))
    with logged() as lines:
        cfg = load_config(path, ["OPTIMIZER.name", "lars"])
    assert (cfg.OPTIMIZER.base_lr, cfg.OPTIMIZER.per_batch, cfg.OPTIMIZER.trust) == (0.3, 64, 0.001)
    assert len(lines) == 1
    assert all(word in lines[0] for word in ("OPTIMIZER.betas", "no effect", "adamw", "lars"))


@pytest.mark.parametrize(
    ("task", "key", "text", "value"),
    [
        ("probe", "PROBE.rates", "[0.1,1]", (0.1, 1.0)),
        ("probe", "PROBE.rates", "[1e-2, 3, 30]", (0.01, 3.0, 30.0)),
        ("probe", "READOUT.pool", "both", "both"),
        ("finetune", "READOUT.norm", "none", "none"),
        ("finetune", "READOUT.init_std", "2e-5", 2e-5),
        ("finetune", "FREEZE.tune_blocks", "all", "all"),
        ("finetune", "FREEZE.tune_blocks", "0.5", 0.5),
        ("finetune", "FREEZE.tune_blocks", "2", 2.0),
        ("finetune", "FREEZE.tune_blocks", "0", 0.0),
        ("finetune", "LABELS.per_class", "7", 7),
        ("finetune", "LABELS.share", "0.01", 0.01),
        ("finetune", "AUGMENT.randaugment", "rand-m9-mstd0.5-inc1", "rand-m9-mstd0.5-inc1"),
        ("finetune", "AUGMENT.randaugment", "", ""),
        ("finetune", "OPTIMIZER.no_decay", "[cls_token, pos_embed]", ("cls_token", "pos_embed")),
        ("finetune", "OPTIMIZER.layer_decay", "0.65", 0.65),
        ("finetune", "SCHEDULE.lr_scale_on", "peak", "peak"),
        ("finetune", "INIT.checkpoint", "007", "007"),
    ],
)
def test_config_override_of_a_classifiers_key_is_parsed_by_its_kind(
    tmp_path: Path, task: str, key: str, text: str, value: object
) -> None:
    section, inner = key.split(".")
    quoted = text if text.startswith("[") else f"'{text}'"
    for cfg in (
        load_config(write_recipe(tmp_path, RECIPES[task]), [key, text]),
        load_config(write_recipe(tmp_path, with_sections(RECIPES[task], **{section: f"{{{inner}: {quoted}}}"}))),
    ):
        assert cfg.flat()[key] == value
        assert type(cfg.flat()[key]) is type(value)


CHANGED = {
    "pretrain": ["OPTIMIZER.name", "lars", "SCHEDULE.lr_scale_on", "peak", "EVALUATE.crop_pct", "0.875"],
    "finetune": [
        *("FREEZE.tune_blocks", "0.5", "LABELS.per_class", "3", "AUGMENT.randaugment", "rand-m9-mstd0.5-inc1"),
        *("READOUT.init_std", "2e-5", "OPTIMIZER.no_decay", "[pos_embed]", "ENCODER.norm", "false"),
        *("AUGMENT.mixup", "0.8", "OPTIMIZER.layer_decay", "0.65"),
    ],
    "probe": ["PROBE.rates", "[1e-7, 1]", "OPTIMIZER.name", "lars", "LABELS.share", "0.1"],
}


@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("task", RECIPES)
def test_config_dump_of_each_task_loads_back_to_the_same_config(tmp_path: Path, task: str, changed: bool) -> None:
    cfg = load_config(write_recipe(tmp_path, RECIPES[task]), CHANGED[task] if changed else [])
    reloaded = load_config(write_recipe(tmp_path, cfg.to_yaml(), "again.yaml"))
    assert reloaded == cfg
    assert differing(reloaded, cfg) == []
    assert reloaded.to_yaml() == cfg.to_yaml()


def test_config_differing_tells_tasks_apart(tmp_path: Path) -> None:
    fine, probe = (load_config(write_recipe(tmp_path, text)) for text in (FINETUNE, PROBE))
    lines = differing(probe, fine)
    assert "TASK: finetune there, probe here" in lines
    assert "FREEZE.tune_blocks: all there, absent here" in lines
    assert "PROBE.rates: absent there, [1.0] here" in lines


# -------------------------------------------------------------------- plugins

PLUGIN = '''
"""A masker of a user's own."""

import torch

from mim import ImageSpec, Masker


class LeftHalf(Masker, name="left_half_of_{module}"):
    def __init__(self, image: ImageSpec, *, cell: int = 16, share: float = 0.5):
        super().__init__(image, cell=cell)
        self.columns = int(self.grid[1] * share)
        self.visible = self.grid[0] * (self.grid[1] - self.columns)

    def hide(self, batch, generator, device):
        hidden_BHW = torch.zeros(batch, *self.grid, dtype=torch.bool, device=device)
        hidden_BHW[:, :, : self.columns] = True
        return hidden_BHW
'''


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module on the path that registers a masker; nothing of it is left afterwards."""
    module = "mim_test_plugin"
    package = tmp_path / "elsewhere" / module
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "maskers.py").write_text(PLUGIN.replace("{module}", module))
    monkeypatch.syspath_prepend(str(package.parent))
    yield f"{module}.maskers"
    Masker._members.pop(f"left_half_of_{module}", None)
    for name in [name for name in sys.modules if name.startswith(module)]:
        del sys.modules[name]


def test_config_plugin_part_is_used_by_name(plugin: str, tmp_path: Path) -> None:
    masker = "{name: left_half_of_mim_test_plugin, cell: 8, share: 0.25}"
    cfg = load_config(write_recipe(tmp_path, with_sections(PLUGINS=f"[{plugin}]", MASKER=masker)))
    assert list(cfg.PLUGINS) == [plugin]
    model = build_without_memory(cfg)
    assert model is not None
    assert model.masker.visible == 4 * 3
    assert load_config(write_recipe(tmp_path, cfg.to_yaml())) == cfg


def test_config_plugin_on_the_command_line(plugin: str, recipe: Path) -> None:
    with logged():
        cfg = load_config(
            recipe, ["PLUGINS", f"[{plugin}]", "MASKER.name", "left_half_of_mim_test_plugin", "MASKER.share", "0.5"]
        )
    assert list(cfg.PLUGINS) == [plugin]
    assert cfg.MASKER.share == 0.5


def test_config_plugin_part_has_its_keys_checked(plugin: str, refuse: Refuse) -> None:
    masker = "{name: left_half_of_mim_test_plugin, cell: 8, shore: 0.25}"
    assert "did you mean 'share'?" in refuse(PLUGINS=f"[{plugin}]", MASKER=masker)


@pytest.mark.parametrize("module", ["no_such_package.maskers", "mim.no_such_module", "not a name", ".relative"])
def test_config_plugin_that_cannot_be_imported_is_named(refuse: Refuse, module: str) -> None:
    message = refuse(PLUGINS=f"[{module}]")
    assert "PLUGINS" in message
    assert module in message


def test_config_loads_plugins_of_installed_packages_only_for_a_part_that_is_unknown(
    plugin: str, recipe: Path, tmp_path: Path
) -> None:
    info = tmp_path / "elsewhere" / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[mim.plugins]\nbroken = no_such_package\nmine = {plugin}\n")
    load_config(recipe, {"MASKER.name": "block"})
    assert plugin not in sys.modules
    with pytest.raises(ConfigError, match=r"MASKER\.name 'lost'.*'no_such_package' cannot be imported"):
        load_config(recipe, {"MASKER.name": "lost"})
    Masker._members.pop("left_half_of_mim_test_plugin", None)
    sys.modules.pop(plugin, None)
    cfg = load_config(recipe, {"MASKER.name": "left_half_of_mim_test_plugin", "MASKER.share": "0.5"})
    assert cfg.MASKER.share == 0.5


def test_mistake_names_the_file_only_where_the_file_has_it(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("TRAIN: {epochs: 3}\n")
    for overrides in (["TRAIN.epochs", "many"], ["TRAIN.epoch", "3"], ["MASKER.cell", "5"], ["MASKER.cell"]):
        with pytest.raises(ConfigError) as caught:
            load_config(file, overrides)
        assert "mine.yaml" not in str(caught.value)
    for text in ("TRAIN: {epochs: many}\n", "TRAIN: {epoch: 3}\n", "MASKER: {cell: 5}\n"):
        file.write_text(text)
        with pytest.raises(ConfigError, match=rf"^{file}: "):
            load_config(file, ["SEED", "3"])
