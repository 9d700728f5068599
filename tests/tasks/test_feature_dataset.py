"""Kept features: a probe that reads them is the probe that computes them anew, and never reads an image in a step."""

import json
import os
import pickle
import re
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from processes import (
    DIGITS,
    PARTS,
    PROBE,
    TINY_CLASSIFIER,
    call,
    last_checkpoint,
    last_state,
    run,
    same,
    summary,
    timeless_rows,
    torchrun,
)
from small_data import write_digits

from mim.data.sources.digits import Digits
from mim.structures import Features
from mim.tasks import feature_dataset, feature_files
from mim.tasks.feature_files import FeatureFiles, FeatureLayout

CENTRE = {"AUGMENT.crop": "centre", "AUGMENT.flip": 0}
KEYS = TINY_CLASSIFIER | CENTRE | {"EVALUATE.resamples": 0, "EVALUATE.samples": 40, "DATA.workers": 0}
ANEW = {"PROBE.keep_features": False}
READOUTS = "[{name: linear, pool: both, norm: batch}, {name: attentive, queries: 2, heads: 2}]"


def trained(output: Path, keys: dict) -> str:
    code, text = call(output, keys, PROBE)
    assert code == 0, text
    return text


def nearly(ours: Path, theirs: Path) -> None:
    """Asserts that two runs have one result, but for the last digits of sums in batches of another size."""
    for each, other in zip(last_state(ours)["model"].items(), last_state(theirs)["model"].items(), strict=True):
        assert each[0] == other[0]
        torch.testing.assert_close(each[1], other[1], rtol=1e-4, atol=1e-6)
    ours, theirs = summary(ours), summary(theirs)
    assert ours["val/loss"] == pytest.approx(theirs["val/loss"], rel=1e-5)
    assert ours["val/top1"] == theirs["val/top1"]


@pytest.mark.parametrize("readout", [{"READOUT": READOUTS}, {"READOUT.pool": "mean", "READOUT.norm": "layer"}])
def test_probe_on_kept_features_is_the_probe_on_images(tmp_path, readout):
    text = trained(tmp_path / "kept", KEYS | readout)
    trained(tmp_path / "anew", KEYS | readout | ANEW)
    assert text.count("computed once") == 3
    assert not (tmp_path / "anew" / "features").exists()
    nearly(tmp_path / "kept", tmp_path / "anew")


def test_images_are_read_once(tmp_path, monkeypatch):
    """Each labelled and each held-out image once, and some before the first step, however many epochs follow."""
    reads, read = [], Digits.read
    monkeypatch.setattr(Digits, "read", lambda self, index: (reads.append(index), read(self, index))[1])
    counts = []
    for epochs in (1, 5):
        reads.clear()
        trained(tmp_path / str(epochs), KEYS | {"TRAIN.epochs": epochs})
        counts.append(len(reads))
    assert counts[0] == counts[1]
    assert 80 + 360 <= counts[0] < 80 + 360 + 20


def test_features_of_pooling_readouts_are_one_vector_an_image(tmp_path):
    trained(tmp_path / "pooled", KEYS | {"TRAIN.epochs": 1})
    trained(tmp_path / "tokens", KEYS | {"TRAIN.epochs": 1, "READOUT": READOUTS})
    sizes = [sum(file.stat().st_size for file in (tmp_path / name).rglob("*.bin")) for name in ("pooled", "tokens")]
    assert sizes == [440 * (1 + 1) * 16 * 4, 440 * (64 + 1) * 16 * 4]  # patches of 4 px in 32 px, and the class token


