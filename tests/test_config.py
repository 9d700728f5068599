"""Configs: what is refused, and how it says so; what is understood; what comes back from a dump."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from small_data import FINETUNE, PROBE, RECIPE, RECIPES, logged, write_recipe

from mim import ConfigError, Masker, load_config, schema
from mim.build import build_without_memory, engine_settings
from mim.config import differing, dump
from mim.engine.optim import LARS

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
        assert str(path) in str(caught.value)
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
    assert "depth, heads, mlp_ratio, name, width" in message


def test_config_key_of_another_part_is_refused_in_the_file(refuse: Refuse) -> None:
    assert "MASKER.one_of of random" in refuse(MASKER="{name: random, cell: 8, one_of: 4}")


@pytest.mark.parametrize(
    ("overrides", "sections", "known"),
    [((), {"ENCODR": "{width: 16}"}, "ENCODER"), (("TRIAN.epochs", "3"), {}, "TRAIN"), ((), {"SED": "3"}, "SEED")],
)
def test_config_unknown_section_names_the_nearest(refuse: Refuse, overrides: tuple, sections: dict, known: str) -> None:
    message = refuse(*overrides, **sections)
    assert next(iter(sections or ["TRIAN"])) in message
    assert f"did you mean {known!r}?" in message


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
        ("TRAIN.precision", "fp8", "one of bf16, fp16, fp32"),
        ("TASK", "pretraining", "one of pretrain, finetune, linear_probe"),
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
        ("AUGMENT.crop_scale", "[1, 1]", [1.0, 1.0]),
        ("SCHEDULE.milestones", "[]", []),
        ("OPTIMIZER.no_decay", "[pos_embed, encoder.mask_token]", ["pos_embed", "encoder.mask_token"]),
    ],
)
def test_config_value_is_parsed_by_its_key_in_the_file_and_on_the_command_line(
    tmp_path: Path, key: str, text: str, value: object
) -> None:
    section, inner = key.split(".")
    given = with_sections(**{section: f"{{{inner}: {text}}}"})
    if section == "DATA":
        given = RECIPE.replace("name: digits", f"name: digits, {inner}: {text}")
    for cfg in (
        load_config(write_recipe(tmp_path, given)),
        load_config(write_recipe(tmp_path, RECIPE), [key, text]),
    ):
        assert cfg[section][inner] == value
        assert type(cfg[section][inner]) is type(value)
        if isinstance(value, list):
            assert list(map(type, cfg[section][inner])) == list(map(type, value))


@pytest.mark.parametrize("path", ["007", "2024", "1e5", "0x1f", "true", "null", "1_000", "~", "2024-01-01"])
def test_config_path_that_looks_like_something_else_stays_text(tmp_path: Path, path: str) -> None:
    text = RECIPE.replace("name: digits", f"name: digits, path: {path}")
    for cfg in (
        load_config(write_recipe(tmp_path, text)),
        load_config(write_recipe(tmp_path), ["DATA.path", path]),
    ):
        assert cfg.DATA.path == path
        again = load_config(write_recipe(tmp_path, dump(cfg), "again.yaml"))
        assert again.DATA.path == path


def test_config_image_size_override_is_a_list(recipe: Path) -> None:
    cfg = load_config(recipe, ["DATA.image_size", "[96,160]"])
    assert cfg.DATA.image_size == [96, 160]
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
        with pytest.raises(ConfigError, match=f"line {line}: key '{key}' stands twice") as caught:
            load_config(path)
        assert str(path) in str(caught.value)


def test_config_key_that_stands_twice_on_the_command_line_names_both_values(recipe: Path) -> None:
    with pytest.raises(ConfigError, match=r"TRAIN.epochs is given twice on the command line: 2 and 3"):
        load_config(recipe, ["TRAIN.epochs", "2", "TRAIN.epochs", "3"])


def test_config_odd_number_of_overrides_names_the_last(recipe: Path) -> None:
    with pytest.raises(ConfigError, match=r"'TRAIN.clip' has no value"):
        load_config(recipe, ["TRAIN.epochs", "2", "TRAIN.clip"])


def test_config_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match=r"does not exist") as caught:
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


def test_config_swin_that_drops_names_the_alternative(refuse: Refuse) -> None:
    swin = "{name: swin, hidden: drop, patch: 4, width: 16, depths: [1, 1], heads: [2, 2], window: 4}"
    message = refuse(ENCODER=swin)
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
        *(("SCHEDULE.milestones", "[3, 2]"), ("CHECKPOINT.keep", "0"), ("LOG.every_steps", "0"), ("DATA.std", "[0]")),
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
    assert dict(cfg.MASKER) == {"name": "grid", "cell": 8, "one_of": 4}
    assert len(lines) == 1
    assert "MASKER.ratio of the file has no effect" in lines[0]
    assert "random" in lines[0]
    assert "grid" in lines[0]


def test_config_other_part_by_override_keeps_the_keys_that_both_have(recipe: Path) -> None:
    with logged() as lines:
        cfg = load_config(recipe, ["MASKER.name", "block"])
    assert (cfg.MASKER.ratio, cfg.MASKER.cell, cfg.MASKER.min_cells) == (0.75, 8, 16)
    assert lines == []


def test_config_other_part_by_override_drops_keys_of_the_default_part(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, RECIPE.replace("name: random, ", ""))
    with logged() as lines:
        cfg = load_config(path, ["MASKER.name", "grid"])
    assert dict(cfg.MASKER) == {"name": "grid", "cell": 8, "one_of": 4}
    assert len(lines) == 1


def test_config_other_part_by_override_still_refuses_what_is_nobodys_key(refuse: Refuse) -> None:
    message = refuse("MASKER.name", "grid", MASKER="{name: random, cell: 8, ration: 0.75}")
    assert "MASKER.ration" in message


def test_config_other_part_by_override_refuses_the_old_parts_key_on_the_command_line(refuse: Refuse) -> None:
    assert "unknown key MASKER.ratio of grid" in refuse("MASKER.name", "grid", "MASKER.ratio", "0.5")


# -------------------------------------------------------------------- what comes out


def test_config_is_complete(recipe: Path, tmp_path: Path) -> None:
    cfg = load_config(write_recipe(tmp_path, "SEED: 3\nENCODER: {patch: 16}\nDATA: {image_size: [32, 32]}\n"))
    assert list(cfg) == ["TASK", "SEED", "PLUGINS", *schema.sections("pretrain")]
    assert cfg.MASKER.name == "random"
    assert engine_settings(cfg).seed == 3


@pytest.mark.parametrize("task", RECIPES)
def test_config_holds_every_key_of_every_section_of_its_task(tmp_path: Path, task: str) -> None:
    cfg = load_config(write_recipe(tmp_path, RECIPES[task]))
    for section in schema.sections(task):
        keys = {*schema.section_keys(task, section, cfg[section].get("name", ""))}
        assert set(cfg[section]) == keys | ({"name"} if section in schema.FAMILIES else set()), section
        assert (section in schema.FAMILIES) == ("name" in cfg[section] and section != "SCHEDULE")


def test_config_dump_loads_back_to_the_same_config(recipe: Path, tmp_path: Path) -> None:
    cfg = load_config(recipe, ["TRAIN.clip", "1e-7", "SCHEDULE.milestones", "[1.5, 2]", "DATA.path", "a: b # [c]"])
    again = load_config(write_recipe(tmp_path, dump(cfg), "again.yaml"))
    assert again == cfg
    assert differing(again, cfg) == []
    assert dump(again) == dump(cfg)


def test_config_dump_of_swin_loads_back_to_the_same_config(tmp_path: Path) -> None:
    swin = "{name: swin, patch: 4, width: 16, depths: [1, 1], heads: [2, 2], window: 4, drop_path: 0.1}"
    cfg = load_config(write_recipe(tmp_path, with_sections(ENCODER=swin, HEAD="{name: pixel_shuffle}")))
    assert cfg.ENCODER.depths == [1, 1]
    assert load_config(write_recipe(tmp_path, dump(cfg))) == cfg


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
    assert load_config(write_recipe(tmp_path, dump(cfg))) == cfg


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
