"""What the originals of configs/targets do, beside published.py: formulas from their published code, and one table.

Nothing here comes from a recipe or from mim.
"""

import math
import re
from dataclasses import dataclass, field
from typing import ClassVar

from published import IMAGENET, PIXELS, VIT_B, MaePretraining, Pretraining, Run, replace

Target = dict[str, str | float]
CLIP: Target = {"name": "teacher", "model": "vit_base_patch16_clip_224", "layers": 1, "norm": "none", "weight": 1}


@dataclass(frozen=True, kw_only=True)
class OpenMmlab(MaePretraining):
    """MAE in mmselfsup and mmpretrain: mmengine's LinearLR (with total_iters one step short) and CosineAnnealingLR.

    Args:
        start_factor: of LinearLR, of the peak.
    """

    start_factor: float
    fixed_batch = True
    close = (1e-4, 1e-15)  # the warmup's last step has the peak there, the step behind it here

    def rate(self, step: int, scale: float) -> float:
        warm = self.warmup * self.per_epoch
        if step < warm:
            return self.peak * (self.start_factor + (1 - self.start_factor) * step / (warm - 1))
        return super().rate(step, scale)

    def exempt(self, name: str, dimensions: int) -> bool:
        """paramwise_cfg."""
        return super().exempt(name, dimensions) or name in ("pos_embed", "mask_token", "cls_token")


@dataclass(frozen=True, kw_only=True)
class PixMim(OpenMmlab):
    """MAE on filtered pixels, with Resize and RandomCrop: test_pixmim_pictures_are_those_of_its_pipeline."""

    target: Target = field(default_factory=lambda: {"name": "lowpass", "radius": 40, "normalize": "patch", "stride": 1})
    crops = ()
    interpolation = "bilinear"


@dataclass(frozen=True, kw_only=True)
class EvaStyle(OpenMmlab):
    target: Target = field(default_factory=lambda: CLIP)
    loss = ("cosine", 0)


@dataclass(frozen=True, kw_only=True)
class Milan(MaePretraining):
    """main_pretrain.py and util/lr_sched.py of zejiangh/MILAN, which are MAE's."""

    target: Target = field(default_factory=lambda: CLIP)
    loss = ("cosine", 0)


@dataclass(frozen=True, kw_only=True)
class MaskFeat(Pretraining, Run):
    """SlowFast: utils/lr_policy.py, called with the fractional epoch before each step; models/optimizer.py.

    config/defaults.py, assert_and_infer_cfg, scales all three rates by the shards, each of 256 images.
    """

    target: Target = field(default_factory=lambda: {"name": "hog", "bins": 9, "cell": 8, "window": 16})
    side: int = 224
    cell: int = 16
    ratio: float = 0.4
    crops = (0.5, 1.0)
    interpolation = "bicubic"
    loss = ("mse", 0)
    per_batch = 256
    clip = 0.02

    @property
    def visible(self) -> int:
        """datasets/imagenet.py, _prepare_im_masked."""
        return self.cells - round(self.cells * self.ratio)

    def rate(self, step: int, scale: float) -> float:
        epoch, shards = step / self.per_epoch, self.batch / self.per_batch
        first, last = self.warmup_lr * shards, self.min_lr * shards
        if epoch < self.warmup:
            return scale * (first + (self.peak - first) * epoch / self.warmup)
        angle = math.pi * (epoch - self.warmup) / (self.epochs - self.warmup)
        return scale * (last + (self.peak - last) * (1 + math.cos(angle)) / 2)

    def exempt(self, name: str, dimensions: int) -> bool:
        """ZERO_WD_1D_PARAM, with ZERO_DECAY_POS_CLS off."""
        return dimensions == 1 or name.endswith(".bias")

    def trained(self, name: str) -> bool:
        return True  # positions are learned

    def name(self, ours: str) -> str:
        for prefix, theirs in (("head.conv.", "pred_head.projections.0."), ("encoder.mask_token", "mask_token")):
            if ours.startswith(prefix):
                return theirs + ours.removeprefix(prefix)
        return super().name(ours)