@pytest.mark.slow
def test_masks_are_read_beside_kept_features(tmp_path):
    (tmp_path / "masks").mkdir()
    for path in write_digits(tmp_path / "images", 48):
        Image.fromarray((np.asarray(Image.open(path)) > 127).astype(np.uint8)).save(tmp_path / "masks" / path.name)
    keys = KEYS | {
        **{"DATA.name": "folder", "DATA.path": tmp_path / "images", "DATA.val_share": 0.3, "LABELS.per_class": 0},
        **{"LABELS.masks": tmp_path / "masks", "LABELS.names": "[paper,ink]", "LABELS.ignore": -1},
        **{"READOUT.name": "segment_linear", "EVALUATE.confusion": True},
    }
    trained(tmp_path / "kept", keys)
    trained(tmp_path / "anew", keys | ANEW)
    ours, theirs = summary(tmp_path / "kept"), summary(tmp_path / "anew")
    assert ours["val/miou"] == pytest.approx(theirs["val/miou"], abs=1e-4)
    assert ours["val/loss"] == pytest.approx(theirs["val/loss"], rel=1e-4)
    assert list((tmp_path / "kept" / "segmentations").iterdir())


def test_broken_images_are_broken_among_kept_features(tmp_path):
    """Another image stands in for each, the same one; the summary names them."""
    paths = write_digits(tmp_path / "images", 60)
    (tmp_path / "labels.csv").write_text(
        "path,label\n" + "".join(f"{path.name},{'ab'[index % 2]}\n" for index, path in enumerate(paths))
    )
    for path in paths[::9]:
        path.write_bytes(path.read_bytes()[:60])
    keys = KEYS | {
        **{"DATA.name": "folder", "DATA.path": tmp_path / "images", "DATA.val_share": 0.3, "LABELS.per_class": 0},
        **{"LABELS.file": tmp_path / "labels.csv", "DATA.max_broken": 0.5, "EVALUATE.samples": 0},
    }
    trained(tmp_path / "kept", keys)
    trained(tmp_path / "anew", keys | ANEW)
    nearly(tmp_path / "kept", tmp_path / "anew")
    ours, theirs = summary(tmp_path / "kept"), summary(tmp_path / "anew")
    named = [key for key in theirs if "broken" in key or "left_out" in key]
    assert named
    assert {key: ours[key] for key in named} == {key: theirs[key] for key in named}


def test_probes_share_features_of_equal_weights_and_images(tmp_path):
    shared = KEYS | {"PROBE.features": tmp_path / "shared", "TRAIN.epochs": 1}
    trained(tmp_path / "first", shared)
    text = trained(tmp_path / "second", shared | {"PROBE.rates": "[1.0,5.0]", "DATA.batch_size": 8})
    assert text.count("found in") == 3
    text = trained(tmp_path / "draw", shared | {"LABELS.seed": 1})
    assert text.count("found in") == 1  # the held-out images
    assert "found in" not in trained(tmp_path / "weights", shared | {"SEED": 1})
    assert "found in" not in trained(tmp_path / "size", shared | {"EVALUATE.crop_pct": 0.9})


@pytest.mark.slow
def test_features_that_are_not_complete_are_computed_anew(tmp_path):
    shared = KEYS | {"PROBE.features": tmp_path / "shared", "TRAIN.epochs": 1}
    trained(tmp_path / "first", shared)
    files = sorted((tmp_path / "shared").rglob("*.bin"))
    os.truncate(files[0], files[0].stat().st_size - 4)
    next(files[1].parent.glob("*.json")).write_text('{"layout": 3}')
    text = trained(tmp_path / "second", shared)
    assert text.count("computed once") == 2
    same(last_state(tmp_path / "first")["model"], last_state(tmp_path / "second")["model"])


