"""The step: what it casts, compiles, keeps and waits for."""

import sys
from contextlib import nullcontext

import pytest
import torch
from processes import TINY, run
from small_models import assemble, images
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from mim.build import load_config
from mim.engine.modes import cast_once
from mim.engine.prefetcher import Prefetcher
from mim.lab.dryrun.measure import dry_trainer
from mim.lab.dryrun.task import dry_task

CPU = torch.device("cpu")


class Casts(TorchDispatchMode):
    """Counts the casts of tensors of one shape to half precision."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default and args[0].shape == self.shape:
            self.count += (kwargs or {}).get("dtype") is torch.bfloat16
        return function(*args, **(kwargs or {}))


class DivisionsByOne(TorchDispatchMode):
    """Counts those of losses and metrics: on a GPU each would be a kernel that changes nothing."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten.div.Tensor, torch.ops.aten.div.Scalar):
            self.count += args[0].ndim <= 1 and not isinstance(args[1], torch.Tensor) and args[1] == 1
        return function(*args, **(kwargs or {}))


def digits(**keys):
    pairs = TINY | {name.replace("__", "."): value for name, value in keys.items()}
    words = [str(word) for pair in pairs.items() for word in pair]
    return dry_task(load_config("configs/quickstart/mae_digits.yaml", words))


def small_trainer(device, **keys):
    dry = digits(**keys)
    return dry_trainer(dry, dry.plan(1), device, lambda phase: None)


def test_step_casts_each_weight_once_for_all_its_micro_batches():
    trainer = small_trainer(CPU, DATA__batch_size=8, TRAIN__batch=16, TRAIN__precision="bf16")
    assert trainer.plan.accumulation == 2
    weight = trainer.task.model.encoder.backbone.blocks[0].mlp.fc1.weight
    with Casts(weight.shape) as casts:
        trainer.take_step()
    same = [parameter for parameter in trainer.train_state.parameters if parameter.shape == weight.shape]
    assert casts.count == len(same)


def test_step_of_one_micro_batch_divides_nothing_by_one():
    trainer = small_trainer(CPU, DATA__batch_size=16, TRAIN__batch=16)
    with DivisionsByOne() as divisions:
        trainer.take_step()
    assert not divisions.count


def test_cast_once_changes_no_gradient():
    def gradients(context):
        torch.manual_seed(0)
        layer, x = torch.nn.Linear(8, 8), torch.randn(4, 8)
        with context:
            for scale in (1, 2):
                with torch.autocast("cpu", torch.bfloat16):
                    loss = layer(scale * x).square().sum()
                assert not torch.is_autocast_enabled("cpu")
                loss.backward()
        return [parameter.grad for parameter in layer.parameters()]

    for once, reference in zip(gradients(cast_once(CPU)), gradients(nullcontext()), strict=True):
        assert torch.equal(once, reference)


FREE_MEMORY = """
import ctypes, torch
from mim.engine.modes import kept_memory
libc = ctypes.CDLL(None)
class Info(ctypes.Structure):  # malloc.h, struct mallinfo2
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd 5 6 7 fordblks keepcost".split()]
libc.mallinfo2.restype = Info
def free_mib():
    for _ in range(4):
        [torch.ones(2**22) for _ in range(8)]  # 128 MiB at once, more than glibc keeps by itself
    return libc.mallinfo2().fordblks >> 20
print(free_mib())
with kept_memory(torch.device("cpu")):
    print(free_mib())
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_kept_memory_stays_with_the_process():
    """MiB that are free and that glibc has not given back."""
    code, output = run([sys.executable, "-c", FREE_MEMORY])
    assert code == 0, output
    usual, pooled = map(int, output.split()[-2:])
    assert max(usual, 128) <= pooled  # without it, how much depends on what lies above the blocks


@pytest.mark.slow
def test_step_compiles_one_graph_and_never_again():
    torch.compiler.reset()  # a test before this one may have compiled the same step
    counters.clear()
    trainer = small_trainer(CPU, TRAIN__compile=True)
    trainer.take_step()
    assert counters["stats"]["unique_graphs"] == 1
    with torch.compiler.set_stance("fail_on_recompile"):
        for _ in range(3):
            trainer.take_step()
    assert not counters["graph_break"]


@pytest.mark.slow
def test_step_with_graphs_of_a_gpu_is_the_compiled_step_on_a_cpu(monkeypatch):
    """TRAIN.compile max: the same weights after two steps, and graphs may be overwritten after each step alone."""
    steps = []
    mark = torch.compiler.cudagraph_mark_step_begin
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: steps.append(mark()))
    weights = {}
    for compiled in (True, "max"):
        torch.compiler.reset()
        trainer = small_trainer(CPU, TRAIN__compile=compiled, DATA__batch_size=8, TRAIN__batch=16)
        for _ in range(2):
            trainer.take_step()
        weights[compiled] = [weight.detach().clone() for weight in trainer.train_state.parameters]
    assert len(steps) == 2
    assert all(map(torch.equal, weights[True], weights["max"]))


class NoReads(TorchDispatchMode):
    """Raises where the host reads a value of a tensor, for which it would wait on a GPU."""

    READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.name().split(".")[0] not in self.READS, f"{function.name()} makes the host wait"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("masker", "target", "loss", "keys"),
    [
        ("random", "pixels", "mse", {}),
        ("random", "follower", "smooth_l1", {}),
        ("random", "clusters", "cross_entropy", {"target_keys": {"clusters": 5}}),
        ("semantic", "teacher", "cosine", {}),
        ("multi_block", "hog", "l1", {}),
    ],
)
def test_step_of_a_target_reads_no_value(masker, target, loss, keys):
    """From its second time on, with two masks of each image; the update of a network after the step, too."""
    model, img = assemble(masker, "vit", "drop", "transformer", target, loss, **keys).train(), images(2)
    for step in range(2):
        with NoReads() if step else nullcontext():
            mask = model.masker.sample(4, None, CPU)
            model(img, mask).loss.backward()
            model.target.after_step(model.encoder, 0.5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("compiled", [False, True, "max"])
def test_step_on_a_gpu_never_makes_the_host_wait(compiled):
    trainer = small_trainer(torch.device("cuda"), TRAIN__compile=compiled)
    for _ in range(4):
        trainer.take_step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            trainer._train_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_feed_prefetches_the_same_batches():
    dry = digits()
    trainer = dry_trainer(dry, dry.plan(1), torch.device("cuda"), lambda phase: None)

    def batches(prefetch):
        prefetcher = Prefetcher(dry.task.train_data, trainer.plan, trainer.world, 0, 0, trainer.broken)
        images = []
        for _ in range(3):
            images.append(prefetcher.next().images_BCHW.cpu())
            if prefetch:
                prefetcher.prefetch()
        return torch.stack(images)

    assert torch.equal(batches(prefetch=True), batches(prefetch=False))
