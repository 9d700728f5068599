"""Several processes under torchrun: the same run as one process with the same global batch, and a clean end."""

import os
import re
from pathlib import Path

import pytest
import torch
from processes import (
    FINETUNE,
    PROBE,
    TINY,
    TINY_CLASSIFIER,
    call,
    last_state,
    losses,
    run,
    summary,
    torchrun,
)
from warm import ENDS_AS_PYTHON, Warm

from mim import build
from mim.build import load_config
from mim.engine.distributed.world import World

PLUGIN = '''
"""A ViT that keeps the masks it is trained under, to compare them across ranks."""
import os
import torch
from mim.encoders import ViT

class Recorder(ViT, name="recorder"):
    def forward(self, img_BCHW, mask=None):
        if mask is not None and self.training and not mask.hidden_BHW.is_meta:
            folder = os.environ["MASKS"]
            number = len([f for f in os.listdir(folder) if f.startswith("rank" + os.environ.get("RANK", "0"))])
            torch.save(mask.hidden_BHW, f"{folder}/rank{os.environ.get('RANK', '0')}-{number:04d}.pt")
        return super().forward(img_BCHW, mask)
'''
QUICK = TINY | {"TRAIN.batch": 256, "DATA.batch_size": 64, "OPTIMIZER.base_lr": 0.001}
WARNING_OF_UNUSED = re.compile("unused param|find_unused_parameters|did not receive grad", re.IGNORECASE)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, warm) -> dict[str, Path]:
    """One process that accumulates four micro-batches of 64 rows, and two that accumulate two each."""
    base = tmp_path_factory.mktemp("runs")
    (base / "plugins").mkdir()
    (base / "plugins" / "recorder_plugin.py").write_text(PLUGIN)
    keys = QUICK | {"ENCODER.name": "recorder", "PLUGINS": "[recorder_plugin]"}
    for name, processes in (("one", 1), ("two", 2)):
        masks = base / f"masks-{name}"
        masks.mkdir()
        code, output = warm.run(processes, base / name, keys, MASKS=str(masks), PYTHONPATH=str(base / "plugins"))
        assert code == 0, output
        assert not WARNING_OF_UNUSED.search(output), output
    return {name: base / name for name in ("one", "two", "masks-one", "masks-two")}


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(runs):
    one, two = losses(runs["one"]), losses(runs["two"])
    assert len(one) == 5
    assert two == pytest.approx(one, rel=1e-5)
    assert one[-1] < one[0]


@pytest.mark.slow
def test_two_processes_end_with_the_weights_of_one(runs):
    one, two = (last_state(runs[name])["model"] for name in ("one", "two"))
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.slow
def test_two_processes_draw_the_masks_of_one(runs):
    one = [torch.load(path) for path in sorted(runs["masks-one"].iterdir())]
    ranks = [[torch.load(path) for path in sorted(runs["masks-two"].glob(f"rank{rank}-*"))] for rank in (0, 1)]
    two = [micro for pair in zip(*ranks, strict=True) for micro in pair]
    assert len(one) == 5 * 4
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one[0], one[1])


@pytest.mark.slow
def test_two_processes_evaluate_every_sample_once(runs):
    """63 held-out images do not divide by two ranks."""
    one, two = (summary(runs[name]) for name in ("one", "two"))
    assert two["val/loss"] == pytest.approx(one["val/loss"], rel=1e-4)
    assert two["val/baseline"] == pytest.approx(one["val/baseline"], rel=1e-6)
    assert abs(two["knn/top1"] - one["knn/top1"]) <= 1.5 / 63


@pytest.mark.slow
def test_distributed_run_resumes_on_one_process(warm, tmp_path):
    """The first of two epochs on two ranks, the second on one, ends where one process ends."""
    keys = QUICK | {"TRAIN.epochs": 2}
    assert call(tmp_path / "whole", keys)[0] == 0
    code, text = warm.run(2, tmp_path / "half", keys)
    assert code == 0, text
    (tmp_path / "half" / "checkpoints" / "last").write_text("step-5.pt\n")
    (tmp_path / "half" / "summary.json").unlink()
    code, text = call(tmp_path / "half", keys)
    assert code == 0, text
    assert "at step 5 of 10" in text
    assert losses(tmp_path / "half") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)