@pytest.mark.slow
def test_run_on_kept_features_goes_on_from_a_checkpoint(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    keys = KEYS | {"TRAIN.epochs": 3, "CHECKPOINT.keep": 9}
    trained(whole, keys)
    trained(cut, keys)
    last = last_checkpoint(cut)
    earlier = sorted(last.parent.glob("step-*.pt"), key=lambda path: int(path.stem[5:]))[-2]
    (cut / "checkpoints" / "last").write_text(earlier.name)
    last.unlink()
    (cut / "summary.json").unlink()
    text = trained(cut, keys)
    assert "resumed from" in text
    assert text.count("found in") == 3
    for part in PARTS:
        same(last_state(whole)[part], last_state(cut)[part], part)
    assert timeless_rows(whole) == timeless_rows(cut)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_compute_features_for_each_other(tmp_path, strategy):
    keys = KEYS | {"DATA.batch_size": 8, "DISTRIBUTED.strategy": strategy, "DISTRIBUTED.device": "cpu"}
    words = torchrun(2, tmp_path / "two", keys)
    words[words.index("--config") + 1] = str(PROBE)
    code, text = run(words)
    assert code == 0, text
    trained(tmp_path / "one", KEYS)
    assert len(list((tmp_path / "two" / "features").rglob("rank1-of-2.bin"))) == 3
    assert summary(tmp_path / "two")["val/loss"] == pytest.approx(summary(tmp_path / "one")["val/loss"], rel=1e-4)


# -------------------------------------------------------------------- the parts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("prefix", [0, 3])
def test_layout_brings_features_back(prefix, dtype):
    def drawn(*shape):
        return torch.randn(2, *shape).to(dtype)

    features = Features(
        drawn(6, 5),
        (2, 3),
        prefix_BKD=drawn(prefix, 5) if prefix else None,
        stages_BDhw=(drawn(7, 4, 6), drawn(1, 2, 3)),
    )
    layout = FeatureLayout.of(features)
    assert layout.row_bytes == (30 + prefix * 5 + 168 + 6) * dtype.itemsize
    read = FeatureLayout.read(json.loads(json.dumps(asdict(layout))))
    again = read.unpack(layout.pack(features))
    assert again.grid == features.grid
    assert torch.equal(again.tokens_BND, features.tokens_BND)
    assert (again.prefix_BKD is None) == (prefix == 0)
    assert prefix == 0 or torch.equal(again.prefix_BKD, features.prefix_BKD)
    assert all(map(torch.equal, again.stages_BDhw, features.stages_BDhw))


def test_rows_lie_where_their_ranks_wrote_them(tmp_path):
    layout = FeatureLayout((1, 1), (1, 2), None, (), "float32")
    files = FeatureFiles(tmp_path, layout, 2, 5, {})
    for rank in (0, 1):
        rows = torch.arange(rank, 5, 2).float()[:, None].repeat(1, 2)
        files.file(rank).write_bytes(rows.numpy().tobytes())
    files.write_index()
    again = FeatureFiles.read(tmp_path)
    assert again == files
    maps = again.mapped()
    assert [maps[index % 2][index // 2].tolist() for index in range(5)] == [[float(index)] * 2 for index in range(5)]


@pytest.mark.slow
def test_workers_map_the_files_themselves(tmp_path):
    """What is sent to a worker does not hold the features."""
    trained(tmp_path / "run", KEYS | {"TRAIN.epochs": 1})
    trained(tmp_path / "workers", KEYS | {"TRAIN.epochs": 1, "DATA.workers": 1})
    same(last_state(tmp_path / "run")["model"], last_state(tmp_path / "workers")["model"])
    dataset = object.__new__(feature_dataset.FeatureDataset)
    dataset.__dict__.update(files=None, _maps=[torch.zeros(1000)])
    assert len(pickle.dumps(dataset)) < 1000


def test_a_disk_without_room_is_named_before_it_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_files.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1e9))
    feature_files.check_room(tmp_path, 0.9e9)
    with pytest.raises(ValueError, match=r"take 1\.5 GB, and 1\.0 GB are free in .*: set PROBE\.features to a folder"):
        feature_files.check_room(tmp_path, 1.5e9)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"AUGMENT.flip": 0.5}, r"AUGMENT\.crop is centre.*AUGMENT\.flip is 0\.5: set AUGMENT\.flip 0"),
        ({"AUGMENT.on_device": True}, r"AUGMENT\.crop is centre, and AUGMENT\.on_device"),
    ],
)
def test_centre_crops_do_not_go_with_augmentation(tmp_path, keys, message):
    code, text = call(tmp_path / "run", DIGITS | CENTRE | keys, PROBE)
    assert code == 2
    assert re.search(message, text), text
