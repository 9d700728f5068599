"""What a training step costs: its memory, by rehearsing it with tensors that take none; and both memory and time, by
taking some real steps.
"""

import copy
import os
import time
import warnings
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any, Self

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.profiler import profile

from mim import build, schema
from mim.classifier import Classifier
from mim.data.loader import ImageDataset
from mim.engine.rehearsal import Noise, Phase, Rehearsal
from mim.engine.settings import EngineSettings, Plan
from mim.evaluation.gpu_rules import GpuRules
from mim.evaluation.memory import Followed, Memory
from mim.model import MaskedImageModel
from mim.ops.attention import choose_attention
from mim.plan.bare import Absent, Bare, Task
from mim.tasks.pretrain import Pretrain

CPU = torch.device("cpu")
WARM = 2  # steps before the clock counts: the first makes the optimizer's state
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Real steps on one device.

    micro_s: seconds of forward and backward of one micro-batch; update_s: of clipping and stepping, once a step;
    tensors: bytes of tensors at the peak; process: bytes by which the process grew for it, None where that is not known.
    """

    steps: int
    micro_s: float
    update_s: float
    tensors: int
    process: int | None


def estimate_memory(bare: Bare, plan: Plan, gpu: bool) -> Memory:
    """Memory of a step of this plan on one of its devices, without taking any. torch.compile is not reckoned with.

    gpu: as on a GPU, whether there is one or not. Raises RuntimeError or TypeError where a part of a user's has to look
    at values.
    """
    task, followed, rules = _copy(bare, plan), Followed(), GpuRules()
    settings = _engine(bare, compiled=False)
    with (
        warnings.catch_warnings(),
        FakeTensorMode(allow_non_fake_inputs=True),
        rules if gpu else nullcontext(),
        followed,
    ):
        warnings.simplefilter("ignore", UserWarning)  # of a copy of fake weights (EMA)
        for module in (task.model, task.normalize):
            module.to_empty(device=CPU)
            module.to = lambda device, module=module: (
                module
            )  # it is there; PyTorch would replace each tensor, and cannot
            followed.name("weights", [*module.parameters(), *module.buffers()])
        task.normalize.register_forward_hook(lambda module, given, img: followed.name("batch", [img]))

        def entered(phase: Phase) -> None:
            if phase in ("batch", "update"):
                followed.name("gradients", [p.grad for p in rehearsal.parameters if p.grad is not None])
            followed.enter(phase)

        for block in task.blocks() if gpu else []:
            block.forward = rules.around(block.forward)
        rehearsal = Rehearsal(task, settings, plan, _noise(bare), CPU, entered)
        choose_attention(task.model, torch.device("cuda") if gpu else CPU)
        rehearsal.settle()
        state = [value for held in rehearsal.optimizer.state.values() for value in held.values()]
        followed.name("optimizer", [value for value in state if isinstance(value, torch.Tensor)])
        followed.name("gradients", rehearsal.buckets.values())
        if rehearsal.ema is not None:
            followed.name("average", [*rehearsal.ema.parameters(), *rehearsal.ema.buffers()])
        followed.restart()
        rehearsal.take_step()
        return followed.peak()


def measure(bare: Bare, plan: Plan, steps: int, device: torch.device) -> Measured:
    """Takes real steps of this plan, as one of its devices, on random images, after two that do not count."""
    held, clock = _resident() if _forget() else None, _Clock(device)
    with _Peak(device) as peak:
        task = _copy(bare, plan)
        task.model = _weights(bare)
        rehearsal = Rehearsal(task, _engine(bare), plan, _noise(bare), device, clock.entered)
        for _ in range(WARM):
            rehearsal.take_step()
    clock.steps.clear()
    for _ in range(steps):
        rehearsal.take_step()
    most = _resident("VmHWM")
    micro = [(step["forward"] + step["backward"]) / rehearsal.plan.accumulation for step in clock.steps]
    return Measured(
        steps=steps,
        micro_s=median(micro),
        update_s=median(step["update"] for step in clock.steps),
        tensors=peak.bytes,
        process=None if held is None or most is None else most - held,
    )


class _Clock:
    """Seconds of each phase of each step."""

    def __init__(self, device: torch.device):
        self.device, self.steps = device, []
        self._spent, self._phase, self._since = Counter(), "", 0.0

    def entered(self, phase: Phase) -> None:
        if self.device.type == "cuda" and phase in ("update", "end"):
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self._spent[self._phase] += now - self._since
        self._phase, self._since = phase, now
        if phase == "end":
            self.steps.append(self._spent)
            self._spent = Counter()


class _Peak:
    """The most bytes that tensors made inside took at once, by the record of PyTorch's allocator."""

    def __init__(self, device: torch.device):
        self.device, self.bytes = device, 0

    def __enter__(self) -> Self:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
            return self
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it speaks of a missing GPU otherwise
        self._record = profile(use_kineto=False, profile_memory=True)
        self._record.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self._before
            return
        self._record.__exit__(*error)
        events = [
            (event.start_ns(), event.nbytes())
            for event in self._record.kineto_results.events()
            if event.name() == "[memory]"
        ]
        self.bytes = max(accumulate(size for _, size in sorted(events)), default=0)


def _copy(bare: Bare, plan: Plan) -> Task:
    """The task with a model and a normalisation of its own, and just as many images as one step takes."""
    task, data = copy.copy(bare.task), bare.task.train_data
    task.model, task.normalize = copy.deepcopy(task.model), copy.deepcopy(task.normalize)
    task.fixed = [task.normalize]
    one_step = Absent("train", data.source.settings, plan.batch, bare.classes or 0)
    task.train_data = ImageDataset(one_step, data.transform, data.seed)
    return task


def _weights(bare: Bare) -> MaskedImageModel | Classifier:
    if isinstance(bare.task, Pretrain):
        return build.build_model(bare.cfg)
    return build.build_classifier(bare.cfg, len(bare.task.classes))


def _engine(bare: Bare, compiled: bool = True) -> EngineSettings:
    settings = build.engine_settings(bare.cfg)
    return settings if compiled else replace(settings, train=replace(settings.train, compile=False))


def _noise(bare: Bare) -> Noise:
    classes = 0 if isinstance(bare.task, Pretrain) else len(bare.task.classes)
    return Noise(image=schema.image_spec(bare.cfg), stored=bare.stored or torch.uint8, classes=classes)


def _resident(key: str = "VmRSS") -> int | None:
    """Bytes of memory of this process, now or (VmHWM) at most since _forget; None where the system does not tell."""
    try:
        words = next(line.split() for line in STATUS.read_text().splitlines() if line.startswith(key))
    except (OSError, StopIteration):
        return None
    return int(words[1]) * 1024


def _forget() -> bool:
    """Lets the record of the most memory begin anew; False where the system does not do that."""
    try:
        RESET.write_text("5")
    except OSError:
        return False
    return True
