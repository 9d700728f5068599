"""The recipes of fine-tuning and linear probes equal the published ones: layers, rates, weight decay, pictures.

Every table is computed here from the originals' formulas. Models are whole, but without memory (on the meta device).
"""

import math
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from small_data import photograph
from timm.data import Mixup, create_transform
from timm.data.auto_augment import RandAugment
from timm.data.random_erasing import RandomErasing
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import nn
from torchvision import transforms
from yacs.config import CfgNode

from mim import build, config, load_config
from mim.config import schema
from mim.data.sources.base import DataSettings, Source
from mim.engine.optim import parameter_groups
from mim.engine.schedule import Schedule
from mim.engine.plan import Plan
from mim.tasks.classify import Classify

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("finetune", "probe")
RECIPES = sorted(str(path.relative_to(ROOT)) for name in FOLDERS for path in (ROOT / "configs" / name).glob("*.yaml"))
IMAGES = {"folder": 1_281_167, "cifar10": 50_000, "digits": 1_437}  # folder: every such recipe is ImageNet's
PRETRAINED_WEIGHTS = re.compile(
    r"^# From a pretrained run: INIT\.checkpoint runs/(?:\w+/)?(\w+)/checkpoints/step-(\d+)\.pt$"
)


@dataclass(frozen=True)
class Published:
    """What the original says. model: its name in timm; depth: blocks, or blocks of each stage; scale: layer decay;
    warmup_prefix: of timm's cosine.
    """

    model: str
    depth: int | tuple[int, ...]
    scale: float
    base_lr: float
    epochs: int
    drop_path: float
    millions: float
    options: dict = field(default_factory=dict)
    warmup_prefix: bool = False

    @property
    def blocks(self) -> int:
        return self.depth if isinstance(self.depth, int) else sum(self.depth)


VIT = {"global_pool": "avg"}
MAE = {  # FINETUNE.md
    "configs/finetune/mae_vit_base.yaml": Published("vit_base_patch16_224", 12, 0.65, 5e-4, 100, 0.1, 86.6, VIT),
    "configs/finetune/mae_vit_large.yaml": Published("vit_large_patch16_224", 24, 0.75, 1e-3, 50, 0.2, 304.3, VIT),
    "configs/finetune/mae_vit_huge.yaml": Published("vit_huge_patch14_224", 32, 0.75, 1e-3, 50, 0.3, 632.0, VIT),
}
STAGES = (2, 2, 18, 2)
SWIN_B, SWIN_L = "swin_base_patch4_window7_224", "swin_large_patch4_window7_224"
SWIN = {  # configs/swin_*/simmim_finetune__*.yaml
    "configs/finetune/simmim_swin_base_100ep_192.yaml": Published(
        SWIN_B, STAGES, 0.9, 1.25e-3, 100, 0.1, 87.8, {"img_size": 192, "window_size": 6}
    ),
    "configs/finetune/simmim_swin_base_100ep_224.yaml": Published(SWIN_B, STAGES, 0.9, 1.25e-3, 100, 0.1, 87.8),
    "configs/finetune/simmim_swin_base_800ep.yaml": Published(SWIN_B, STAGES, 0.8, 1.25e-3, 100, 0.1, 87.8),
    "configs/finetune/simmim_swin_large_800ep.yaml": Published(
        SWIN_L, STAGES, 0.7, 1.25e-3, 100, 0.2, 196.8, {"window_size": 14}
    ),
}
SIMMIM_VIT = {
    "configs/finetune/simmim_vit_base_800ep.yaml": Published("beit_base_patch16_224", 12, 0.65, 1.25e-3, 100, 0.1, 86.5)
}
SWIN_V2 = {  # microsoft/Swin-Transformer, configs/simmim/simmim_finetune__swinv2_base__img224_window14__800ep.yaml
    "configs/finetune/simmim_swin_v2_base_800ep.yaml": Published(
        "swinv2_base_window12to16_192to256",  # which has its PRETRAINED_WINDOW_SIZES
        STAGES,
        0.75,
        1.25e-3,
        100,
        0.1,
        87.9,
        {"img_size": 224, "window_size": 14},
        warmup_prefix=True,  # config.py
    )
}
SIMMIM = {**SWIN, **SWIN_V2, **SIMMIM_VIT}
PROBES = {
    "configs/probe/mae_vit_base.yaml": Published("vit_base_patch16_224", 12, 1.0, 0.1, 90, 0.0, 86.6),
    "configs/probe/mae_vit_large.yaml": Published("vit_large_patch16_224", 24, 1.0, 0.1, 50, 0.0, 304.3),
    "configs/probe/mae_vit_huge.yaml": Published("vit_huge_patch14_224", 32, 1.0, 0.1, 50, 0.0, 632.0),
}
FINETUNED = {**MAE, **SIMMIM}
CIFAR10 = "configs/finetune/cifar10_vit_tiny.yaml"
OURS = {
    *("configs/finetune/digits.yaml", "configs/finetune/cifar10_vit_tiny_modern.yaml"),
    *("configs/probe/digits.yaml", "configs/probe/cifar10_vit_tiny.yaml"),
}


