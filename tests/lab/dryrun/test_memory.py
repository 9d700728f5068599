"""The estimated memory of a training step: equal to what PyTorch's allocator records, and in line with the process."""

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import timm
import torch
from processes import ROOT, run
from safetensors.torch import save_file
from small_data import write_recipe
from small_models import CPU
from torch._subclasses.fake_tensor import FakeTensorMode

from mim import build, load_config
from mim.cost.gpu_rules import GpuRules
from mim.cost.memory import MemoryTracker
from mim.lab.dryrun.measure import measure_steps
from mim.lab.dryrun.memory import estimate_memory
from mim.lab.dryrun.task import dry_task
from mim.structures import PatchMask

CLOSE = 0.15  # of what is promised
VIT = "{name: vit, hidden: drop, patch: 8, width: 192, depth: 4, heads: 3}"
MAE = f"""\
TASK: pretrain
DATA: {{name: digits, image_size: [64, 128], channels: 3, batch_size: 16, workers: 0}}
MASKER: {{name: random, cell: 8, ratio: 0.75}}
ENCODER: {VIT}
HEAD: {{name: transformer, width: 128, depth: 2, heads: 4}}
TARGET: {{name: pixels, normalize: patch}}
LOSS: {{name: mse}}
"""
SIMMIM = MAE.replace("{name: transformer, width: 128, depth: 2, heads: 4}", "{name: pixel_shuffle}").replace(
    "cell: 8", "cell: 16"
)
SWIN = "{name: swin, hidden: replace, patch: 4, width: 48, depths: [2, 2, 2], heads: [3, 6, 12], window: 4}"
FINETUNE = f"""\
TASK: finetune
DATA: {{name: digits, image_size: [64, 64], channels: 3, batch_size: 16, workers: 0}}
AUGMENT: {{mixup: 0.8, cutmix: 1.0, erase: 0.25, smoothing: 0.1}}
ENCODER: {VIT.replace("drop", "none")}
"""
RECIPES = {
    "mae": MAE,
    "swin": SIMMIM.replace(VIT, SWIN),
    "beit": SIMMIM.replace(VIT, VIT.replace("vit", "beit").replace("drop", "replace")),
    "finetune": FINETUNE,
    "probe": FINETUNE.replace("finetune", "probe").replace(FINETUNE.splitlines()[2] + "\n", "")
    + "OPTIMIZER: {name: lars}\nCLASSIFIER: {rates: [0.1, 1]}\n",
}


def slow(*values: object):
    return pytest.param(*values, marks=pytest.mark.slow)


def planned(folder: Path, recipe: str, *overrides: str):
    cfg = load_config(write_recipe(folder, RECIPES[recipe]), overrides)
    return dry_task(cfg, 100_000, None if cfg.TASK == "pretrain" else 10)


# ---------------------------------------------------------------- what is tracker


def test_followed_peak_is_the_largest_sum_of_what_is_held_at_once():
    with MemoryTracker() as tracker:
        tensor = torch.zeros(1000)
        tracker.label("weights", [tensor])
        tracker.begin("forward")
        first = tensor + 1
        view = first[:10]  # shares its memory
        passing = first * 2
        del passing
        tracker.begin("backward")
        second = torch.zeros(3000)
        del first, view
        third = torch.ones(100)
        assert len(second) + len(third) == 3100
    peak = tracker.peak()
    assert (peak.weights, peak.activations, peak.temporary) == (4000, 4000, 12000)
    assert peak.total == 20000


def test_followed_restart_forgets_what_was_freed_and_not_what_is_held():
    with MemoryTracker() as tracker:
        large = torch.zeros(10_000)
        tensor = torch.zeros(50)
        del large
        assert tracker.peak().total == 40_200
        tracker.forget_freed()
        torch.zeros(100)
        assert tracker.peak().total == 200 + 400
    assert len(tensor) == 50


def test_followed_counts_in_place_operations_and_views_once():
    with MemoryTracker() as tracker:
        tensor = torch.zeros(1000)
        tensor.add_(1).view(10, 100).t().mul_(2)
        assert tracker.peak().total == 4000


# ---------------------------------------------------------------- against the allocator


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("mae", []),
        slow("mae", ["TRAIN.precision", "fp32"]),
        slow("mae", ["TRAIN.precision", "fp16", "TRAIN.clip", "1.0", "TRAIN.ema", "0.99"]),
        slow("mae", ["TRAIN.activation_checkpointing", "true", "DATA.batch_size", "32"]),
        slow("mae", ["TRAIN.batch", "64"]),
        slow("mae", ["TARGET.name", "follower", "DATA.masks", "2", "TRAIN.precision", "fp32"]),
        slow("mae", ["TARGET.name", "clusters", "TARGET.clusters", "64", "LOSS.name", "cross_entropy"]),
        slow("swin", []),
        slow("swin", ["TRAIN.precision", "fp32", "TRAIN.activation_checkpointing", "true"]),
        slow("beit", ["TRAIN.precision", "fp32"]),
        slow("finetune", []),
        slow("finetune", ["FREEZE.tune_blocks", "1", "TRAIN.activation_checkpointing", "true"]),
        ("probe", []),
    ],
)
def test_estimated_memory_is_what_the_allocator_records(tmp_path, recipe, overrides):
    estimate = planned(tmp_path, recipe, *overrides)
    plan = estimate.plan(1)
    estimated, measured = estimate_memory(estimate, plan, gpu=False), measure_steps(estimate, plan, 1, CPU).tensors
    assert measured > 5e6
    assert estimated.total == pytest.approx(measured, rel=CLOSE)