@dataclass(frozen=True, kw_only=True)
class Data2Vec2(Pretraining, Run):
    """fairseq: cosine_lr_scheduler.py, which is told of update k ahead of it; composite.py.

    Rates are not scaled; parameters of one dimension and biases do not decay. A loss is a sum over channels over their
    root, so the target has the weight sqrt(768).
    """

    target: Target = field(
        default_factory=lambda: {
            **{"name": "follower", "weight": math.sqrt(768), "decay": 0.9998, "decay_end": 0.99999},
            **{"ramp": 100_000 / 375_300, "layers": 10, "of": "mlp", "layer_norm": "instance", "norm": "layer"},
        }
    )
    side: int = 224
    cell: int = 16
    ratio: float = 0.8
    crops = (0.2, 1.0)
    interpolation = "bicubic"
    masks = 16
    loss = ("mse", 0)
    per_batch = 256
    clip = 4.0

    @property
    def visible(self) -> int:
        """models/modalities/base.py, compute_mask: an image keeps int(L * (1 - mask_prob))."""
        return int(self.cells * (1 - self.ratio))

    def rate(self, step: int, scale: float) -> float:
        updates, warm = self.epochs * self.per_epoch, self.warmup * self.per_epoch
        if step < warm:
            return self.peak * step / warm
        return self.peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / (updates - warm)))

    def exempt(self, name: str, dimensions: int) -> bool:
        """data2vec2.py: optim_overrides of one-dimensional parameters and biases."""
        return dimensions == 1 or name.endswith(".bias")

    def name(self, ours: str) -> str:
        prefixes = (("head.", "decoder."), ("encoder.first_norm.", "norm."), ("target.", "ema."))
        return _renamed(ours, prefixes) or super().name(ours)

    def trained(self, name: str) -> bool:
        return super().trained(name) and not name.startswith("ema.")


@dataclass(frozen=True, kw_only=True)
class IJepa(Pretraining, Run):
    """src/utils/schedulers.py: the counter is raised before the rate is set, so step 0 has the rate of step 1."""

    target: Target = field(
        default_factory=lambda: {
            **{"name": "follower", "weight": 1, "decay": 0.996, "decay_end": 1.0, "ramp": 1.0},
            **{"layers": 1, "of": "block", "layer_norm": "none", "norm": "layer"},
        }
    )
    weight_decay: float = 0.04
    weight_decay_end: ClassVar[float] = 0.4
    side: int = 224
    cell: int = 16
    ratio: float = 0.75  # ours: see the source of MASKER multi_block
    crops = (0.3, 1.0)
    interpolation = "bilinear"
    flip = 0.0
    loss = ("smooth_l1", 0)
    per_batch = 2048
    clip = 0.0
    ahead = 1

    @property
    def visible(self) -> int:
        return int(self.cells * (1 - self.ratio))

    def rate(self, step: int, scale: float) -> float:
        count, warm = step + 1, self.warmup * self.per_epoch
        if count < warm:
            return self.warmup_lr + count / warm * (self.peak - self.warmup_lr)
        share = (count - warm) / (self.epochs * self.per_epoch - warm)
        return self.min_lr + (self.peak - self.min_lr) * 0.5 * (1 + math.cos(math.pi * share))

    def exempt(self, name: str, dimensions: int) -> bool:
        """src/helper.py, init_opt."""
        return dimensions == 1 or "bias" in name

    def name(self, ours: str) -> str:
        return _renamed(ours, (("head.", "predictor."), ("target.", "target_encoder."))) or super().name(ours)

    def trained(self, name: str) -> bool:
        return super().trained(name) and not name.startswith("target_encoder.")


@dataclass(frozen=True, kw_only=True)
class A2Mim(Pretraining, Run):
    """openmixup: mmcv's step policy with a linear warmup, set before an iteration; paramwise_options, by re.search."""

    target: tuple[Target, ...] = field(default_factory=lambda: _with_spectrum(0.1))
    side: int = 224
    cell: int = 32
    ratio: float = 0.6
    milestone: int = 700
    exempt_names: ClassVar[str] = r"(bn|ln|gn)(\d+)?.(weight|bias)|norm|bias|mask_token|pos_embed|cls_token|gamma"
    crops = (0.67, 1.0)
    interpolation = "bilinear"
    loss = ("l1", 1e-5)
    per_batch = 512
    clip = 5.0
    fixed_batch = True

    @property
    def drops(self) -> tuple[int, ...]:
        return (self.milestone,)

    @property
    def visible(self) -> int:
        """BlockwiseMaskGenerator."""
        return self.cells - math.ceil(self.cells * self.ratio)

    @property
    def start(self) -> float:
        """warmup_ratio: of the peak."""
        return 5e-7 * self.batch / 512

    def rate(self, step: int, scale: float) -> float:
        epoch = step / self.per_epoch
        if epoch < self.warmup:
            return self.peak * (1 - (1 - epoch / self.warmup) * (1 - self.start))
        return self.peak * 0.1 ** (epoch >= self.milestone)

    def exempt(self, name: str, dimensions: int) -> bool:
        return re.search(self.exempt_names, name) is not None

    def name(self, ours: str) -> str:
        return _renamed(ours, (("head.", "neck."), ("encoder.mask", "mask"), ("encoder.way.", ""))) or super().name(
            ours
        )