class Photographs(Source):
    """One photograph a class, all the same."""

    def __init__(self, settings: DataSettings, count: int):
        super().__init__("train", settings)
        self.labels = np.arange(count)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> Image.Image:
        return photograph(512, 512)


@cache
def recipe(path: str) -> CfgNode:
    return load_config(ROOT / path)


@cache
def task(path: str) -> Classify:
    """The task of a recipe of ImageNet, on the meta device; its operations are not counted, which takes a second."""
    cfg = recipe(path)
    source = Photographs(schema.settings(cfg, "DATA"), 1000)
    with torch.device("meta"), mock.patch.object(build, "summarise_model", return_value=build.ModelSummary((), None)):
        return build.build_task(cfg, source, source)


@cache
def plan(path: str) -> Plan:
    return Plan.of(build.engine_settings(recipe(path)), IMAGES[recipe(path).DATA.name], world_size=1)


def schedule(path: str) -> Schedule:
    return plan(path).schedule(build.engine_settings(recipe(path)))


@cache
def groups(path: str) -> list[dict]:
    optimizer = schema.part(recipe(path), "OPTIMIZER")
    return parameter_groups(task(path).model, optimizer, task(path).lr_scales(optimizer.layer_decay))


def original_name(name: str) -> str:
    """MAE's or SimMIM's name of one of our parameters."""
    for ours, theirs in (("encoder.backbone.", ""), ("heads.0.", "head."), ("norm.", "fc_norm.")):
        if name.startswith(ours):
            return with_downsampling_at_the_end(theirs + name.removeprefix(ours))
    raise AssertionError(f"{name} is no part of a classifier")


def with_downsampling_at_the_end(name: str) -> str:
    """timm downsamples at the start of a stage, SimMIM at the end of the one before."""
    return re.sub(r"^layers\.(\d+)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample", name)


@cache
def by_name(path: str, key: str) -> dict[str, float]:
    names = {id(parameter): original_name(name) for name, parameter in task(path).model.named_parameters()}
    return {names[id(parameter)]: group[key] for group in groups(path) for parameter in group["params"]}


@cache
def timm_shapes(published: str, **options) -> dict[str, torch.Size]:
    """Shapes of timm's model of 1000 classes, under the original's names."""
    with torch.device("meta"):
        model = timm.create_model(published, num_classes=1000, **options)
    return {
        with_downsampling_at_the_end(name.replace("head.fc.", "head.")): parameter.shape
        for name, parameter in model.named_parameters()
    }


def shapes_of(published: Published) -> dict[str, torch.Size]:
    return timm_shapes(published.model, **published.options)


def steps_of_timm(path: str) -> list:
    """The transforms of MAE's util/datasets.py and SimMIM's data/data_finetune.py, which both call timm."""
    return create_transform(
        input_size=recipe(path).DATA.image_size[0],
        is_training=True,
        color_jitter=None if path in MAE else 0.4,
        auto_augment="rand-m9-mstd0.5-inc1",
        re_prob=0.25,
        re_mode="pixel",
        re_count=1,
        interpolation="bicubic",
    ).transforms


def test_recipes_are_checked_against_a_source_or_said_to_be_ours():
    assert {*FINETUNED, *PROBES, CIFAR10, *OURS} == {*RECIPES}
    for path in OURS:
        assert re.search(r"^# source: .*(?:\n#  .*)*\bours\b", (ROOT / path).read_text(), re.MULTILINE), path


