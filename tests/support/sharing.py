"""Run on two ranks by test_strategy.py: steps of one model under FSDP2, beside the same steps under DDP.

Prints a line of JSON a case, on the main rank.
"""

import json
import logging
from dataclasses import replace

import torch
from processes import FINETUNE, PROBE, RECIPE, ROOT, TINY, TINY_CLASSIFIER
from torch.distributed.tensor import DTensor

from mim import build
from mim.build import load_config
from mim.data.batch import Batch
from mim.data.loading.dataset import collate
from mim.engine.distributed.world import World, join_world
from mim.engine.precision import autocast
from mim.engine.protocol import StepContext, step_loss
from mim.engine.train_state import TrainState
from mim.ops.seeding import derive_seed

SIMMIM = ROOT / "configs" / "quickstart" / "simmim_digits.yaml"
SWIN = {"ENCODER.depths": "[2,2]", "ENCODER.heads": "[2,2]", "ENCODER.window": 4, "ENCODER.patch": 2}
BARE = {"MASKER.cell": 8, "EVALUATE.at_start": False, "TRAIN.precision": "fp32", "ENCODER.width": 16}
FOLLOWER = {"TARGET.name": "follower", "TARGET.decay": 0.5, "TARGET.layers": 2, "TARGET.layer_norm": "instance"}
CASES = {
    "vit": (RECIPE, TINY | {"TRAIN.ema": 0.9, "TRAIN.clip": 0.5, "TRAIN.activation_checkpointing": True}),
    "vit, fp16": (RECIPE, TINY | {"TRAIN.precision": "fp16", "TRAIN.clip": 1.0}),
    "vit, bf16": (RECIPE, TINY | {"TRAIN.precision": "bf16"}),
    "follower": (RECIPE, TINY | FOLLOWER | {"TRAIN.ema": 0.9, "TRAIN.activation_checkpointing": True}),
    "follower, bf16": (RECIPE, TINY | FOLLOWER | {"TRAIN.precision": "bf16"}),
    "beit": (SIMMIM, BARE | {"ENCODER.name": "beit", "ENCODER.depth": 2, "ENCODER.heads": 2, "ENCODER.patch": 4}),
    "swin": (SIMMIM, BARE | {"ENCODER.name": "swin"} | SWIN),
    "swin_v2": (SIMMIM, BARE | {"ENCODER.name": "swin_v2"} | SWIN),
    "finetune": (FINETUNE, TINY_CLASSIFIER | {"FREEZE.tune_blocks": 1, "OPTIMIZER.layer_decay": 0.75}),
    "linear probe": (PROBE, TINY_CLASSIFIER | {"OPTIMIZER.base_lr": 1.0}),
}
ROWS, STEPS, MICRO = 8, 3, 2


class Shared:
    """A train_state of a case's task under a strategy, and steps of it."""

    def __init__(self, recipe, keys: dict, strategy: str, world: World):
        words = [str(word) for pair in (keys | {"DATA.workers": 0}).items() for word in pair]
        statistics = [] if "DATA.mean" in keys else ["DATA.mean", "[0.3]", "DATA.std", "[0.35]"]
        cfg = load_config(recipe, [*words, "DISTRIBUTED.strategy", strategy, *statistics])
        self.task = build.build_task(cfg, *build.build_data(cfg))
        settings = build.engine_settings(cfg)
        settings = replace(settings, distributed=cfg.DISTRIBUTED)
        self.world, self.settings = world, settings
        self.train_state = TrainState(self.task, settings, world)
        self.wrapped = self.train_state.wrap()

    def step(self, step: int, poison: bool = False) -> float:
        """One optimizer step of two micro-batches; poisoned, with one number of one rank's gradients infinite."""
        torch.manual_seed(derive_seed(0, "step", step, self.world.rank))
        train, total = self.settings.train, torch.zeros(())
        for micro in range(MICRO):
            start = (micro * self.world.size + self.world.rank) * ROWS
            batch = self.batch(step, start)
            context = StepContext(0, step, start, MICRO * self.world.size * ROWS)
            with (
                self.train_state.strategy.exchange(self.wrapped, now=micro == MICRO - 1),
                autocast(train.precision, torch.device("cpu")),
            ):
                loss = step_loss(self.task.loss(self.wrapped, batch, context)).loss / MICRO
                self.train_state.scaler.scale(loss).backward()
            total = total + loss.detach()
        if poison and self.world.main:
            gradients = [parameter.grad.to_local() for parameter in self.train_state.parameters]
            next(gradient for gradient in gradients if gradient.numel()).view(-1)[0] = float("inf")
        total = self.world.sum(total) / self.world.size
        self.train_state.update(total, lambda factor: 1e-2 * factor, 0.0)
        self.task.after_step((step + 1) / STEPS)
        return float(total)

    def batch(self, step: int, start: int) -> Batch:
        data = self.task.train_data
        return collate([data[(0, (step * 64 + start + row) % len(data))] for row in range(ROWS)])

    def weights(self) -> dict[str, torch.Tensor]:
        with self.train_state.eval_mode() as model:
            return {name: value.detach().clone() for name, value in model.state_dict().items()}


def far(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    filled = [name for name in one if one[name].numel()]  # a small weight may lie on the other rank
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in filled)


def _model(state: dict) -> dict[str, torch.Tensor]:
    return state["model"]


def _moments(state: dict) -> dict[str, torch.Tensor]:
    moments = state["optimizer"]["state"].items()
    return {f"{index}.{name}": value for index, values in moments for name, value in values.items()}


def _trained(shared: Shared) -> dict[str, torch.Tensor]:
    """This rank's part of every trained weight and moment."""
    parameters = {str(index): value for index, value in enumerate(shared.train_state.parameters)}
    moments = _moments({"optimizer": shared.train_state.optimizer.state_dict()})
    tensors = {**parameters, **moments}.items()
    return {
        name: (value.to_local() if isinstance(value, DTensor) else value).detach().clone() for name, value in tensors
    }


def compare(name: str, world: World) -> dict:
    recipe, keys = CASES[name]
    ddp, fsdp = (Shared(recipe, keys, strategy, world) for strategy in ("ddp", "fsdp"))
    before = fsdp.weights()
    start = far(before, ddp.weights())
    losses = [[side.step(step) for step in range(STEPS)] for side in (ddp, fsdp)]
    apart, moved = far(fsdp.weights(), ddp.weights()), far(fsdp.weights(), before)
    states = [side.train_state.state() for side in (fsdp, ddp)]
    state_differences = [far(*(part(state) for state in states)) if world.main else 0.0 for part in (_model, _moments)]
    trained = _trained(fsdp)
    fsdp.step(STEPS, poison=True)
    poisoned = far(_trained(fsdp), trained)
    local = sum(parameter.to_local().numel() for parameter in fsdp.task.model.parameters())
    every = sum(parameter.numel() for parameter in fsdp.task.model.parameters())
    return {
        "case": name,
        "losses": losses,
        "start": start,
        "apart": apart,
        "moved": moved,
        "poisoned": poisoned,
        "state": state_differences,
        "share": local / every,
    }


if __name__ == "__main__":
    logging.getLogger("mim").setLevel(logging.ERROR)
    settings = load_config(RECIPE, ["DISTRIBUTED.device", "cpu"]).DISTRIBUTED
    with join_world(settings) as world:
        for case in CASES:
            comparison = compare(case, world)
            shares = world.gather_objects(comparison["share"])
            if world.main:
                print(json.dumps(comparison | {"shares": shares}), flush=True)
