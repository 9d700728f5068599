"""Pretrain: one reading of the held-out images and one of the bank serve an evaluation, without broken images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from processes import RECIPE, TINY
from small_data import logged

from mim import build
from mim.build import load_config
from mim.data.loading.dataset import collate
from mim.engine.distributed.world import World
from mim.engine.protocol import StepContext
from mim.ops.seeding import generator_for
from mim.tasks import pretrain

ALONE = World(0, 1, torch.device("cpu"))


def task(**keys):
    words = TINY | {"DATA.workers": 0, "DATA.batch_size": 16, "EVALUATE.reconstructions": 3, "EVALUATE.samples": 30}
    words |= {"EVALUATE.knn_bank": 40, "DATA.mean": "[0.3]", "DATA.std": "[0.35]"}
    cfg = load_config(RECIPE, [str(word) for pair in (words | keys).items() for word in pair])
    return build.build_task(cfg, *build.build_data(cfg))


def count_reads(source, monkeypatch) -> list[int]:
    reads, read = [], source.read

    def counting(index):
        reads.append(index)
        return read(index)

    monkeypatch.setattr(source, "read", counting)
    return reads


def evaluated(pretraining, times: int) -> list:
    pretraining.model.eval()
    with torch.no_grad():
        return [pretraining.evaluate(pretraining.model, ALONE) for _ in range(times)]


def test_evaluation_reads_each_image_once(monkeypatch):
    pretraining = task()
    val_reads, bank = (count_reads(data.source, monkeypatch) for data in (pretraining.held_out, pretraining.bank))
    first, second = evaluated(pretraining, 2)
    assert len(val_reads) == 2 * 30
    assert len(set(val_reads)) == 30
    assert len(bank) == 2 * 40
    assert first.metrics == second.metrics
    assert set(first.metrics) == {"val/loss", "val/baseline", "knn/top1"}
    assert torch.equal(first.pictures["reconstructions"], second.pictures["reconstructions"])


def test_evaluation_of_many_images_gives_the_same_without_keeping_them(monkeypatch):
    (in_memory,) = evaluated(task(), 1)
    monkeypatch.setattr(pretrain, "KEPT_BYTES", 0)
    (read_twice,) = evaluated(task(), 1)
    assert in_memory.metrics == read_twice.metrics
    assert torch.equal(in_memory.pictures["reconstructions"], read_twice.pictures["reconstructions"])


def folders(root: Path, bad: str = "") -> Path:
    """Twelve training and ten held-out arrays of two classes; a bad one has a NaN."""
    generator = np.random.default_rng(0)
    for number in range(22):
        split = "train" if number < 12 else "val"
        array_HW = generator.random((32, 32)).astype(np.float32) / (1 + number % 2)
        path = root / split / f"class-{number % 2}" / f"{number:02d}.npy"
        if bad == path.stem:
            array_HW[:3, :3] = np.nan
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, array_HW)
    return root


def test_evaluation_leaves_out_broken_images(tmp_path):
    """Loss, baseline, kNN and pictures are those of the others, under the masks that they have anyway."""
    keys = {"DATA.name": "folder", "EVALUATE.samples": 10, "EVALUATE.reconstructions": 10, "EVALUATE.knn": 1}
    keys |= {"DATA.missing": "broken"}
    clean = task(**keys | {"DATA.path": folders(tmp_path / "clean")})
    (expected,) = evaluated(clean, 1)
    for bad in ("15", "03"):
        pretraining = task(**keys | {"DATA.path": folders(tmp_path / bad, bad)})
        with logged() as lines:
            first, second = evaluated(pretraining, 2)
        assert [f"/{bad}.npy (9 of its 1,024 pixel values" in line for line in lines] == [True]
        assert first.metrics == second.metrics
        assert all(np.isfinite(value) for value in first.metrics.values())
        assert first.details["evaluation/left_out"] == 1
        assert f"/{bad}.npy: 9 of its" in first.details["evaluation/left_out_files"][0]
        same = first.metrics["val/loss"] == expected.metrics["val/loss"]
        assert same == (bad == "03")  # a training image is in the bank alone
        pictures = [report.pictures["reconstructions"] for report in (first, expected)]
        assert torch.equal(*pictures) == (bad == "03")


def test_evaluation_loss_without_a_broken_image_is_the_mean_over_the_others(tmp_path):
    keys = {"DATA.name": "folder", "EVALUATE.samples": 10, "EVALUATE.knn": 0, "EVALUATE.reconstructions": 0}
    keys |= {"DATA.batch_size": 1, "DATA.missing": "broken"}
    losses: list[float] = []

    def record(model, arguments, output):
        losses.append(float(output.loss))

    clean = task(**keys | {"DATA.path": folders(tmp_path / "clean")})
    with clean.model.register_forward_hook(record):
        evaluated(clean, 1)
    row = pretrain.choose_samples(10, 10, clean.seed).index([p.stem for p in clean.held_out.source.paths].index("15"))
    (report,) = evaluated(task(**keys | {"DATA.path": folders(tmp_path / "bad", "15")}), 1)
    assert report.metrics["val/loss"] == pytest.approx(np.mean(losses[:row] + losses[row + 1 :]), rel=1e-6)


# ---------------------------------------------------------------- several masks of an image


def step_of(pretraining, start: int = 0, rows: int = 4, batch: int = 8):
    """The loss of some rows of a global batch in train mode, and what the model was called with."""
    seen = []
    model = pretraining.model.train()
    images = [pretraining.train_data[(0, row)] for row in range(start, start + rows)]
    handle = model.register_forward_pre_hook(lambda module, args: seen.append(args))
    loss = pretraining.loss(model, collate(images), StepContext(0, 3, start, batch))
    handle.remove()
    return loss, *seen[0]


def test_micro_batches_of_a_step_share_one_draw_of_masks(monkeypatch):
    pretraining, draws = task(**{"DATA.masks": 1}), []
    sample = pretraining.model.masker.sample

    def counted(*values):
        draws.append(values)
        return sample(*values)

    monkeypatch.setattr(pretraining.model.masker, "sample", counted)
    first, second = (step_of(pretraining, start)[2] for start in (0, 4))
    assert len(draws) == 1
    whole = sample(8, generator_for(ALONE.device, 0, "mask", 3), ALONE.device)
    assert torch.equal(torch.cat([first.hidden_BHW, second.hidden_BHW]), whole.hidden_BHW)


def test_one_mask_of_an_image_is_drawn_as_ever():
    """The masks of the global batch, from the generator of the step: as before there were several."""
    pretraining = task(**{"DATA.masks": 1})
    _, img, mask = step_of(pretraining, start=2)
    generator = generator_for(ALONE.device, 0, "mask", 3)
    expected = pretraining.model.masker.sample(8, generator, ALONE.device)
    assert len(img) == 4
    assert torch.equal(mask.hidden_BHW, expected.hidden_BHW[2:6])
    assert torch.equal(mask.draw_B, expected.draw_B[2:6])


@pytest.mark.parametrize("target", ["pixels", "follower", "hog"])
def test_loss_of_several_masks_is_the_mean_of_the_losses_of_each(target):
    keys = {"TARGET.name": target, "DATA.masks": 3} | ({"TARGET.cell": 4} if target == "hog" else {})
    pretraining = task(**keys)
    loss, img, mask = step_of(pretraining)
    model = pretraining.model
    assert (len(img), len(mask.hidden_BHW)) == (4, 12)
    each = [model(img, mask.samples(range(number, 12, 3))).loss for number in range(3)]
    assert loss.loss.item() == pytest.approx(sum(each).item() / 3, rel=1e-6)
    assert len({value.item() for value in each}) == 3
    grads = []
    for total in (loss.loss, sum(each) / 3):
        model.zero_grad()
        total.backward()
        grads.append(model.encoder.backbone.blocks[0].mlp.fc1.weight.grad.clone())
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("target", ["pixels", "follower"])
def test_target_of_several_masks_is_computed_once(target):
    pretraining = task(**{"TARGET.name": target, "DATA.masks": 5})
    calls = []
    handle = pretraining.model.target.register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    step_of(pretraining)
    handle.remove()
    assert calls == [4]


def test_rows_of_another_device_have_the_masks_that_they_have_on_one():
    """Several masks are drawn for each row of the global batch, whoever computes it."""
    pretraining = task(**{"DATA.masks": 2})
    _, _, whole = step_of(pretraining, start=0, rows=8)
    halves = [step_of(pretraining, start=start)[2] for start in (0, 4)]
    assert torch.equal(torch.cat([half.hidden_BHW for half in halves]), whole.hidden_BHW)


@pytest.mark.parametrize("name", ["finetune/digits", "probe/digits"])
def test_several_masks_are_refused_where_nothing_is_hidden(name):
    with pytest.raises(ValueError, match=r"DATA\.masks is 2, and TASK \w+ hides nothing"):
        load_config(f"configs/{name}.yaml", ["DATA.masks", "2"])


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (0, "it must be at least 1"),
        (-1, "it must be at least 1"),
        (257, r"at most 256 are allowed, because 8,224 images .* with DATA\.batch_size 32\."),
        (1_000_000, r"at most 256 are allowed, because 32,000,000 images .* with DATA\.batch_size 32\."),
    ],
)
def test_number_of_masks_that_cannot_be_is_refused_before_any_is_drawn(masks, message):
    with pytest.raises(ValueError, match=rf"DATA\.masks is {masks}: {message}"):
        load_config(RECIPE, ["DATA.masks", str(masks)])
    assert load_config(RECIPE, ["DATA.masks", "256"]).DATA.masks == 256
