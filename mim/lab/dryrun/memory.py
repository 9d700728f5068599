"""The memory of a training step, by rehearsing it with tensors that take none."""

import warnings
from contextlib import nullcontext

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mim.cost.gpu_rules import GpuRules
from mim.cost.memory import Followed, Memory
from mim.engine.settings import Plan
from mim.lab.dryrun.task import Bare
from mim.lab.dryrun.trainer import Phase, Rehearsal
from mim.ops.attention import choose_attention

CPU = torch.device("cpu")


def estimate_memory(bare: Bare, plan: Plan, gpu: bool) -> Memory:
    """Memory of a step of this plan on one of its devices, without taking any. torch.compile is not reckoned with.

    gpu: as on a GPU, whether there is one or not. Raises RuntimeError or TypeError where a part of a user's has to look
    at values.
    """
    task, followed, rules = bare.of_one_step(plan), Followed(), GpuRules()
    settings = bare.engine(compiled=False)
    with (
        warnings.catch_warnings(),
        FakeTensorMode(allow_non_fake_inputs=True),
        rules if gpu else nullcontext(),
        followed,
    ):
        warnings.simplefilter("ignore", UserWarning)  # of a copy of fake weights (EMA)
        for module in (task.model, task.normalize):
            module.to_empty(device=CPU)
            vars(module)["to"] = lambda device, module=module: module  # PyTorch cannot move such tensors, nor need it
            followed.name("weights", [*module.parameters(), *module.buffers()])
        task.normalize.register_forward_hook(lambda module, given, img: followed.name("batch", [img]))

        def entered(phase: Phase) -> None:
            if phase in ("batch", "update"):
                followed.name("gradients", [p.grad for p in rehearsal.train_state.parameters if p.grad is not None])
            followed.enter(phase)

        for block in task.blocks() if gpu else []:
            block.forward = rules.around(block.forward)
        rehearsal = Rehearsal(task, settings, plan, bare.noise, CPU, entered)
        choose_attention(task.model, torch.device("cuda") if gpu else CPU)
        rehearsal.settle()
        state = [value for held in rehearsal.train_state.optimizer.state.values() for value in held.values()]
        followed.name("optimizer", [value for value in state if isinstance(value, torch.Tensor)])
        followed.name("gradients", rehearsal.buckets.values())
        if rehearsal.train_state.average is not None:
            followed.name(
                "average", [*rehearsal.train_state.average.parameters(), *rehearsal.train_state.average.buffers()]
            )
        followed.restart()
        rehearsal.take_step()
        return followed.peak()
