"""Every recipe against its original: model, rates, weight decay, layer decay, optimizer and pictures.

What the originals compute is in tests/support/published.py and published_targets.py. What we compute comes from the
task, the optimizer and the schedule that the engine would use (on the meta device).
"""

import ast
import dataclasses
import math
import re
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from published import IMAGENET, MaeFinetuning, Run, SimMim
from published import PUBLISHED as OTHERS
from published_targets import TARGETS
from small_data import photograph
from timm.data import Mixup, create_transform
from timm.data.auto_augment import RandAugment
from timm.data.random_erasing import RandomErasing
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import nn
from torchvision import transforms

from mim import build, load_config
from mim.build import tasks
from mim.cost.model_summary import ModelSummary
from mim.data.sources.base import Source
from mim.engine.optim import parameter_groups
from mim.engine.plan import EngineSettings, Plan
from mim.engine.schedule import Schedule
from mim.ops.initial import Undrawn

PUBLISHED = OTHERS | TARGETS
ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("mae", "simmim", "targets", "finetune", "probe", "cross")
RECIPES = sorted(str(path.relative_to(ROOT)) for name in FOLDERS for path in (ROOT / "configs" / name).glob("*.yaml"))
CIFAR10 = "configs/finetune/cifar10_vit_tiny.yaml"  # IcarusWizard/MAE; it has tests of its own below
VIT_PYTORCH = "configs/mae/vit_pytorch.yaml"  # published as a model: tests/parity/test_seeds.py
CIFAR10_MAE, CIFAR10_SIMMIM, CIFAR10_SWIN = (
    f"configs/cifar10/{name}.yaml" for name in ("mae_vit_tiny", "simmim_vit_tiny", "simmim_swin_tiny")
)
OURS = {  # nobody published these
    "configs/finetune/cifar10_backbone.yaml": "for models that nobody else made",
    "configs/finetune/cifar10_vit_tiny_modern.yaml": "MAE's fine-tuning of ImageNet, scaled down by us",
    "configs/finetune/digits.yaml": "a minute on a laptop",
    "configs/finetune/solar.yaml": "nobody published MAE of these images",
    "configs/probe/cifar10_vit_tiny.yaml": "no probe of this encoder is published",
    "configs/probe/digits.yaml": "a minute on a laptop",
    "configs/probe/solar.yaml": "nobody published MAE of these images",
}
SIMMIM_VIT, SIMMIM_V2 = "configs/simmim/vit_base_800ep.yaml", "configs/simmim/swin_v2_base_800ep.yaml"
TUNED_V2, TUNED_SWIN_L = (f"configs/finetune/simmim_swin_{name}_800ep.yaml" for name in ("v2_base", "large"))


def published(*tasks: str) -> list[str]:
    return [path for path, run in PUBLISHED.items() if run.task in tasks]


PRETRAINED, FINETUNED, PROBED = published("pretrain"), published("finetune"), published("probe")


class Photographs(Source):
    """One photograph for each of 1000 classes, all the same."""

    def __init__(self, settings):
        super().__init__("train", settings)
        self.labels = np.arange(1000)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> Image.Image:
        return photograph(512, 512)


# ---------------------------------------------------------------- what we compute


@cache
def recipe(path: str):
    return load_config(ROOT / path)


@cache
def task(path: str):
    """The task of a recipe without its weights; its operations are not counted, for which it would be built again."""
    source = Photographs(recipe(path).DATA.shared)
    uncounted = mock.patch.object(tasks, "model_summary", return_value=ModelSummary((), None))
    built_once = mock.patch.object(tasks, "build_without_memory", return_value=None)
    with torch.device("meta"), Undrawn(), uncounted, built_once:
        return build.build_task(recipe(path), source, source)


@cache
def settings(path: str) -> EngineSettings:
    return build.engine_settings(recipe(path))


@cache
def optimizer(path: str) -> torch.optim.Optimizer:
    """As the engine builds it."""
    optimizer_settings = settings(path).optimizer
    return optimizer_settings.build(
        parameter_groups(task(path).model, optimizer_settings, task(path).lr_scales(optimizer_settings.layer_decay))
    )


def plan(path: str, devices: int = 1, samples: int = IMAGENET) -> Plan:
    return Plan.of(settings(path), samples, devices)


def schedule(path: str) -> Schedule:
    return plan(path, PUBLISHED[path].devices).schedule(settings(path))


@cache
def names(path: str) -> dict[int, str]:
    """The original's name of each parameter, by its id."""
    return {id(parameter): PUBLISHED[path].name(name) for name, parameter in task(path).model.named_parameters()}


