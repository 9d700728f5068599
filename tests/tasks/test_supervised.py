"""Fine-tuning and linear probes: the loss, where its draws come from, what is evaluated, and real short runs."""

import hashlib
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import DIGITS, FINETUNE, PROBE, TINY, call, last_checkpoint, last_state, losses, summary
from sklearn.datasets import load_digits
from small_data import logged
from small_models import classes
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

from mim import build
from mim.build import load_config
from mim.data.batch import Batch
from mim.data.loading.dataset import ImageDataset
from mim.data.loading.loader import batches, in_order
from mim.data.sources.classes import Relabelled
from mim.engine.distributed.world import World
from mim.engine.protocol import Report, StepContext
from mim.ops.seeding import derive_seed
from mim.tasks.probe import Probe
from mim.tasks.supervised import Supervised

ALONE = World(0, 1, torch.device("cpu"))
SMALL = {
    **DIGITS,
    **{"ENCODER.width": 16, "ENCODER.depth": 2, "ENCODER.heads": 2},
    **{"LABELS.per_class": 10, "LOG.tensorboard": False, "LOG.every_steps": 1, "EVALUATE.confusion": False},
    **{"TRAIN.precision": "fp32", "TRAIN.epochs": 2, "EVALUATE.every_epochs": 1, "CHECKPOINT.every_epochs": 0},
}
FIXED = {"DATA.mean": "[0.3]", "DATA.std": "[0.35]", "ENCODER.drop_path": 0.0, "READOUT.init_std": 0.5}


def task_of(recipe: Path, keys: dict) -> Supervised:
    """The task of a recipe, small, with scores that are far from uniform."""
    cfg = load_config(recipe, [str(word) for pair in (SMALL | FIXED | keys).items() for word in pair])
    return build.build_task(cfg, *build.build_data(cfg))


def first_batch(task: Supervised, rows: int = 8) -> Batch:
    return next(batches(task.train_data, in_order(range(rows), rows), 0, False))


def evaluated(task: Supervised) -> Report:
    with torch.no_grad():
        return task.evaluate(task.model.eval(), ALONE)


def trained(output: Path, keys: dict, recipe: Path) -> dict:
    """What summary.json holds after a run of tools/train.py."""
    code, text = call(output, SMALL | keys, recipe)
    assert code == 0, text
    return summary(output)


def encoder_of(state: dict) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in state["model"].items() if name.startswith("encoder.")}


def class_folders(folder: Path, classes: int, train: int = 6, held_out: int = 3) -> Path:
    """Real digits as JPEG files: <folder>/train/<class>/*.jpg and <folder>/val/<class>/*.jpg."""
    digits = load_digits()
    for label in range(classes):
        rows = np.flatnonzero(digits.target == label)[: train + held_out]
        for number, row in enumerate(rows):
            path = folder / ("train" if number < train else "val") / f"digit {label}" / f"{number:02d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            grey_HW = (digits.images[row] * (255 / 16)).round().astype(np.uint8)
            Image.fromarray(grey_HW).resize((32, 32), Image.Resampling.BICUBIC).save(path)
    return folder


def of_folder(folder: Path) -> dict:
    return {"DATA.name": "folder", "DATA.path": folder, "DATA.batch_size": 4, "TRAIN.batch": 4, "LABELS.per_class": 0}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    """The run folder of a short pretraining."""
    folder = tmp_path_factory.mktemp("pretrained")
    code, text = call(folder, TINY | {"TRAIN.batch": 256, "DATA.batch_size": 64, "EVALUATE.every_epochs": 0})
    assert code == 0, text
    return folder


# ---------------------------------------------------------------- the loss of fine-tuning