# ---------------------------------------------------------------- models


@pytest.mark.parametrize("path", [*FINETUNED, *PROBES])
def test_recipe_model_is_the_one_of_timm(path):
    published = {**FINETUNED, **PROBES}[path]
    shapes = {original_name(name): parameter.shape for name, parameter in task(path).model.named_parameters()}
    assert shapes == shapes_of(published)
    assert round(sum(map(math.prod, shapes.values())) / 1e6, 1) == published.millions


@pytest.mark.parametrize("path", [*FINETUNED, *PROBES])
def test_recipe_drop_path_rises_to_the_published_rate(path):
    rate, rates = {**FINETUNED, **PROBES}[path].drop_path, []
    for block in task(path).model.encoder.blocks():
        assert getattr(block.drop_path1, "drop_prob", 0.0) == getattr(block.drop_path2, "drop_prob", 0.0)
        rates.append(getattr(block.drop_path1, "drop_prob", 0.0))
    wanted = [rate * place / (len(rates) - 1) for place in range(len(rates))]
    assert rates == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("path", [*MAE, *SIMMIM_VIT])
def test_finetuned_vit_has_one_norm_behind_the_mean_of_patches(path):
    # MAE, models_vit.py; SimMIM, models/vision_transformer.py with USE_MEAN_POOLING: no norm ahead of the mean
    model = task(path).model
    assert isinstance(model.encoder.backbone.norm, nn.Identity)
    assert (model.norm.eps, model.pool, recipe(path).CLASSIFIER.init_std) == (1e-6, "mean", 2e-5)


@pytest.mark.parametrize("path", [*SWIN, *SWIN_V2])
def test_finetuned_swin_has_one_norm_ahead_of_the_mean(path):
    model = task(path).model
    assert isinstance(model.norm, nn.Identity)
    assert (model.encoder.backbone.norm.eps, model.pool, recipe(path).CLASSIFIER.init_std) == (1e-5, "mean", 0.02)


@pytest.mark.parametrize("path", RECIPES)
def test_recipe_starts_from_the_last_checkpoint_of_a_recipe_that_fits(path):
    lines = (ROOT / path).read_text().splitlines()
    name, step = next(found.groups() for line in lines if (found := PRETRAINED_WEIGHTS.match(line)))
    origins = [file for file in (ROOT / "configs").glob("*/*.yaml") if f"--output runs/{name}\n" in file.read_text()]
    assert len(origins) == 1
    origin = str(origins[0].relative_to(ROOT))
    assert int(step) == plan(origin).steps
    assert (recipe(origin).TASK, recipe(origin).DATA.name) == ("pretrain", recipe(path).DATA.name)
    pretrained = build.build_without_memory(recipe(origin)).encoder.state_dict()
    for key, weight in build.build_without_memory(recipe(path)).encoder.state_dict().items():
        if "relative_position_bias_table" not in key and not key.endswith("attn_mask"):  # resized; made anew
            assert weight.shape == pretrained[key].shape, key
    ours, theirs = (recipe(path), recipe(origin))
    assert (ours.DATA.mean, ours.DATA.std, ours.DATA.channels) == (
        theirs.DATA.mean,
        theirs.DATA.std,
        theirs.DATA.channels,
    )
    assert {key for key, value in ours.ENCODER.items() if value != theirs.ENCODER[key]} <= {
        *("hidden", "positions", "norm", "drop_path", "window", "pretrained_windows", "bias")
    }


# ---------------------------------------------------------------- learning rates: MAE


def assert_scaled(path: Path, layers: dict[str, int], decay: float, blocks: int) -> None:
    """Each parameter's rate by the original's layers: the stem 0, a block 1 to `blocks`, the classifier above them."""
    scales = {name: decay ** (blocks + 1 - layer) for name, layer in layers.items()}
    assert by_name(path, "lr_scale") == pytest.approx(scales, rel=1e-12)
    assert task(path).model.encoder.top_layer == blocks + 1 == layers["head.weight"]
    assert min(scales.values()) == pytest.approx(decay ** (blocks + 1))
    assert len(groups(path)) == 2 * (blocks + 2)  # of each layer what decays, and what does not


