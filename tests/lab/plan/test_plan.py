"""Plans: figures of a run before it starts, equal to those of the run; what is missing is named."""

import json
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from processes import FINETUNE, PROBE, RECIPE, TINY, call
from small_data import RECIPE as SMALL
from small_data import write_recipe
from small_models import CPU

from mim import build, load_config
from mim.config.recipes import recipe_file, recipe_names
from mim.lab.dryrun import records
from mim.lab.dryrun.measure import StepMeasurement
from mim.lab.dryrun.records import add_record, find_record, step_keys
from mim.lab.dryrun.task import dry_task
from mim.lab.plan import plan_run, recipe

CONFIGS = RECIPE.parents[1]
IMAGENET = 1_281_167


def planned(path: Path = RECIPE, overrides: Sequence[object] = (), **arguments):
    arguments = {"records": Path("no such file"), **arguments}
    return plan_run(load_config(path, [str(word) for word in overrides]), **arguments)


def pairs(keys: dict) -> list[object]:
    return [word for pair in keys.items() for word in pair]


# ---------------------------------------------------------------- as the run


@pytest.mark.parametrize(
    "path",
    [RECIPE, *(pytest.param(path, marks=pytest.mark.slow) for path in (FINETUNE, PROBE))],
    ids=lambda path: path.parent.name,
)
def test_plan_says_what_the_run_says_at_its_start(tmp_path, path):
    keys = {
        key: value for key, value in TINY.items() if not (path != RECIPE and key.startswith(("HEAD.", "EVALUATE.")))
    }
    keys["LOG.tensorboard"] = False
    code, output = call(tmp_path / "run", keys, path)
    assert code == 0, output
    run_lines = dict(re.findall(r"^  (\S.*?)  +(\S.*)$", output, re.MULTILINE))
    run_lines = {name: text for name, text in run_lines.items() if name not in ("run folder", "mean and std")}
    plan = planned(path, pairs(keys))
    assert plan.lines == run_lines
    assert {"shapes", "operations", "steps", "learning rate", "images"} <= set(run_lines)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert plan.plan.steps == summary["steps"]
    assert plan.plan.images_seen == summary["images_seen"]
    assert sum(part.training for part in plan.parts) == summary["flops_per_image"]
    trained = {"trained_parameters", "parameters"} & set(summary)
    assert sum(part.trained for part in plan.parts) == summary[max(trained)]
    assert plan.missing == ()


@pytest.mark.parametrize(
    ("devices", "batch"),
    [pytest.param(1, 4096, marks=pytest.mark.slow), (8, 4096), pytest.param(4, 0, marks=pytest.mark.slow)],
)
def test_plan_batch_and_rate_follow_from_the_engines_own_arithmetic(devices, batch):
    overrides = ["TRAIN.batch", batch, "ENCODER.depth", 1, "HEAD.depth", 1, "OPTIMIZER.base_lr", 1e-4]
    plan = planned(CONFIGS / "mae" / "vit_base.yaml", overrides, devices=devices, images=IMAGENET)
    rows = batch or 64 * devices
    assert plan.batch == rows == plan.plan.micro_batch * devices * plan.plan.accumulation
    assert plan.peak_rate == pytest.approx(1e-4 * rows / 256)
    assert plan.lines["learning rate"].startswith(f"{plan.peak_rate:.3g} = 0.0001 x {rows} / 256")
    assert plan.plan.steps == IMAGENET // rows * 800
    assert plan.operations == plan.plan.images_seen * sum(part.training for part in plan.parts)


@pytest.mark.slow
def test_plan_tells_cells_and_parts():
    plan = planned(CONFIGS / "simmim" / "swin_base_100ep.yaml", ["ENCODER.depths", "[1, 1, 1, 1]"])
    masker = plan.lines["masker"]
    assert "14 of 36 cells of 32 px" in masker
    assert 14 < float(re.search(r"AvgDist ([\d.]+) px", masker)[1]) < 17
    shapes = {boundary.what: boundary.shape for boundary in plan.boundaries}
    assert shapes["tokens"] == (36, 1024)
    assert [part.part for part in plan.parts] == ["encoder", "head"]
    assert plan.parts[1].parameters == 1024 * 3 * 32**2 + 3 * 32**2