def by_name(path: str, key: str) -> dict[str, float]:
    """What the optimizer's groups say of each parameter."""
    groups = optimizer(path).param_groups
    return {names(path)[id(parameter)]: group[key] for group in groups for parameter in group["params"]}


@cache
def dimensions(path: str) -> dict[str, int]:
    return {names(path)[id(parameter)]: parameter.ndim for parameter in task(path).model.parameters()}


def numbers(value) -> list:
    """A list or a tuple of a config as a list."""
    return list(value)


def test_every_recipe_has_a_published_run_or_is_said_to_be_ours():
    assert sorted([*PUBLISHED, *OURS, CIFAR10, VIT_PYTORCH]) == RECIPES, (
        "enter a new recipe's original in published.py, or why there is none in OURS"
    )
    for path in OURS:
        is_imagenet = recipe(path).DATA.name == "folder" and "solar" not in path
        assert not is_imagenet, f"{path} is of ImageNet: compare it with what was published"
        assert "ours" in (ROOT / path).read_text().partition("# source:")[2].partition("\n# hardware:")[0], path


# ---------------------------------------------------------------- models


@cache
def timms(name: str, classes: int, options: str) -> nn.Module:
    """A model of timm's without weights. options: of timm.create_model, as Python would write them."""
    with torch.device("meta"), Undrawn():
        return timm.create_model(name, num_classes=classes, **ast.literal_eval(options))


def our_name(name: str, classifies: bool) -> str:
    """Our name of one of timm's parameters."""
    readout = {"head.fc.": "readouts.0.linear.", "head.": "readouts.0.linear.", "fc_norm.": "readouts.0.norm."}
    for theirs, ours in readout.items():
        if classifies and name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return f"encoder.backbone.{name}"


@pytest.mark.slow
@pytest.mark.parametrize("path", PUBLISHED)
def test_recipe_model_is_the_one_of_timm(path):
    run, model = PUBLISHED[path], task(path).model
    classifies = run.task != "pretrain"
    theirs = timms(run.model, classes=1000 if classifies else 0, options=repr(run.options))
    expected = {our_name(name, classifies): parameter.shape for name, parameter in theirs.named_parameters()}
    parameters = dict(model.named_parameters())
    shapes = {name: weight.shape for name, weight in parameters.items() if not name.startswith(("head.", "target."))}
    around = {name for name in shapes if classifies is False and not name.startswith("encoder.backbone.")}
    assert around <= {
        "encoder.mask_token",
        "encoder.way.colour",
        "encoder.first_norm.weight",
        "encoder.first_norm.bias",
    }
    assert ("encoder.mask_token" in around) == (model.encoder.mask_token is not None)
    shapes = {name: shape for name, shape in shapes.items() if name not in around}
    assert shapes == expected
    assert round(sum(map(math.prod, shapes.values())) / 1e6, 1) == run.millions
    heads = [
        [part.num_heads for part in net.modules() if hasattr(part, "num_heads")] for net in (model.encoder, theirs)
    ]
    assert heads[0] == heads[1]
    assert len(model.encoder.blocks()) == sum(run.depths)
    assert not heads[0] or len(heads[0]) >= sum(run.depths)


@pytest.mark.slow
@pytest.mark.parametrize("path", PUBLISHED)
def test_recipe_drop_path_rises_to_the_published_rate(path):
    rates = [
        [getattr(getattr(block, name, None), "drop_prob", 0.0) for name in ("drop_path1", "drop_path2")]
        for block in task(path).model.encoder.blocks()
    ]
    rising = torch.linspace(0, PUBLISHED[path].drop_path, len(rates))
    assert torch.tensor(rates) == pytest.approx(rising[:, None].expand(-1, 2), abs=1e-6)


@pytest.mark.parametrize("path", FINETUNED)
def test_finetuned_classifier_has_one_norm(path):
    # MAE, models_vit.py; SimMIM, models/vision_transformer.py with USE_MEAN_POOLING: behind the mean of the patches.
    # SimMIM, models/swin_transformer.py: ahead of the mean
    model, vit = task(path).model, len(PUBLISHED[path].depths) == 1
    (readout,) = model.readouts
    used, unused = (readout.norm, model.encoder.backbone.norm)[:: 1 if vit else -1]
    assert isinstance(unused, nn.Identity)
    assert (used.eps, readout.pool) == (1e-6 if vit else 1e-5, "mean")
    assert recipe(path).READOUT.init_std == (2e-5 if vit else 0.02)


def test_simmim_vit_has_the_published_layer_scale():
    # config.py, VIT.INIT_VALUES; models/vision_transformer.py
    encoder = task(SIMMIM_VIT).model.encoder
    assert {block.init_values for block in encoder.blocks()} == {0.1}
    assert {norm.eps for norm in encoder.modules() if isinstance(norm, nn.LayerNorm)} == {1e-6}


