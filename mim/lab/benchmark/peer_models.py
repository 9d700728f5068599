"""Peer models: models of other libraries that give a loss of images, and features of whole images.

Shapes: B batch, C channels, H W pixels, N tokens with the class token, V visible of them, M hidden, D width, P values
of a patch.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mim.config import Config
from mim.lab.benchmark.peers import peer_of
from mim.lab.dryrun.task import DryTask
from mim.maskers import Masker
from mim.ops.seeding import derive_seed

STABLE_PRETRAINING = "stable-pretraining"
PLAIN_VIT = {  # what an MAE around timm's ViT asks of ours
    **{"class_token": True, "class_position": True, "norm": True, "norm_first": True, "patch_norm": False},
    "head_width": 0,
}


class PeerModel(nn.Module, ABC):
    """A model of another library.

    Attributes: title (as text) and differences (from ours, a line each).
    """

    title: str
    differences: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, img_BCHW: Tensor) -> Tensor:
        """The loss of normalised images, under masks that it draws."""

    @abstractmethod
    def features(self, img_BCHW: Tensor) -> Tensor:
        """The mean of the patch tokens of whole images, (B, D)."""


class TransformersModel(PeerModel):
    """A model of transformers for pretraining. Raises ValueError where a config has none."""

    def __init__(self, dry: DryTask):
        super().__init__()
        peer = peer_of(dry)
        self.network = peer.build()
        self.title, self.differences = f"{peer.name} of transformers", peer.differences
        self.masker: Masker | None = dry.task.model.masker if peer.takes_mask else None  # type: ignore[assignment]
        self.grid, self.prefix = dry.task.model.encoder.patch_grid, dry.task.model.encoder.spec.num_prefix

    def forward(self, img_BCHW: Tensor) -> Tensor:
        inputs = {"pixel_values": img_BCHW}
        if self.masker is not None:
            mask = self.masker.sample(len(img_BCHW), None, img_BCHW.device)
            inputs["bool_masked_pos"] = mask.at(*self.grid).flatten(1)
        loss: Tensor = self.network(**inputs).loss
        return loss

    def features(self, img_BCHW: Tensor) -> Tensor:
        network = self.network.base_model
        if self.masker is not None:
            tokens_BND: Tensor = network(img_BCHW).last_hidden_state
        else:  # MAE's encoder drops patches, in the order of this noise
            configs = network.config, network.embeddings.config
            ratio = configs[0].mask_ratio
            noise_BN = torch.arange(math.prod(self.grid), device=img_BCHW.device).expand(len(img_BCHW), -1).float()
            for config in configs:
                config.mask_ratio = 0.0
            tokens_BND = network(img_BCHW, noise=noise_BN).last_hidden_state
            for config in configs:
                config.mask_ratio = ratio
        return tokens_BND[:, self.prefix :].mean(dim=1)


class LightlyModel(PeerModel):
    """MAE of the parts of lightly around timm's ViT, put together as the example of its documentation.

    Raises ValueError where a config has no such peer, or lightly is absent.
    """

    def __init__(self, dry: DryTask):
        super().__init__()
        cfg = dry.cfg
        _check("lightly", cfg)
        try:
            from lightly.models.modules.masked_vision_transformer_decoder_timm import MaskedVisionTransformerDecoderTIMM
            from lightly.models.modules.masked_vision_transformer_timm import MaskedVisionTransformerTIMM
        except ImportError as error:
            raise ValueError("--against lightly needs the package lightly: pip install lightly") from error
        vit, head = _vit(cfg), cfg.HEAD
        self.patch, self.channels = vit.patch_embed.patch_size[0], cfg.DATA.channels
        self.encoder = MaskedVisionTransformerTIMM(vit=vit)
        self.embed = nn.Linear(vit.embed_dim, head.width)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            vit.patch_embed.num_patches, head.width, head.depth, head.heads, mlp_ratio=head.mlp_ratio
        )
        self.predict = nn.Linear(head.width, self.channels * self.patch**2)
        self.ratio, self.normalised = cfg.MASKER.ratio, cfg.TARGET.normalize == "patch"
        self.title = "MAE of lightly, timm's VisionTransformer"
        if cfg.ENCODER.positions == "sincos":
            self.differences = ("theirs trains its positions, which start as ours",)

    def forward(self, img_BCHW: Tensor) -> Tensor:
        from lightly.models import utils

        size = (len(img_BCHW), self.encoder.sequence_length)
        kept_BV, hidden_BM = utils.random_token_mask(size=size, mask_ratio=self.ratio, device=img_BCHW.device)
        tokens_BVD = self.embed(self.encoder.encode(images=img_BCHW, idx_keep=kept_BV))
        tokens_BND = utils.repeat_token(self.decoder.mask_token, size)
        tokens_BND = utils.set_at_index(tokens_BND, kept_BV, tokens_BVD.type_as(tokens_BND))
        prediction_BMP = self.predict(utils.get_at_index(self.decoder(tokens_BND), hidden_BM))
        target_BMP = utils.get_at_index(utils.patchify(img_BCHW, self.patch), hidden_BM - 1)  # without the class token
        if self.normalised:
            target_BMP = utils.normalize_mean_var(target_BMP)
        return nn.functional.mse_loss(prediction_BMP.float(), target_BMP)

    def features(self, img_BCHW: Tensor) -> Tensor:
        tokens_BND: Tensor = self.encoder.encode(images=img_BCHW)
        return tokens_BND[:, 1:].mean(dim=1)


class StablePretrainingModel(PeerModel):
    """MAE of stable-pretraining around timm's ViT, its class as it is.

    Raises ValueError where a config has no such peer, or stable-pretraining is absent.
    """

    def __init__(self, dry: DryTask):
        super().__init__()
        cfg, head = dry.cfg, dry.cfg.HEAD
        _check(STABLE_PRETRAINING, cfg)
        height, width = cfg.DATA.image_size
        for key, value, only in (("HEAD.mlp_ratio", head.mlp_ratio, 4.0), ("DATA.image_size", height, width)):
            if value != only:
                raise ValueError(f"--against {STABLE_PRETRAINING}: {key} is {value}, and its decoder needs {only:g}")
        try:
            from loguru import logger
            from stable_pretraining.methods import MAE
        except ImportError as error:
            raise ValueError(
                f"--against {STABLE_PRETRAINING} needs that package: pip install {STABLE_PRETRAINING}"
            ) from error
        logger.disable("stable_pretraining")  # a warning that the ViT must be timm's, as it is
        self.network = MAE(
            _vit(cfg),
            decoder_embed_dim=head.width,
            decoder_depth=head.depth,
            decoder_num_heads=head.heads,
            mask_ratio=cfg.MASKER.ratio,
            norm_pix_loss=cfg.TARGET.normalize == "patch",
        )
        self.title = "MAE of stable-pretraining, timm's VisionTransformer"
        if cfg.ENCODER.positions == "sincos":
            self.differences = ("theirs trains its positions, which start at random",)

    def forward(self, img_BCHW: Tensor) -> Tensor:
        loss: Tensor = self.network(img_BCHW).loss
        return loss

    def features(self, img_BCHW: Tensor) -> Tensor:
        tokens_BND: Tensor = self.network.encoder(img_BCHW).encoded  # of all patches in eval mode
        return tokens_BND[:, self.network.encoder.num_prefix_tokens :].mean(dim=1)


def build_peer(name: str, dry: DryTask) -> PeerModel:
    """The peer of a config by its name in --against, with initial weights by the config's SEED. Raises ValueError."""
    torch.manual_seed(derive_seed(dry.cfg.SEED, "peer"))
    return PEER_MODELS[name](dry)