# ---------------------------------------------------------------- what is not here


@pytest.mark.slow
def test_plan_memory_is_of_the_precision_that_each_kind_of_device_chooses(monkeypatch):
    monkeypatch.setattr("mim.engine.precision.bf16_unit", lambda device: "")  # a CPU that emulates bf16
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    shallow = ["ENCODER.depth", 1, "HEAD.depth", 1, "TRAIN.precision"]
    auto, bf16, fp32 = (planned(overrides=[*shallow, name]) for name in ("auto", "bf16", "fp32"))
    assert auto.precisions == {"cpu": "fp32", "gpu": "bf16"}
    assert auto.memory == {"cpu": fp32.memory["cpu"], "gpu": bf16.memory["gpu"]}
    assert bf16.memory["gpu"] != fp32.memory["gpu"]
    assert (bf16.precisions["cpu"], fp32.precisions["gpu"]) == ("bf16", "fp32")


def test_plan_without_the_images_names_them_and_tells_the_rest():
    overrides = ["ENCODER.depth", 1, "HEAD.depth", 1]
    plan = planned(CONFIGS / "mae" / "vit_base.yaml", overrides)
    assert plan.plan is plan.operations is plan.seconds is None
    assert "data/imagenet does not exist" in plan.missing[0]
    assert "--images N" in plan.missing[0]
    assert not {"images", "steps", "evaluation"} & set(plan.lines)
    assert {"batch", "learning rate", "shapes"} <= set(plan.lines)
    assert plan.memory["cpu"].total > 0
    counted = planned(CONFIGS / "mae" / "vit_base.yaml", overrides, images=IMAGENET)
    assert counted.missing == ()
    assert counted.lines["images"] == "1,281,167 to train, held-out ones unknown; 3 x 224 x 224"
    assert (counted.memory, counted.parts, counted.batch) == (plan.memory, plan.parts, plan.batch)


def test_plan_of_a_classifier_without_images_leaves_the_classifier_out():
    path, overrides = CONFIGS / "finetune" / "mae_vit_base.yaml", ["ENCODER.depth", 1]
    plan = planned(path, overrides)
    assert "--classes N" in plan.missing[0]
    assert [part.part for part in plan.parts] == ["encoder"]
    assert "classifier" not in plan.lines
    assert "scores" not in plan.lines["shapes"]
    complete = planned(path, overrides, images=IMAGENET, classes=1000)
    assert complete.missing == ()
    assert complete.parts[1].parameters == 768 * 1000 + 1000 + 2 * 768  # and its norm
    assert complete.lines["shapes"].endswith("and a class token -> scores 1000")
    half = planned(path, overrides, images=IMAGENET)
    assert "steps" in half.lines
    assert "--images" not in half.missing[0]


def test_plan_takes_a_share_of_the_labels_of_images_that_are_not_here():
    plan = planned(
        CONFIGS / "finetune" / "mae_vit_base.yaml",
        ["ENCODER.depth", 1, "LABELS.share", 0.1],
        images=100_000,
        classes=100,
    )
    assert plan.plan.steps_per_epoch == 10_000 // 1024
    assert plan.lines["images"].startswith("10,000 of 100,000 labelled")


@pytest.mark.slow
def test_plan_images_that_are_given_stand_in_for_those_that_are_here():
    assert planned(images=3200).plan.steps_per_epoch == 100
    assert planned(FINETUNE, classes=20).parts[1].name == "20 classes"


def test_plan_names_weights_that_are_not_there(tmp_path):
    plan = planned(FINETUNE, ["INIT.checkpoint", tmp_path / "nowhere", "ENCODER.depth", 1])
    assert any("INIT.checkpoint" in line and "nowhere" in line for line in plan.missing)


@pytest.mark.parametrize(
    ("arguments", "overrides", "message"),
    [
        ({"devices": 0}, [], r"--devices is 0"),
        ({"images": 0}, [], r"--images is 0: it must be at least 1"),
        ({"classes": -1}, [], r"--classes is -1"),
        ({"images": 16}, [], r"16 training images, fewer than the 32 of one step"),
        ({"devices": 3}, [], r"TRAIN.batch 32 is not a multiple of DATA.batch_size 32 x 3 devices"),
    ],
)
def test_plan_refuses_what_cannot_run(arguments, overrides, message):
    with pytest.raises(ValueError, match=message):
        planned(overrides=overrides, **arguments)