def test_swin_v2_has_the_published_windows():
    # microsoft/Swin-Transformer, configs/simmim/simmim_{pretrain,finetune}__swinv2_base__*__800ep.yaml
    for path, windows, before in ((SIMMIM_V2, (12, 6), (0, 0)), (TUNED_V2, (14, 7), (12, 6))):
        attentions = [block.attn for block in task(path).model.encoder.blocks()]
        assert [part.window_size for part in attentions] == [(windows[0],) * 2] * 22 + [(windows[1],) * 2] * 2
        assert [part.pretrained_window_size for part in attentions] == [(before[0],) * 2] * 22 + [(before[1],) * 2] * 2
    assert task(SIMMIM_V2).model.target.window == 47


def test_simmim_heads_predict_every_pixel_of_a_token():
    for path, pixels, width in ((SIMMIM_VIT, 16, 768), (SIMMIM_V2, 32, 1024)):
        shapes = {name: tuple(weight.shape) for name, weight in task(path).model.head.named_parameters()}
        assert shapes == {"conv.weight": (pixels**2 * 3, width, 1, 1), "conv.bias": (pixels**2 * 3,)}


def test_crossmae_decodes_as_many_tokens_as_its_source():
    # models_cross.py, random_masking with the published --mask_ratio 0.75 --kept_mask_ratio 0.25, and mask_tokens_grid
    length, mask_ratio, kept_mask_ratio = 196, 0.75, 0.25
    theirs = length - int(length * (1 - mask_ratio)) - int(length * (mask_ratio - kept_mask_ratio))
    model, shapes = task("configs/mae/vit_base_cross_attention.yaml").model, []
    img_BCHW = torch.empty(2, 3, 224, 224, device="meta")
    hook = model.head.predict.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    model(img_BCHW, model.sample_mask(img_BCHW))
    hook.remove()
    assert shapes == [(2, theirs, 16 * 16 * 3)]
    assert theirs == 49
    assert len(model.head.layers) == 12  # --decoder_depth


@pytest.mark.parametrize("path", PRETRAINED)
def test_recipe_hides_as_many_cells_as_its_original(path):
    run, masker = PUBLISHED[path], task(path).model.masker
    assert (masker.visible, masker.cells) == (run.visible, run.cells)
    assert numbers(recipe(path).DATA.image_size) == [run.side, run.side]


def test_cifar10_recipes_hide_as_many_cells_as_their_originals():
    simmim = dataclasses.replace(PUBLISHED[SIMMIM_VIT], side=32, cell=4)
    cases = {
        CIFAR10_MAE: (dataclasses.replace(PUBLISHED["configs/mae/vit_base.yaml"], side=32, cell=2), (64, 256)),
        **dict.fromkeys((CIFAR10_SIMMIM, CIFAR10_SWIN), (simmim, (25, 64))),
    }
    for path, (run, expected) in cases.items():
        masker = build.build_without_memory(recipe(path)).masker
        assert (masker.visible, masker.cells) == (run.visible, run.cells) == expected, path


# ---------------------------------------------------------------- layers and weight decay


@pytest.mark.parametrize("path", PUBLISHED)
def test_recipe_trains_what_its_original_trains(path):
    """No two parameters have one name there, so the tests below compare every one."""
    run = PUBLISHED[path]
    assert len(dimensions(path)) == len(list(task(path).model.parameters()))
    assert set(by_name(path, "lr_scale")) == {name for name in dimensions(path) if run.trained(name)}
    parameters = [parameter for group in optimizer(path).param_groups for parameter in group["params"]]
    assert len(parameters) == len(by_name(path, "lr_scale"))
    assert all(parameter.requires_grad for parameter in parameters)


@pytest.mark.parametrize("path", PUBLISHED)
def test_recipe_layer_decay_is_its_originals(path):
    run, scales = PUBLISHED[path], by_name(path, "lr_scale")
    others = {name for name in scales if re.search(run.other_scale, name)}
    assert all(scales[name] != run.scale(name) for name in others)
    assert scales == pytest.approx({name: 1.0 if name in others else run.scale(name) for name in scales}, rel=1e-12)
    if run.layer_decay < 1:
        assert {run.layer(name) for name in scales} == set(range(sum(run.depths) + 2))
        assert task(path).model.encoder.top_layer == sum(run.depths) + 1
        assert len(optimizer(path).param_groups) == 2 * (sum(run.depths) + 2)  # with weight decay, and without


