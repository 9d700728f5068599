"""What a comparison says of settings, and the warnings: each where it is due, and none where it is not."""

import pytest
from run_folders import Real, change_environment, real_runs, write_run

from mim.lab.comparison import compare
from mim.lab.comparison.result import Comparison


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Real:
    """Runs of one machine and one commit."""
    folder, runs = tmp_path_factory.mktemp("real"), real_runs()
    environment = {"device": "cpu", "threads": 1, "git": {"commit": "0" * 40}}
    pretraining = write_run(folder / "pretraining", runs.pretraining, environment=environment)
    return Real(pretraining, runs.probe, runs.finetune)


def pair(real, folder, settings=None, metrics=None, environment=None, seeds=((0, 1), (0, 1))) -> Comparison:
    """Two recipes that differ in the mask, and in what is given, over seeds."""
    for seed in seeds[0]:
        write_run(folder / f"a-seed{seed}", real.pretraining, {"SEED": seed})
    for seed in seeds[1]:
        keys = {"SEED": seed, "MASKER.ratio": 0.5, **(settings or {})}
        write_run(folder / f"b-seed{seed}", real.pretraining, keys, metrics, environment)
    return compare([folder], reconstructions=False)


def test_runs_that_are_equal_but_for_the_method_give_no_warning(real, tmp_path):
    method = {"TARGET.normalize": "none", "LOSS.name": "l1", "HEAD.depth": 2, "ENCODER.hidden": "replace"}
    learning = {"OPTIMIZER.base_lr": 0.5, "SCHEDULE.warmup_epochs": 0, "TRAIN.clip": 1.0, "LOG.every_steps": 9}
    elsewhere = {"DATA.mean": "[0.31]", "DATA.std": "[0.352]", "DATA.workers": 2}
    assert pair(real, tmp_path, {**method, **learning, **elsewhere}).warnings == ()


WARNINGS = {
    "data": ({"DATA.path": "/data/b"}, {}, {}, "The data differs: DATA.path is (empty) in a, /data/b in b."),
    "image size": (
        {"DATA.image_size": "[64, 64]"},
        {},
        {},
        "The data differs: DATA.image_size is [32, 32] in a, [64, 64] in b.",
    ),
    "statistics": ({"DATA.mean": "[0.5]", "DATA.std": "[0.5]"}, {}, {}, "The data differs: DATA.mean is"),
    "other images of one name": (
        {},
        {"images_seen": 2688, "steps": 28},
        {},
        "The data differs: images an epoch is 1,344 in a",
    ),
    "epochs": (
        {"TRAIN.epochs": 2},
        {"images_seen": 2688, "steps": 28},
        {},
        "Training is not equally long: TRAIN.epochs is 1 in a, 2 in b; images seen is 1,344 in a, 2,688 in b.",
    ),
    "images seen": (
        {"TRAIN.batch": 64},
        {"images_seen": 1280, "steps": 20},
        {},
        "Training is not equally long: images seen is 1,344 in a, 1,280 in b.",
    ),
    "encoder": ({"ENCODER.width": 20}, {}, {}, "Encoders differ: vit with 7,920 parameters and 8 x 8 tokens in a;"),
    "augmentation": ({"AUGMENT.flip": 0.5}, {}, {}, "Augmentation differs: AUGMENT.flip is 0 in a, 0.5 in b."),
    "more augmentation": (
        {"AUGMENTATION": "[{name: vertical_flip}, {name: noise}]"},
        {},
        {},
        "Augmentation differs: AUGMENTATION.name is none in a",
    ),
    "start": ({"INIT.checkpoint": "/models/c.pt"}, {}, {}, "Not all start from the same weights: INIT.checkpoint is"),
    "precision": ({"TRAIN.precision": "bf16"}, {}, {}, "Precision differs: TRAIN.precision is fp32 in a, bf16 in b."),
    "kNN": ({"EVALUATE.knn": 5}, {}, {}, "kNN is not measured alike: EVALUATE.knn is 3 in a, 5 in b."),
    "kNN bank": ({"EVALUATE.knn_bank": 5}, {}, {}, "kNN is not measured alike: EVALUATE.knn_bank is"),
    "held-out images": ({"EVALUATE.samples": 50}, {}, {}, "Held-out images are not the same: EVALUATE.samples is"),
    "device": ({}, {}, {"device": "H"}, "Speed, memory and time do not compare: device is cpu in a, H in b."),
    "threads": ({}, {}, {"threads": 64}, "Speed, memory and time do not compare: threads is 1 in a, 64 in b."),
    "commit": ({}, {}, {"git": {"commit": "abc"}}, "Not all were made by the same version: commit"),
}


@pytest.mark.parametrize(("settings", "metrics", "environment", "warning"), WARNINGS.values(), ids=WARNINGS)
def test_warning_comes_alone_where_it_is_due(real, tmp_path, settings, metrics, environment, warning):
    result = pair(real, tmp_path, settings, metrics, environment)
    expected = [text for text in result.warnings if text.startswith(warning)]
    assert len(expected) == 1, result.warnings
    others = {text.split(":")[0] for text in result.warnings if text not in expected}
    follows = {"image_size": {"Encoders differ"}, "images an epoch": {"Training is not equally long"}}
    assert others == next((also for word, also in follows.items() if word in warning), set())