def test_plan_warns_of_settings_without_effect_once(tmp_path, caplog):
    path = write_recipe(
        tmp_path,
        SMALL.replace("name: transformer, width: 16, depth: 1, heads: 2", "name: mlp").replace("drop", "replace"),
    )
    with caplog.at_level(logging.WARNING):
        plan = planned(path, ["SCHEDULE.warmup_epochs", 900, "OPTIMIZER.no_decay", "[nothing]"])
    assert ["warmup" in line or "no_decay" in line for line in plan.warnings] == [True, True]
    assert caplog.text == ""


LOOKING = '''
"""An encoder that looks at the values of an image, as no model without weights can."""

import torch
from torch import nn

from mim import Encoder, Features


class Looking(Encoder, name="looking_in_plans"):
    def __init__(self, image, *, hidden: str = "replace", patch: int = 8, width: int = 16):
        super().__init__(image, hidden, width=width, patch=patch)
        self.embed = nn.Conv2d(image.channels, width, patch, patch)

    def forward(self, img_BCHW, mask=None):
        assert float(img_BCHW.abs().max()) < 1e9
        return Features(self.replace_hidden(self.embed(img_BCHW).flatten(2).transpose(1, 2), mask), self.patch_grid)
'''


@pytest.fixture
def looking(tmp_path, monkeypatch):
    (tmp_path / "looking_plugin_of_plans.py").write_text(LOOKING)
    monkeypatch.syspath_prepend(tmp_path)
    text = SMALL.replace("name: vit, hidden: drop, patch: 8, width: 16, depth: 1, heads: 2", "name: looking_in_plans")
    text = text.replace("name: transformer, width: 16, depth: 1, heads: 2", "name: mlp")
    yield write_recipe(tmp_path, text + "PLUGINS: [looking_plugin_of_plans]\n")
    sys.modules.pop("looking_plugin_of_plans", None)


def test_plan_of_a_part_that_looks_at_values_measures_what_it_cannot_estimate(tmp_path, looking):
    file = tmp_path / "steps.jsonl"
    plan = planned(looking, steps=1, records=file)
    assert plan.memory == {}
    assert "--measure" in plan.missing[0]
    assert {boundary.what: boundary.shape for boundary in plan.boundaries}["tokens"] == (16, 16)
    assert all(part.training is None for part in plan.parts)
    assert "operations" not in plan.lines
    assert plan.images_per_s > 0


def test_run_of_a_part_that_looks_at_values_starts(tmp_path, looking):
    """Its operations are not counted, and that is no reason to stop."""
    from mim.run import train

    summary = train(
        load_config(
            looking, ["TRAIN.epochs", "1", "DATA.batch_size", "512", "EVALUATE.knn", "0", "LOG.tensorboard", "false"]
        ),
        output=tmp_path / "run",
    )
    assert "flops_per_image" not in summary


# ---------------------------------------------------------------- against the recipe


def test_recipe_of_a_plan_lists_every_difference_and_what_follows_from_it():
    cfg = load_config(
        recipe_file("mae/vit_base"), ["TRAIN.batch", "512", "MASKER.ratio", "0.5", "DATA.batch_size", "32"]
    )
    differences = recipe.compare_recipe(cfg, devices=1)
    rows = {
        (difference.group, difference.key): (difference.here, difference.there)
        for difference in differences.differences
    }
    assert rows == {
        ("in effect", "learning rate at its peak"): ("0.0003", "0.0024"),
        ("in effect", "batch of a step"): ("512", "4,096"),
        ("in effect", "hidden cells"): ("98 of 196 (50.0%)", "147 of 196 (75.0%)"),
        ("method", "MASKER.ratio"): ("0.5", "0.75"),
        ("training", "TRAIN.batch"): ("512", "4096"),
        ("data and machine", "DATA.batch_size"): ("32", "64"),
    }
    assert [difference.group for difference in differences.differences] == sorted(
        (difference.group for difference in differences.differences), key=recipe.ORDER.index
    )