def test_simmim_vit_layers_are_those_of_its_optimizer_also_where_no_layer_decays():
    run, encoder = PUBLISHED[SIMMIM_VIT], task(SIMMIM_VIT).model.encoder
    layers = {name.removeprefix("backbone."): layer for name, layer in encoder.layer_ids().items()}
    assert layers == {name: run.layer(name) for name in layers}
    assert layers["mask_token"] == layers["cls_token"] == layers["patch_embed.proj.weight"] == 0
    assert layers["rel_pos_bias.relative_position_bias_table"] == layers["norm.weight"] == encoder.top_layer == 13


@pytest.mark.parametrize("path", PUBLISHED)
def test_recipe_weight_decay_is_its_originals(path):
    run, decays = PUBLISHED[path], by_name(path, "weight_decay")
    expected = {name: 0.0 if run.exempt(name, dimensions(path)[name]) else run.weight_decay for name in decays}
    differing = {name for name in decays if decays[name] != expected[name]}
    assert all(re.search(run.other_decay, name) for name in differing), differing
    assert bool(differing) == (run.other_decay != "$^")
    assert {value for name, value in decays.items() if name.endswith((".bias", "norm.weight"))} <= {0.0}


def test_weight_decay_of_tokens_tables_and_scales():
    """What the formulas above say, said of single names."""
    swin, tuned = "configs/simmim/swin_base_800ep.yaml", "configs/finetune/simmim_swin_base_800ep.yaml"
    tuned_vit, table = "configs/finetune/simmim_vit_base_800ep.yaml", "relative_position_bias_table"
    dropping = "configs/cross/simmim_on_dropping_vit.yaml"
    cases = [  # recipe, end of the names, how many, weight decay
        *(("configs/mae/vit_base.yaml", token, 1, 0.05) for token in ("cls_token", "mask_token")),
        *((swin, end, count, decay) for end, count, decay in (("mask_token", 1, 0.0), (table, 24, 0.05))),
        (tuned, table, 24, 0.0),
        *((SIMMIM_V2, end, 24, 0.05) for end in ("logit_scale", "cpb_mlp.0.weight", "cpb_mlp.2.weight")),
        *((SIMMIM_V2, end, 24, 0.0) for end in ("q_bias", "v_bias", "cpb_mlp.0.bias")),
        *((TUNED_V2, end, 24, 0.0) for end in ("logit_scale", "cpb_mlp.0.weight", "cpb_mlp.2.weight")),
        *((SIMMIM_VIT, end, 1, decay) for end, decay in (("cls_token", 0.0), ("mask_token", 0.05), (table, 0.05))),
        *((tuned_vit, end, count, decay) for end, count, decay in (("cls_token", 1, 0.0), (table, 12, 0.05))),
        *((dropping, end, 1, decay) for end, decay in (("cls_token", 0.0), ("mask_token", 0.05))),
    ]
    for path, end, count, decay in cases:
        values = [value for name, value in by_name(path, "weight_decay").items() if name.endswith(end)]
        assert values == [decay] * count, f"{path}: {end}"


def test_cifar10_simmim_exempts_the_class_token_and_decays_the_mask_token():
    model, optimizer_settings = build.build_without_memory(recipe(CIFAR10_SIMMIM)), settings(CIFAR10_SIMMIM).optimizer
    groups = parameter_groups(model, optimizer_settings, {})
    decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    decays = {name: decays.get(id(parameter)) for name, parameter in model.named_parameters()}
    assert decays["encoder.backbone.cls_token"] == 0
    assert decays["encoder.mask_token"] == 0.05
    assert not decays.get("encoder.backbone.pos_embed")


# ---------------------------------------------------------------- learning rates


@pytest.mark.parametrize("path", PUBLISHED)
def test_recipe_rates_are_its_originals(path):
    """Of every parameter, as the engine sets them, at 1e-12; where a cosine ends, at the rounding of its 1 + cos."""
    run, ours = PUBLISHED[path], plan(path, PUBLISHED[path].devices)
    assert (ours.micro_batch, ours.accumulation) == (run.rows, 1)
    assert (ours.steps_per_epoch, ours.steps) == (run.per_epoch, run.epochs * run.per_epoch)
    assert recipe(path).TRAIN.batch == run.batch
    rates = ours.schedule(settings(path))
    assert rates.peak == pytest.approx(run.peak, rel=1e-12)
    names = by_name(path, "lr_scale")
    scales = {name: 1.0 if re.search(run.other_scale, name) else run.scale(name) for name in names}
    for step in run.steps():
        for group in optimizer(path).param_groups:
            group["lr"] = rates.at(step, group["lr_scale"])
        expected = {scale: run.rate(step - run.ahead, scale) for scale in set(scales.values())}
        relative, share = run.close
        for name, rate in by_name(path, "lr").items():
            near = share * scales[name] * rates.peak
            assert rate == pytest.approx(expected[scales[name]], rel=relative, abs=near), f"{name} in step {step}"