def mae_layer(name: str, depth: int) -> int:
    # util/lr_decay.py
    if name in ("cls_token", "pos_embed") or name.startswith("patch_embed"):
        return 0
    return int(name.split(".")[1]) + 1 if name.startswith("blocks") else depth + 1


@pytest.mark.parametrize("path", MAE)
def test_mae_finetuning_layers_are_those_of_lr_decay(path):
    published = MAE[path]
    layers = {name: mae_layer(name, published.depth) for name in shapes_of(published)}
    assert_scaled(path, layers, published.scale, published.depth)
    encoder = task(path).model.encoder
    assert {original_name(f"encoder.{name}"): layer for name, layer in encoder.layer_ids().items()}.items() <= (
        layers.items()
    )
    assert layers["fc_norm.weight"] == encoder.top_layer


@pytest.mark.parametrize("path", MAE)
def test_mae_finetuning_rates_are_those_of_lr_sched(path):
    published, found = MAE[path], schedule(path)
    per_epoch, epochs, warmup, least = 1_281_167 // 1024, published.epochs, 5, 1e-6
    peak = published.base_lr * 1024 / 256
    assert (plan(path).steps_per_epoch, plan(path).steps) == (per_epoch, epochs * per_epoch) == (1251, epochs * 1251)

    def rate(step: int, layer: int) -> float:
        epoch = step / per_epoch
        if epoch < warmup:
            whole = peak * epoch / warmup
        else:
            whole = least + (peak - least) * 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))
        return whole * published.scale ** (published.depth + 1 - layer)

    factors = by_name(path, "lr_scale")
    last = epochs * per_epoch - 1
    steps = (
        0,
        1,
        per_epoch - 1,
        3 * per_epoch + 7,
        5 * per_epoch - 1,
        5 * per_epoch,
        5 * per_epoch + 1,
        last // 2,
        last,
    )
    for step in steps:
        wanted = {name: rate(step, mae_layer(name, published.depth)) for name in factors}
        ours = {name: found.at(step, factor) for name, factor in factors.items()}
        assert ours == pytest.approx(wanted, rel=1e-9, abs=1e-18), step
    assert found.at(5 * per_epoch, factors["head.weight"]) == pytest.approx(peak)
    lowest = published.scale ** (published.depth + 1)
    assert found.at(last, factors["cls_token"]) == pytest.approx(least * lowest, rel=1e-2)


# ---------------------------------------------------------------- learning rates: SimMIM


def simmim_layer(name: str, depth: int | tuple[int, ...]) -> int:
    # optimizer.py, get_vit_layer and get_swin_layer
    blocks = depth if isinstance(depth, int) else sum(depth)
    if name == "cls_token" or name.startswith("patch_embed"):
        return 0
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    if not name.startswith("layers."):
        return blocks + 1
    stage, part, place = name.split(".")[1:4]
    if part == "downsample":
        return sum(depth[: int(stage) + 1])
    return sum(depth[: int(stage)]) + int(place) + 1


@pytest.mark.parametrize("path", SIMMIM)
def test_simmim_finetuning_layers_are_those_of_its_optimizer(path):
    published = SIMMIM[path]
    layers = {name: simmim_layer(name, published.depth) for name in shapes_of(published)}
    assert_scaled(path, layers, published.scale, published.blocks)
    if path not in SIMMIM_VIT:
        downsampling = {name: layer for name, layer in layers.items() if "downsample" in name}
        assert sorted(set(downsampling.values())) == [2, 4, 22]
        assert len(downsampling) == 3 * 3


