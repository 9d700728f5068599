"""How the devices of a run share a model: one alone, a copy on each (DDP), or a shard of each weight (FSDP2, HSDP)."""

import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.parallel import DistributedDataParallel

from mim.engine.distributed.world import World
from mim.engine.settings import Compile, DistributedSettings

FULL = StateDictOptions(full_state_dict=True, cpu_offload=True, strict=False)  # sharded tensors are gathered
IN_PLACE = StateDictOptions(strict=False)


class SingleDevice:
    """One process has all weights. The other strategies differ where they override a method.

    All ranks must call each method at the same point of the run.
    """

    def shard(self, model: nn.Module, blocks: list[nn.Module], precision: torch.dtype) -> None:
        """Leaves this rank its part of the model's weights. Call it before the optimizer is built."""

    def wrap(self, model: nn.Module, blocks: list[nn.Module], compiled: Compile) -> nn.Module:
        """Returns the model as a training step calls it."""
        if compiled:
            model.compile(fullgraph=True, mode="reduce-overhead" if compiled == "max" else None)
        return model

    def exchange(self, wrapped: nn.Module, now: bool) -> AbstractContextManager:
        """Around a forward and backward pass: exchange its gradients now, or with those of a later pass."""
        return nullcontext()

    def gather(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        """Inside, the model with all weights on every rank, for an evaluation: ranks need not make equal calls."""
        return nullcontext(model)

    def state_options(self, offload: bool) -> StateDictOptions:
        """How a state with all tensors is made. offload: in main memory; else on the device, if it has them all."""
        return FULL if offload else IN_PLACE


class DataParallel(SingleDevice):
    """DistributedDataParallel: every rank has all weights; gradients are averaged.

    Args:
        bucket_mb: MiB of gradients that are sent at a time.
    """

    def __init__(self, bucket_mb: float = DistributedSettings.bucket_mb):
        self.bucket_mb = bucket_mb

    def wrap(self, model: nn.Module, blocks: list[nn.Module], compiled: Compile) -> nn.Module:
        whole = super().wrap(model, blocks, compiled)
        return DistributedDataParallel(whole, bucket_cap_mb=self.bucket_mb, gradient_as_bucket_view=True)

    def exchange(self, wrapped: nn.Module, now: bool) -> AbstractContextManager:
        return nullcontext() if now else wrapped.no_sync()  # type: ignore[operator]


class FullyShardedDataParallel(SingleDevice):
    """FSDP2: every rank has a shard of each weight, its gradient and its moments; a block is gathered to compute.

    Blocks are gathered in the precision of the products, all other weights, and blocks with batch normalisation, in
    fp32. Gradients are reduced in fp32.

    Args:
        mesh: of the devices over which each weight is sharded, and before them of its copies; one axis over all devices
            where it is None.

    Source: Zhao et al. 2023; torch.distributed.fsdp.fully_shard.
    """

    def __init__(self, world: World, mesh: DeviceMesh | None = None):
        self.world, self.mesh = world, mesh or init_device_mesh(world.device.type, (world.size,))
        # timm's Swin blocks and some heads return views, and no code here changes a result in place
        views = r"FSDP2-wrapped module \(FSDP(Swin\w+|MaskedImageModel)\) returned a view tensor"
        warnings.filterwarnings("ignore", views)
        self._plain: nn.Module | None = None

    def shard(self, model: nn.Module, blocks: list[nn.Module], precision: torch.dtype) -> None:
        if self._plain is None:
            self._plain = deepcopy(model).cpu()  # evaluations need its modules and constants, not the weights
        lower = precision if precision != torch.float32 else None
        for block in blocks:
            # running statistics are fp32, and PyTorch wants the weights beside them in the same precision
            dtype = None if any(isinstance(norm, BatchNorm) for norm in block.modules()) else lower
            for norm in block.modules():
                if isinstance(norm, nn.LayerNorm) and dtype:
                    norm.forward = partial(_normalise, norm)  # type: ignore[method-assign]
            policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
            fully_shard(block, mesh=self.mesh, mp_policy=policy)
        fully_shard(model, mesh=self.mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))

    def wrap(self, model: nn.Module, blocks: list[nn.Module], compiled: Compile) -> nn.Module:
        if compiled:
            for block in blocks:  # the hooks that gather a block stay outside the graph
                block.forward = torch.compile(block.forward, fullgraph=True)
        return model

    def exchange(self, wrapped: nn.Module, now: bool) -> AbstractContextManager:
        assert isinstance(wrapped, FSDPModule)
        wrapped.set_requires_gradient_sync(now)
        return nullcontext()

    @contextmanager
    def gather(self, model: nn.Module) -> Iterator[nn.Module]:
        """A plain copy, on the device for as long as it is evaluated."""
        assert self._plain is not None
        weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
        self._plain.load_state_dict(weights, assign=True)
        yield self._plain.to(self.world.device)
        self._plain.cpu()

    def state_options(self, offload: bool) -> StateDictOptions:
        """Always in main memory: a device has no room for all weights of a model that needs shards."""
        return FULL


def make_strategy(settings: DistributedSettings, world: World) -> SingleDevice:
    """The strategy that DISTRIBUTED.strategy names; without torchrun always a single device.

    Raises ValueError, on every rank, where DISTRIBUTED.shard_devices does not fit the devices.
    """
    if not world.grouped:
        return SingleDevice()
    if settings.strategy == "ddp":
        return DataParallel(settings.bucket_mb)
    return FullyShardedDataParallel(world, replica_mesh(settings, world) if settings.strategy == "hsdp" else None)


def replica_mesh(settings: DistributedSettings, world: World) -> DeviceMesh:
    """The devices as copies x shards: the ranks that share a copy follow each other, as torchrun numbers a node's.

    Raises ValueError, on every rank, where DISTRIBUTED.shard_devices is 0 and the nodes have different numbers of
    devices, and where it does not divide the number of devices.
    """
    shards = settings.shard_devices
    if not shards:
        nodes = world.gather_objects(int(os.environ.get("LOCAL_WORLD_SIZE", 0)))
        shards = nodes[0]
        if not shards or any(devices != shards for devices in nodes):
            raise ValueError(
                "DISTRIBUTED.strategy is hsdp, and DISTRIBUTED.shard_devices 0 takes the devices of a node, but "
                f"LOCAL_WORLD_SIZE is {' '.join(map(str, sorted(set(nodes))))} (0: not set) on the ranks: set "
                f"DISTRIBUTED.shard_devices to a divisor of the {world.size} devices"
            )
    if world.size % shards:
        raise ValueError(
            f"DISTRIBUTED.strategy is hsdp with {shards} devices a copy (DISTRIBUTED.shard_devices; 0 means those of a "
            f"node), which do not divide the {world.size} devices of the run: set a divisor, or take "
            "DISTRIBUTED.strategy fsdp"
        )
    names = ("copies", "shards")
    return init_device_mesh(world.device.type, (world.size // shards, shards), mesh_dim_names=names)


def full(value: Tensor) -> Tensor:
    """A tensor that may be spread over ranks, gathered on each of them."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def _normalise(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """A layer norm in the precision of its input, as autocast computes it on a GPU. A CPU refuses mixed ones."""
    weight, bias = (None if value is None else value.to(x.dtype) for value in (norm.weight, norm.bias))
    return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)