def compare_rates(run: Run, rates: Schedule) -> None:
    assert rates.peak == pytest.approx(run.peak, rel=1e-12)
    for step in run.steps():
        expected = run.rate(step - run.ahead, 1.0)
        assert rates.at(step) == pytest.approx(expected, rel=run.close[0], abs=run.close[1] * rates.peak), step


@pytest.mark.parametrize("path", PUBLISHED)
def test_recipe_rates_follow_the_batch_as_its_originals(path):
    """However a batch is split. With a batch of 8 x 16, SimMIM's three rates fall together, MAE's peak alone."""
    run, engine = PUBLISHED[path], settings(path)
    for devices, rows in ((1, 64), (8, 64), (8, 16), (2, 128)):
        if devices * rows >= run.batch:
            continue
        split = Plan.of(dataclasses.replace(engine, batch_size=rows), IMAGENET, devices)
        assert split.accumulation == run.batch // (devices * rows) > 1
        compare_rates(run, split.schedule(engine))
    if run.fixed_batch:
        return
    engine = dataclasses.replace(engine, batch_size=16, train=dataclasses.replace(engine.train, batch=0))
    compare_rates(dataclasses.replace(run, devices=8, rows=16), Plan.of(engine, IMAGENET, 8).schedule(engine))


@pytest.mark.parametrize("path", [path for path, run in PUBLISHED.items() if isinstance(run, SimMim) and not run.drops])
def test_published_cosine_of_simmim_is_the_one_of_timm(path):
    """The formula of SimMim.rate. lr_scheduler.py; main_*.py call step_update(step) after the optimizer's step."""
    run = PUBLISHED[path]
    base, first, last = run.scaled()
    scales = [run.layer_decay**above for above in range(sum(run.depths) + 2)]
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "lr": base * scale} for scale in scales])
    theirs = CosineLRScheduler(
        optimizer,
        t_initial=(run.epochs - (run.warmup if run.prefix else 0)) * run.per_epoch,
        lr_min=last,
        warmup_lr_init=first,
        warmup_t=run.warmup * run.per_epoch,
        warmup_prefix=run.prefix,
        cycle_limit=1,
        t_in_epochs=False,
    )
    for step in run.steps():
        if step:
            theirs.step_update(step - 1)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert [run.rate(step, scale) for scale in scales] == pytest.approx(rates, rel=1e-9), step


def test_published_numbers_of_the_schedules():
    """Single values, by hand: where the formulas above start, bend and end."""
    simmim, tuned = (
        f"configs/{name}.yaml" for name in ("simmim/swin_base_100ep", "finetune/simmim_swin_base_100ep_224")
    )
    mae, multistep = "configs/mae/vit_base.yaml", "configs/simmim/swin_base_800ep.yaml"
    warm, tuned_warm = 10 * 625, 20 * 625
    joined = 4e-5 + (8e-4 - 4e-5) * 0.5 * (1 + math.cos(math.pi * 10 / 100))
    for path, step, rate in (
        *((mae, 0, 0.0), (mae, 40 * 312, 2.4e-3)),
        *((simmim, 0, 4e-6), (simmim, 1, 4e-6), (simmim, 2, 4e-6 + (8e-4 - 4e-6) / warm)),
        *((simmim, warm, 8e-4 - (8e-4 - 4e-6) / warm), (simmim, warm + 1, joined)),  # below the peak, a step late
        *((multistep, 0, 2e-6), (multistep, 1, 2e-6)),
        *((multistep, 700 * 625, 4e-4), (multistep, 700 * 625 + 1, 4e-5)),
        *((tuned, 0, 1e-6), (tuned, 1, 1e-6)),
    ):
        assert schedule(path).at(step) == pytest.approx(rate, rel=1e-12), f"{path}, step {step}"
    assert joined / 8e-4 == pytest.approx(0.977, abs=5e-4)
    assert schedule(tuned).at(tuned_warm + 1) == pytest.approx(0.905 * 5e-3, rel=1e-3)
    assert schedule(TUNED_V2).at(tuned_warm + 1) == pytest.approx(5e-3, rel=1e-3)