@pytest.mark.parametrize("path", SIMMIM)
def test_simmim_finetuning_rates_are_those_of_timms_cosine(path):
    # main_finetune.py scales all three rates by batch / 512 and calls step_update(step) after the optimizer's step
    published, found, scale, per_epoch = SIMMIM[path], schedule(path), 2048 / 512, 1_281_167 // 2048
    assert (plan(path).steps_per_epoch, plan(path).steps) == (per_epoch, 100 * per_epoch) == (625, 62_500)
    layers = range(published.blocks + 2)
    peak = published.base_lr * scale
    factors = [published.scale ** (published.blocks + 1 - layer) for layer in layers]
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "lr": peak * factor} for factor in factors])
    theirs = CosineLRScheduler(
        optimizer,
        t_initial=(80 if published.warmup_prefix else 100) * per_epoch,
        lr_min=2.5e-7 * scale,
        warmup_lr_init=2.5e-7 * scale,
        warmup_t=20 * per_epoch,
        warmup_prefix=published.warmup_prefix,
        cycle_limit=1,
        t_in_epochs=False,
    )
    own = {simmim_layer(name, published.depth): factor for name, factor in by_name(path, "lr_scale").items()}
    assert sorted(own) == [*layers]
    warm = 20 * per_epoch
    for step in (0, 1, 2, 313, 6000, warm - 1, warm, warm + 1, warm + 2, 31_250, 50_000, 100 * per_epoch - 1):
        if step:
            theirs.step_update(step - 1)
        wanted = [group["lr"] for group in optimizer.param_groups]
        assert [found.at(step, own[layer]) for layer in layers] == pytest.approx(wanted, rel=1e-9), step
    for layer in layers:
        assert found.at(0, own[layer]) == found.at(1, own[layer]) == pytest.approx(1e-6)
    joined = found.at(warm + 1) / found.peak
    assert joined == pytest.approx(1.0 if published.warmup_prefix else 0.905, abs=5e-4)
    assert found.peak == pytest.approx(5e-3)


def test_finetuned_swin_v2_has_the_windows_of_its_source_and_of_its_pretraining():
    (path,) = SWIN_V2
    blocks = task(path).model.encoder.blocks()
    assert [block.attn.window_size for block in blocks] == [(14, 14)] * 22 + [(7, 7)] * 2
    assert [block.attn.pretrained_window_size for block in blocks] == [(12, 12)] * 22 + [(6, 6)] * 2


def test_swin_of_weaker_decay_still_warms_up_every_layer():
    # with factor_on rate the stem of Swin-L would start, and end, at .7 ** 25 of 1e-6
    path = "configs/finetune/simmim_swin_large_800ep.yaml"
    found, stem = schedule(path), min(by_name(path, "lr_scale").values())
    assert stem == pytest.approx(0.7**25)
    assert found.at(0, stem) == found.at(0) == pytest.approx(1e-6)
    assert found.at(62_499, stem) == pytest.approx(1e-6, rel=1e-3)
    assert stem * found.peak < 1e-6


# ---------------------------------------------------------------- weight decay and optimizers


@pytest.mark.parametrize("path", FINETUNED)
def test_finetuning_weight_decay_exempts_what_the_source_exempts(path):
    # MAE: 1-D and timm's no_weight_decay(); SimMIM: 1-D, biases, no_weight_decay(), and Swin's bias tables by keyword,
    # not its ViT's; Swin V2's keywords
    keywords = {
        **dict.fromkeys(SWIN, ("relative_position_bias_table",)),
        **dict.fromkeys(SWIN_V2, ("cpb_mlp", "logit_scale", "relative_position_bias_table")),
    }

    def exempt(name: str, shape: torch.Size) -> bool:
        by_keyword = any(keyword in name for keyword in keywords.get(path, ()))
        return len(shape) == 1 or name in ("cls_token", "pos_embed") or by_keyword

    shapes = shapes_of(FINETUNED[path])
    decay = {name: 0.0 if exempt(name, shape) else 0.05 for name, shape in shapes.items()}
    assert by_name(path, "weight_decay") == decay
    tables = [name for name in decay if name.endswith("relative_position_bias_table")]
    assert len(tables) == (24 if path in SWIN else 12 if path in SIMMIM_VIT else 0)
    assert sum("logit_scale" in name for name in decay) == (24 if path in SWIN_V2 else 0)
    assert {value for name, value in decay.items() if name.endswith((".bias", "norm.weight"))} == {0.0}


