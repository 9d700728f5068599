"""Accuracy: scikit-learn's figures, to the last sample, on one process and on several with uneven shards."""

import contextlib
import io
import json
import runpy

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, top_k_accuracy_score

from mim.engine.distributed.world import World
from mim.evaluation.accuracy import TOP, Counts, Tally

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)


def scored(samples: int, classes: int, seed: int = 0, dtype: torch.dtype = torch.float32):
    """Scores that lean towards the true class, and the classes."""
    generator = torch.Generator().manual_seed(seed)
    labels_B = torch.randint(classes, (samples,), generator=generator)
    scores_BK = torch.randn(samples, classes, generator=generator)
    return (scores_BK + 1.5 * torch.nn.functional.one_hot(labels_B, classes)).to(dtype), labels_B


def tally(scores_BK: torch.Tensor, labels_B: torch.Tensor, batch: int = 7) -> Counts:
    """What a tally says of batches of that many samples."""
    meter = Tally(scores_BK.shape[1], CPU)
    for scores, labels in zip(scores_BK.split(batch), labels_B.split(batch), strict=True):
        meter.add(scores, labels)
    return meter.over_ranks(ALONE)


@pytest.mark.parametrize("classes", [2, 3, 5, 6, 10, 150])
@pytest.mark.parametrize("batch", [1, 64, 1000])
def test_tally_equals_scikit_learn(classes, batch):
    scores_BK, labels_B = scored(400, classes)
    counts, names = tally(scores_BK, labels_B, batch), range(classes)
    answers_B, share_BK = scores_BK.argmax(dim=1), scores_BK.double().softmax(dim=1)
    assert np.array_equal(counts.confusion_KK.numpy(), confusion_matrix(labels_B, answers_B, labels=names))
    assert counts.confusion_KK.dtype == torch.int64
    assert counts.samples == 400
    assert counts.top1 == accuracy_score(labels_B, answers_B)
    assert counts.loss == pytest.approx(log_loss(labels_B, share_BK.numpy(), labels=names), rel=1e-6)
    if classes > TOP:
        assert counts.top5 == top_k_accuracy_score(labels_B, scores_BK.numpy(), k=5, labels=names)
        assert counts.top1 < counts.top5 < 1
    else:
        assert counts.top5 == 1
    by_class = counts.by_class(tuple(map(str, names)))
    right = {
        str(label): accuracy_score(labels_B[labels_B == label], answers_B[labels_B == label])
        for label in labels_B.unique().tolist()
    }
    assert by_class == right


