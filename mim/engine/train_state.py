"""TrainState: the weights of a run, and what changes them: optimizer, moving average and loss scale."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim.swa_utils import AveragedModel

from mim import metric_keys as keys
from mim.engine import checkpoint
from mim.engine.distributed.strategy import FULL, full, make_strategy
from mim.engine.distributed.world import World
from mim.engine.modes import recompute_activations
from mim.engine.optim import parameter_groups
from mim.engine.plan import EngineSettings
from mim.engine.precision import product_dtype
from mim.engine.protocol import Task
from mim.ops.attention import choose_attention

LOG = logging.getLogger("mim")

NO_MOMENTS: dict = {"state": {}, "param_groups": []}


class MovingAverage(AveragedModel):
    """An exponential moving average of the weights of a model, and its newest buffers.

    PyTorch's own copies its count to the device in each step, and the host waits for it.
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__(model)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Takes a step towards the weights of `model`; the first one takes them as they are. No host sync."""
        averages, weights = tuple(self.module.parameters()), tuple(model.parameters())
        if self.n_averaged == 0:  # on the host
            for average, weight in zip(averages, weights, strict=True):
                average.copy_(weight)
        else:
            torch._foreach_lerp_(averages, weights, 1 - self.decay)
        if buffers := tuple(self.module.buffers()):
            torch._foreach_copy_(buffers, tuple(model.buffers()))
        self.n_averaged += 1


class TrainState:
    """The model of a task on this rank's device, or the rank's shard of it, ready to be trained.

    Attributes: model, average (None without TRAIN.ema), parameters (the trained ones), optimizer, hyperparameters (the
    keys of OPTIMIZER), scaler, and strategy, which says how the devices of the run share them.
    """

    def __init__(self, task: Task, settings: EngineSettings, world: World):
        train = settings.train
        dtype = product_dtype(train.precision, world.device)
        self.model, self.train, self.blocks = task.model, train, task.blocks()
        for module in (task.model, *task.fixed):
            module.to(world.device)
        choose_attention(task.model, world.device)
        self.average = MovingAverage(task.model, train.ema) if train.ema else None
        self.strategy = make_strategy(settings.distributed, world)
        shards = task.shards()
        self.strategy.shard(task.model, shards, dtype)
        if self.average is not None:
            names = {module: name for name, module in task.model.named_modules()}
            same = [self.average.module.get_submodule(names[block]) for block in shards]
            self.strategy.shard(self.average.module, same, dtype)
        if train.activation_checkpointing:
            if not self.blocks:
                LOG.warning("TRAIN.activation_checkpointing has no effect: no part of this model names its blocks")
            recompute_activations(self.blocks)
        self.parameters = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
        lr_scales = task.lr_scales(settings.optimizer.layer_decay)
        self.hyperparameters = settings.optimizer
        groups = parameter_groups(task.model, settings.optimizer, lr_scales, task.weight_decays())
        self.optimizer = settings.optimizer.build(groups)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=dtype == torch.float16)

    def wrap(self) -> nn.Module:
        """The model as a training step calls it: compiled, then wrapped by the strategy."""
        return self.strategy.wrap(self.model.train(), self.blocks, self.train.compile)

    def update(self, loss: Tensor, rate: Callable[[float], float], progress: float) -> Tensor:
        """Clips the gradients, takes a step, clears the gradients, and returns their norm. No host sync.

        A step that is not finite changes neither weights nor moments. The moving average takes a step in any case.

        Args:
            loss: of the step, over all ranks.
            rate: the learning rate of a group with this lr_scale.
            progress: share of the run's steps before this one.
        """
        self.scaler.unscale_(self.optimizer)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.train.clip:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.train.clip, norm)
        norm = full(norm)
        self.hyperparameters.prepare(self.optimizer.param_groups, rate, progress)
        if not self.scaler.is_enabled():  # a scaler does this by itself
            skip = (norm - norm) + (loss - loss)  # few kernels: x - x is 0, or NaN, and only NaN is unequal to itself
            skip = skip.ne_(skip).float()  # fused optimizers want float32
            self.optimizer.grad_scale, self.optimizer.found_inf = None, skip  # type: ignore[attr-defined]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.train.compile == "max":
            torch.compiler.cudagraph_mark_step_begin()  # the next step may overwrite what the graphs of this one wrote
        if self.average is not None:
            self.average.update_parameters(self.model)
        return norm

    def metrics(self) -> dict[str, float]:
        """The weight decay of the newest step, where it changes in a run."""
        if self.hyperparameters.weight_decay_end == self.hyperparameters.weight_decay:
            return {}
        decays = [
            group["weight_decay"]
            for group in self.optimizer.param_groups
            if not group["no_weight_decay"] and group["own_weight_decay"] is None
        ]
        return {keys.WEIGHT_DECAY: decays[0]} if decays else {}

    @property
    def evaluated(self) -> nn.Module:
        """The model that is evaluated: the moving average, where there is one."""
        return self.model if self.average is None else self.average.module

    @contextmanager
    def eval_mode(self) -> Iterator[nn.Module]:
        """Inside, that model with all weights on every rank, without gradients. It is not compiled: batches vary."""
        averaged, eager = self.hyperparameters.averaged(self.optimizer), torch.compiler.set_stance("force_eager")
        with torch.no_grad(), eager, averaged, self.strategy.gather(self.evaluated) as model:
            model.eval()
            yield model
            model.train()

    def state(self, offload: bool = True) -> dict:
        """The part of a checkpoint with all tensors, on the main rank. All ranks must call it.

        offload: they are in main memory; else on the device, where that has them all. The next step changes those that
        it trains in either case, unless they were copied or gathered.
        """
        options = self.strategy.state_options(offload)
        # an optimizer has no state before its first step, and PyTorch would take a step here to make it
        moments = NO_MOMENTS
        if self.optimizer.state:
            moments = get_optimizer_state_dict(self.model, self.optimizer, options=options)
        return {
            "model": get_model_state_dict(self.model, options=options),
            "ema": self._average_state(options),
            "optimizer": moments,
            "scaler": self.scaler.state_dict(),
        }

    def _average_state(self, options: StateDictOptions) -> dict[str, Any]:
        """The weights that are evaluated, where they are an average; empty where they are those that are trained."""
        if self.average is not None:
            return get_model_state_dict(self.average, options=options)
        if not self.hyperparameters.averages:
            return {}
        with self.hyperparameters.averaged(self.optimizer):
            weights: dict[str, Any] = get_model_state_dict(self.model, options=FULL)
            return {f"module.{name}": weight.clone() for name, weight in weights.items()}  # as AveragedModel names them

    def load(self, content: Mapping, path: Path) -> None:
        """Takes the state that `state` returned, from the file `path`. Raises ValueError where it does not fit."""
        if content["optimizer"]["state"]:
            self._load_moments(content["optimizer"])
        checkpoint.load_strict(self.model, content["model"], path)
        if self.average is not None:
            checkpoint.load_strict(self.average, content["ema"], path)
        self.scaler.load_state_dict(content["scaler"])

    def _load_moments(self, saved: Mapping[str, Any]) -> None:
        """Of each parameter by its name or, in files of 0.1.0, by its number in the order of the groups."""
        hyperparameters = [dict(group) for group in self.optimizer.param_groups]  # those of files differ
        groups: Any = get_optimizer_state_dict(self.model, self.optimizer)["param_groups"]
        names = [name for group in groups for name in group["params"]]
        moments = {names[key] if isinstance(key, int) else key: value for key, value in saved["state"].items()}
        state: Any = {"state": moments, "param_groups": groups}
        set_optimizer_state_dict(self.model, self.optimizer, state, options=FULL)
        counters = self.hyperparameters.counters
        counted = saved["param_groups"] if counters else hyperparameters
        for group, values, before in zip(self.optimizer.param_groups, hyperparameters, counted, strict=True):
            group.update(values, **{name: before[name] for name in counters if name in before})