@pytest.mark.parametrize("name", ["mae/vit_huge", "finetune/simmim_swin_base_800ep", "probe/mae_vit_base"])
def test_recipe_of_a_published_file_is_itself_without_a_difference(name):
    comparison = recipe.compare_recipe(load_config(recipe_file(name)), devices=8)
    assert (comparison.name, comparison.differences) == (name, ())


def test_recipe_of_another_part_shows_keys_that_one_of_them_has():
    comparison = recipe.compare_recipe(load_config(recipe_file("cross/transformer_decoder_on_swin")), devices=1)
    rows = {difference.key: (difference.here, difference.there) for difference in comparison.differences}
    assert rows == {
        "HEAD.name": ("transformer", "pixel_shuffle"),
        "TRAIN.precision": ("auto", "bf16"),
        **{
            f"HEAD.{key}": (value, "-")
            for key, value in (("width", "512"), ("depth", "8"), ("heads", "16"), ("mlp_ratio", "4"))
        },
    }


def test_recipe_is_none_where_a_file_names_none_or_it_is_not_at_hand(tmp_path, monkeypatch):
    path = write_recipe(tmp_path)
    assert recipe.compare_recipe(load_config(path), devices=1) is None
    cfg = load_config(path, ["RECIPE", "mae/vit_base"])
    monkeypatch.setattr("mim.lab.plan.recipe.recipe_names", list)  # as beside an installed package
    assert recipe.compare_recipe(cfg, devices=1).differences is None


def test_recipe_that_is_none_is_refused_with_the_nearest_name(tmp_path):
    with pytest.raises(ValueError, match=r"RECIPE is 'mae/vit_bse'.*did you mean 'mae/vit_base'\?"):
        load_config(write_recipe(tmp_path, SMALL + "RECIPE: mae/vit_bse\n"))


def test_recipe_that_a_finished_run_names_may_be_gone(tmp_path):
    from mim.config import parse_config

    text = load_config(write_recipe(tmp_path)).to_yaml().replace("RECIPE: ''", "RECIPE: gone/since")
    assert "gone/since" in text
    assert parse_config(text).RECIPE == "gone/since"


def test_recipe_may_change_when_a_run_is_resumed(tmp_path):
    assert call(tmp_path / "run", TINY)[0] == 0
    code, output = call(tmp_path / "run", {**TINY, "RECIPE": "mae/vit_large"})
    assert code == 0, output
    assert "finished before" in output


def test_recipe_names_are_those_of_the_files_and_no_studies():
    assert {"mae/vit_base", "quickstart/simmim_digits"} <= set(recipe_names())
    assert not any("studies" in name for name in recipe_names())


# ---------------------------------------------------------------- measured steps


MEASUREMENT = StepMeasurement(steps=3, micro_s=0.2, update_s=0.1, tensors=1000, process=2000)


@pytest.fixture
def tiny(tmp_path):
    return load_config(write_recipe(tmp_path))


def test_benchmarks_give_the_newest_record_of_a_like_step(tmp_path, tiny):
    file = tmp_path / "made" / "steps.jsonl"
    assert find_record(file, tiny, 0, CPU) is None
    add_record(file, tiny, 0, CPU, StepMeasurement(steps=1, micro_s=9.0, update_s=9.0, tensors=1, process=None))
    record = add_record(file, tiny, 0, CPU, MEASUREMENT)
    with file.open("a") as lines:
        lines.write('{"cut short\n[]\n{}\n')
    newest = find_record(file, tiny, 0, CPU)
    assert newest.measured == MEASUREMENT
    assert newest.date == record.date
    assert newest.seconds(4) == pytest.approx(4 * 0.2 + 0.1)


@pytest.mark.parametrize(
    ("overrides", "alike"),
    [
        (["SEED", "5", "TRAIN.epochs", "7", "OPTIMIZER.base_lr", "1", "DATA.workers", "2", "TRAIN.batch", "64"], True),
        (["MASKER.ratio", "0.5"], False),
        (["ENCODER.depth", "2"], False),
        (["DATA.batch_size", "16"], False),
        (["DATA.image_size", "[32, 64]"], False),
        (["TRAIN.precision", "fp32"], False),
        (["TRAIN.activation_checkpointing", "true"], False),
        (["TRAIN.ema", "0.9"], False),
        (["OPTIMIZER.name", "lars"], False),
    ],
)
def test_benchmarks_tell_like_steps_from_others(tmp_path, tiny, overrides, alike):
    file = tmp_path / "steps.jsonl"
    add_record(file, tiny, 0, CPU, MEASUREMENT)
    other = load_config(tmp_path / "recipe.yaml", overrides)
    assert (find_record(file, other, 0, CPU) is not None) == alike
    assert (step_keys(other, 0) == step_keys(tiny, 0)) == alike
    assert find_record(file, tiny, 10, CPU) is None


