"""The large recipes at a size that a GPU trains in milliseconds; heads are as wide as its attention kernels want."""

import torch

from mim import load_config
from mim.config import Config
from mim.lab.dryrun.measure import dry_trainer
from mim.lab.dryrun.task import DryTask, dry_task
from mim.lab.dryrun.trainer import DryTrainer

Keys = dict[str, object]
SMALL: Keys = {"DATA.image_size": [64, 64], "DATA.batch_size": 8, "TRAIN.batch": 8, "TRAIN.precision": "bf16"}
VIT: Keys = SMALL | {"ENCODER.width": 64, "ENCODER.depth": 2, "ENCODER.heads": 2}
HEAD: Keys = {"HEAD.width": 64, "HEAD.depth": 1, "HEAD.heads": 2}
SWIN: Keys = SMALL | {"ENCODER.width": 32, "ENCODER.depths": [2, 2], "ENCODER.heads": [1, 2], "ENCODER.window": 4}
RECIPES: dict[str, tuple[str, Keys]] = {
    "mae": ("mae/vit_base", VIT | HEAD),
    "cross_attention": ("mae/vit_base_cross_attention", VIT | HEAD | {"HEAD.share": 0.25}),
    "simmim_vit": ("simmim/vit_base_800ep", VIT | {"MASKER.cell": 16}),
    "simmim_swin": ("simmim/swin_base_100ep", SWIN | {"MASKER.cell": 8}),
    "simmim_swin_v2": ("simmim/swin_v2_base_800ep", SWIN | {"MASKER.cell": 8}),
}
ACCUMULATED: Keys = {"TRAIN.batch": 16}
CLIPPED_FP16: Keys = {"TRAIN.precision": "fp16", "TRAIN.clip": 1.0}
RECOMPUTED: Keys = {"TRAIN.activation_checkpointing": True, "ENCODER.drop_path": 0.2}


def config(recipe: str, keys: Keys | None = None) -> Config:
    """A recipe of RECIPES with further keys."""
    name, small = RECIPES[recipe]
    return load_config(name, [str(word) for pair in (small | (keys or {})).items() for word in pair])


def dry(recipe: str, keys: Keys | None = None) -> DryTask:
    """Its task, whose images are random."""
    return dry_task(config(recipe, keys))


def trainer(recipe: str, device: torch.device, keys: Keys | None = None) -> DryTrainer:
    """Its trainer on a device, before the first step."""
    task = dry(recipe, keys)
    return dry_trainer(task, task.plan(1), device, lambda phase: None)
