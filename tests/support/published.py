"""What the originals of our recipes do: their formulas, written out from their published code, and one table of values.

Nothing here comes from a recipe or from mim. Parameters go by the originals' names, which `Run.name` gives for ours.
The originals of configs/targets are in published_targets.py.
"""

import dataclasses
import math
import re
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import ClassVar, Literal

IMAGENET = 1_281_167
STAGES = (2, 2, 18, 2)
PIXELS: dict[str, str | float] = {"name": "pixels", "stride": 1}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One published run.

    Args:
        devices: its GPUs.
        rows: images of one GPU in a forward pass.
        min_lr: learning rate at the end, before batch scaling.
        depths: blocks of each stage.
        model: name of its encoder, or classifier, in timm.
        options: of timm.create_model.
        millions: parameters of that model.
        drop_path: rate of the last block; the rates rise from 0.
    """

    base_lr: float
    devices: int
    rows: int
    epochs: int
    warmup: int
    warmup_lr: float = 0.0
    min_lr: float = 0.0
    layer_decay: float = 1.0
    depths: tuple[int, ...]
    weight_decay: float = 0.05
    model: str
    options: dict = field(default_factory=dict)
    millions: float
    drop_path: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    task: ClassVar[Literal["pretrain", "finetune", "probe"]]
    # where we differ on purpose, as the recipe says
    ahead: ClassVar[int] = 0  # steps by which its rates come before ours
    close: ClassVar[tuple[float, float]] = (1e-12, 1e-15)  # distance of rates: relative, and as a share of the peak
    other_decay: ClassVar[str] = "$^"  # names of parameters with another weight decay in our run
    other_scale: ClassVar[str] = "$^"  # and with another rate
    fixed_batch: ClassVar[bool] = False  # its config has rates of one batch, without a rule for others
    weight_decay_end: ClassVar[float | str] = "none"
    per_batch: ClassVar[int]
    clip: ClassVar[float]

    @property
    def batch(self) -> int:
        return self.devices * self.rows

    @property
    def peak(self) -> float:
        return self.base_lr * self.batch / self.per_batch

    @property
    def per_epoch(self) -> int:
        """Steps. DistributedSampler fills up to a multiple of the devices, the loader drops an incomplete batch."""
        return math.ceil(IMAGENET / self.devices) // self.rows

    @property
    def drops(self) -> tuple[int, ...]:
        """Epochs at which the rate drops."""
        return ()

    def steps(self) -> list[int]:
        """Where rates are compared."""
        warm, last = self.warmup * self.per_epoch, self.epochs * self.per_epoch - 1
        bends = [warm, *(epoch * self.per_epoch for epoch in self.drops)]
        around = [bend + offset for bend in bends for offset in (-1, 0, 1, 2)]
        return [0, 1, 2, self.per_epoch - 1, 3 * self.per_epoch + 7, warm // 2, *around, last // 2, last - 1, last]

    def rate(self, step: int, scale: float) -> float:
        """The learning rate of an optimizer step, for a parameter of this layer-decay scale."""
        raise NotImplementedError

    def exempt(self, name: str, dimensions: int) -> bool:
        """Whether a parameter has no weight decay."""
        raise NotImplementedError

    def trained(self, name: str) -> bool:
        return True

    def layer(self, name: str) -> int:
        raise NotImplementedError

    def scale(self, name: str) -> float:
        """The factor of layer decay on a parameter's rate."""
        if self.layer_decay == 1:
            return 1.0
        return self.layer_decay ** (sum(self.depths) + 1 - self.layer(name))

    def name(self, ours: str) -> str:
        """The original's name of one of our parameters."""
        names = {"encoder.backbone.": "", "readouts.0.linear.": "head.", "readouts.0.norm.": "fc_norm."}
        for prefix, theirs in names.items():
            if ours.startswith(prefix):
                return theirs + ours.removeprefix(prefix)
        raise AssertionError(f"the original has nothing like {ours}")


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
    if match := re.match(r"layers\.(\d+)\.downsample\.(?:reduction|norm)\.", name):
        return sum(depths[: int(match[1]) + 1])
    if match := re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", name):
        return sum(depths[: int(match[1])]) + int(match[2]) + 1
    return sum(depths) + 1