@pytest.mark.parametrize("path", FINETUNED)
def test_finetuning_optimizer_and_run_are_the_published_ones(path):
    cfg, published = recipe(path), FINETUNED[path]
    own = cfg.OPTIMIZER
    assert (own.name, own.betas, own.eps, own.weight_decay) == ("adamw", [0.9, 0.999], 1e-8, 0.05)
    assert (own.base_lr, own.layer_decay) == (published.base_lr, published.scale)
    batch, per_batch, clip = (1024, 256, 0.0) if path in MAE else (2048, 512, 5.0)
    assert (cfg.TRAIN.batch, own.per_batch, cfg.TRAIN.clip) == (batch, per_batch, clip)
    assert (cfg.TRAIN.epochs, cfg.TRAIN.ema, cfg.FREEZE.tune_blocks) == (published.epochs, 0, "all")
    assert (cfg.LABELS.share, cfg.LABELS.per_class) == (1, 0)
    built = schema.part(cfg, "OPTIMIZER").build(groups(path))
    assert type(built) is torch.optim.AdamW
    assert {(group["betas"], group["eps"]) for group in built.param_groups} == {((0.9, 0.999), 1e-8)}
    assert all(parameter.requires_grad for parameter in task(path).model.parameters())


@pytest.mark.parametrize(
    ("path", "micro"),
    [
        *zip(MAE, (32, 32, 16), strict=True),  # FINETUNE.md: mixing draws once for so many rows
        *((path, 128) for path in SIMMIM if "large" not in path),  # README.md
        *((path, 512) for path in PROBES),  # FINETUNE.md: batch norm sees so many rows
    ],
)
def test_recipe_micro_batch_is_that_of_a_published_device(path, micro):
    assert recipe(path).DATA.batch_size == micro


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("path", FINETUNED)
def test_finetuning_crops_and_flips_are_those_of_timm(path):
    crop, flip = steps_of_timm(path)[:2]
    own = task(path).train_data.transform
    assert (tuple(own.scale), own.ratio) == (tuple(crop.scale), pytest.approx(crop.ratio))
    assert (own.flip, own.size, own.interpolation) == (flip.p, tuple(crop.size), crop.interpolation)
    assert own.jitter is None


@pytest.mark.parametrize("path", FINETUNED)
def test_finetuning_colours_are_those_of_timm(path):
    found = steps_of_timm(path)
    assert not any(isinstance(step, transforms.ColorJitter) for step in found)  # though SimMIM sets .4
    wanted = next(step for step in found if isinstance(step, RandAugment))
    own = task(path).train_data.transform.rand_augment
    assert (own.num_layers, own.choice_weights) == (wanted.num_layers, wanted.choice_weights)
    for ours, op in zip(own.ops, wanted.ops, strict=True):
        assert (ours.name, ours.prob, ours.magnitude) == (op.name, op.prob, op.magnitude)
        assert (ours.magnitude_std, ours.magnitude_max) == (op.magnitude_std, op.magnitude_max)
        assert ours.level_fn == op.level_fn
        if op.name == "PosterizeIncreasing":  # at no bits, newer Pillows refuse timm's
            image = photograph(32, 32)
            pairs = [(ours.aug_fn(image, bits), op.aug_fn(image, bits)) for bits in (1, 2, 3, 4, 8)]
            assert all(np.array_equal(*map(np.asarray, pair)) for pair in pairs)
        else:
            assert ours.aug_fn == op.aug_fn
        for key in ("translate_const", "img_mean"):
            assert ours.hparams[key] == op.hparams[key]


@pytest.mark.parametrize("path", ["configs/finetune/mae_vit_base.yaml", "configs/finetune/simmim_swin_base_800ep.yaml"])
def test_finetuning_colours_resample_as_the_crop_does(path):
    # timm's create_transform hands its interpolation on to RandAugment's rotations, shears and shifts
    wanted = next(step for step in steps_of_timm(path) if isinstance(step, RandAugment))
    own = task(path).train_data.transform.rand_augment
    assert {op.kwargs["resample"] for op in own.ops} == {op.kwargs["resample"] for op in wanted.ops}


@pytest.mark.parametrize("path", FINETUNED)
def test_finetuning_erases_and_mixes_as_the_source(path):
    mixing = task(path).augment
    wanted = next(step for step in steps_of_timm(path) if isinstance(step, RandomErasing))
    assert {key: value for key, value in vars(mixing.erase).items() if key != "device"} == {
        key: value for key, value in vars(wanted).items() if key != "device"
    }
    mixup = Mixup(
        mixup_alpha=0.8,
        cutmix_alpha=1.0,
        prob=1.0,
        switch_prob=0.5,
        mode="batch",
        label_smoothing=0.1,
        num_classes=1000,
    )
    assert vars(mixing.mix) == vars(mixup)