@dataclass(frozen=True, kw_only=True)
class A2MimResNet(A2Mim):
    """The same with StepFixCosineAnnealing: behind the warmup; in it, the cosine runs backward, below the peak."""

    target: tuple[Target, ...] = field(default_factory=lambda: _with_spectrum(0.5))
    exempt_names = r"(bn|ln|gn)(\d+)?.(weight|bias)|bias|mask_token"
    other_decay = r"downsample\.1\.weight|colour"  # norms under another name; the colour is ours
    other_scale = "mask_token"  # lr_mult .1
    close = (5e-3, 1e-15)
    crops = (0.8, 1.0)
    clip = 0.0

    @property
    def drops(self) -> tuple[int, ...]:
        return ()

    def rate(self, step: int, scale: float) -> float:
        epoch = step / self.per_epoch
        share = (epoch - self.warmup) / (self.epochs - self.warmup)
        cosine = self.min_lr + (self.peak - self.min_lr) * (1 + math.cos(math.pi * share)) / 2
        return scale * cosine * (1 - max(0, 1 - epoch / self.warmup) * (1 - 1e-6))

    def scale(self, name: str) -> float:
        return 0.1 if name == "mask_token" else 1.0


@dataclass(frozen=True, kw_only=True)
class Capi(Pretraining, Run):
    """utils.py: WarmupThenCosine, get_params_groups; issue 16: 500,000 steps are 6410 epochs of ImageNet-1K."""

    target: Target = field(
        default_factory=lambda: {
            **{"name": "clusters", "clusters": 16384, "balance_temperature": 0.06, "temperature": 0.12},
            **{"iterations": 3, "positional": True, "across": "all", "layers": 1, "norm": "none", "weight": 1},
        }
    )
    weight_decay: float = 0.1
    side: int = 224
    cell: int = 14
    ratio: float = 0.65
    crops = (0.6, 1.0)
    interpolation = "bicubic"
    loss = ("cross_entropy", 0)
    per_batch = 16384
    clip = 0.0
    fixed_batch = True
    close = (2e-5, 0.13)  # .8 of a cosine there, a whole one to the same rate here
    other_decay = r"norm.*weight|clustering"  # norms: a tenth; clusters: .01
    other_scale = r"patch_embed|clustering"

    @property
    def visible(self) -> int:
        return self.cells - int(self.cells * self.ratio)

    def rate(self, step: int, scale: float) -> float:
        warm = self.warmup * self.per_epoch
        if step < warm:
            return scale * self.peak * step / (warm - 1)
        share = (step - warm) / (self.epochs * self.per_epoch - warm)
        return scale * self.peak * 0.5 * (1 + math.cos(math.pi * 0.8 * share))

    def scale(self, name: str) -> float:
        if name.startswith("clustering"):
            return 0.5  # clustering_optimizer: 5e-4
        return 0.2 if "patch_embed" in name else 1.0

    def exempt(self, name: str, dimensions: int) -> bool:
        return name.endswith(".bias")

    def name(self, ours: str) -> str:
        prefixes = (("head.", "predictor."), ("target.scores.", "clustering.layer."), ("target.", "teacher."))
        return _renamed(ours, prefixes) or super().name(ours)

    def trained(self, name: str) -> bool:
        return super().trained(name) and not name.startswith("teacher.")


def _renamed(name: str, prefixes: tuple[tuple[str, str], ...]) -> str:
    """A name with another prefix; empty where it has none of them."""
    return next((theirs + name.removeprefix(ours) for ours, theirs in prefixes if name.startswith(ours)), "")


def _with_spectrum(weight: float) -> tuple[Target, ...]:
    return PIXELS | {"normalize": "none"}, {"name": "fourier", "normalize": "none", "stride": 1, "weight": weight}