def test_benchmarks_of_other_hardware_are_not_used(tmp_path, tiny, monkeypatch):
    file = tmp_path / "steps.jsonl"
    add_record(file, tiny, 0, CPU, MEASUREMENT)
    monkeypatch.setattr(
        records, "hardware_of", lambda device: {"device": "another", "threads": torch.get_num_threads()}
    )
    assert find_record(file, tiny, 0, CPU) is None


@pytest.mark.slow
def test_plan_measures_once_and_remembers(tmp_path):
    file, overrides = tmp_path / "steps.jsonl", ["ENCODER.depth", 1, "ENCODER.width", 32, "HEAD.depth", 1]
    assert planned(overrides=overrides, records=file).images_per_s is None
    measured = planned(overrides=overrides, records=file, steps=2)
    assert measured.speed.measured.steps == 2
    assert measured.speed.measured.tensors == pytest.approx(measured.memory["cpu"].total, rel=0.15)
    plan = planned(overrides=overrides, records=file)
    assert plan.speed == measured.speed
    assert plan.images_per_s == measured.images_per_s > 0
    assert plan.seconds == pytest.approx(plan.plan.images_seen / plan.images_per_s)
    accumulated = planned(overrides=[*overrides, "TRAIN.batch", 128], records=file, devices=2)
    seconds = 2 * plan.speed.measured.micro_s + plan.speed.measured.update_s
    assert accumulated.images_per_s == pytest.approx(128 / seconds)
    assert planned(overrides=[*overrides, "ENCODER.heads", 2], records=file).images_per_s is None
    assert len(file.read_text().splitlines()) == 1


@pytest.mark.slow
def test_plan_measures_a_step_that_costs_what_the_steps_of_a_run_cost(tmp_path):
    """Within a factor of four: other work on the machine comes and goes."""
    keys = {**TINY, "ENCODER.width": 96, "ENCODER.depth": 4, "ENCODER.heads": 4, "LOG.every_steps": 11}
    code, output = call(tmp_path / "run", keys)
    assert code == 0, output
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rate = max(row["time/images_per_s"] for row in rows if "time/images_per_s" in row)
    plan = planned(overrides=pairs(keys), records=tmp_path / "steps.jsonl", steps=5)
    assert 0.25 < plan.images_per_s / rate < 4


@pytest.mark.slow
@pytest.mark.parametrize("path", [FINETUNE, PROBE], ids=lambda path: path.parent.name)
def test_plan_measures_classifiers(tmp_path, path):
    plan = planned(path, ["ENCODER.depth", 1], records=tmp_path / "steps.jsonl", steps=1)
    assert plan.speed.step["classes"] == 10
    assert plan.speed.measured.tensors == pytest.approx(plan.memory["cpu"].total, rel=0.15)


def test_plan_figures_are_plain_values():
    figures = planned(overrides=["ENCODER.depth", 1, "HEAD.depth", 1], devices=1).to_json()
    parsed = json.loads(json.dumps(figures))
    assert parsed["memory"]["gpu"]["total"] == sum(
        value for key, value in parsed["memory"]["gpu"].items() if key != "total"
    )
    assert parsed["plan"]["steps"] == figures["plan"]["steps_per_epoch"] * 30
    assert parsed["recipe"]["name"] == "mae/vit_base"


def test_bare_task_takes_no_memory_and_can_be_sampled():
    task = dry_task(load_config(CONFIGS / "mae" / "vit_huge.yaml", ["ENCODER.depth", "1", "HEAD.depth", "1"]), IMAGENET)
    assert all(parameter.is_meta for parameter in task.task.model.parameters())
    assert task.task.model.masker.sample(2, None, CPU).hidden_BHW.sum() == 2 * 192
    assert build.chosen_labels(task.task) is None