def test_swin_of_weaker_decay_still_warms_up_every_layer():
    # if layer decay multiplied the whole rate, the stem of Swin-L would start, and end, at .7 ** 25 of 1e-6
    rates, stem = schedule(TUNED_SWIN_L), min(by_name(TUNED_SWIN_L, "lr_scale").values())
    assert stem == pytest.approx(0.7**25)
    assert rates.at(0, stem) == rates.at(0) == pytest.approx(1e-6)
    assert rates.at(62_499, stem) == pytest.approx(1e-6, rel=1e-3)
    assert stem * rates.peak < 1e-6


# ---------------------------------------------------------------- optimizers, runs, targets


@pytest.mark.parametrize("path", PUBLISHED)
def test_recipe_optimizer_and_run_are_the_published_ones(path):
    run, cfg, built = PUBLISHED[path], recipe(path), optimizer(path)
    assert (cfg.TASK, cfg.TRAIN.epochs, cfg.TRAIN.clip, cfg.TRAIN.ema) == (run.task, run.epochs, run.clip, 0)
    assert (cfg.OPTIMIZER.per_batch, cfg.OPTIMIZER.weight_decay) == (run.per_batch, run.weight_decay)
    assert cfg.OPTIMIZER.weight_decay_end == run.weight_decay_end
    assert (numbers(cfg.DATA.mean), numbers(cfg.DATA.std)) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    if run.task != "probe":
        assert type(built) is torch.optim.AdamW
        assert {(tuple(group["betas"]), group["eps"]) for group in built.param_groups} == {(run.betas, 1e-8)}
    if run.task == "finetune":
        assert cfg.FREEZE.tune_blocks == "all"
    if run.task != "pretrain":
        assert (cfg.LABELS.share, cfg.LABELS.per_class, cfg.EVALUATE.samples) == (1, 0, 0)


@pytest.mark.parametrize("path", PRETRAINED)
def test_recipe_crops_and_target_are_the_published_ones(path):
    run, cfg = PUBLISHED[path], recipe(path)
    assert (cfg.AUGMENT.crop == "random_resized", cfg.AUGMENT.interpolation) == (bool(run.crops), run.interpolation)
    if run.crops:
        assert numbers(cfg.AUGMENT.crop_scale) == list(run.crops)
        assert numbers(cfg.AUGMENT.crop_ratio) == pytest.approx(list(run.crop_ratios))
    assert (cfg.AUGMENT.flip, cfg.DATA.masks) == (run.flip, run.masks)
    targets = run.target if isinstance(run.target, tuple) else (run.target,)
    for target, part in zip(targets, cfg.parts("TARGET"), strict=True):
        assert {key: getattr(part, key) for key in target} == target
    assert {(loss.name, loss.eps, loss.over) for loss in cfg.parts("LOSS")} == {(*run.loss, "hidden")}


def test_pixmim_pictures_are_those_of_its_pipeline():
    # mmselfsup, pixmim_vit-base-p16_8xb512-amp-coslr-300e_in1k.py
    crop = [transforms.Resize(224), transforms.RandomCrop(224, padding=4, padding_mode="reflect")]
    theirs = transforms.Compose([*crop, transforms.RandomHorizontalFlip(0.5), transforms.PILToTensor()])
    ours = task("configs/targets/pixmim_vit_base.yaml").train_data.transform
    for seed in range(10):
        torch.manual_seed(seed)
        assert torch.equal(ours(photograph(375, 500), seed), theirs(photograph(375, 500)))


def test_data2vec2_steps_and_blocks_are_the_published_ones():
    # base_images_only_task.yaml: max_update, warmup_updates; compute_block_mask_2d: 5 blocks
    path = "configs/targets/data2vec2_vit_base.yaml"
    ours = plan(path, PUBLISHED[path].devices)
    assert (ours.steps, recipe(path).SCHEDULE.warmup_epochs * ours.steps_per_epoch) == (375_300, 50_040)
    masker = recipe(path).MASKER
    assert (masker.block, int(196 * (1 - masker.ratio + masker.adjust) / masker.block**2)) == (3, 5)


def test_ijepa_predictor_and_masks_are_the_published_ones():
    # appendix A.1: width 384, depth 6 for ViT-B, heads of the encoder; configs/in1k_vith14_ep300.yaml, mask
    for size, heads in (("small", 6), ("base", 12)):
        cfg = recipe(f"configs/targets/ijepa_vit_{size}.yaml")
        assert (cfg.HEAD.width, cfg.HEAD.depth, cfg.HEAD.heads, cfg.HEAD.share) == (384, 6, heads, 1)
        masks = [numbers(getattr(cfg.MASKER, key)) for key in ("target_scale", "target_aspect", "context_scale")]
        assert (cfg.MASKER.targets, masks) == (4, [[0.15, 0.2], [0.75, 1.5], [0.85, 1.0]])