@pytest.mark.parametrize("path", [*FINETUNED, *PROBES])
def test_recipe_evaluates_on_the_centre_of_a_slightly_larger_picture(path):
    # MAE, util/datasets.py and main_linprobe.py; SimMIM, data/data_finetune.py
    side = recipe(path).DATA.image_size[0]
    resize = transforms.Resize(int(256 / 224 * side), transforms.InterpolationMode.BICUBIC)
    wanted = transforms.Compose([resize, transforms.CenterCrop(side), transforms.PILToTensor()])(photograph(512, 512))
    found = task(path).held_out.transform(photograph(512, 512))
    assert torch.equal(found, wanted)
    cfg = recipe(path)
    assert (cfg.DATA.mean, cfg.DATA.std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert cfg.EVALUATE.samples == 0


# ---------------------------------------------------------------- linear probes


@pytest.mark.parametrize("path", PROBES)
def test_mae_probe_trains_the_head_alone_by_lars(path):
    # main_linprobe.py, util/lars.py: neither trust nor weight decay on the bias
    cfg, model = recipe(path), task(path).model
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"heads.0.weight", "heads.0.bias"}
    assert by_name(path, "lr_scale") == {"head.weight": 1, "head.bias": 1}
    optimizer = schema.part(cfg, "OPTIMIZER").build(groups(path))
    weight, bias = optimizer.param_groups
    assert [len(group["params"][0].shape) for group in (weight, bias)] == [2, 1]
    assert [group["always_adapt"] for group in (weight, bias)] == [True, False]
    for group in (weight, bias):
        assert (group["momentum"], group["trust_coeff"], group["weight_decay"]) == (0.9, 0.001, 0)
    assert (type(model.norm), model.norm.eps, model.norm.affine) == (nn.BatchNorm1d, 1e-6, False)
    assert model.encoder.backbone.norm.eps == 1e-6
    assert (model.pool, cfg.CLASSIFIER.init_std, cfg.CLASSIFIER.rates) == ("class", 0.01, [1.0])
    assert (cfg.TRAIN.clip, cfg.TRAIN.ema, cfg.ENCODER.positions) == (0, 0, "sincos")


@pytest.mark.parametrize("path", PROBES)
def test_mae_probe_rates_are_those_of_lr_sched(path):
    found, epochs, per_epoch = schedule(path), PROBES[path].epochs, 1_281_167 // 16384
    assert (plan(path).steps_per_epoch, plan(path).steps) == (per_epoch, epochs * per_epoch) == (78, epochs * 78)
    assert found.peak == pytest.approx(6.4)
    for step in (0, 1, 300, 779, 780, 781, 2000, epochs * per_epoch - 1):
        epoch = step / per_epoch
        wanted = 6.4 * epoch / 10 if epoch < 10 else 3.2 * (1 + math.cos(math.pi * (epoch - 10) / (epochs - 10)))
        assert found.at(step) == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("path", PROBES)
def test_mae_probe_crops_are_torchvisions_default(path):
    default, own = transforms.RandomResizedCrop(224), task(path).train_data.transform
    assert (tuple(own.scale), own.ratio) == (tuple(default.scale), pytest.approx(default.ratio))
    assert (own.flip, own.size, own.interpolation.value) == (0.5, (224, 224), "bicubic")


# ---------------------------------------------------------------- CIFAR-10


def test_cifar10_finetuning_rate_is_near_the_one_of_its_source():
    # IcarusWizard/MAE, train_classifier.py: once an epoch, the smaller of a warmup and a cosine from epoch 0
    found, per_epoch, peak = schedule(CIFAR10), 50_000 // 128, 1e-3 * 128 / 256
    assert plan(CIFAR10).steps_per_epoch == per_epoch == 390
    assert found.peak == pytest.approx(peak)
    for epoch in range(100):
        wanted = peak * min((epoch + 1) / 5, 0.5 * (math.cos(epoch / 100 * math.pi) + 1))
        if epoch < 5:  # ours rises within the epoch, to where theirs is
            assert found.at((epoch + 1) * per_epoch - 1) == pytest.approx(wanted, abs=peak / 200)
        else:
            assert found.at(epoch * per_epoch) == pytest.approx(wanted, rel=1e-9)