def test_tally_counts_a_class_that_is_never_held_out_or_never_answered():
    scores_BK = torch.tensor([[9.0, 0.0, 5.0], [9.0, 0.0, 5.0], [0.0, 0.0, 5.0]])
    counts = tally(scores_BK, torch.tensor([0, 2, 2]))
    assert counts.confusion_KK.tolist() == [[1, 0, 0], [0, 0, 0], [1, 0, 1]]
    assert counts.by_class(("a", "b", "c")) == {"a": 1.0, "c": 0.5}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tally_counts_in_fp32_and_wider(dtype):
    scores_BK, labels_B = scored(300, 10, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        counts = tally(scores_BK, labels_B)
    expected = log_loss(labels_B, scores_BK.double().softmax(dim=1).numpy(), labels=range(10))
    assert counts.loss == pytest.approx(expected, rel=1e-6)


def test_tally_of_nothing_is_zero():
    counts = Tally(3, CPU).over_ranks(ALONE)
    assert (counts.samples, counts.top1, counts.top5, counts.loss) == (0, 0, 0, 0)
    assert counts.by_class(("a", "b", "c")) == {}


def test_tally_settles_more_than_once():
    scores_BK, labels_B = scored(20, 4)
    meter = Tally(4, CPU)
    meter.add(scores_BK[:8], labels_B[:8])
    assert meter.over_ranks(ALONE).samples == meter.over_ranks(ALONE).samples == 8
    meter.add(scores_BK[8:], labels_B[8:])
    assert torch.equal(meter.over_ranks(ALONE).confusion_KK, tally(scores_BK, labels_B).confusion_KK)


def test_tally_counts_millions_of_samples_exactly():
    """Where float32 would stop counting."""
    counts = Counts(torch.tensor([[2**25, 1], [1, 2**25]]), 0.0, 0.0)
    assert counts.samples == 2**26 + 2
    assert counts.top1 == 2**26 / (2**26 + 2) < 1
    meter = Tally(2, CPU)
    meter._confusion_KK += 2**24
    meter.add(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    assert meter.over_ranks(ALONE).confusion_KK[0, 0] == 2**24 + 1


# ---------------------------------------------------------------- several processes

SCRIPT = '''
"""Counts and rows of an evaluation of some held-out digits by a classifier of a seed."""
import json

import torch

from small_models import probing_predictor
from mim.data.settings import DataSettings
from mim.data.sources.digits import Digits
from mim.data.loading.dataset import ImageDataset
from mim.data.preprocess import Preprocess
from mim.data.transforms import AugmentSettings, CentreCrop
from mim.encoders import ViT
from mim.engine.distributed.world import join_world
from mim.engine.settings import DistributedSettings
from mim.evaluation.reading import Reader, choose_samples
from mim.structures import ImageSpec
from mim.tasks.supervised import count_correct

torch.manual_seed(0)
encoder = ViT(ImageSpec(1, 32, 32), hidden="none", patch=8, width=16, depth=1, heads=2)
model = probing_predictor(encoder, 10, rates=(1.0, 2.0)).eval()
torch.nn.init.normal_(model.readouts[0].linear.weight)
torch.nn.init.normal_(model.readouts[1].linear.weight)
data = ImageDataset(Digits("val", DataSettings(channels=1)), CentreCrop(AugmentSettings(), (32, 32)), 0)
preprocess, reader = Preprocess((0.3,), (0.35,)), Reader(2, 0)
with join_world(DistributedSettings(device="cpu", backend="gloo")) as world, torch.no_grad():
    found = {}
    for samples, most in ((13, 0), (13, 7), (360, 0), (1, 0)):
        chosen = choose_samples(samples, most, seed=3)
        parts = reader.read(data, chosen, world.rank, world.size)
        counts = count_correct(model, preprocess, parts, 10, world)
        found[f"{most or samples} of {samples}"] = [
            [one.confusion_KK.tolist(), one.samples, one.top1, one.top5, one.loss] for one in counts
        ]
        rows = [torch.tensor(shown.rows) for shown in reader.read(data, chosen, world.rank, world.size)]
        own = torch.cat([torch.empty(0, dtype=torch.long), *rows])
        found[f"rows of {most or samples} of {samples}"] = world.gather(own).tolist()
    if world.main:
        print("FOUND" + json.dumps([world.size, found]))
'''


@pytest.fixture(scope="module")
def counted(tmp_path_factory, warm) -> dict[int, dict]:
    """What one process and two count."""
    script = tmp_path_factory.mktemp("script") / "count_digits.py"
    script.write_text(SCRIPT)
    alone = io.StringIO()
    with contextlib.redirect_stdout(alone):
        runpy.run_path(str(script))
    code, output = warm.run_program(script, 2, [], script.with_suffix(".log"))
    assert code == 0, output
    content_by_size = {}
    for text in (alone.getvalue(), output):
        size, content = json.loads(next(line for line in text.splitlines() if line[:5] == "FOUND")[5:])
        content_by_size[size] = content
    return content_by_size


@pytest.mark.slow
def test_two_processes_count_what_one_counts(counted):
    """Shards of 13, 7 and 1 samples are uneven, the last of them empty on one rank."""
    one, two = counted[1], counted[2]
    for name in ("13 of 13", "7 of 13", "360 of 360", "1 of 1"):
        for alone, together in zip(one[name], two[name], strict=True):
            assert together[:4] == alone[:4]
            assert together[4] == pytest.approx(alone[4], rel=1e-6)
            assert alone[1] == int(name.split()[0])
    first, second = one["360 of 360"]
    assert first != second


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_all_processes_together_read_each_row_once(counted, processes):
    for name in ("13 of 13", "7 of 13", "360 of 360", "1 of 1"):
        assert sorted(counted[processes][f"rows of {name}"]) == list(range(int(name.split()[0])))
