"""Parallel: how the devices of a run share its weights: one alone, whole replicas (DDP), or a shard each (FSDP2)."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map

from mim.engine.distributed.world import World


class SingleDevice:
    """One process has everything. The others differ where they say so.

    Every method is called on all ranks at the same place.
    """

    def shard(self, model: nn.Module, blocks: list[nn.Module], precision: torch.dtype) -> None:
        """Leaves this rank its part of a model's weights; before the optimizer is made."""

    def wrap(self, model: nn.Module, blocks: list[nn.Module], compiled: bool) -> nn.Module:
        """The model as a training step calls it."""
        if compiled:
            model.compile(fullgraph=True)
        return model

    def exchange(self, wrapped: nn.Module, now: bool) -> AbstractContextManager:
        """Around a forward and backward pass: whether its gradients are exchanged, or wait for those of a later one."""
        return nullcontext()

    def evaluated(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        """The model with whole weights, for evaluations, in which ranks need not keep in step."""
        return nullcontext(model)

    def gather(self, state: Any) -> Any:
        """A state of plain values with every tensor whole."""
        return state

    def scatter(self, state: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
        """This rank's part of the whole tensors of a model's state dict."""
        return state

    def scatter_optimizer(self, state: dict, optimizer: torch.optim.Optimizer) -> dict:
        """This rank's part of the whole tensors of an optimizer's state dict."""
        return state


class DataParallel(SingleDevice):
    """DistributedDataParallel: every rank has all weights; gradients are averaged."""

    def wrap(self, model: nn.Module, blocks: list[nn.Module], compiled: bool) -> nn.Module:
        return DistributedDataParallel(super().wrap(model, blocks, compiled), gradient_as_bucket_view=True)

    def exchange(self, wrapped: nn.Module, now: bool) -> AbstractContextManager:
        return nullcontext() if now else wrapped.no_sync()  # type: ignore[operator]


class FullyShardedDataParallel(SingleDevice):
    """FSDP2: every rank has a share of each weight, its gradient and its moments; a block is whole while it computes.

    Blocks are gathered in the precision of the products, all else in fp32; gradients are always reduced in fp32.
    Source: Zhao et al. 2023; torch.distributed.fsdp.fully_shard.
    """

    def __init__(self, world: World):
        self.world, self.mesh = world, init_device_mesh(world.device.type, (world.size,))
        # timm's Swin blocks return views, and nothing of ours changes what a block returns in place
        warnings.filterwarnings("ignore", r"FSDP2-wrapped module \(FSDPSwin\w+\) returned a view tensor")
        self._plain: nn.Module | None = None

    def shard(self, model: nn.Module, blocks: list[nn.Module], precision: torch.dtype) -> None:
        if self._plain is None:
            self._plain = deepcopy(model).cpu()  # of it, evaluations need modules and constants, not the weights
        lower = precision if precision != torch.float32 else None
        policy = MixedPrecisionPolicy(param_dtype=lower, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for block in blocks:
            for norm in block.modules():
                if isinstance(norm, nn.LayerNorm) and lower:
                    norm.forward = partial(_normalise, norm)  # type: ignore[method-assign]
            fully_shard(block, mesh=self.mesh, mp_policy=policy)
        fully_shard(model, mesh=self.mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))

    def wrap(self, model: nn.Module, blocks: list[nn.Module], compiled: bool) -> nn.Module:
        if compiled:
            for block in blocks:  # not what gathers it, which stays outside
                block.forward = torch.compile(block.forward, fullgraph=True)
        return model

    def exchange(self, wrapped: nn.Module, now: bool) -> AbstractContextManager:
        assert isinstance(wrapped, FSDPModule)
        wrapped.set_requires_gradient_sync(now)
        return nullcontext()

    @contextmanager
    def evaluated(self, model: nn.Module) -> Iterator[nn.Module]:
        """A copy with whole weights, on the device for as long as it is evaluated."""
        assert self._plain is not None
        plain = self._plain.to(self.world.device)
        held = plain.state_dict()
        for name, value in model.state_dict().items():
            held[name].copy_(full(value))
        yield plain
        plain.cpu()

    def gather(self, state: Any) -> Any:
        """On the CPU, and on the main rank alone: elsewhere tensors that were cut are empty."""
        main = self.world.main

        def gathered(value: Any) -> Any:
            if not isinstance(value, DTensor):
                return value
            found = full(value)
            return found.cpu() if main else found.new_empty(0)

        return tree_map(gathered, state)

    def scatter(self, state: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
        like = model.state_dict()
        return {name: _shard_as(like.get(name), value) for name, value in state.items()}

    def scatter_optimizer(self, state: dict, optimizer: torch.optim.Optimizer) -> dict:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        moments = {
            place: {name: _shard_as(parameters[place], value) for name, value in held.items()}
            for place, held in state["state"].items()
        }
        return {**state, "state": moments}


def make_strategy(strategy: str, world: World) -> SingleDevice:
    """What DISTRIBUTED.strategy names; one process outside torchrun is alone whatever it says."""
    if not world.grouped:
        return SingleDevice()
    return FullyShardedDataParallel(world) if strategy == "fsdp" else DataParallel()


def full(value: Tensor) -> Tensor:
    """A tensor that may be spread over ranks, whole on each of them."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def _normalise(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """A layer norm in the precision of its input, as autocast has it on a GPU; a CPU refuses weights in another."""
    weight, bias = (held if held is None else held.to(x.dtype) for held in (norm.weight, norm.bias))
    return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)


def _shard_as(like: Tensor | None, value: Any) -> Any:
    """This rank's part of a whole tensor that every rank has, cut as `like` is; anything else as it is."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
