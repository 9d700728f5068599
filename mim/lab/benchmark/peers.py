"""Peers: the models of transformers that do what a config does, trained as that library's Trainer trains them.

Shapes: B batch, C channels, H W pixels, N patches.
"""

import copy
import logging
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from yacs.config import CfgNode

from mim.engine.plan import Plan
from mim.engine.precision import autocast
from mim.engine.settings import TrainSettings
from mim.interop.transformers import CLASSES, computed_otherwise, model_config
from mim.lab.benchmark.contenders import Side
from mim.lab.dryrun.task import DryTask
from mim.lab.dryrun.trainer import PhaseCallback
from mim.registry import one_of

FLAG = "--against transformers"
REPLACING = {"vit": "vit", "beit": "vit", "swin": "swin", "swin_v2": "swinv2"}  # encoder here: model type there
RATE = 1e-4  # learning rate: it does not change what a step costs


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A model of transformers that is made for the same images.

    name: its class; config: of transformers; masked: whether it is told which patches are hidden, or draws them itself;
    notes: in what it differs from ours.
    """

    name: str
    config: Any
    masked: bool
    notes: tuple[str, ...]

    def build(self) -> Any:
        """The model, with weights drawn as the library draws them."""
        import transformers

        return getattr(transformers, self.name)(copy.deepcopy(self.config))


def peer_of(bare: DryTask) -> Peer:
    """The peer of a config's model, with the library's defaults for all that the config does not say.

    Raises ValueError where there is none, or the package transformers is absent.
    """
    cfg = bare.cfg
    masked = _check(cfg)
    try:
        import transformers
    except ImportError as error:
        raise ValueError(f"{FLAG} needs the package transformers: pip install transformers") from error
    transformers.logging.set_verbosity_error()
    sections: dict[str, Any] = {name: dict(held) if isinstance(held, CfgNode) else held for name, held in cfg.items()}
    encoder = sections["ENCODER"]
    model_type, notes = REPLACING[encoder["name"]] if masked else "vit_mae", []
    if encoder["name"] == "beit":
        notes.append("theirs has learned absolute positions: no relative-position biases, no layer scale")
        encoder |= {"name": "vit", "class_token": True}
    elif model_type == "vit" and encoder["positions"] != "learned":
        notes.append("theirs has learned positions, ours fixed ones")
    if encoder["name"] == "vit" and encoder["drop_path"]:
        notes.append(f"theirs has no drop path, ours {encoder['drop_path']:g} (ENCODER.drop_path)")
    if cfg.TRAIN.ema:
        notes.append("ours also keeps a moving average of the weights (TRAIN.ema)")
    if computed_otherwise(sections):
        raise ValueError(f"{FLAG}: {computed_otherwise(sections)}")
    kind, model = CLASSES[model_type], bare.task.model
    if not masked:  # as many visible patches as here: the library keeps the whole number of patches * (1 - ratio)
        patches = math.prod(model.encoder.patch_grid)
        visible = model.masker.visible * patches // model.masker.cells  # type: ignore[union-attr, operator]
        sections["MASKER"]["ratio"] = 1 - (visible + 0.5) / patches
    config = getattr(transformers, f"{kind}Config")(**model_config(sections, model_type))
    return Peer(
        name=kind + ("ForMaskedImageModeling" if masked else "ForPreTraining"),
        config=config,
        masked=masked,
        notes=tuple(notes),
    )


def transformers_side(
    bare: DryTask, plan: Plan, device: torch.device, *, compiled: bool = False, fused: bool = True
) -> Side:
    """A peer's training, in the config's precision. Raises ValueError where a config has no peer.

    plan: of one micro-batch a step; fused: AdamW as their Trainer has it, or else as torch.optim.AdamW
    is by default, which run_mim_no_trainer.py of their examples takes.
    """
    peer, train = peer_of(bare), bare.engine_settings().train
    with torch.device("meta"):
        model = peer.build()
    return Side(
        name="transformers" + "-compiled" * compiled + "-unfused" * (not fused),
        model=f"{peer.name}, {model.config._attn_implementation} attention; {'compiled' if compiled else 'eager'}, "
        f"{'fused ' * fused}AdamW",
        parameters=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        flops=_flops(model, peer, bare),
        make=lambda on_phase: PeerSteps(peer, bare, plan.micro_batch, train, device, on_phase, compiled, fused).take_step,
        notes=peer.notes,
    )


class PeerSteps:
    """Training steps of a peer, as the library's Trainer takes them by default where AdamW is fused.

    Autocast, backward pass, clipping where the config clips, AdamW, gradients set to None. Its images come normalised
    and its masks drawn, which is the work of its loader, and so no part of a step.
    """

    def __init__(
        self,
        peer: Peer,
        bare: DryTask,
        rows: int,
        train: TrainSettings,
        device: torch.device,
        on_phase: PhaseCallback,
        compiled: bool,
        fused: bool,
    ):
        self.peer, self.image, self.rows, self.train = peer, bare.noise.image, rows, train
        self.device, self.on_phase = device, on_phase
        self.masker = bare.task.model.masker
        self.grid = bare.task.model.encoder.patch_grid
        model = peer.build().to(device).train()
        if train.activation_checkpointing:
            model.gradient_checkpointing_enable()
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = _optimizer(bare.cfg, self.parameters, fused)
        self.scaler = torch.amp.GradScaler(device.type, enabled=train.precision == "fp16")
        self.model = torch.compile(model) if compiled else model

    def take_step(self) -> None:
        """One optimizer step."""
        self.on_phase("batch")
        inputs = self._inputs()
        self.on_phase("forward")
        with autocast(self.train.precision, self.device):
            loss = self.model(**inputs).loss
        self.on_phase("backward")
        self.scaler.scale(loss).backward()
        self.on_phase("update")
        if self.train.clip:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.parameters, self.train.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.on_phase("end")

    def _inputs(self) -> dict[str, Tensor]:
        image = self.image
        shape = (self.rows, image.channels, image.height, image.width)
        inputs = {"pixel_values": torch.rand(shape, device=self.device)}
        if self.peer.masked:
            mask = self.masker.sample(self.rows, None, self.device)  # type: ignore[union-attr, operator]
            inputs["bool_masked_pos"] = mask.at(*self.grid).flatten(1)
        return inputs


def _check(cfg: CfgNode) -> bool:
    """Whether the peer replaces what is hidden (SimMIM), or drops it (MAE). Raises ValueError where there is none."""
    if cfg.TASK != "pretrain":
        raise ValueError(f"{FLAG}: TASK is {cfg.TASK}, and only pretraining has a peer")
    name, hidden, head = cfg.ENCODER.name, cfg.ENCODER.hidden, cfg.HEAD.name
    dropped = hidden == "drop"
    known = ["vit"] if dropped else list(REPLACING)
    if name not in known:
        raise ValueError(f"{FLAG}: ENCODER.name {name} with hidden {hidden} has no peer: {one_of('', known)}")
    wanted = "transformer" if dropped else "pixel_shuffle"
    if head != wanted:
        raise ValueError(f"{FLAG}: HEAD.name {head} has no peer: with ENCODER.hidden {hidden} it is {wanted}")
    if cfg.TARGET.name != "pixels" or cfg.TARGET.stride != 1:
        raise ValueError(f"{FLAG}: its models predict pixels at full resolution: TARGET.name pixels, TARGET.stride 1")
    if cfg.TARGET.normalize not in (("patch", "none") if dropped else ("none",)):
        raise ValueError(f"{FLAG}: TARGET.normalize {cfg.TARGET.normalize} has no peer with ENCODER.hidden {hidden}")
    if len(set(cfg.DATA.image_size)) > 1:
        raise ValueError(f"{FLAG}: DATA.image_size is {cfg.DATA.image_size}: its models pretrain on square images")
    if cfg.OPTIMIZER.name != "adamw":
        raise ValueError(f"{FLAG}: OPTIMIZER.name is {cfg.OPTIMIZER.name}, and the peer has adamw")
    return not dropped


def _optimizer(cfg: CfgNode, parameters: list[torch.nn.Parameter], fused: bool) -> torch.optim.Optimizer:
    """With decay on matrices alone. Fused is `adamw_torch_fused`, the Trainer's default."""
    groups = [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1], "weight_decay": 0.05},
        {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=RATE, betas=tuple(cfg.OPTIMIZER.betas), eps=cfg.OPTIMIZER.eps, fused=fused or None
    )


def _flops(model: Any, peer: Peer, bare: DryTask) -> int | None:
    """Of training on one image, of a model without weights; None where this version of it looks at values."""
    image = bare.noise.image
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        inputs = {"pixel_values": torch.empty(1, image.channels, image.height, image.width)}
        if peer.masked:
            patches = math.prod(bare.task.model.encoder.patch_grid)
            inputs["bool_masked_pos"] = torch.empty(1, patches, dtype=torch.bool)
        try:
            model(**inputs).loss.backward()
        except (RuntimeError, TypeError) as error:
            logging.getLogger("mim").debug("operations of %s: %s", peer.name, error)
            return None
    return counter.get_total_flops()
