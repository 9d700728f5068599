"""What a config takes from the model whose weights its run starts from, and what it must not set otherwise."""

from dataclasses import replace

import pytest

from mim.config import Config, change_config, parse_config
from mim.config.inherit import ModelFacts, guess_line
from mim.errors import ConfigError

VIT = {"ENCODER.name": "vit", "ENCODER.patch": 8, "ENCODER.width": 48, "ENCODER.depth": 3, "ENCODER.heads": 4}
KNOWN = ModelFacts(
    "runs/a",
    {
        **VIT,
        **{"ENCODER.mlp_ratio": 2.0, "ENCODER.norm": False, "ENCODER.positions": "learned"},
        **{"DATA.channels": 2, "DATA.image_size": (64, 64), "DATA.mean": (0.1, 0.2), "DATA.std": (0.3, 0.4)},
    },
    free=frozenset(("ENCODER.hidden", "ENCODER.drop_path", "ENCODER.norm", "ENCODER.positions")),
)
BARE = "TASK: probe\nDATA: {name: folder}\nENCODER: {hidden: none}\n"
SET = """\
TASK: probe
DATA: {name: digits, image_size: [32, 32], channels: 1, mean: estimate, std: estimate}
ENCODER: {name: vit, hidden: none, patch: 4, width: 96, depth: 6, heads: 4, norm: true}
"""


def descend(text: str, overrides: dict | None = None, known: ModelFacts = KNOWN) -> Config:
    return parse_config(text, {"INIT.checkpoint": "a", **(overrides or {})}, lambda initial: known if initial else None)


def refusal(text: str, overrides: dict | None = None, known: ModelFacts = KNOWN) -> str:
    with pytest.raises(ConfigError) as caught:
        descend(text, overrides, known)
    return str(caught.value)


def test_config_takes_what_it_does_not_set() -> None:
    cfg = descend(BARE)
    assert {key: cfg.flat()[key] for key in KNOWN.values} == KNOWN.values
    (line,) = cfg.notes
    assert "ENCODER.width 48" in line
    assert "DATA.mean [0.1, 0.2]" in line
    assert parse_config(cfg.to_yaml()) == cfg


def test_config_without_a_checkpoint_takes_nothing() -> None:
    assert parse_config(SET, (), lambda initial: KNOWN if initial else None) == parse_config(SET)


@pytest.mark.parametrize("key", ["ENCODER.heads", "ENCODER.patch", "DATA.channels"])
def test_config_that_sets_a_value_otherwise_is_refused_with_both(key: str) -> None:
    message = refusal(BARE, {key: "1"})
    assert f"{key}: 1 here, {KNOWN.values[key]} there" in message
    assert f'INIT.keep "[{key}]"' in message
    assert "INIT.take" not in message, "it is of the command line: leaving it out does"
    assert "INIT.take" in refusal(SET)


def test_config_of_another_mean_and_std_is_refused() -> None:
    message = refusal(BARE, {"DATA.mean": "[0.9, 0.2]", "DATA.std": "[0.3, 0.4]"})
    assert "DATA.mean: [0.9, 0.2] here, [0.1, 0.2] there" in message
    assert "DATA.std" not in message.partition("there\n")[2].partition("Leave")[0]


def test_config_with_another_small_eps_is_not_refused() -> None:
    """transformers writes 1e-12 where MAE had 1e-6; PyTorch's 1e-5 changes features in digits that fp32 shows."""
    known = replace(KNOWN, values={**KNOWN.values, "ENCODER.norm_eps": 1e-12})
    assert descend(BARE, {"ENCODER.norm_eps": "1e-6"}, known).ENCODER.norm_eps == 1e-6
    assert "ENCODER.norm_eps: 1e-05 here, 1e-12 there" in refusal(BARE, {"ENCODER.norm_eps": "1e-5"}, known)


def test_config_with_a_rounded_mean_and_mlp_ratio_is_not_refused() -> None:
    known = replace(KNOWN, values={**KNOWN.values, "ENCODER.mlp_ratio": 129 / 48})
    numbers = {"DATA.mean": "[0.102, 0.2]", "DATA.std": "[0.3, 0.398]", "ENCODER.mlp_ratio": "2.7"}
    assert descend(BARE, numbers, known).DATA.mean == (0.102, 0.2)
    assert "mlp_ratio" in refusal(BARE, {"ENCODER.mlp_ratio": "2.5"}, known)


def test_config_keeps_what_init_keep_names() -> None:
    cfg = descend(BARE, {"ENCODER.heads": "6", "INIT.keep": "[ENCODER.heads]"})
    assert cfg.ENCODER.heads == 6
    assert "ENCODER.heads 6 (4 there)" in "".join(cfg.notes)


def test_config_takes_what_init_take_names_in_place_of_the_file_but_not_of_the_command_line() -> None:
    text = f"{SET}INIT: {{take: [ENCODER, DATA]}}\n"
    cfg = descend(text)
    assert {key: cfg.flat()[key] for key in VIT} == VIT
    assert (cfg.DATA.channels, cfg.DATA.image_size, cfg.DATA.mean) == (2, (64, 64), (0.1, 0.2))
    assert cfg.ENCODER.norm is True, "with it the weights compute the same, and the classifier decides"
    assert "ENCODER.heads: 6 here, 4 there" in refusal(text, {"ENCODER.heads": "6"})
    assert descend(text, {"DATA.image_size": "[32, 32]"}).DATA.image_size == (32, 32)
    assert parse_config(text).ENCODER.width == 96


