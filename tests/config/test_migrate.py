"""Configs of 0.1.0: three that its runs wrote load with the same values, and a user's file is told what to change."""

from pathlib import Path

import pytest
import yaml
from small_data import RECIPE, logged, write_recipe
from small_models import classes

from mim import build_model, build_predictor
from mim.config import load_config, parse_config

FOLDER = Path(__file__).parent / "configs_0_1_0"
FILES = sorted(FOLDER.glob("*.yaml"))
RENAMED = {
    "SCHEDULE.factor_on": "SCHEDULE.lr_scale_on",
    "CLASSIFIER.pool": "READOUT.pool",
    "CLASSIFIER.norm": "READOUT.norm",
    "CLASSIFIER.init_std": "READOUT.init_std",
    "AUGMENT.smoothing": "CRITERION.smoothing",
}
VALUES = {("READOUT.norm", True): "layer", ("READOUT.norm", False): "none"}
PROBE = """TASK: linear_probe
ENCODER: {hidden: none}
CLASSIFIER: {pool: mean, rates: [0.1, 1]}
"""
DROPPED = {
    "mae_cosine": {"SCHEDULE.milestones", "SCHEDULE.gamma"},
    "finetune_cosine": {"SCHEDULE.milestones", "SCHEDULE.gamma"},
    "simmim_multistep": {"SCHEDULE.min_lr", "SCHEDULE.cosine_from"},
}


def values_of(text: str) -> dict[str, object]:
    """Every key of a config file with its value, lists as tuples."""
    flat: dict[str, object] = {}
    for section, content in yaml.safe_load(text).items():
        keys = {f"{section}.{key}": value for key, value in content.items()} if isinstance(content, dict) else {}
        flat |= keys or {section: content}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in flat.items()}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_config_of_a_run_of_0_1_0_loads_with_all_its_values(file: Path) -> None:
    with logged() as lines:
        cfg = parse_config(file.read_text())
    assert lines == []
    expected = {RENAMED.get(key, key): value for key, value in values_of(file.read_text()).items()}
    expected = {
        key: VALUES.get((key, value), value) for key, value in expected.items() if key not in DROPPED[file.stem]
    }
    values, defaults = cfg.flat(), parse_config(f"TASK: {cfg.TASK}").flat()
    later = {key: defaults[key] for key in values if key not in expected}  # keys that 0.1.0 did not have
    assert {**expected, **later} == values
    model = build_model(cfg) if cfg.TASK == "pretrain" else build_predictor(cfg, classes(10))
    assert sum(parameter.numel() for parameter in model.parameters()) > 1000


def test_configs_of_0_1_0_are_of_both_schedules_and_of_two_tasks() -> None:
    configs = [parse_config(file.read_text()) for file in FILES]
    assert {(cfg.TASK, cfg.SCHEDULE.name) for cfg in configs} == {
        *(("pretrain", "cosine"), ("pretrain", "multistep"), ("finetune", "cosine"))
    }


def test_config_file_with_keys_of_0_1_0_loads_and_warns_of_each(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, RECIPE + "SCHEDULE: {name: cosine, gamma: 0.1, milestones: [], factor_on: peak}\n")
    with logged() as lines:
        cfg = load_config(path)
    assert cfg.SCHEDULE.lr_scale_on == "peak"
    assert len(lines) == 3
    assert any("SCHEDULE.factor_on" in line and "SCHEDULE.lr_scale_on" in line for line in lines)
    for key in ("gamma", "milestones"):
        assert any(f"SCHEDULE.{key}" in line and "cosine" in line for line in lines)


def test_linear_probe_of_0_1_0_chooses_its_rate_as_before(tmp_path: Path) -> None:
    with logged() as lines:
        cfg = load_config(write_recipe(tmp_path, PROBE), {"CLASSIFIER.init_std": 0.5})
    assert (cfg.TASK, cfg.READOUT.values()) == (
        "probe",
        {"name": "linear", "pool": "mean", "norm": "batch", "init_std": 0.5},
    )
    assert (cfg.PROBE.rates, cfg.PROBE.choose_share) == ((0.1, 1.0), 0.0)
    assert [line.partition(" is called")[0] for line in lines] == [
        f"CLASSIFIER.{key}" for key in ("pool", "rates", "init_std")
    ]


def test_override_with_a_key_of_0_1_0_sets_the_key_of_today(tmp_path: Path) -> None:
    with logged() as lines:
        cfg = load_config(write_recipe(tmp_path), {"SCHEDULE.factor_on": "peak"})
    assert cfg.SCHEDULE.lr_scale_on == "peak"
    assert len(lines) == 1