def test_extended_runs_are_an_entry_of_their_own_with_a_warning(real, tmp_path):
    counts = {"images_seen": 2688, "steps": 28}
    for name, keys in (("once", {}), ("extended", {"TRAIN.extended_at": "[1]"})):
        for seed in (0, 1):
            settings = {"SEED": seed, "TRAIN.epochs": 2, **keys}
            write_run(tmp_path / f"{name}-seed{seed}", real.pretraining, settings, counts)
    result = compare([tmp_path], reconstructions=False)
    assert {entry.name for entry in result.entries} == {"once", "extended"}
    (warning,) = result.warnings
    assert warning.startswith("Some were extended")
    assert "TRAIN.extended_at is [1] in extended, [] in once" in warning
    assert [setting.role for setting in result.settings if setting.key == "TRAIN.extended_at"] == ["fairness"]


def test_unequal_and_single_seeds_are_told(real, tmp_path):
    result = pair(real, tmp_path, seeds=((0, 1, 2), (1,)))
    assert result.warnings == ("Seeds differ: 0, 1, 2 in a; 1 in b.",)
    assert result.evidence[0] == "One seed of b: no interval, and a difference may be chance."


def test_mask_token_is_the_method_and_no_larger_encoder(real, tmp_path):
    result = pair(real, tmp_path, {"ENCODER.hidden": "replace", "HEAD.name": "pixel_shuffle"})
    assert result.warnings == ()
    assert "encoder" not in {setting.key for setting in result.settings}


def test_rates_schedules_and_clipping_belong_to_the_method(real, tmp_path):
    keys = {"OPTIMIZER.base_lr": 0.25, "SCHEDULE.warmup_epochs": 0, "TRAIN.clip": 1.0, "TRAIN.ema": 0.9}
    result = pair(real, tmp_path, keys)
    assert {setting.key: setting.role for setting in result.settings} == dict.fromkeys(
        ["MASKER.ratio", *keys], "method"
    )
    assert result.warnings == ()


def test_runs_that_did_not_all_go_through_a_protocol_are_told(real, tmp_path):
    pair(real, tmp_path)
    write_run(tmp_path / "probe", real.probe, start=tmp_path / "a-seed0")
    assert compare([tmp_path], reconstructions=False).warnings == ("linear probe: 1 of the 2 seeds of a.",)


def test_machines_that_differ_within_an_entry_are_told_and_costs_have_no_best(real, tmp_path):
    pair(real, tmp_path)
    change_environment(tmp_path / "a-seed1", threads=77)
    result = compare([tmp_path], reconstructions=False)
    assert len(result.warnings) == 1
    assert "77 in a" in result.warnings[0]
    better = {column.key: column.better for column in result.columns if column.section == "cost"}
    assert {better[key] for key in ("images_per_s", "seconds", "peak_memory_bytes")} == {"neither"}
    assert better["flops_per_image"] == "lower"


def test_settings_are_sorted_by_what_they_decide(real, tmp_path):
    keys = {
        "ENCODER.hidden": "replace",
        "HEAD.name": "pixel_shuffle",
        "ENCODER.width": 32,
        "AUGMENT.flip": 0.5,
        "OPTIMIZER.base_lr": 0.25,
        "LOG.every_steps": 9,
        "DATA.batch_size": 16,
    }
    result = pair(real, tmp_path, keys)
    settings = {setting.key: (setting.role, setting.values) for setting in result.settings}
    assert settings["MASKER.ratio"] == ("method", ("0.75", "0.5"))
    assert settings["ENCODER.hidden"] == ("method", ("drop", "replace"))
    assert settings["HEAD.name"] == ("method", ("transformer", "pixel_shuffle"))
    assert settings["HEAD.depth"] == ("method", ("1", "–"))
    assert settings["ENCODER.width"] == ("fairness", ("16", "32"))
    assert settings["AUGMENT.flip"] == ("fairness", ("0", "0.5"))
    assert settings["encoder"][0] == "fairness"
    assert settings["OPTIMIZER.base_lr"] == ("method", ("0.016", "0.25"))
    assert {settings[key][0] for key in ("LOG.every_steps", "DATA.batch_size")} == {"other"}
    roles = [setting.role for setting in result.settings]
    assert roles == sorted(roles, key=["method", "fairness", "other"].index)
    assert not {"SEED", "TASK", "ENCODER.depth", "seeds", "images seen"} & set(settings)


def test_settings_are_of_pretraining_and_name_no_seed(real, tmp_path):
    pair(real, tmp_path)
    write_run(tmp_path / "s-seed0", real.finetune)
    result = compare([tmp_path], reconstructions=False)
    values = {setting.key: setting.values for setting in result.settings}
    assert values["MASKER.ratio"] == ("0.75", "0.5", "–")
    assert values["seeds"] == ("0, 1", "0, 1", "0")
    assert "READOUT.pool" not in values
    assert "TASK" not in values
