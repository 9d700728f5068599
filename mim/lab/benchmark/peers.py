"""Peers: the models of transformers for the same task, trained as that library's Trainer trains them.

Shapes: B batch, C channels, H W pixels, N patches.
"""

import copy
import logging
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mim.config import Config
from mim.cost.formulas import operation_counter
from mim.engine.plan import Plan
from mim.engine.precision import autocast
from mim.interop.transformers import CLASSES, incompatibility, model_config
from mim.lab.benchmark.contenders import Contender
from mim.lab.dryrun.task import DryTask
from mim.lab.dryrun.trainer import PhaseCallback
from mim.registry import one_of

FLAG = "--against transformers"
REPLACING = {"vit": "vit", "beit": "vit", "swin": "swin", "swin_v2": "swinv2"}  # encoder here: model type there
LEARNING_RATE = 1e-4  # it does not change the cost of a step


@dataclass(frozen=True, slots=True)
class Peer:
    """A model of transformers for the same images."""

    name: str  # its class
    config: Any  # of transformers
    takes_mask: bool  # whether the mask is an input. Otherwise the model draws it
    differences: tuple[str, ...]  # from ours, a line each

    def build(self) -> Any:
        """The model, with the initial weights of the library."""
        import transformers

        return getattr(transformers, self.name)(copy.deepcopy(self.config))


def peer_of(dry: DryTask) -> Peer:
    """The peer of a config's model. The library's defaults hold for all that the config does not set.

    Raises ValueError where there is none, or the package transformers is absent.
    """
    cfg = dry.cfg
    takes_mask = _check(cfg)
    try:
        import transformers
    except ImportError as error:
        raise ValueError(f"{FLAG} needs the package transformers: pip install transformers") from error
    transformers.logging.set_verbosity_error()
    sections = cfg.values()
    encoder = sections["ENCODER"]
    model_type, differences = REPLACING[encoder["name"]] if takes_mask else "vit_mae", []
    if encoder["name"] == "beit":
        differences.append("theirs has learned absolute positions: no relative-position biases, no layer scale")
        encoder |= {"name": "vit", "class_token": True}
    elif model_type == "vit" and encoder["positions"] != "learned":
        differences.append("theirs has learned positions, ours fixed ones")
    if encoder["name"] == "vit" and encoder["drop_path"]:
        differences.append(f"theirs has no drop path, ours {encoder['drop_path']:g} (ENCODER.drop_path)")
    if cfg.TRAIN.ema:
        differences.append("ours also keeps a moving average of the weights (TRAIN.ema)")
    if incompatibility(sections):
        raise ValueError(f"{FLAG}: {incompatibility(sections)}")
    kind, model = CLASSES[model_type], dry.task.model
    if not takes_mask:  # the library keeps int(patches * (1 - ratio)) patches; this ratio gives as many as ours
        patches = math.prod(model.encoder.patch_grid)
        visible = model.masker.visible * patches // model.masker.cells  # type: ignore[union-attr, operator]
        sections["MASKER"]["ratio"] = 1 - (visible + 0.5) / patches
    config = getattr(transformers, f"{kind}Config")(**model_config(sections, model_type))
    name = kind + ("ForMaskedImageModeling" if takes_mask else "ForPreTraining")
    return Peer(name, config, takes_mask, tuple(differences))


def transformers_contender(
    dry: DryTask, plan: Plan, device: torch.device, *, compiled: bool = False, fused: bool = True
) -> Contender:
    """Training of a peer, in the config's precision. Raises ValueError where a config has no peer.

    Args:
        compiled: whether torch.compile is used.
        fused: whether AdamW is fused, as in their Trainer. Otherwise it is torch.optim.AdamW by its defaults, as in
            their example run_mim_no_trainer.py.
    """
    peer = peer_of(dry)
    with torch.device("meta"):
        model = peer.build()
    return Contender(
        name="transformers" + "-compiled" * compiled + "-unfused" * (not fused),
        model=f"{peer.name}, {model.config._attn_implementation} attention; {'compiled' if compiled else 'eager'}, "
        f"{'fused ' * fused}AdamW",
        parameters=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        flops=_flops(model, peer, dry),
        make=lambda on_phase: PeerSteps(peer, dry, plan, device, on_phase, compiled, fused).take_step,
        differences=peer.differences,
    )