# ---------------------------------------------------------------- fine-tuning and probes

CLASSIFIER = TINY_CLASSIFIER | {
    **{"LABELS.per_class": 32, "TRAIN.batch": 64, "TRAIN.epochs": 1, "DISTRIBUTED.device": "cpu"},
    **{"ENCODER.drop_path": 0.0, "OPTIMIZER.layer_decay": 1.0, "SCHEDULE.warmup_epochs": 0},
}
MIXED = {"AUGMENT.mixup": 0.8, "AUGMENT.cutmix": 1.0, "AUGMENT.erase": 0.25, "AUGMENT.jitter": 0.3}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, warm) -> dict[str, Path]:
    """Fine-tuning on one process that accumulates four micro-batches, and on two that accumulate two each."""
    base = tmp_path_factory.mktemp("tuned")
    keys = CLASSIFIER | MIXED
    assert call(base / "one", keys, FINETUNE)[0] == 0
    code, text = warm.run(2, base / "two", keys, FINETUNE)
    assert code == 0, text
    assert not WARNING_OF_UNUSED.search(text), text
    return {name: base / name for name in ("one", "two")}


@pytest.mark.slow
def test_two_processes_fine_tune_as_one(tuned):
    """Mixing, erasing and jitter are drawn for the place in the global batch."""
    one, two = losses(tuned["one"]), losses(tuned["two"])
    assert len(one) == 5
    assert two == pytest.approx(one, rel=1e-5)
    weights, others = (last_state(tuned[name])["model"] for name in ("one", "two"))
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.slow
def test_two_processes_find_the_accuracy_of_one(tuned):
    one, two = (summary(tuned[name]) for name in ("one", "two"))
    assert two["val/samples"] == one["val/samples"] == 360
    assert 0.1 < one["val/top1"] < one["val/top5"] < 1
    for name in ("val/top1", "val/top5", "val/by_class", "best/top1"):
        assert two[name] == one[name]
    assert two["val/loss"] == pytest.approx(one["val/loss"], rel=1e-5)


@pytest.mark.slow
def test_two_processes_judge_the_probe_that_they_save(warm, tmp_path):
    """The statistics of its BatchNorm differ from rank to rank until the next step brings those of the main one."""
    keys = {"EVALUATE.samples": 9, "PROBE.rates": "[1.0,3.0]", "READOUT.init_std": 1.0, "DATA.batch_size": 4}
    output = tmp_path / "run"
    code, text = warm.run(2, output, CLASSIFIER | keys, PROBE)
    assert code == 0, text
    cfg = load_config(output / "config.yaml")
    task = build.build_task(cfg, *build.build_data(cfg))
    task.model.load_state_dict(last_state(output)["model"])
    with torch.no_grad():
        report = task.evaluate(task.model.eval(), World(0, 1, torch.device("cpu")))
    metrics = summary(output)
    assert metrics["val/samples"] == 9
    assert {name: metrics[name] for name in report.metrics} == pytest.approx(report.metrics, rel=1e-5)
    assert metrics["val/by_class"] == report.details["val/by_class"]


# ---------------------------------------------------------------- the end


TORCHRUN = 2  # of them, processes that import everything anew
TIMES = 30 if os.environ.get("MIM_EXHAUSTIVE") else 10


def _ends_cleanly(folder: Path, warm: Warm, times: int) -> str:
    keys = QUICK | {"EVALUATE.knn": 0}
    for time in range(times):
        output = folder / str(time)
        if time < TORCHRUN:
            code, text = run(torchrun(2, output, keys), timeout=400)
        else:
            code, text = warm.run(2, output, keys, **{ENDS_AS_PYTHON: "yes"})
        assert code == 0, f"run {time}: {text}"
        assert (output / "summary.json").exists()
        assert not re.search("abort|terminate called|Traceback", text), text
    return f"{times} of {times} runs of two processes ended cleanly, {TORCHRUN} of them under torchrun"


@pytest.mark.slow
def test_distributed_run_ends_cleanly_each_time(tmp_path, warm, tell):
    """The interpreter of each process is taken down at its end, where a thread inside the store would abort it."""
    tell(_ends_cleanly(tmp_path, warm, TIMES))