@pytest.mark.parametrize("path", PROBED)
def test_mae_probe_trains_the_head_alone_by_lars(path):
    # main_linprobe.py, util/lars.py: neither trust nor weight decay on the bias
    cfg, model = recipe(path), task(path).model
    weight, bias = optimizer(path).param_groups
    assert [len(group["params"][0].shape) for group in (weight, bias)] == [2, 1]
    assert [group["always_adapt"] for group in (weight, bias)] == [True, False]
    for group in (weight, bias):
        assert (group["momentum"], group["trust_coeff"]) == (0.9, 0.001)
    (readout,) = model.readouts
    assert (type(readout.norm), readout.norm.eps, readout.norm.affine) == (nn.BatchNorm1d, 1e-6, False)
    assert model.encoder.backbone.norm.eps == 1e-6
    assert (readout.pool, cfg.READOUT.init_std, numbers(cfg.PROBE.rates)) == ("class", 0.01, [1.0])
    assert cfg.ENCODER.positions == "sincos"


# ---------------------------------------------------------------- pictures


@cache
def transforms_of_timm(path: str) -> list:
    """The transforms of MAE's util/datasets.py and SimMIM's data/data_finetune.py, which both call timm."""
    return create_transform(
        input_size=recipe(path).DATA.image_size[0],
        is_training=True,
        color_jitter=None if isinstance(PUBLISHED[path], MaeFinetuning) else 0.4,
        auto_augment="rand-m9-mstd0.5-inc1",
        re_prob=0.25,
        re_mode="pixel",
        re_count=1,
        interpolation="bicubic",
    ).transforms


def first(kind: type, path: str):
    return next(step for step in transforms_of_timm(path) if isinstance(step, kind))


@pytest.mark.parametrize("path", FINETUNED)
def test_finetuning_pictures_are_those_of_timm(path):
    crop, flip = transforms_of_timm(path)[:2]
    ours = task(path).train_data.transform
    assert (tuple(ours.scale), ours.ratio) == (tuple(crop.scale), pytest.approx(crop.ratio))
    assert (ours.flip, ours.size, ours.interpolation) == (flip.p, tuple(crop.size), crop.interpolation)
    assert ours.jitter is None
    assert not any(
        isinstance(step, transforms.ColorJitter) for step in transforms_of_timm(path)
    )  # though SimMIM sets .4
    same_colours(ours.rand_augment, first(RandAugment, path))


def same_colours(ours: RandAugment, theirs: RandAugment) -> None:
    assert (ours.num_layers, ours.choice_weights) == (theirs.num_layers, theirs.choice_weights)
    for one, other in zip(ours.ops, theirs.ops, strict=True):
        assert (one.name, one.prob, one.magnitude) == (other.name, other.prob, other.magnitude)
        assert (one.magnitude_std, one.magnitude_max) == (other.magnitude_std, other.magnitude_max)
        assert one.level_fn == other.level_fn
        assert one.kwargs["resample"] == other.kwargs["resample"]  # timm hands the crop's on to rotations and shears
        if other.name == "PosterizeIncreasing":  # at no bits, newer Pillows refuse timm's
            image = photograph(32, 32)
            pairs = [(one.aug_fn(image, bits), other.aug_fn(image, bits)) for bits in (1, 2, 3, 4, 8)]
            assert all(np.array_equal(*map(np.asarray, pair)) for pair in pairs)
        else:
            assert one.aug_fn == other.aug_fn
        for key in ("translate_const", "img_mean"):
            assert one.hparams[key] == other.hparams[key]


@pytest.mark.parametrize("path", FINETUNED)
def test_finetuning_erases_and_mixes_as_the_source(path):
    augment = task(path).augment
    erasing = [
        {k: v for k, v in vars(part).items() if k != "device"} for part in (augment.erase, first(RandomErasing, path))
    ]
    assert erasing[0] == erasing[1]
    mixed = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "prob": 1.0, "switch_prob": 0.5, "mode": "batch"}
    assert vars(augment.mix) == vars(Mixup(**mixed, label_smoothing=0.1, num_classes=1000))


@pytest.mark.parametrize("path", PROBED)
def test_mae_probe_crops_are_torchvisions_default(path):
    default, ours = transforms.RandomResizedCrop(224), task(path).train_data.transform
    assert (tuple(ours.scale), ours.ratio) == (tuple(default.scale), pytest.approx(default.ratio))
    assert (ours.flip, ours.size, ours.interpolation.value) == (0.5, (224, 224), "bicubic")