def scores_and_labels(task: Supervised, batch: Batch, img_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        return task.model(img_BCHW)[0], batch.labels


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_finetune_loss_is_timms_cross_entropy(smoothing):
    task = task_of(FINETUNE, {"CRITERION.smoothing": smoothing})
    batch = first_batch(task)
    scores, labels = scores_and_labels(task, batch, task.preprocess(batch.images_BCHW))
    loss = task.loss(task.model, batch, StepContext(0, 3, 0, 8))
    expected = LabelSmoothingCrossEntropy(smoothing) if smoothing else torch.nn.CrossEntropyLoss()
    assert loss.item() == pytest.approx(expected(scores, labels).item(), rel=1e-6)
    assert (loss.shape, loss.dtype) == ((), torch.float32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_finetune_loss_is_timms_soft_target_cross_entropy_under_the_same_mixing(mixup, cutmix, smoothing):
    keys = {"AUGMENT.mixup": mixup, "AUGMENT.cutmix": cutmix, "CRITERION.smoothing": smoothing}
    task = task_of(FINETUNE, keys)
    batch = first_batch(task)
    mix = Mixup(mixup, cutmix, label_smoothing=smoothing, num_classes=10)
    expected = []
    for step in range(6):  # both of the two where both are given
        np.random.seed(derive_seed(7, "mix", step, 16) % 2**32)
        mixed_BCHW, weights_BK = mix(task.preprocess(batch.images_BCHW), batch.labels)
        scores, _ = scores_and_labels(task, batch, mixed_BCHW)
        expected.append(SoftTargetCrossEntropy()(scores, weights_BK).item())
        loss = task.loss(task.model, batch, StepContext(7, step, 16, 32))
        assert loss.item() == pytest.approx(expected[-1], rel=1e-6)
    assert len(set(expected)) == 6


def test_finetune_loss_is_computed_in_fp32_under_autocast():
    task = task_of(FINETUNE, {})
    batch = first_batch(task)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = task.loss(task.model, batch, StepContext(0, 0, 0, 8))
        scores = task.model(task.preprocess(batch.images_BCHW))[0]
    assert (scores.dtype, loss.dtype) == (torch.bfloat16, torch.float32)
    assert loss.item() == pytest.approx(LabelSmoothingCrossEntropy(0.1)(scores.float(), batch.labels).item(), rel=1e-6)


MIXING = {"AUGMENT.mixup": 0.8, "AUGMENT.cutmix": 1.0, "AUGMENT.erase": 0.5}


def states() -> tuple:
    """The states of the three global generators."""
    return random.getstate(), tuple(map(str, np.random.get_state())), tuple(torch.get_rng_state().tolist())


def test_finetune_draws_are_a_function_of_seed_step_and_start():
    task = task_of(FINETUNE, MIXING)
    batch = first_batch(task)
    contexts = [StepContext(0, 5, 8, 32), StepContext(0, 6, 8, 32), StepContext(0, 5, 16, 32), StepContext(1, 5, 8, 32)]
    draws = []
    for state in (0, 1):
        random.seed(state)
        np.random.seed(state)
        torch.manual_seed(state)
        before = states()
        draws.append([task.loss(task.model, batch, context).item() for context in contexts])
        assert states() == before
    assert draws[0] == draws[1]
    assert len(set(draws[0])) == len(contexts)


def test_finetune_loss_leaves_the_stored_images_alone():
    for keys in (MIXING, {"AUGMENT.erase": 1.0}):
        task = task_of(FINETUNE, keys)
        batch = first_batch(task)
        before = batch.images_BCHW.clone()
        task.loss(task.model, batch, StepContext(0, 0, 0, 8))
        assert torch.equal(batch.images_BCHW, before)


def test_finetune_rates_decay_from_the_classifier_down():
    task = task_of(FINETUNE, {"ENCODER.depth": 3})
    factors = task.lr_scales(0.5)
    names = {name for name, _ in task.model.named_parameters()}
    assert set(factors) == {name for name in names if name.startswith("encoder.")}
    stem = {"cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    assert {name for name, factor in factors.items() if factor == 0.5**4} == {f"encoder.backbone.{n}" for n in stem}
    for block in range(3):
        of_block = {factor for name, factor in factors.items() if f".blocks.{block}." in name}
        assert of_block == {0.5 ** (3 - block)}


# ---------------------------------------------------------------- the loss of a probe


def test_probe_loss_is_the_mean_of_its_layers_and_each_gradient_that_of_its_own():
    task = task_of(PROBE, {"PROBE.rates": "[0.1,1.0,10.0]"})
    batch = first_batch(task)
    heads = [readout.linear for readout in task.model.readouts]
    for index, head in enumerate(heads):  # they start alike
        torch.nn.init.normal_(head.weight, std=0.1 + index)
    loss = task.loss(task.model, batch, StepContext(0, 0, 0, 8))
    loss.backward()
    scores = task.model(task.preprocess(batch.images_BCHW))
    each = [torch.nn.functional.cross_entropy(scores_BK, batch.labels) for scores_BK in scores]
    assert len({one.item() for one in each}) == 3
    assert loss.item() == pytest.approx(np.mean([one.item() for one in each]), rel=1e-6)
    for head, one in zip(heads, each, strict=True):
        for parameter, expected in zip(
            head.parameters(), torch.autograd.grad(one, list(head.parameters())), strict=True
        ):
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-6, atol=1e-8)


def test_probe_rates_multiply_the_learning_rate_of_their_own_layer():
    task = task_of(PROBE, {"PROBE.rates": "[0.1,1.0,10.0]"})
    names = ("linear.weight", "linear.bias")
    assert task.lr_scales(1.0) == {
        f"readouts.{index}.{name}": rate for index, rate in enumerate((0.1, 1, 10)) for name in names
    }


def test_probe_of_several_rates_refuses_clipping():
    with pytest.raises(ValueError, match=r"TRAIN\.clip is 1: .*the settings of PROBE.*set TRAIN\.clip 0"):
        load_config(PROBE, ["TRAIN.clip", "1"])
    load_config(PROBE, ["TRAIN.clip", "1", "PROBE.rates", "[1.0]"])


# ---------------------------------------------------------------- runs of a probe

PROBED = {"ENCODER.positions": "sincos", "PROBE.rates": "[0.3,1.0,3.0]"}


def fingerprint(folder: Path) -> dict[str, tuple]:
    """Content, time of change and mode of every file and folder."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
            path.stat().st_mtime_ns,
            path.stat().st_mode,
        )
        for path in [folder, *folder.rglob("*")]
    }


@pytest.fixture(scope="module")
def probed(pretrained, tmp_path_factory) -> tuple[Path, bool]:
    """A probe of the pretrained run, and whether that run's folder is as it was."""
    before = fingerprint(pretrained)
    folder = tmp_path_factory.mktemp("probed")
    keys = {"LABELS.per_class": 40, "TRAIN.epochs": 3, "EVALUATE.every_epochs": 0}
    trained(folder, PROBED | keys | {"INIT.checkpoint": last_checkpoint(pretrained)}, PROBE)
    return folder, fingerprint(pretrained) == before


def test_probe_leaves_the_folder_of_the_run_it_judges_untouched(probed):
    assert probed[1]


def test_probe_changes_no_bit_of_the_encoder(pretrained, probed):
    before, after = encoder_of(last_state(pretrained)), encoder_of(last_state(probed[0]))
    assert len(before) == 30
    assert after.keys() == before.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


def test_probe_changes_heads_and_statistics(probed):
    state = last_state(probed[0])
    untrained = build.build_predictor(load_config(probed[0] / "config.yaml"), classes(10)).state_dict()
    after = {name: weight for name, weight in state["model"].items() if not name.startswith("encoder.")}
    assert set(after) == {
        f"readouts.{index}.{name}"
        for index in range(3)
        for name in (
            *("linear.weight", "linear.bias"),
            *("norm.running_mean", "norm.running_var", "norm.num_batches_tracked"),
        )
    }
    assert [name for name, weight in after.items() if torch.equal(weight, untrained[name])] == []
    assert after["readouts.0.norm.num_batches_tracked"] == state["step"] == 33  # 360 images, 40 choose


def test_probe_reports_the_best_of_its_rates(probed):
    metrics = summary(probed[0])
    each = {rate: metrics[f"val/top1_rate_{rate:g}"] for rate in (0.3, 1.0, 3.0)}
    assert len(set(each.values())) > 1
    choice = {rate: metrics[f"choice/top1_rate_{rate:g}"] for rate in each}
    best = list(each)[int(metrics["choice/setting"])]
    assert metrics["choice/title"] == f"rate {best:g}"
    assert metrics["choice/top1"] == choice[best] == max(choice.values())
    assert metrics["val/top1"] == each[best]
    assert metrics["val/samples"] == 360
    assert metrics["labelled_images"] == 360
    assert metrics["trained_parameters"] == 3 * (16 * 10 + 10)


def poisoned(task: Probe) -> Probe:
    """The same task with other labels of the held-out images."""
    source = task.held_out.source
    labels = (source.labels + 1) % 10
    return replace(task, held_out=ImageDataset(Relabelled(source, labels, source.classes), task.held_out.transform, 0))


def test_probe_chooses_its_setting_without_a_label_of_the_held_out_images():
    task = task_of(PROBE, {"ENCODER.depth": 1, "PROBE.rates": "[0.5,1.0,2.0,4.0]"})
    assert len(task.choosing) == 10  # one image of each class
    assert not {*task.choosing.source.chosen} & {*task.train_data.source.chosen}
    for number, readout in enumerate(task.model.readouts):
        torch.nn.init.normal_(readout.linear.weight, generator=torch.Generator().manual_seed(number))
    report, wrong = evaluated(task), evaluated(poisoned(task))
    choice = {key: value for key, value in report.details.items() if key.startswith("choice/top1_")}
    assert len({*choice.values()}) > 1
    assert choice == {key: value for key, value in wrong.details.items() if key.startswith("choice/top1_")}
    assert report.metrics["choice/top1"] == wrong.metrics["choice/top1"] == max(choice.values())
    assert report.metrics["choice/setting"] == wrong.metrics["choice/setting"]
    assert report.metrics["val/top1"] != wrong.metrics["val/top1"]
    assert report.score == "choice/top1"
    shared = task_of(PROBE, {"ENCODER.depth": 1, "PROBE.rates": "[0.5,1.0]", "PROBE.choose_share": 0})
    assert shared.choosing is None
    assert evaluated(shared).score == "val/top1"


@pytest.mark.parametrize("optimizer", ["lars", pytest.param("adamw", marks=pytest.mark.slow)])
def test_probe_of_several_rates_trains_each_layer_as_it_would_alone(tmp_path, pretrained, optimizer):
    """To the bit: all layers of a seed start alike, and none feels another."""
    keys = PROBED | {"INIT.checkpoint": last_checkpoint(pretrained), "TRAIN.epochs": 1, "EVALUATE.every_epochs": 0}
    keys |= {"OPTIMIZER.name": optimizer, "SCHEDULE.warmup_epochs": 0, "EVALUATE.samples": 9, "PROBE.choose_share": 0}
    states = {}
    for rates in ((1.0,), (3.0,), (1.0, 3.0)):
        trained(tmp_path / str(rates), keys | {"PROBE.rates": list(rates)}, PROBE)
        states[rates] = last_state(tmp_path / str(rates))["model"]
    together = states[1.0, 3.0]
    for what in ("weight", "bias"):
        for index, rate in enumerate((1.0, 3.0)):
            assert torch.equal(together[f"readouts.{index}.linear.{what}"], states[rate,][f"readouts.0.linear.{what}"])
        assert not torch.equal(together[f"readouts.0.linear.{what}"], together[f"readouts.1.linear.{what}"])


def test_probe_factor_on_the_rate_is_another_base_rate(tmp_path):
    keys = PROBED | {"TRAIN.epochs": 1, "EVALUATE.samples": 9}
    trained(tmp_path / "factor", keys | {"PROBE.rates": "[2.0]", "OPTIMIZER.base_lr": 4.0}, PROBE)
    trained(tmp_path / "base", keys | {"PROBE.rates": "[1.0]", "OPTIMIZER.base_lr": 8.0}, PROBE)
    factor, base = (last_state(tmp_path / name)["model"]["readouts.0.linear.weight"] for name in ("factor", "base"))
    torch.testing.assert_close(factor, base, rtol=1e-6, atol=1e-8)


# ---------------------------------------------------------------- runs of fine-tuning


def test_finetune_runs_from_scratch_and_from_a_checkpoint_with_one_command(tmp_path, pretrained):
    """At a learning rate of 0 the weights of the checkpoint are those at the end."""
    still = {"OPTIMIZER.base_lr": 0.0, "SCHEDULE.min_lr": 0.0, "TRAIN.epochs": 1, "EVALUATE.samples": 9}
    trained(tmp_path / "scratch", still, FINETUNE)
    trained(tmp_path / "loaded", still | {"INIT.checkpoint": last_checkpoint(pretrained)}, FINETUNE)
    scratch, loaded, source = map(encoder_of, map(last_state, (tmp_path / "scratch", tmp_path / "loaded", pretrained)))
    assert source.keys() - loaded.keys() == {"encoder.backbone.norm.weight", "encoder.backbone.norm.bias"}
    assert [name for name in loaded if not torch.equal(loaded[name], source[name])] == []
    assert not torch.equal(
        scratch["encoder.backbone.patch_embed.proj.weight"], loaded["encoder.backbone.patch_embed.proj.weight"]
    )
    log = (tmp_path / "loaded" / "log.txt").read_text()
    assert f"{len(loaded)} encoder weights loaded" in log
    assert "in the file only, left out: backbone.norm.{weight, bias}" in log


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> Path:
    """A fine-tuning that learns."""
    folder = tmp_path_factory.mktemp("tuned")
    keys = {"LABELS.per_class": 60, "TRAIN.epochs": 5, "OPTIMIZER.base_lr": 0.08, "OPTIMIZER.layer_decay": 1.0}
    keys |= {"ENCODER.drop_path": 0.0, "EVALUATE.at_start": True, "EVALUATE.every_epochs": 3}
    trained(folder, keys | {"EVALUATE.confusion": True}, FINETUNE)
    return folder


def test_finetune_learns_and_says_what_it_found(tuned):
    metrics = summary(tuned)
    assert metrics["task"] == "finetune"
    assert metrics["val/samples"] == 360
    assert metrics["val/top5"] >= metrics["val/top1"] > 0.3
    assert metrics["val/loss"] < metrics["val/loss_at_start"] == pytest.approx(np.log(10), rel=0.01)
    assert metrics["best/top1"] >= metrics["val/top1"]
    with Image.open(next((tuned / "confusion").glob("step-*.png"))) as picture:
        assert len(picture.convert("L").getcolors(1 << 16)) > 20


def test_finetune_by_class_are_the_answers_of_its_last_checkpoint(tuned):
    cfg = load_config(tuned / "config.yaml")
    task = build.build_task(cfg, *build.build_data(cfg))
    task.model.load_state_dict(last_state(tuned)["model"])
    task.model.eval()
    right: dict[int, list[bool]] = {}
    with torch.no_grad():
        for batch in batches(task.held_out, in_order(range(360), 360), 0, False):
            answers = task.model(task.preprocess(batch.images_BCHW))[0].argmax(dim=1)
            for label, answer in zip(batch.labels.tolist(), answers.tolist(), strict=True):
                right.setdefault(label, []).append(label == answer)
    metrics = summary(tuned)
    assert list(metrics["val/by_class"]) == list("0123456789")
    assert metrics["val/by_class"] == {str(label): pytest.approx(np.mean(right[label])) for label in range(10)}
    assert metrics["val/top1"] == pytest.approx(np.mean([hit for hits in right.values() for hit in hits]))


def test_finetune_of_the_last_block_changes_nothing_below(tmp_path, pretrained):
    keys = {"FREEZE.tune_blocks": 0.5, "INIT.checkpoint": last_checkpoint(pretrained), "ENCODER.positions": "sincos"}
    trained(tmp_path, keys | {"OPTIMIZER.no_decay": "[]"}, FINETUNE)
    before, after = encoder_of(last_state(pretrained)), encoder_of(last_state(tmp_path))
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    upper = ("norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias")
    assert changed == {f"encoder.backbone.blocks.1.{name}" for name in upper}


@pytest.mark.slow
def test_finetune_evaluates_the_moving_average(tmp_path):
    """A decay of nearly one keeps the first weights, so that the held-out loss stays at its start."""
    keys = {"EVALUATE.at_start": True, "OPTIMIZER.base_lr": 0.04, "OPTIMIZER.layer_decay": 1.0, "TRAIN.epochs": 4}
    keys |= {"LABELS.per_class": 25, "EVALUATE.every_epochs": 0, "ENCODER.drop_path": 0.0}
    metrics = {ema: trained(tmp_path / str(ema), keys | {"TRAIN.ema": ema}, FINETUNE) for ema in (0, 0.99999)}
    start = metrics[0]["val/loss_at_start"]
    assert metrics[0.99999]["val/loss"] == pytest.approx(start, rel=1e-3)
    assert metrics[0]["val/loss"] < 0.98 * start
    assert losses(tmp_path / "0") == losses(tmp_path / "0.99999")


@pytest.mark.parametrize("recipe", [FINETUNE, pytest.param(PROBE, marks=pytest.mark.slow)], ids=["finetune", "probe"])
def test_supervised_run_is_one_seeded_run(tmp_path, recipe):
    keys = {"TRAIN.epochs": 1, "AUGMENT.flip": 0.5, "EVALUATE.samples": 9}
    keys |= {"AUGMENT.mixup": 0.8, "AUGMENT.erase": 0.5} if recipe == FINETUNE else {}
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        trained(tmp_path / name, keys | {"SEED": seed}, recipe)
    one, two, other = (losses(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two != other


# ---------------------------------------------------------------- data sets of other classes


def test_finetune_runs_on_class_folders_of_three_classes(tmp_path):
    images = class_folders(tmp_path / "images", 3, train=12, held_out=4)
    metrics = trained(tmp_path / "run", of_folder(images) | {"TRAIN.epochs": 4}, FINETUNE)
    assert list(metrics["val/by_class"]) == ["digit 0", "digit 1", "digit 2"]
    assert metrics["val/samples"] == 12
    assert metrics["labelled_images"] == 36
    assert "val/top5" not in metrics
    state = last_state(tmp_path / "run")["model"]
    assert state["readouts.0.linear.weight"].shape == (3, 16)
    assert not (tmp_path / "run" / "labelled.txt").exists()


@pytest.mark.parametrize("recipe", [FINETUNE, PROBE], ids=["finetune", "probe"])
@pytest.mark.parametrize(("classes", "top5"), [(2, False), (5, False), (6, True)])
def test_supervised_reports_the_first_five_of_more_than_five_classes(tmp_path, recipe, classes, top5):
    task = task_of(recipe, of_folder(class_folders(tmp_path, classes, train=2, held_out=2)))
    report = evaluated(task)
    assert ("val/top5" in report.metrics) is top5
    assert report.details["val/samples"] == 2 * classes
    assert report.score == ("choice/top1" if recipe == PROBE else "val/top1")


@pytest.mark.parametrize("recipe", [FINETUNE, PROBE], ids=["finetune", "probe"])
def test_supervised_without_held_out_images_trains_and_says_so(tmp_path, recipe):
    images = class_folders(tmp_path / "images", 3, train=4, held_out=0)
    keys = of_folder(images / "train") | {"DATA.val_share": 0.0, "TRAIN.epochs": 1}
    metrics = trained(tmp_path / "run", keys, recipe)
    assert not any(name.startswith("val/") for name in metrics)
    assert "none: no images are held out" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize("recipe", [FINETUNE, PROBE], ids=["finetune", "probe"])
def test_supervised_needs_labels_to_train_and_to_evaluate(tmp_path, recipe):
    way_out = "a list with a label after each path, or a table of labels (LABELS.file)"
    images = class_folders(tmp_path / "images", 3)
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in (images / "train").rglob("*.jpg"):
        shutil.copy(path, flat / f"{path.parent.name} {path.name}")
    code, text = call(tmp_path / "run", SMALL | of_folder(flat), recipe)
    assert code == 2
    assert "needs labels, and the training images of DATA.name folder have none" in text
    assert way_out in text
    code, text = call(tmp_path / "run", SMALL | of_folder(images / "train") | {"DATA.val_path": flat}, recipe)
    assert code == 2
    assert "needs labels, and the held-out images of DATA.name folder have none" in text
    assert way_out in text
    assert not (tmp_path / "run").exists()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


@pytest.mark.parametrize("recipe", [FINETUNE, PROBE], ids=["finetune", "probe"])
@pytest.mark.parametrize("broken", [pytest.param(0, marks=pytest.mark.slow), 4, 8])
def test_supervised_leaves_unreadable_images_out_of_its_accuracy(tmp_path, recipe, broken):
    images = class_folders(tmp_path, 3)
    task = task_of(recipe, of_folder(images))
    paths = task.held_out.source.paths
    truncate(paths[broken])
    with logged() as lines:
        report = evaluated(task)
        evaluated(task)
    assert report.details["val/samples"] == len(paths) - 1 == 8
    assert [str(paths[broken]) in line for line in lines] == [True]  # told once
    paths[broken].unlink()
    without = task_of(recipe, of_folder(images))
    expected = evaluated(without)
    assert report.metrics == pytest.approx(expected.metrics, rel=1e-6)
    left_out = {name: report.details.pop(name) for name in ("evaluation/left_out", "evaluation/left_out_files")}
    assert left_out["evaluation/left_out"] == 1
    assert left_out["evaluation/left_out_files"][0].startswith(f"{paths[broken]}: ")
    assert report.details.pop("val/undefined", None) == expected.details.pop("val/undefined", None)
    assert report.details.keys() == expected.details.keys()
    for key, value in expected.details.items():
        assert report.details[key] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-6)), key


def test_supervised_evaluates_a_class_without_readable_images(tmp_path):
    images = class_folders(tmp_path, 3, held_out=1)
    task = task_of(FINETUNE, of_folder(images))
    truncate(task.held_out.source.paths[1])
    report = evaluated(task)
    assert list(report.details["val/by_class"]) == ["digit 0", "digit 2"]
    assert report.details["val/samples"] == 2


def test_supervised_evaluates_at_most_the_samples_asked_for(tmp_path):
    full, some = (task_of(FINETUNE, {"EVALUATE.samples": samples}) for samples in (0, 25))
    assert evaluated(some).details["val/samples"] == 25
    assert evaluated(full).details["val/samples"] == 360


def test_supervised_describes_what_is_trained(tmp_path):
    lines = task_of(FINETUNE, {"FREEZE.tune_blocks": 1}).describe()
    assert "3,280 of " in lines["encoder"]
    assert lines["images"].startswith("100 of 1,437 labelled to train, 360 held out")
    assert task_of(PROBE, {}).describe()["readout"] == "linear, mean pooling; 10 classes, cross_entropy, 4 side by side"


def test_supervised_metrics_count_parameters_and_operations():
    tuned, probing = task_of(FINETUNE, {}).metrics(), task_of(PROBE, {}).metrics()
    assert tuned["trained_parameters"] == tuned["parameters"] > probing["trained_parameters"] == 4 * 170
    assert tuned["flops_per_image"] > 2.5 * probing["flops_per_image"]  # a frozen encoder has no backward pass


def test_probe_crop_pct_keeps_the_share_of_the_side(tmp_path):
    full, centre = (task_of(PROBE, {"EVALUATE.crop_pct": share}) for share in (1.0, 0.5))
    full_CHW, centre_CHW = (task.held_out[0, 0].image_CHW for task in (full, centre))
    assert full_CHW.shape == centre_CHW.shape == (1, 32, 32)
    small = torch.nn.functional.avg_pool2d(centre_CHW.float()[None], 2)[0]
    middle = full_CHW[:, 8:24, 8:24].float()
    assert (small - middle).abs().mean() < 6 < (small - full_CHW[:, :16, :16].float()).abs().mean()


def test_probe_of_labels_without_a_score_has_no_best_checkpoint(tmp_path):
    """R2 of equal numbers is not defined."""
    table = tmp_path / "labels.csv"
    images = class_folders(tmp_path / "images", 2, train=6, held_out=3)
    rows = [f"{path},1.5" for path in sorted(images.rglob("*.jpg"))]
    table.write_text("\n".join(["path,level", *rows]))
    keys = of_folder(images) | {"LABELS.file": table, "LABELS.columns": "[level]", "LABELS.kind": "number"}
    keys |= {"DATA.labels": "none", "LABELS.per_class": 0, "CRITERION.name": "mse", "PROBE.rates": "[0.5,1.0]"}
    report = evaluated(task_of(PROBE, keys))
    assert report.score == ""
    assert "val/r2" not in report.metrics
    assert "all" in report.details["val/undefined"]["val/r2"]