class PeerSteps:
    """Training steps of a peer, as the library's Trainer takes them: with fused AdamW, these are its defaults.

    A step is autocast, backward pass, clipping where the config clips, AdamW, and gradients set to None. Normalising
    images and drawing masks is work of its dataloader, so it is not part of a step.
    """

    def __init__(
        self,
        peer: Peer,
        dry: DryTask,
        plan: Plan,
        device: torch.device,
        on_phase: PhaseCallback,
        compiled: bool,
        fused: bool,
    ):
        self.peer, self.image, self.rows = peer, dry.noise.image, plan.micro_batch
        self.device, self.on_phase, self.train = device, on_phase, dry.engine_settings().train
        self.masker, self.grid = dry.task.model.masker, dry.task.model.encoder.patch_grid
        model = peer.build().to(device).train()
        if self.train.activation_checkpointing:
            model.gradient_checkpointing_enable()
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = peer_optimizer(dry.cfg, self.parameters, fused)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.train.precision == "fp16")
        self.model = torch.compile(model) if compiled else model

    def take_step(self) -> None:
        """Takes one optimizer step of one micro-batch."""
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
        if self.peer.takes_mask:
            mask = self.masker.sample(self.rows, None, self.device)  # type: ignore[union-attr, operator]
            inputs["bool_masked_pos"] = mask.at(*self.grid).flatten(1)
        return inputs


def _check(cfg: Config) -> bool:
    """True where the peer replaces hidden patches (SimMIM), False where it drops them (MAE). Raises ValueError."""
    if cfg.TASK != "pretrain":
        raise ValueError(f"{FLAG}: TASK is {cfg.TASK}, and only pretraining has a peer")
    name, hidden, head = cfg.ENCODER.name, cfg.ENCODER.hidden, cfg.HEAD.name
    dropped = hidden == "drop"
    allowed = ["vit"] if dropped else list(REPLACING)
    if name not in allowed:
        raise ValueError(f"{FLAG}: ENCODER.name {name} with hidden {hidden} has no peer: {one_of('', allowed)}")
    peer_head = "transformer" if dropped else "pixel_shuffle"
    if head != peer_head:
        raise ValueError(f"{FLAG}: HEAD.name {head} has no peer: with ENCODER.hidden {hidden} it must be {peer_head}")
    if cfg.HEAD.stages:
        raise ValueError(f"{FLAG}: HEAD.stages {list(cfg.HEAD.stages)} has no peer: it must be []")
    if len(cfg.parts("TARGET")) > 1 or cfg.TARGET.name != "pixels" or cfg.TARGET.stride != 1:
        raise ValueError(f"{FLAG}: its models predict pixels at full resolution: TARGET.name pixels, TARGET.stride 1")
    if cfg.TARGET.normalize not in (("patch", "none") if dropped else ("none",)):
        raise ValueError(f"{FLAG}: TARGET.normalize {cfg.TARGET.normalize} has no peer with ENCODER.hidden {hidden}")
    if len(set(cfg.DATA.image_size)) > 1:
        raise ValueError(f"{FLAG}: DATA.image_size is {cfg.DATA.image_size}: its models pretrain on square images")
    if cfg.OPTIMIZER.name != "adamw":
        raise ValueError(f"{FLAG}: OPTIMIZER.name is {cfg.OPTIMIZER.name}, and the peer has adamw")
    return not dropped


def peer_optimizer(cfg: Config, parameters: list[torch.nn.Parameter], fused: bool) -> torch.optim.Optimizer:
    """AdamW with weight decay on matrices only. Fused is `adamw_torch_fused`, the default of the Trainer."""
    groups = [
        {
            "params": [parameter for parameter in parameters if parameter.ndim > 1],
            "weight_decay": cfg.OPTIMIZER.weight_decay,
        },
        {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=LEARNING_RATE, betas=tuple(cfg.OPTIMIZER.betas), eps=cfg.OPTIMIZER.eps, fused=fused or None
    )


def _flops(model: Any, peer: Peer, dry: DryTask) -> int | None:
    """Operations of training on one image, on the meta device; None where this version of the model needs values."""
    image = dry.noise.image
    with torch.device("meta"), operation_counter() as counter:
        inputs = {"pixel_values": torch.empty(1, image.channels, image.height, image.width)}
        if peer.takes_mask:
            patches = math.prod(dry.task.model.encoder.patch_grid)
            inputs["bool_masked_pos"] = torch.empty(1, patches, dtype=torch.bool)
        try:
            model(**inputs).loss.backward()
        except (RuntimeError, TypeError) as error:
            logging.getLogger("mim").debug("operations of %s: %s", peer.name, error)
            return None
    return counter.get_total_flops()
