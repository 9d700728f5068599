"""What readouts answer is collected to the last sample, on one process and on several with uneven shards."""

import contextlib
import io
import json
import runpy

import pytest

SCRIPT = '''
"""Metrics and rows of an evaluation of some held-out digits by a classifier of a seed."""
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
from mim.tasks.supervised import collect

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
        collectors, images = collect(model, preprocess, parts, world)
        results = [collector.result(world, resamples=0) for collector in collectors]
        found[f"{most or samples} of {samples}"] = [
            [one.confusion_KK.tolist(), one.samples, images, one.metrics] for one in results
        ]
        rows = [torch.tensor(part.rows) for part in reader.read(data, chosen, world.rank, world.size)]
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
            assert together[:3] == alone[:3]
            assert together[3] == pytest.approx(alone[3], rel=1e-6)
            assert alone[1] == alone[2] == int(name.split()[0])
    first, second = one["360 of 360"]
    assert first != second


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_all_processes_together_read_each_row_once(counted, processes):
    for name in ("13 of 13", "7 of 13", "360 of 360", "1 of 1"):
        assert sorted(counted[processes][f"rows of {name}"]) == list(range(int(name.split()[0])))