@pytest.mark.slow
def test_estimated_weights_include_the_network_of_a_teacher(tmp_path):
    file, network = tmp_path / "teacher.safetensors", timm.create_model("test_vit", img_size=(64, 128), num_classes=0)
    save_file(network.state_dict(), file)
    keys = ["TARGET.name", "teacher", "TARGET.checkpoint", str(file), "TARGET.model", "test_vit"]
    estimate = planned(tmp_path, "mae", *keys, "TRAIN.precision", "fp32")
    plan = estimate.plan(1)
    memory, measured = estimate_memory(estimate, plan, gpu=False), measure_steps(estimate, plan, 1, CPU).tensors
    weights = [*estimate.task.model.parameters(), *network.parameters()]
    assert memory.weights == pytest.approx(sum(4 * weight.numel() for weight in weights), rel=0.01)
    assert memory.total == pytest.approx(measured, rel=CLOSE)


@pytest.mark.slow
def test_estimated_memory_takes_none(tmp_path):
    """Of a model and a batch that would take several GiB."""
    program = (
        "import resource, sys; from pathlib import Path; from mim import load_config\n"
        "from mim.lab.dryrun.task import dry_task; from mim.lab.dryrun.memory import estimate_memory\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "def total(depth):\n"
        "    found = dry_task(load_config(sys.argv[1], ['ENCODER.depth', depth]), 10**6)\n"
        "    return estimate_memory(found, found.plan(1), gpu=True).total\n"
        "total('1'); before = peak(); print(total('8'), peak() - before)\n"
    )
    path = write_recipe(tmp_path, MAE.replace("width: 192", "width: 1536").replace("batch_size: 16", "batch_size: 128"))
    code, output = run([sys.executable, "-c", program, str(path)])
    assert code == 0, output
    total, grown = map(int, output.split()[-2:])
    assert total > 4 * 2**30
    assert grown < 0.05 * total


@pytest.mark.slow
def test_estimated_memory_is_what_a_fresh_process_grows_by(tmp_path):
    """Its tensors alone would be no measure of that: the C library is told to give freed memory back."""
    program = (
        "import sys; import torch; from mim import load_config\n"
        "from mim.lab.dryrun.task import dry_task; from mim.lab.dryrun.memory import estimate_memory\n"
        "from mim.lab.dryrun.measure import measure_steps; from mim.lab.dryrun import trainer\n"
        "from contextlib import nullcontext\n"
        "trainer.kept_memory = nullcontext\n"
        "def taken(width):\n"
        "    found = dry_task(load_config(sys.argv[1], ['ENCODER.width', width]), 10**6)\n"
        "    return found, measure_steps(found, found.plan(1), 1, torch.device('cpu')).process\n"
        "taken('192')  # what PyTorch sets up once\n"
        "found, process = taken('960'); print(estimate_memory(found, found.plan(1), gpu=False).total, process)\n"
    )
    path = write_recipe(tmp_path, MAE)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    estimated, grown = done.stdout.split()
    if grown == "None":
        pytest.skip("this system does not tell how large a process was")
    assert int(estimated) > 600 * 2**20
    assert int(estimated) == pytest.approx(int(grown), rel=CLOSE)


# ---------------------------------------------------------------- several devices


@pytest.mark.slow
def test_estimated_memory_of_several_devices_has_a_second_gradient_under_accumulation(tmp_path):
    """DistributedDataParallel's buckets are of use in a step's last micro-batch alone, and are there all the time."""
    estimate = planned(tmp_path, "mae", "TRAIN.batch", "64")
    alone, shared = (estimate_memory(estimate, estimate.plan(devices), gpu=False) for devices in (1, 2))
    weights = 4 * sum(parameter.numel() for parameter in estimate.task.model.parameters() if parameter.requires_grad)
    assert shared.gradients - alone.gradients == pytest.approx(weights, rel=0.01)
    assert shared.total - alone.total == pytest.approx(weights, rel=0.01)