@pytest.mark.parametrize("path", [*FINETUNED, *PROBED])
def test_recipe_evaluates_on_the_centre_of_a_slightly_larger_picture(path):
    # MAE, util/datasets.py and main_linprobe.py; SimMIM, data/data_finetune.py
    side = recipe(path).DATA.image_size[0]
    resize = transforms.Resize(int(256 / 224 * side), transforms.InterpolationMode.BICUBIC)
    theirs = transforms.Compose([resize, transforms.CenterCrop(side), transforms.PILToTensor()])
    assert torch.equal(task(path).held_out.transform(photograph(512, 512)), theirs(photograph(512, 512)))


# ---------------------------------------------------------------- CIFAR-10: IcarusWizard/MAE


def test_cifar10_mae_optimizer_is_the_published_one_and_its_rate_near():
    # mae_pretrain.py: once an epoch, the smaller of a warmup and a cosine from epoch 0
    cfg, ours = recipe(CIFAR10_MAE), plan(CIFAR10_MAE, samples=50_000)
    assert (cfg.OPTIMIZER.name, numbers(cfg.OPTIMIZER.betas), cfg.OPTIMIZER.eps) == ("adamw", [0.9, 0.95], 1e-8)
    assert (cfg.OPTIMIZER.weight_decay, cfg.TRAIN.clip) == (0.05, 0)
    rates = ours.schedule(settings(CIFAR10_MAE))
    assert rates.peak == pytest.approx(1.5e-4 * 4096 / 256, rel=1e-12)
    for epoch in range(0, 2000, 50):
        theirs = 2.4e-3 * min((epoch + 1) / 200, 0.5 * (math.cos(epoch / 2000 * math.pi) + 1))
        ours_then = rates.at((epoch + 1) * ours.steps_per_epoch - 1)
        assert ours_then == pytest.approx(theirs, abs=2.4e-3 / 1000)


def test_cifar10_finetuning_rate_is_near_the_one_of_its_source():
    # train_classifier.py: once an epoch, the smaller of a warmup and a cosine from epoch 0, for all weights the same
    ours, peak = plan(CIFAR10, samples=50_000), 1e-3 * 128 / 256
    rates = ours.schedule(settings(CIFAR10))
    assert ours.steps_per_epoch == 50_000 // 128 == 390
    assert rates.peak == pytest.approx(peak, rel=1e-12)
    for epoch in range(100):
        theirs = peak * min((epoch + 1) / 5, 0.5 * (math.cos(epoch / 100 * math.pi) + 1))
        if epoch < 5:  # ours rises within the epoch, to where theirs is
            assert rates.at((epoch + 1) * 390 - 1) == pytest.approx(theirs, abs=peak / 200)
        else:
            assert rates.at(epoch * 390) == pytest.approx(theirs, rel=1e-12, abs=1e-15 * peak)
    groups = optimizer(CIFAR10).param_groups
    assert {group["lr_scale"] for group in groups} == {1.0}
    decays = {(parameter.ndim == 1, group["weight_decay"]) for group in groups for parameter in group["params"]}
    assert decays == {(False, 0.05), (True, 0.0)}  # theirs decays biases too, as the recipe says


def test_cifar10_finetuning_is_the_published_one():
    cfg = recipe(CIFAR10)
    assert (cfg.ENCODER.patch, cfg.ENCODER.width, cfg.ENCODER.depth, cfg.ENCODER.heads) == (2, 192, 12, 3)
    assert [numbers(getattr(cfg.DATA, key)) for key in ("mean", "std", "image_size")] == [
        [0.5] * 3,
        [0.5] * 3,
        [32, 32],
    ]
    assert [numbers(getattr(cfg.AUGMENT, key)) for key in ("crop_scale", "crop_ratio")] == [[1, 1], [1, 1]]
    assert not any(getattr(cfg.AUGMENT, key) for key in ("flip", "randaugment", "jitter", "erase", "mixup", "cutmix"))
    assert (cfg.READOUT.pool, cfg.READOUT.norm, cfg.ENCODER.norm) == ("class", "none", True)
    assert cfg.CRITERION.smoothing == 0
    assert cfg.READOUT.init_std == pytest.approx(nn.Linear(192, 10_000).weight.std().item(), rel=1e-2)
    assert (numbers(cfg.OPTIMIZER.betas), numbers(cfg.OPTIMIZER.no_decay)) == ([0.9, 0.999], [])
    assert (cfg.OPTIMIZER.weight_decay, cfg.OPTIMIZER.layer_decay) == (0.05, 1)
    assert (cfg.TRAIN.epochs, cfg.TRAIN.batch, cfg.TRAIN.precision, cfg.TRAIN.clip) == (100, 128, "fp32", 0)
    assert (cfg.EVALUATE.every_epochs, cfg.EVALUATE.crop_pct) == (1, 1)