PEER_MODELS: dict[str, Callable[[DryTask], PeerModel]] = {
    "lightly": LightlyModel,
    STABLE_PRETRAINING: StablePretrainingModel,
    "transformers": TransformersModel,
}


def _check(name: str, cfg: Config) -> None:
    """Raises ValueError where a library whose MAE is around timm's ViT has no model of this kind."""
    against = f"--against {name}"
    if cfg.ENCODER.name != "vit":
        raise ValueError(f"{against}: ENCODER.name is {cfg.ENCODER.name}, and its MAE is around timm's ViT: set vit")
    required = {
        "ENCODER.hidden": (cfg.ENCODER.hidden, "drop"),
        **{f"ENCODER.{key}": (getattr(cfg.ENCODER, key), value) for key, value in PLAIN_VIT.items()},
        "MASKER.name": (cfg.MASKER.name, "random"),
        "MASKER.cell": (cfg.MASKER.cell, cfg.ENCODER.patch),
        "HEAD.name": (cfg.HEAD.name, "transformer"),
        "LOSS.name": (cfg.LOSS.name, "mse"),
        "OPTIMIZER.name": (cfg.OPTIMIZER.name, "adamw"),
    }
    for key, (value, only) in required.items():
        if value != only:
            raise ValueError(f"{against}: {key} is {value}, and its MAE has no such part: set {only}")
    if len(cfg.parts("TARGET")) > 1 or cfg.TARGET.name != "pixels" or cfg.TARGET.normalize not in ("patch", "none"):
        raise ValueError(f"{against}: its MAE predicts pixels: TARGET.name pixels, TARGET.normalize patch or none")


def _vit(cfg: Config) -> Any:
    """timm's ViT of the sizes of ENCODER."""
    from timm.models.vision_transformer import VisionTransformer

    encoder = cfg.ENCODER
    return VisionTransformer(
        img_size=cfg.DATA.image_size,
        patch_size=encoder.patch,
        in_chans=cfg.DATA.channels,
        num_classes=0,
        embed_dim=encoder.width,
        depth=encoder.depth,
        num_heads=encoder.heads,
        mlp_ratio=encoder.mlp_ratio,
        qkv_bias=encoder.qkv_bias,
        drop_path_rate=encoder.drop_path,
    )