# ---------------------------------------------------------------- the published values

WITHOUT_CLASS_TOKEN = {"class_token": False, "global_pool": "avg", "fc_norm": False}
ONE_IN_64 = {"devices": 64, "rows": 64, "warmup": 40, "base_lr": 1.5e-4, "betas": (0.9, 0.95)}
VIT = {"model": VIT_B, "millions": 85.8, "depths": (12,)}

# facebookresearch/ijepa, and appendix A.1 for ViT-B
IJEPA_B = IJepa(
    **{"base_lr": 1e-3, "warmup_lr": 1e-4, "min_lr": 1e-6, "devices": 16, "rows": 128, "epochs": 600, "warmup": 15},
    **{"model": VIT_B, "options": WITHOUT_CLASS_TOKEN, "millions": 85.8, "depths": (12,)},
)

TARGETS: dict[str, Run] = {
    # SlowFast, configs/masked_ssl/in1k_VIT_B_MaskFeat_PT.yaml, with the 2048 images of 8 of its shards, as mmpretrain
    "configs/targets/maskfeat_vit_base.yaml": MaskFeat(
        **{"base_lr": 2e-4, "warmup_lr": 1e-6, "min_lr": 1e-6, "devices": 16, "rows": 128, "epochs": 300, "warmup": 30},
        **VIT,
    ),
    # mmselfsup, configs/selfsup/pixmim/pixmim_vit-base-p16_8xb512-amp-coslr-800e_in1k.py
    "configs/targets/pixmim_vit_base.yaml": PixMim(**ONE_IN_64, **VIT, epochs=800, start_factor=1e-9),
    # mmpretrain, configs/eva/eva-mae-style_vit-base-p16_16xb256-coslr-400e_in1k.py
    "configs/targets/eva_style_vit_base.yaml": EvaStyle(**ONE_IN_64, **VIT, epochs=400, start_factor=1e-4),
    "configs/targets/milan_style_vit_base.yaml": Milan(**ONE_IN_64, **VIT, epochs=400),  # zejiangh/MILAN, PRETRAIN.sh
    # fairseq, examples/data2vec/config/v2/base_images_only_task.yaml: 375,300 updates
    "configs/targets/data2vec2_vit_base.yaml": Data2Vec2(
        **{"base_lr": 1e-3, "devices": 16, "rows": 16, "epochs": 75, "warmup": 10, "betas": (0.9, 0.95)},
        **{**VIT, "options": {"no_embed_class": True, "final_norm": False}},
    ),
    "configs/targets/ijepa_vit_base.yaml": IJEPA_B,
    "configs/targets/ijepa_vit_small.yaml": replace(
        IJEPA_B, model="vit_small_patch16_224", millions=21.7
    ),  # size: ours
    # openmixup, configs/selfsup/a2mim/imagenet/vit_base_l0_sz224_8xb128_accu2_step_ep800.py
    "configs/targets/a2mim_vit_base.yaml": A2Mim(
        **{"base_lr": 1e-4, "devices": 16, "rows": 128, "epochs": 800, "warmup": 10},
        **{"model": "beit_base_patch16_224", "millions": 85.7, "depths": (12,), "drop_path": 0.1},
        options={"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True, "global_pool": "token"},
    ),
    # r50_l3_sz224_init_8xb256_cos_ep300.py beside it
    "configs/targets/a2mim_resnet50.yaml": A2MimResNet(
        **{"base_lr": 3e-4, "min_lr": 1e-5, "devices": 8, "rows": 256, "epochs": 300, "warmup": 10},
        **{"model": "resnet50", "millions": 23.5, "depths": (3, 4, 6, 3)},
    ),
    # facebookresearch/capi, default_pretrain_config.yaml; the devices are ours, timm's ViT is near it
    "configs/targets/capi_vit_large.yaml": Capi(
        **{"base_lr": 1e-3, "devices": 256, "rows": 64, "epochs": 6410, "warmup": 641, "betas": (0.9, 0.95)},
        **{"model": "vit_large_patch16_224", "millions": 303.2, "depths": (24,), "drop_path": 0.2},
        options=WITHOUT_CLASS_TOKEN | {"patch_size": 14},
    ),
}
assert 500_000 - 6410 * (IMAGENET // 16384) == 20