DDP = """
import os, sys
from itertools import accumulate
from pathlib import Path
os.environ["KINETO_LOG_LEVEL"] = "99"
from torch.autograd.profiler import profile
from mim import load_config
from mim.engine.distributed.world import join_world
from mim.lab.dryrun.trainer import DryPrefetcher
from mim.engine.run_folder import RunFolder
from mim.engine.trainer import Trainer
from mim.lab.dryrun.task import dry_task
from mim.lab.dryrun.memory import estimate_memory

found = dry_task(load_config(sys.argv[1], ["TRAIN.batch", "64"]), 10**6)
plan = found.plan(2)
with join_world(found.cfg.DISTRIBUTED) as world:
    with profile(use_kineto=False, profile_memory=True) as record:
        task = found.one_step_task(plan)
        task.model = found.build_model()
        trainer = Trainer(task, found.engine_settings(), world, RunFolder(Path("unused")))
        trainer.prefetcher = DryPrefetcher(found.noise, plan.micro_batch, world.device, lambda phase: None)
        trainer._start()
        trainer.model = trainer.train_state.wrap()
        for _ in range(3):
            trainer._train_step()
    events = sorted((e.start_ns(), e.nbytes()) for e in record.kineto_results.events() if e.name() == "[memory]")
    if world.main:
        print("found", estimate_memory(found, plan, gpu=False).total, max(accumulate(size for _, size in events)))
"""


@pytest.mark.slow
def test_estimated_memory_of_two_devices_is_what_each_of_two_processes_takes(tmp_path, warm):
    program = tmp_path / "ddp.py"
    program.write_text(DDP)
    code, output = warm.run_program(program, 2, [write_recipe(tmp_path, MAE)], tmp_path / "log")
    assert code == 0, output
    estimated, measured = next(line.split()[1:] for line in output.splitlines() if line.startswith("found"))
    assert int(estimated) == pytest.approx(int(measured), rel=CLOSE)


# ---------------------------------------------------------------- a GPU, at hand or not


def backward_bytes(cfg, device: str, rules: bool) -> int:
    """Bytes held when a forward pass under autocast is done, of fake tensors on a device, attention as products."""
    model, tracker = build.build_without_memory(cfg), MemoryTracker()
    for module in model.modules():
        if "fused_attn" in vars(module):
            module.fused_attn = False
    image, rows = build.image_spec(cfg), cfg.DATA.batch_size
    with FakeTensorMode(allow_non_fake_inputs=True), GpuRules() if rules else nullcontext(), tracker:
        model.to_empty(device=device)
        img = torch.empty(rows, image.channels, image.height, image.width, device=device)
        hidden = torch.zeros(rows, *model.masker.grid, dtype=torch.bool, device=device)
        torch.set_autocast_enabled(device, True)  # torch.autocast turns itself off where there is no GPU
        torch.set_autocast_dtype(device, torch.bfloat16)
        try:
            loss = model(img, PatchMask(hidden, model.masker.visible)).loss
        finally:
            torch.set_autocast_enabled(device, False)
            torch.clear_autocast_cache()
        tracker.forget_freed()
        size = tracker.peak().total
        assert loss.requires_grad
    return size


@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="this PyTorch knows no rules of CUDA")
@pytest.mark.parametrize("recipe", ["mae", slow("swin"), slow("beit")])
def test_gpu_rules_keep_what_cudas_own_autocast_keeps(tmp_path, recipe):
    cfg = load_config(write_recipe(tmp_path, RECIPES[recipe]))
    cuda, ruled, plain = (backward_bytes(cfg, *how) for how in (("cuda", False), ("cpu", True), ("cpu", False)))
    assert ruled == pytest.approx(cuda, rel=0.01)
    assert recipe == "beit" or plain < 0.97 * cuda  # the rules matter


@pytest.mark.slow
def test_gpu_rules_keep_no_scores_of_attention(tmp_path):
    estimate = planned(tmp_path, "mae", "DATA.image_size", "[128, 256]", "MASKER.ratio", "0.25")
    cpu, gpu = (estimate_memory(estimate, estimate.plan(1), gpu=gpu) for gpu in (False, True))
    tokens = 1 + 16 * 32 * 3 // 4
    scores = 4 * 3 * 16 * tokens**2 * 2  # blocks, heads, images, bf16; and the softmax of each
    assert cpu.activations - gpu.activations > 0.5 * scores
    assert cpu.weights == gpu.weights


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(
    ("recipe", "overrides"), [("mae", []), ("mae", ["TRAIN.precision", "fp32"]), ("swin", []), ("beit", [])]
)
def test_estimated_memory_is_what_a_gpu_takes(tmp_path, recipe, overrides):
    wide = {"mae": ["ENCODER.width", "768", "ENCODER.heads", "12"], "swin": ["ENCODER.width", "192"]}
    wide["beit"] = wide["mae"]  # so that the workspaces of libraries do not count
    estimate = planned(tmp_path, recipe, *wide[recipe], "DATA.batch_size", "256", *overrides)
    plan = estimate.plan(1)
    measured = measure_steps(estimate, plan, 1, torch.device("cuda")).tensors
    assert estimate_memory(estimate, plan, gpu=True).total == pytest.approx(measured, rel=CLOSE)
