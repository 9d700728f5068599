"""The memory of a training step, estimated by a dry run with fake tensors, which take none."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mim.cost.gpu_rules import GpuRules
from mim.cost.memory import Memory, MemoryTracker
from mim.engine.plan import Plan
from mim.lab.dryrun.task import DryTask, Task
from mim.lab.dryrun.trainer import DryTrainer, Phase
from mim.model import MaskedImageModel
from mim.ops.attention import choose_attention

CPU = torch.device("cpu")


def estimate_memory(dry: DryTask, plan: Plan, gpu: bool) -> Memory:
    """Memory of a step of this plan on one of its devices, a GPU or a CPU. It ignores torch.compile.

    This machine needs no GPU. Raises RuntimeError or TypeError where a user's part needs values.
    """
    task, tracker, rules = dry.one_step_task(plan), MemoryTracker(), GpuRules()
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with warnings.catch_warnings(), _copied_networks(task) as networks, fake, rules if gpu else nullcontext(), tracker:
        warnings.simplefilter("ignore", UserWarning)  # about a copy of fake weights (EMA)
        for module in (task.model, task.preprocess, *networks):
            module.to_empty(device=CPU)
            vars(module)["to"] = lambda device, module=module: module  # PyTorch cannot move fake tensors
            tracker.label("weights", [*module.parameters(), *module.buffers()])
        task.preprocess.register_forward_hook(lambda module, inputs, img: tracker.label("batch", [img]))

        def on_phase(phase: Phase) -> None:
            if phase in ("batch", "update"):
                tracker.label("gradients", [p.grad for p in trainer.train_state.parameters if p.grad is not None])
            tracker.begin(phase)

        for block in task.blocks() if gpu else []:
            block.forward = rules.around(block.forward)
        trainer = DryTrainer(task, dry.engine_settings(compiled=False), plan, dry.noise, CPU, on_phase)
        choose_attention(task.model, torch.device("cuda") if gpu else CPU)
        trainer.make_optimizer_state()
        state = trainer.train_state
        moments = [value for values in state.optimizer.state.values() for value in values.values()]
        tracker.label("optimizer", [value for value in moments if isinstance(value, torch.Tensor)])
        tracker.label("gradients", trainer.buckets.values())
        if state.average is not None:
            tracker.label("average", [*state.average.parameters(), *state.average.buffers()])
        tracker.forget_freed()
        trainer.take_step()
        return tracker.peak()


@contextmanager
def _copied_networks(task: Task) -> Iterator[list[nn.Module]]:
    """Inside, the target has copies of its frozen networks, which copies of a model share; gives the copies."""
    owners = task.model.target.frozen_networks() if isinstance(task.model, MaskedImageModel) else []
    originals = [owner.network for owner in owners]
    for owner in owners:
        owner.network = deepcopy(owner.network)
    try:
        yield [owner.network for owner in owners]
    finally:
        for owner, original in zip(owners, originals, strict=True):
            owner.network = original