def test_cifar10_finetuning_is_the_published_one():
    cfg = recipe(CIFAR10)
    assert (cfg.ENCODER.patch, cfg.ENCODER.width, cfg.ENCODER.depth, cfg.ENCODER.heads) == (2, 192, 12, 3)
    assert (cfg.DATA.mean, cfg.DATA.std, cfg.DATA.image_size) == ([0.5] * 3, [0.5] * 3, [32, 32])
    assert (cfg.AUGMENT.crop_scale, cfg.AUGMENT.crop_ratio, cfg.AUGMENT.flip) == ([1, 1], [1, 1], 0)
    assert not any(cfg.AUGMENT[key] for key in ("randaugment", "jitter", "erase", "mixup", "cutmix", "smoothing"))
    assert (cfg.CLASSIFIER.pool, cfg.CLASSIFIER.norm, cfg.ENCODER.norm) == ("class", False, True)
    assert cfg.CLASSIFIER.init_std == pytest.approx(nn.Linear(192, 10_000).weight.std().item(), rel=1e-2)
    own = cfg.OPTIMIZER
    assert (own.betas, own.weight_decay, own.no_decay, own.layer_decay) == ([0.9, 0.999], 0.05, [], 1)
    assert (cfg.TRAIN.epochs, cfg.TRAIN.batch, cfg.TRAIN.precision, cfg.TRAIN.clip) == (100, 128, "fp32", 0)
    assert (cfg.EVALUATE.every_epochs, cfg.EVALUATE.crop_pct) == (1, 1)


# ---------------------------------------------------------------- families

SIZE = {"ENCODER.width", "ENCODER.depth", "ENCODER.heads"}


@pytest.mark.parametrize(
    ("path", "origin", "keys"),
    [
        (
            "configs/finetune/mae_vit_large.yaml",
            "configs/finetune/mae_vit_base.yaml",
            {*SIZE, "ENCODER.drop_path", "TRAIN.epochs", "OPTIMIZER.base_lr", "OPTIMIZER.layer_decay"},
        ),
        (
            "configs/finetune/mae_vit_huge.yaml",
            "configs/finetune/mae_vit_large.yaml",
            {*SIZE - {"ENCODER.heads"}, "ENCODER.patch", "ENCODER.drop_path", "DATA.batch_size"},
        ),
        ("configs/probe/mae_vit_large.yaml", "configs/probe/mae_vit_base.yaml", {*SIZE, "TRAIN.epochs"}),
        (
            "configs/probe/mae_vit_huge.yaml",
            "configs/probe/mae_vit_large.yaml",
            {*SIZE - {"ENCODER.heads"}, "ENCODER.patch"},
        ),
        (
            "configs/finetune/simmim_swin_base_100ep_192.yaml",
            "configs/finetune/simmim_swin_base_100ep_224.yaml",
            {"DATA.image_size", "ENCODER.window"},
        ),
        (
            "configs/finetune/simmim_swin_base_800ep.yaml",
            "configs/finetune/simmim_swin_base_100ep_224.yaml",
            {"OPTIMIZER.layer_decay"},
        ),
        (
            "configs/finetune/simmim_swin_large_800ep.yaml",
            "configs/finetune/simmim_swin_base_800ep.yaml",
            {
                *("ENCODER.width", "ENCODER.heads", "ENCODER.window", "ENCODER.drop_path"),
                *("DATA.batch_size", "OPTIMIZER.layer_decay"),
            },
        ),
        (
            "configs/finetune/simmim_swin_v2_base_800ep.yaml",
            "configs/finetune/simmim_swin_base_800ep.yaml",
            {
                *("ENCODER.name", "ENCODER.window", "ENCODER.pretrained_windows"),
                *("OPTIMIZER.layer_decay", "OPTIMIZER.no_decay", "SCHEDULE.cosine_from"),
            },
        ),
    ],
)
def test_recipe_differs_from_its_sibling_only_in_what_is_published(path, origin, keys):
    differing = {line.partition(":")[0] for line in config.differing(recipe(path), recipe(origin))}
    assert differing - {"RECIPE"} == keys