class Pretraining:
    """What the pretrainings share. AdamW trains all but fixed positions.

    crops, crop_ratios, interpolation: of RandomResizedCrop; crops is empty for another crop; target: keys of TARGET, or
    of several; loss: LOSS.name and LOSS.eps; side, cell, ratio: of images and masks, in pixels.
    """

    task = "pretrain"
    crops: ClassVar[tuple[float, ...]]
    crop_ratios: ClassVar[tuple[float, float]] = (3 / 4, 4 / 3)
    interpolation: ClassVar[str]
    flip: ClassVar[float] = 0.5
    masks: ClassVar[int] = 1
    target: dict[str, str | float] | tuple[dict[str, str | float], ...]
    loss: ClassVar[tuple[str, float]]
    side: int
    cell: int
    ratio: float

    @property
    def cells(self) -> int:
        return (self.side // self.cell) ** 2  # type: ignore[attr-defined]

    def trained(self, name: str) -> bool:
        return not name.endswith("pos_embed")


class Mae(Run):
    """util/lr_sched.py, called with the fractional epoch before each step; main_*.py scale base_lr alone."""

    per_batch = 256
    clip = 0.0

    def rate(self, step: int, scale: float) -> float:
        epoch = step / self.per_epoch
        if epoch < self.warmup:
            return scale * self.peak * epoch / self.warmup
        angle = math.pi * (epoch - self.warmup) / (self.epochs - self.warmup)
        return scale * (self.min_lr + (self.peak - self.min_lr) * (1 + math.cos(angle)) / 2)


@dataclass(frozen=True, kw_only=True)
class MaePretraining(Pretraining, Mae):
    """main_pretrain.py, with add_weight_decay of timm 0.3.2: no names are exempt."""

    target: dict[str, str | float] = field(default_factory=lambda: PIXELS | {"normalize": "patch"})
    side: int = 224
    cell: int = 16
    ratio: float = 0.75
    crops = (0.2, 1.0)
    loss = ("mse", 0)
    interpolation = "bicubic"

    @property
    def visible(self) -> int:
        return int(self.cells * (1 - self.ratio))

    def exempt(self, name: str, dimensions: int) -> bool:
        return dimensions == 1 or name.endswith(".bias")

    def name(self, ours: str) -> str:
        if ours in ("head.mask_token", "encoder.mask_token"):
            return "mask_token"
        return f"decoder_{ours.removeprefix('head.')}" if ours.startswith("head.") else super().name(ours)


class MaeFinetuning(Mae):
    """main_finetune.py, util/lr_decay.py, with no_weight_decay() of timm 0.3.2's VisionTransformer."""

    task = "finetune"

    def exempt(self, name: str, dimensions: int) -> bool:
        return dimensions == 1 or name in ("pos_embed", "cls_token")

    def layer(self, name: str) -> int:
        return layer_of_vit(name, *self.depths)


class MaeProbe(Mae):
    """main_linprobe.py: LARS over the head, without weight decay."""

    task = "probe"

    def exempt(self, name: str, dimensions: int) -> bool:
        return True

    def trained(self, name: str) -> bool:
        return name.startswith("head.")


@dataclass(frozen=True, kw_only=True)
class SimMim(Run):
    """main_*.py scale all three rates; timm's schedulers are told of step k after it, and start at warmup_lr.

    Args:
        kind: of models/, with its no_weight_decay() and no_weight_decay_keywords().
        milestone: epoch of the drop of lr_scheduler.py's MultiStepLRScheduler; 0 for timm's cosine.
        prefix: the cosine starts behind the warmup (WARMUP_PREFIX: on in microsoft/Swin-Transformer, absent from
            microsoft/SimMIM).
    """

    kind: Literal["swin", "swin_v2", "vit"] = "swin"
    milestone: int = 0
    prefix: bool = False
    per_batch: ClassVar[int] = 512
    clip: ClassVar[float] = 5.0
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

    def scaled(self) -> tuple[float, float, float]:
        """Peak, first and last rate of this batch."""
        base, first, last = (rate * self.batch / self.per_batch for rate in (self.base_lr, self.warmup_lr, self.min_lr))
        return base, first, last

    def rate(self, step: int, scale: float) -> float:
        base, first, last = self.scaled()
        if step == 0:
            return first
        updates, warm, peak = step - 1, self.warmup * self.per_epoch, base * scale
        if updates < warm:
            return first + updates * (peak - first) / warm
        if self.milestone:
            return peak * 0.1 ** bisect_right([self.milestone * self.per_epoch], updates)
        start = warm if self.prefix else 0
        share = (updates - start) / (self.epochs * self.per_epoch - start)
        return last + (peak - last) * (1 + math.cos(math.pi * share)) / 2

    def layer(self, name: str) -> int:
        return layer_of_vit(name, *self.depths) if self.kind == "vit" else layer_of_swin(name, self.depths)

    def name(self, ours: str) -> str:
        name = super().name(ours)
        return re.sub(r"(?<=layers\.)(\d+)(?=\.downsample)", lambda stage: str(int(stage[1]) - 1), name)


@dataclass(frozen=True, kw_only=True)
class SimMimPretraining(Pretraining, SimMim):
    """models/simmim.py puts `encoder.` ahead of names and of keywords, which then match nothing."""

    target: dict[str, str | float] = field(default_factory=lambda: PIXELS | {"normalize": "none"})
    side: int = 192
    cell: int = 32
    ratio: float = 0.6
    crops = (0.67, 1.0)
    loss = ("l1", 1e-5)
    interpolation = "bilinear"

    @property
    def visible(self) -> int:
        return self.cells - math.ceil(self.cells * self.ratio)

    def exempt(self, name: str, dimensions: int) -> bool:
        names = [*self.names[self.kind], *([] if self.kind == "vit" else ["mask_token"])]
        by_keyword = any(f"encoder.{keyword}" in name for keyword in self.keywords[self.kind])
        return (
            dimensions == 1 or name.endswith(".bias") or name in [f"encoder.{exempt}" for exempt in names] or by_keyword
        )

    def name(self, ours: str) -> str:
        for prefix, theirs in (("head.conv.", "decoder.0."), ("head.", "decoder."), ("encoder.mask", "encoder.mask")):
            if ours.startswith(prefix):
                return theirs + ours.removeprefix(prefix)
        return f"encoder.{super().name(ours)}"


class SimMimFinetuning(SimMim):
    """main_finetune.py, optimizer.py: the group's own rate, base x scale, is the scheduler's peak."""

    task = "finetune"

    def exempt(self, name: str, dimensions: int) -> bool:
        by_keyword = any(keyword in name for keyword in self.keywords[self.kind])
        return dimensions == 1 or name.endswith(".bias") or name in self.names[self.kind] or by_keyword


# ---------------------------------------------------------------- the published values

replace = dataclasses.replace
VIT_B, VIT_L, VIT_H = "vit_base_patch16_224", "vit_large_patch16_224", "vit_huge_patch14_224"
SWIN_B, SWIN_L = "swin_base_patch4_window7_224", "swin_large_patch4_window7_224"
AT_192 = {"img_size": 192, "window_size": 6}
# models/simmim.py with USE_RPB false, USE_SHARED_RPB true, USE_MEAN_POOLING false; the rest is BEiT's
SHARED_BIAS = {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True, "global_pool": "token"}
MEAN = {"global_pool": "avg"}

# facebookresearch/mae: PRETRAIN.md, FINETUNE.md, the defaults of main_pretrain.py, main_finetune.py, main_linprobe.py
MAE_B = MaePretraining(
    **{"base_lr": 1.5e-4, "devices": 64, "rows": 64, "epochs": 800, "warmup": 40, "betas": (0.9, 0.95)},
    **{"model": VIT_B, "millions": 85.8, "depths": (12,)},
)
TUNED_MAE_B = MaeFinetuning(
    **{"base_lr": 5e-4, "devices": 32, "rows": 32, "epochs": 100, "warmup": 5, "min_lr": 1e-6, "layer_decay": 0.65},
    **{"model": VIT_B, "options": MEAN, "millions": 86.6, "depths": (12,), "drop_path": 0.1},
)
TUNED_MAE_L = replace(
    TUNED_MAE_B,
    **{"base_lr": 1e-3, "epochs": 50, "layer_decay": 0.75, "drop_path": 0.2},
    **{"model": VIT_L, "millions": 304.3, "depths": (24,)},
)
PROBED_MAE_B = MaeProbe(
    **{"base_lr": 0.1, "devices": 32, "rows": 512, "epochs": 90, "warmup": 10, "weight_decay": 0.0},
    **{"model": VIT_B, "millions": 86.6, "depths": (12,)},
)
# microsoft/SimMIM, configs/; the 32 devices of the large Swins are ours
SIMMIM_100 = SimMimPretraining(
    **{"base_lr": 2e-4, "warmup_lr": 1e-6, "min_lr": 1e-5, "devices": 16, "rows": 128, "epochs": 100, "warmup": 10},
    **{"model": SWIN_B, "options": AT_192, "millions": 86.7, "depths": STAGES},
)
SIMMIM_800 = replace(SIMMIM_100, base_lr=1e-4, warmup_lr=5e-7, epochs=800, milestone=700)
SIMMIM_VIT = replace(
    SIMMIM_800,
    **{"kind": "vit", "model": "beit_base_patch16_224", "options": SHARED_BIAS, "millions": 85.7, "depths": (12,)},
    **{"drop_path": 0.1, "side": 224},
)
TUNED_SWIN_224 = SimMimFinetuning(
    **{"base_lr": 1.25e-3, "warmup_lr": 2.5e-7, "min_lr": 2.5e-7, "layer_decay": 0.9, "drop_path": 0.1},
    **{"devices": 16, "rows": 128, "epochs": 100, "warmup": 20},
    **{"model": SWIN_B, "millions": 87.8, "depths": STAGES},
)

PUBLISHED: dict[str, Run] = {
    "configs/mae/vit_base.yaml": MAE_B,
    "configs/mae/vit_large.yaml": replace(MAE_B, model=VIT_L, millions=303.3, depths=(24,)),
    "configs/mae/vit_huge.yaml": replace(MAE_B, model=VIT_H, millions=630.8, depths=(32,), cell=14),
    # TonyLianLong/CrossMAE: README.md; main_pretrain.py scales the rate by kept_mask_ratio / mask_ratio
    "configs/mae/vit_base_cross_attention.yaml": replace(MAE_B, base_lr=1.5e-4 * 0.25 / 0.75),
    "configs/finetune/mae_vit_base.yaml": TUNED_MAE_B,
    "configs/finetune/mae_vit_large.yaml": TUNED_MAE_L,
    "configs/finetune/mae_vit_huge.yaml": replace(
        TUNED_MAE_L, model=VIT_H, millions=632.0, depths=(32,), devices=64, rows=16, drop_path=0.3
    ),
    "configs/probe/mae_vit_base.yaml": PROBED_MAE_B,
    "configs/probe/mae_vit_large.yaml": replace(PROBED_MAE_B, epochs=50, model=VIT_L, millions=304.3, depths=(24,)),
    "configs/probe/mae_vit_huge.yaml": replace(PROBED_MAE_B, epochs=50, model=VIT_H, millions=632.0, depths=(32,)),
    "configs/simmim/swin_base_100ep.yaml": SIMMIM_100,
    "configs/simmim/swin_base_800ep.yaml": SIMMIM_800,
    "configs/simmim/swin_large_800ep.yaml": replace(
        SIMMIM_800, model=SWIN_L, options={"img_size": 192, "window_size": 12}, millions=195.2, devices=32, rows=64
    ),
    "configs/simmim/vit_base_800ep.yaml": SIMMIM_VIT,
    # microsoft/Swin-Transformer, configs/simmim/simmim_pretrain__swinv2_base__img192_window12__800ep.yaml
    "configs/simmim/swin_v2_base_800ep.yaml": replace(
        SIMMIM_800,
        **{"kind": "swin_v2", "model": "swinv2_base_window12_192", "options": {}, "millions": 86.9, "drop_path": 0.1},
        target=PIXELS | {"normalize": "window"},
    ),
    "configs/finetune/simmim_swin_base_100ep_192.yaml": replace(TUNED_SWIN_224, options=AT_192),
    "configs/finetune/simmim_swin_base_100ep_224.yaml": TUNED_SWIN_224,
    "configs/finetune/simmim_swin_base_800ep.yaml": replace(TUNED_SWIN_224, layer_decay=0.8),
    "configs/finetune/simmim_swin_large_800ep.yaml": replace(
        TUNED_SWIN_224,
        **{"model": SWIN_L, "options": {"window_size": 14}, "millions": 196.8, "layer_decay": 0.7, "drop_path": 0.2},
        **{"devices": 32, "rows": 64},
    ),
    # simmim_finetune__swinv2_base__img224_window14__800ep.yaml; timm's 12to16 has its PRETRAINED_WINDOW_SIZES
    "configs/finetune/simmim_swin_v2_base_800ep.yaml": replace(
        TUNED_SWIN_224,
        **{"kind": "swin_v2", "model": "swinv2_base_window12to16_192to256", "millions": 87.9, "layer_decay": 0.75},
        **{"options": {"img_size": 224, "window_size": 14}, "prefix": True},
    ),
    "configs/finetune/simmim_vit_base_800ep.yaml": replace(
        TUNED_SWIN_224,
        **{"kind": "vit", "model": "beit_base_patch16_224", "millions": 86.5, "depths": (12,), "layer_decay": 0.65},
    ),
    # crosses, which train as one of their parents does
    "configs/cross/mae_on_replacing_vit.yaml": MAE_B,
    "configs/cross/transformer_decoder_on_swin.yaml": SIMMIM_100,
    "configs/cross/simmim_on_dropping_vit.yaml": replace(
        SIMMIM_VIT, model=VIT_B, options={}, millions=85.8, drop_path=0.0
    ),
}
