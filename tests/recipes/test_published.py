"""Every recipe against its original: rates, batch scaling, weight decay and layer decay of each parameter.

What the originals compute is written out here from their published formulas, with their figures, apart from the
recipes. What we compute comes from the task, the optimizer and the schedule that the engine would use (on the meta
device). Parameters go by the originals' names.
"""

import dataclasses
import math
import re
from bisect import bisect_right
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from small_data import photograph
from yacs.config import CfgNode

from mim import build, load_config
from mim.config import schema
from mim.data.sources.base import DataSettings, Source
from mim.engine.optim import parameter_groups
from mim.engine.schedule import Schedule
from mim.engine.plan import EngineSettings, Plan
from mim.tasks.classify import Classify
from mim.tasks.pretrain import Pretrain

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("mae", "simmim", "finetune", "probe")
RECIPES = sorted(str(path.relative_to(ROOT)) for name in FOLDERS for path in (ROOT / "configs" / name).glob("*.yaml"))
IMAGENET = 1_281_167
STAGES = (2, 2, 18, 2)


# ---------------------------------------------------------------- the originals


@dataclass(frozen=True, kw_only=True)
class Run:
    """One published run. devices, rows: its GPUs and the images of each; depths: blocks, of each stage."""

    base_lr: float
    devices: int
    rows: int
    epochs: int
    warmup: int
    warmup_lr: float = 0.0
    min_lr: float = 0.0
    layer_decay: float = 1.0
    depths: tuple[int, ...] = ()
    weight_decay: float = 0.05
    per_batch: ClassVar[int]

    @property
    def batch(self) -> int:
        return self.devices * self.rows

    @property
    def per_epoch(self) -> int:
        """DistributedSampler fills up to a multiple of the devices, the loader drops what is less than a batch."""
        return math.ceil(IMAGENET / self.devices) // self.rows

    @property
    def drops(self) -> tuple[int, ...]:
        """Epochs at which the rate is cut."""
        return ()

    def steps(self) -> list[int]:
        """Where rates are compared."""
        warm, last = self.warmup * self.per_epoch, self.epochs * self.per_epoch - 1
        bends = [warm, *(epoch * self.per_epoch for epoch in self.drops)]
        around = [bend + place for bend in bends for place in (-1, 0, 1, 2)]
        return [0, 1, 2, self.per_epoch - 1, 3 * self.per_epoch + 7, warm // 2, *around, last // 2, last - 1, last]

    def rate(self, step: int, scale: float) -> float:
        """Of an optimizer step, for a parameter of this layer-decay scale."""
        raise NotImplementedError

    def exempt(self, name: str, dimensions: int) -> bool:
        """Whether a parameter has no weight decay."""
        raise NotImplementedError

    def trained(self, name: str) -> bool:
        return True

    def layer(self, name: str) -> int:
        raise NotImplementedError

    def scale(self, name: str) -> float:
        if self.layer_decay == 1:
            return 1.0
        return self.layer_decay ** (sum(self.depths) + 1 - self.layer(name))

    def name(self, ours: str) -> str:
        """The original's name of one of our parameters."""
        for prefix, theirs in (("encoder.backbone.", ""), ("heads.0.", "head."), ("norm.", "fc_norm.")):
            if ours.startswith(prefix):
                return theirs + ours.removeprefix(prefix)
        raise AssertionError(f"{ours} has no place in the original")


def layer_of_vit(name: str, depth: int) -> int:
    """MAE, util/lr_decay.py; SimMIM, optimizer.py, get_vit_layer: they agree."""
    if name in ("cls_token", "mask_token", "pos_embed") or name.startswith("patch_embed"):
        return 0
    block = re.match(r"blocks\.(\d+)\.", name)
    return int(block[1]) + 1 if block else depth + 1


def layer_of_swin(name: str, depths: tuple[int, ...]) -> int:
    """SimMIM, optimizer.py, get_swin_layer: down-sampling ends a stage there."""
    if name == "mask_token" or name.startswith("patch_embed"):
        return 0
    if found := re.match(r"layers\.(\d+)\.downsample\.(?:reduction|norm)\.", name):
        return sum(depths[: int(found[1]) + 1])
    if found := re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", name):
        return sum(depths[: int(found[1])]) + int(found[2]) + 1
    return sum(depths) + 1


class Mae(Run):
    """util/lr_sched.py, called with the fractional epoch before each step; main_*.py scale base_lr alone."""

    per_batch = 256

    def rate(self, step: int, scale: float) -> float:
        peak, epoch = self.base_lr * self.batch / self.per_batch, step / self.per_epoch
        if epoch < self.warmup:
            return scale * peak * epoch / self.warmup
        angle = math.pi * (epoch - self.warmup) / (self.epochs - self.warmup)
        return scale * (self.min_lr + (peak - self.min_lr) * (1 + math.cos(angle)) / 2)


class MaePretraining(Mae):
    """main_pretrain.py, with add_weight_decay of timm 0.3.2: no names are exempt."""

    def exempt(self, name: str, dimensions: int) -> bool:
        return dimensions == 1 or name.endswith(".bias")

    def trained(self, name: str) -> bool:
        return name not in ("pos_embed", "decoder_pos_embed")

    def name(self, ours: str) -> str:
        if ours == "head.mask_token":
            return "mask_token"
        return f"decoder_{ours.removeprefix('head.')}" if ours.startswith("head.") else super().name(ours)


class MaeFinetuning(Mae):
    """main_finetune.py, util/lr_decay.py, with no_weight_decay() of timm 0.3.2's VisionTransformer."""

    def exempt(self, name: str, dimensions: int) -> bool:
        return dimensions == 1 or name in ("pos_embed", "cls_token")

    def layer(self, name: str) -> int:
        return layer_of_vit(name, *self.depths)


class MaeProbe(Mae):
    """main_linprobe.py: LARS over the head, without weight decay."""

    def exempt(self, name: str, dimensions: int) -> bool:
        return True

    def trained(self, name: str) -> bool:
        return name.startswith("head.")


@dataclass(frozen=True, kw_only=True)
class SimMim(Run):
    """main_*.py scale all three rates; timm's schedulers are told of step k after it, and start at warmup_lr.

    milestone: 0 for timm's cosine, else lr_scheduler.py's MultiStepLRScheduler; prefix: the cosine starts behind the
    warmup (WARMUP_PREFIX: on in microsoft/Swin-Transformer, absent from microsoft/SimMIM); model: of models/, with its
    no_weight_decay() and no_weight_decay_keywords().
    """

    model: str
    milestone: int = 0
    prefix: bool = False
    per_batch: ClassVar[int] = 512
    names: ClassVar[dict[str, tuple[str, ...]]] = {
        "swin": ("absolute_pos_embed",),
        "swin_v2": ("absolute_pos_embed",),
        "vit": ("pos_embed", "cls_token"),
    }
    keywords: ClassVar[dict[str, tuple[str, ...]]] = {
        "swin": ("relative_position_bias_table",),
        "swin_v2": ("cpb_mlp", "logit_scale", "relative_position_bias_table"),
        "vit": (),
    }

    @property
    def drops(self) -> tuple[int, ...]:
        return (self.milestone,) if self.milestone else ()

    def rate(self, step: int, scale: float) -> float:
        base, first, least = (
            rate * self.batch / self.per_batch for rate in (self.base_lr, self.warmup_lr, self.min_lr)
        )
        if step == 0:
            return first
        updates, warm, peak = step - 1, self.warmup * self.per_epoch, base * scale
        if updates < warm:
            return first + updates * (peak - first) / warm
        if self.milestone:
            return peak * 0.1 ** bisect_right([self.milestone * self.per_epoch], updates)
        start = warm if self.prefix else 0
        share = (updates - start) / (self.epochs * self.per_epoch - start)
        return least + (peak - least) * (1 + math.cos(math.pi * share)) / 2

    def layer(self, name: str) -> int:
        return layer_of_vit(name, *self.depths) if self.model == "vit" else layer_of_swin(name, self.depths)

    def name(self, ours: str) -> str:
        name = super().name(ours)
        return re.sub(r"(?<=layers\.)(\d+)(?=\.downsample)", lambda stage: str(int(stage[1]) - 1), name)


class SimMimPretraining(SimMim):
    """models/simmim.py puts `encoder.` ahead of names and of keywords, which then match nothing."""

    def exempt(self, name: str, dimensions: int) -> bool:
        names = [*self.names[self.model], *([] if self.model == "vit" else ["mask_token"])]
        keywords = self.keywords[self.model]
        by_name = name in [f"encoder.{own}" for own in names] or any(f"encoder.{own}" in name for own in keywords)
        return dimensions == 1 or name.endswith(".bias") or by_name

    def name(self, ours: str) -> str:
        for prefix, theirs in (("head.conv.", "decoder.0."), ("encoder.mask_token", "encoder.mask_token")):
            if ours.startswith(prefix):
                return theirs + ours.removeprefix(prefix)
        return f"encoder.{super().name(ours)}"


class SimMimFinetuning(SimMim):
    """main_finetune.py, optimizer.py: the group's own rate, base x scale, is the scheduler's peak."""

    def exempt(self, name: str, dimensions: int) -> bool:
        by_keyword = any(keyword in name for keyword in self.keywords[self.model])
        return dimensions == 1 or name.endswith(".bias") or name in self.names[self.model] or by_keyword


# ---------------------------------------------------------------- the published figures

# PRETRAIN.md, FINETUNE.md, and the defaults of main_pretrain.py, main_finetune.py and main_linprobe.py
MAE = MaePretraining(base_lr=1.5e-4, devices=64, rows=64, epochs=800, warmup=40)
TUNED = {"warmup": 5, "min_lr": 1e-6}
PROBED = MaeProbe(base_lr=0.1, devices=32, rows=512, epochs=90, warmup=10, weight_decay=0.0)
# microsoft/SimMIM and microsoft/Swin-Transformer, configs/; the large Swins' 32 devices are ours
HUNDRED = SimMimPretraining(
    **{"base_lr": 2e-4, "devices": 16, "rows": 128, "epochs": 100, "warmup": 10},
    **{"warmup_lr": 1e-6, "min_lr": 1e-5, "model": "swin"},
)
EIGHT_HUNDRED = dataclasses.replace(HUNDRED, base_lr=1e-4, warmup_lr=5e-7, epochs=800, milestone=700)
TUNED_SWIN = SimMimFinetuning(
    **{"base_lr": 1.25e-3, "devices": 16, "rows": 128, "epochs": 100, "warmup": 20},
    **{"warmup_lr": 2.5e-7, "min_lr": 2.5e-7, "layer_decay": 0.9, "depths": STAGES, "model": "swin"},
)

PUBLISHED: dict[str, Run] = {
    **{f"configs/mae/vit_{size}.yaml": MAE for size in ("base", "large", "huge")},
    "configs/finetune/mae_vit_base.yaml": MaeFinetuning(
        base_lr=5e-4, devices=32, rows=32, epochs=100, layer_decay=0.65, depths=(12,), **TUNED
    ),
    "configs/finetune/mae_vit_large.yaml": MaeFinetuning(
        base_lr=1e-3, devices=32, rows=32, epochs=50, layer_decay=0.75, depths=(24,), **TUNED
    ),
    "configs/finetune/mae_vit_huge.yaml": MaeFinetuning(
        base_lr=1e-3, devices=64, rows=16, epochs=50, layer_decay=0.75, depths=(32,), **TUNED
    ),
    "configs/probe/mae_vit_base.yaml": PROBED,
    "configs/probe/mae_vit_large.yaml": dataclasses.replace(PROBED, epochs=50),
    "configs/probe/mae_vit_huge.yaml": dataclasses.replace(PROBED, epochs=50),
    "configs/simmim/swin_base_100ep.yaml": HUNDRED,
    "configs/simmim/swin_base_800ep.yaml": EIGHT_HUNDRED,
    "configs/simmim/swin_large_800ep.yaml": dataclasses.replace(EIGHT_HUNDRED, devices=32, rows=64),
    "configs/simmim/vit_base_800ep.yaml": dataclasses.replace(EIGHT_HUNDRED, model="vit"),
    "configs/simmim/swin_v2_base_800ep.yaml": dataclasses.replace(EIGHT_HUNDRED, model="swin_v2"),
    "configs/finetune/simmim_swin_base_100ep_192.yaml": TUNED_SWIN,
    "configs/finetune/simmim_swin_base_100ep_224.yaml": TUNED_SWIN,
    "configs/finetune/simmim_swin_base_800ep.yaml": dataclasses.replace(TUNED_SWIN, layer_decay=0.8),
    "configs/finetune/simmim_swin_large_800ep.yaml": dataclasses.replace(
        TUNED_SWIN, layer_decay=0.7, devices=32, rows=64
    ),
    "configs/finetune/simmim_swin_v2_base_800ep.yaml": dataclasses.replace(
        TUNED_SWIN, layer_decay=0.75, model="swin_v2", prefix=True
    ),
    "configs/finetune/simmim_vit_base_800ep.yaml": dataclasses.replace(
        TUNED_SWIN, layer_decay=0.65, model="vit", depths=(12,)
    ),
}
CIFAR10 = "configs/finetune/cifar10_vit_tiny.yaml"  # IcarusWizard/MAE; it has a test of its own below
OURS = {  # nobody published these
    "configs/finetune/cifar10_vit_tiny_modern.yaml": "MAE's fine-tuning of ImageNet, scaled down by us",
    "configs/finetune/digits.yaml": "a minute on a laptop",
    "configs/probe/cifar10_vit_tiny.yaml": "no probe of this encoder is published",
    "configs/probe/digits.yaml": "a minute on a laptop",
}
UNFOLLOWED = {  # published, and compared by hand alone
    "configs/mae/vit_base_cross_attention.yaml": "TonyLianLong/CrossMAE, which is MAE's training at a rate of its own",
}
COMPARED = [path for path in RECIPES if path in PUBLISHED]


# ---------------------------------------------------------------- ours


class Photographs(Source):
    """One photograph for each of 1000 classes, all the same."""

    def __init__(self, settings: DataSettings):
        super().__init__("train", settings)
        self.labels = np.arange(1000)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> Image.Image:
        return photograph(256, 256)


@cache
def recipe(path: str) -> CfgNode:
    return load_config(ROOT / path)


@cache
def task(path: str) -> Pretrain | Classify:
    """The task of a recipe without its weights; its operations are not counted, for which it would be built again."""
    source = Photographs(schema.settings(recipe(path), "DATA"))
    uncounted = mock.patch.object(build, "summarise_model", return_value=build.ModelSummary((), None))
    with torch.device("meta"), uncounted, mock.patch.object(build, "build_without_memory", return_value=None):
        return build.build_task(recipe(path), source, source)


@cache
def optimizer(path: str) -> torch.optim.Optimizer:
    """As Trainer builds it."""
    settings = build.engine_settings(recipe(path)).optimizer
    factors = task(path).lr_scales(settings.layer_decay)
    return settings.build(parameter_groups(task(path).model, settings, factors))


def schedule(settings: EngineSettings, devices: int, samples: int = IMAGENET) -> Schedule:
    return Plan.of(settings, samples, devices).schedule(settings)


@cache
def names(path: str) -> dict[int, str]:
    """The original's name of each parameter, by its id."""
    run = PUBLISHED[path]
    return {id(parameter): run.name(name) for name, parameter in task(path).model.named_parameters()}


def by_name(path: str, key: str) -> dict[str, float]:
    """What the optimizer's groups say of each parameter."""
    groups = optimizer(path).param_groups
    return {names(path)[id(parameter)]: group[key] for group in groups for parameter in group["params"]}


@cache
def dimensions(path: str) -> dict[str, int]:
    return {names(path)[id(parameter)]: parameter.ndim for parameter in task(path).model.parameters()}


# ---------------------------------------------------------------- tests


@pytest.mark.parametrize("path", RECIPES)
def test_recipe_has_a_published_run_or_is_said_to_be_ours(path):
    places = [
        name
        for name, paths in (
            ("PUBLISHED", PUBLISHED),
            ("OURS", OURS),
            ("CIFAR10", [CIFAR10]),
            ("UNFOLLOWED", UNFOLLOWED),
        )
        if path in paths
    ]
    assert len(places) == 1, f"{path} is new: enter its original's figures in PUBLISHED, or in OURS why there are none"
    if path in OURS:
        assert recipe(path).DATA.name != "folder", f"{path} is of ImageNet: compare it with what was published"


@pytest.mark.parametrize("path", COMPARED)
def test_recipe_trains_what_its_original_trains(path):
    """No two parameters have one name there, so the tests below compare every one."""
    found = dimensions(path)
    assert len(found) == len(list(task(path).model.parameters()))
    assert set(by_name(path, "lr_scale")) == {name for name in found if PUBLISHED[path].trained(name)}
    held = [parameter for group in optimizer(path).param_groups for parameter in group["params"]]
    assert len(held) == len(by_name(path, "lr_scale"))


@pytest.mark.parametrize("path", COMPARED)
def test_recipe_layer_decay_is_its_originals(path):
    run, found = PUBLISHED[path], by_name(path, "lr_scale")
    assert found == pytest.approx({name: run.scale(name) for name in found}, rel=1e-12)
    layers = {run.layer(name) for name in found} if run.layer_decay < 1 else {0}
    assert layers == set(range(sum(run.depths) + 2 if run.depths else 1))


@pytest.mark.parametrize("path", COMPARED)
def test_recipe_weight_decay_is_its_originals(path):
    run, found = PUBLISHED[path], by_name(path, "weight_decay")
    wanted = {name: 0.0 if run.exempt(name, dimensions(path)[name]) else run.weight_decay for name in found}
    assert found == wanted


@pytest.mark.parametrize("path", COMPARED)
def test_recipe_rates_are_its_originals(path):
    """Of every parameter, as the engine sets them, at 1e-12; where a cosine ends, at the rounding of its 1 + cos."""
    run, groups = PUBLISHED[path], optimizer(path).param_groups
    settings = build.engine_settings(recipe(path))
    plan = Plan.of(settings, IMAGENET, run.devices)
    assert (plan.micro_batch, plan.accumulation) == (run.rows, 1)
    assert (plan.steps_per_epoch, plan.steps) == (run.per_epoch, run.epochs * run.per_epoch)
    own = plan.schedule(settings)
    for step in run.steps():
        for group in groups:
            group["lr"] = own.at(step, group["lr_scale"])
        wanted = {scale: run.rate(step, scale) for scale in {run.scale(name) for name in by_name(path, "lr")}}
        for name, rate in by_name(path, "lr").items():
            scale = run.scale(name)
            rounding = 1e-15 * scale * own.peak
            assert rate == pytest.approx(wanted[scale], rel=1e-12, abs=rounding), f"{name} in step {step}"


@pytest.mark.parametrize("path", COMPARED)
@pytest.mark.parametrize(("devices", "rows"), [(1, 64), (8, 64), (8, 16), (2, 128)])
def test_recipe_rates_are_of_its_batch_however_it_is_split(path, devices, rows):
    run, settings = PUBLISHED[path], dataclasses.replace(build.engine_settings(recipe(path)), batch_size=rows)
    plan = Plan.of(settings, IMAGENET, devices)
    found = plan.schedule(settings)
    assert plan.accumulation == run.batch // (devices * rows) > 1
    assert found.peak == pytest.approx(run.base_lr * rows * devices * plan.accumulation / run.per_batch, rel=1e-12)
    for step in run.steps():
        assert found.at(step) == pytest.approx(run.rate(step, 1.0), rel=1e-12, abs=1e-15 * found.peak), step


@pytest.mark.parametrize("path", COMPARED)
def test_recipe_rates_scale_with_another_batch_as_its_originals(path):
    """A batch of 8 x 16: SimMIM's three rates fall together, of MAE's the peak alone."""
    settings = build.engine_settings(recipe(path))
    settings = dataclasses.replace(settings, batch_size=16, train=dataclasses.replace(settings.train, batch=0))
    run, found = dataclasses.replace(PUBLISHED[path], devices=8, rows=16), schedule(settings, devices=8)
    assert found.peak == pytest.approx(run.base_lr * 128 / run.per_batch, rel=1e-12)
    for step in run.steps():
        assert found.at(step) == pytest.approx(run.rate(step, 1.0), rel=1e-12, abs=1e-15 * found.peak), step


def test_cifar10_finetuning_meets_its_original_at_every_epoch_after_the_warmup():
    """IcarusWizard/MAE, train_classifier.py moves the rate once an epoch, for all weights the same, and decays all.

    The recipe says that it exempts biases and 1-D weights.
    """
    settings = build.engine_settings(recipe(CIFAR10))
    plan = Plan.of(settings, 50_000, 1)
    found, peak = plan.schedule(settings), 1e-3 * 128 / 256
    for epoch in range(5, 100):
        wanted = peak * 0.5 * (math.cos(epoch / 100 * math.pi) + 1)
        assert found.at(epoch * plan.steps_per_epoch) == pytest.approx(wanted, rel=1e-12, abs=1e-15 * peak)
    groups = optimizer(CIFAR10).param_groups
    assert {group["lr_scale"] for group in groups} == {1.0}
    decays = {(parameter.ndim == 1, group["weight_decay"]) for group in groups for parameter in group["params"]}
    assert decays == {(False, 0.05), (True, 0.0)}