def test_config_takes_numbers_for_estimate_unless_it_keeps_it() -> None:
    text = BARE.replace("name: folder", "name: folder, mean: estimate, std: estimate")
    assert descend(text).DATA.std == (0.3, 0.4)
    assert descend(BARE, {"DATA.mean": "estimate", "DATA.std": "estimate"}).DATA.mean == (0.1, 0.2)
    assert descend(text, {"INIT.keep": "[DATA.mean, DATA.std]"}).DATA.mean == "estimate"


def test_config_may_set_another_size_and_what_computes_the_same() -> None:
    cfg = descend(BARE, {"DATA.image_size": "[32, 96]", "ENCODER.positions": "sincos", "ENCODER.norm": "true"})
    assert (cfg.DATA.image_size, cfg.ENCODER.positions, cfg.ENCODER.norm) == ((32, 96), "sincos", True)
    assert "DATA.image_size [32, 96] ([64, 64] there)" in "".join(cfg.notes)


def test_config_of_other_channels_keeps_its_own_mean_and_std() -> None:
    cfg = descend(BARE, {"DATA.channels": "4", "INIT.adapt_channels": "true"})
    assert (cfg.DATA.channels, cfg.DATA.mean) == (4, "estimate")
    assert "DATA.channels 4 (2 there)" in "".join(cfg.notes)
    assert "INIT.adapt_channels true" in refusal(BARE, {"DATA.channels": "4"})


SWIN = ModelFacts(
    "runs/swin",
    {
        "ENCODER.name": "swin",
        "ENCODER.width": 32,
        "ENCODER.depths": (2, 2),
        "ENCODER.heads": (1, 2),
        "ENCODER.patch": 4,
    },
    resizable=("DATA.image_size", "ENCODER.window"),
)


def test_config_takes_another_encoder_whole() -> None:
    cfg = descend(f"{SET}INIT: {{take: [ENCODER]}}\n", known=SWIN)
    assert (cfg.ENCODER.name, cfg.ENCODER.depths, cfg.ENCODER.heads) == ("swin", (2, 2), (1, 2))
    assert "depth" not in cfg.ENCODER.values()


def test_config_of_another_encoder_is_refused_by_its_name_alone() -> None:
    message = refusal(SET, known=SWIN)
    assert "ENCODER.name: vit here, swin there" in message
    assert "ENCODER.width" not in message


GUESSING = ModelFacts(
    "a.pth",
    {"ENCODER.name": "vit", "ENCODER.width": 192},
    guesses={"ENCODER.heads": 3},
    reasons={"ENCODER.heads": "the published ViT of width 192 has 3 heads", "DATA.mean": "nothing shows it"},
)


def test_config_takes_a_guess_where_it_sets_nothing_and_says_so() -> None:
    cfg = descend(BARE, known=GUESSING)
    assert cfg.ENCODER.heads == 3
    assert "ENCODER.heads 3 (the published ViT of width 192 has 3 heads)" in cfg.notes[-1]
    assert "DATA.mean unknown (nothing shows it)" in cfg.notes[-1]


def test_config_may_set_other_than_a_guess_and_hears_of_it() -> None:
    cfg = descend(BARE, {"ENCODER.heads": "6"}, GUESSING)
    assert cfg.ENCODER.heads == 6
    assert "ENCODER.heads 6 (the published ViT of width 192 has 3 heads; 3 would be a guess)" in cfg.notes[-1]
    assert "ENCODER.heads" not in guess_line(descend(BARE, known=GUESSING), GUESSING, ["ENCODER.heads"])


def test_config_takes_plugins_besides_its_own() -> None:
    known = replace(KNOWN, plugins=("json", "textwrap"))
    assert descend("PLUGINS: [json]\n" + BARE, known=known).PLUGINS == ("json", "textwrap")


def test_config_that_goes_over_to_another_checkpoint_takes_its_values() -> None:
    other = replace(KNOWN, values={**KNOWN.values, "ENCODER.width": 64, "DATA.mean": (0.5, 0.5)})
    cfg = descend(BARE.replace("name: folder", "name: folder, mean: estimate, std: estimate"))
    moved = change_config(cfg, {"TRAIN.epochs": 3}, lambda initial: other)
    assert (moved.ENCODER.width, moved.DATA.mean, moved.TRAIN.epochs) == (64, (0.5, 0.5), 3)
    fixed = cfg.replace({"ENCODER.width": 48})
    with pytest.raises(ConfigError, match=r"ENCODER\.width: 48 here, 64 there"):
        change_config(fixed, (), lambda initial: other)


def test_config_that_is_changed_without_a_checkpoint_stays_as_it_is() -> None:
    for text in (SET, BARE):
        cfg = parse_config(text)
        assert change_config(cfg, ()) == cfg


@pytest.mark.parametrize(("key", "value"), [("take", "TRAIN"), ("keep", "ENCODER"), ("keep", "DATA.path")])
def test_config_refuses_keys_that_are_not_inherited(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"INIT\.{key} names {value}"):
        parse_config(BARE, {f"INIT.{key}": f"[{value}]"})


@pytest.mark.parametrize("key", ["take", "keep"])
def test_config_refuses_inherited_keys_that_its_encoder_does_not_have(key: str) -> None:
    message = rf"INIT\.{key} names ENCODER\.wdth: ENCODER\.name vit has no such key\. did you mean 'width'\?"
    with pytest.raises(ConfigError, match=message):
        parse_config(f"{{ENCODER: {{name: vit}}, INIT: {{{key}: [ENCODER.wdth]}}}}")
