"""Time to an accuracy: arithmetic, refusals, sides that train in turns, and one judge for all of them."""

import io
import json
from dataclasses import replace
from datetime import datetime

import pytest
import torch
from mim_toolkit import benchmark
from parity import carried
from PIL import Image
from rich.console import Console
from small_models import CPU

from mim import load_config
from mim.engine.distributed.world import World
from mim.lab.benchmark import AccuracyResult, AccuracySettings, show, to_json
from mim.lab.benchmark.accuracy import Curve, Point, evaluation_times, timed_run
from mim.lab.benchmark.accuracy_views import accuracy_lines, accuracy_picture
from mim.lab.benchmark.judge import Judge
from mim.lab.benchmark.machine import Machine
from mim.lab.benchmark.peer_models import PEER_MODELS, build_peer
from mim.lab.benchmark.sides import OurSide, PeerSide
from mim.lab.dryrun.task import dry_task

DIGITS = "quickstart/mae_digits"
SMALL = (
    *("ENCODER.width", "32", "ENCODER.depth", "1", "HEAD.width", "32", "HEAD.depth", "1", "TRAIN.precision", "fp32"),
    *("EVALUATE.knn_bank", "200", "EVALUATE.samples", "100", "AUGMENT.crop_scale", "[0.6, 1.0]"),
)


def curve(name: str, *accuracies: float, seed: int = 0) -> Curve:
    """Evaluations every 10 s, the first before any training."""
    points = tuple(Point(10.0 * index, 100 * index, knn, knn / 2) for index, knn in enumerate(accuracies))
    return Curve(name=name, seed=seed, model="a model", parameters=10, differences=(), points=points)


def result_of(*curves: Curve, **settings) -> AccuracyResult:
    return AccuracyResult(
        theme="mae_small_to_accuracy",
        machine=Machine(device="Some(R) CPU @ 2 GHz", threads=2, versions={"torch": "2.11"}, system="Linux"),
        date=datetime(2026, 1, 2, 3, 4, 5),
        precision="fp32",
        batch=32,
        images=(200, 100),
        settings=AccuracySettings(**{"against": ("lightly",), "budget": 30.0, "every": 10.0, **settings}),
        curves=curves,
    )


# ---------------------------------------------------------------- arithmetic


def test_ratio_is_the_time_of_the_first_evaluation_that_reaches_the_peers_best():
    result = result_of(curve("ours", 0.9, 0.5, 0.8, 0.7), curve("lightly", 0.3, 0.6, 0.7, 0.7))
    (ratio,) = result.ratios("lightly", "knn")
    values = ratio.accuracy, ratio.theirs_s, ratio.ours_s, ratio.ratio
    assert values == (0.7, 20.0, 20.0, 1.0)  # random weights never count
    sooner = result_of(curve("ours", 0.1, 0.7, 0.6, 0.8), curve("lightly", 0.3, 0.6, 0.65, 0.7))
    for measure in ("knn", "probe"):
        assert sooner.ratios("lightly", measure)[0].ratio == 3.0
        assert sooner.median_ratio("lightly", measure) == 3.0
    lines = accuracy_lines(sooner)
    assert all("3.00 times as fast" in line for line in lines)
    assert ["best kNN 0.700" in lines[0], "best probe 0.350" in lines[1], len(lines)] == [True, True, 2]


def test_a_probe_that_has_not_converged_is_no_accuracy():
    ours, theirs = curve("ours", 0.1, 0.7, 0.7), curve("lightly", 0.1, 0.6, 0.7)
    ours = replace(ours, points=tuple(replace(point, probe=None) for point in ours.points))
    assert result_of(ours, theirs).ratios("lightly", "probe")[0].ours_s is None
    assert (
        result_of(replace(theirs, name="ours"), replace(ours, name="lightly")).median_ratio("lightly", "probe") is None
    )


def test_an_accuracy_that_ours_has_not_reached_has_no_ratio():
    result = result_of(
        *(curve("ours", 0.1, 0.7, 0.7, 0.7), curve("lightly", 0.1, 0.6, 0.6, 0.7)),
        *(curve("ours", 0.1, 0.2, 0.3, 0.4, seed=1), curve("lightly", 0.1, 0.6, 0.6, 0.7, seed=1)),
        seeds=(0, 1),
    )
    assert [ratio.ratio for ratio in result.ratios("lightly", "knn")] == [3.0, None]
    assert result.median_ratio("lightly", "knn") is None
    assert "which ours has not reached" in accuracy_lines(result)[1]
    assert "lightly, probe: median over 2 seeds is not given" in accuracy_lines(result)[-1]


def test_a_peer_that_learned_nothing_is_named():
    result = result_of(curve("ours", 0.3, 0.4, 0.4, 0.4), curve("lightly", 0.3, 0.2, 0.3, 0.3))
    assert not result.ratios("lightly", "knn")[0].trained
    assert "this says nothing" in accuracy_lines(result)[0]


def test_evaluations_end_with_the_budget():
    assert evaluation_times(AccuracySettings(budget=60.0, every=20.0)) == [0.0, 20.0, 40.0, 60.0]
    assert evaluation_times(AccuracySettings(budget=50.0, every=20.0)) == [0.0, 20.0, 40.0, 50.0]


def test_views_show_every_side():
    result = result_of(curve("ours", 0.1, 0.7, 0.6, 0.8), curve("lightly", 0.3, 0.6, 0.65, 0.7))
    console = Console(width=120, file=io.StringIO())
    show(result, console)
    text = console.file.getvalue()
    assert "0.650" in text
    assert "lightly: a model" in text
    values = json.loads(json.dumps(to_json(result, ["--to-accuracy"])))
    assert values["median_ratios"] == {"lightly": {"knn": 3.0, "probe": 3.0}}
    assert [each["name"] for each in values["curves"]] == ["ours", "lightly"]
    assert Image.open(io.BytesIO(accuracy_picture(result))).size == (1350, 750)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"against": ()}, "needs a peer"),
        ({"against": ("eager",)}, "--against is eager"),
        ({"seeds": (1, 1)}, "--seeds is 1 1"),
        ({"budget": 5.0, "every": 10.0}, "--budget is 5 and --every 10"),
        ({"ours": ("ENCODER.width", "64")}, "--ours changes ENCODER.width"),
        ({"ours": ("DATA.batch_size", "64")}, "--ours changes DATA.batch_size"),
    ],
)
def test_settings_that_compare_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AccuracySettings(**settings)


@pytest.mark.slow
def test_images_without_neighbours_are_refused():
    cfg = load_config(DIGITS, [*SMALL, "EVALUATE.knn", "0"])
    with pytest.raises(ValueError, match=r"EVALUATE\.knn above 0"):
        timed_run(cfg, 0, World(0, 1, CPU), 1.0)


@pytest.mark.parametrize("name", ["lightly", "stable-pretraining"])
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["HEAD.name", "cross_attention"], "HEAD.name is cross_attention"),
        (["OPTIMIZER.name", "muon"], "OPTIMIZER.name is muon"),
        (["TARGET.name", "hog", "TARGET.cell", "4", "TARGET.window", "4"], "its MAE predicts pixels"),
        (["LOSS.name", "l1"], "LOSS.name is l1"),
    ],
)
def test_a_config_that_a_peer_has_no_model_for_is_refused(name, keys, message):
    with pytest.raises(ValueError, match=f"--against {name}: {message}"):
        build_peer(name, dry_task(load_config(DIGITS, [*SMALL, *keys])))


def test_the_decoder_of_stable_pretraining_has_one_shape_of_images_and_layers():
    for keys, message in (
        (["HEAD.mlp_ratio", "2.0"], r"HEAD\.mlp_ratio is 2\.0"),
        (["DATA.image_size", "[32, 48]"], r"DATA\.image_size is 32, and its decoder needs 48"),
    ):
        with pytest.raises(ValueError, match=message):
            build_peer("stable-pretraining", dry_task(load_config(DIGITS, [*SMALL, *keys])))


# ---------------------------------------------------------------- real sides


@pytest.mark.slow
def test_both_sides_train_in_turns_and_the_result_is_whole(tmp_path):
    words = ["--config", DIGITS, "--to-accuracy", "--against", "transformers", "--budget", "2", "--every", "1"]
    files = ["--folder", str(tmp_path), "--json", str(tmp_path / "result.json")]
    own = ["--ours", "HEAD.name", "cross_attention", "HEAD.share", "0.5"]
    assert benchmark.main([*words, *files, "--seeds", "0", "1", *SMALL, *own]) == 0
    values = json.loads((tmp_path / "result.json").read_text())
    assert [(each["name"], each["seed"]) for each in values["curves"]] == [
        *(("ours", 0), ("transformers", 0), ("ours", 1), ("transformers", 1)),
    ]
    for each in values["curves"]:
        points = each["points"]
        assert [points[0]["seconds"], points[0]["images"]] == [0, 0]
        assert [point["seconds"] >= least for point, least in zip(points, (0, 1, 2), strict=True)] == [True] * 3
        assert points[1]["images"] > 0
        images, seconds = ([point[key] for point in points[1:]] for key in ("images", "seconds"))
        assert images[1] >= images[0]
        assert (images[1] > images[0]) == (seconds[1] > seconds[0])  # a step may take longer than a second
        assert points[2]["images"] % 32 == 0
        assert all(0 <= point["knn"] <= 1 for point in points)
        assert all(point["probe"] is None or point["probe"] > 0.3 for point in points)  # ten classes
    assert "cross_attention" in values["curves"][0]["model"]
    (page,) = tmp_path.glob("*.md")
    (picture,) = tmp_path.glob("*.png")
    assert picture.name in page.read_text()
    assert Image.open(picture).size == (1350, 750)


@pytest.mark.slow
@pytest.mark.parametrize("name", PEER_MODELS)
def test_equal_weights_are_judged_equally_and_batches_are_the_same(tmp_path, name):
    if name != "transformers":
        pytest.importorskip(name.replace("-", "_"), reason=f"pip install {name}")
    cfg = load_config(DIGITS, [*SMALL, "SCHEDULE.warmup_epochs", "0"])  # the first step moves weights
    run = timed_run(cfg, 3, World(0, 1, CPU), 60.0)
    peer = build_peer(name, dry_task(run.cfg))
    encoder = run.task.model.encoder
    if name != "transformers":
        weights = {key.removeprefix("backbone."): value for key, value in encoder.state_dict().items()}
        wrapper = peer.encoder if name == "lightly" else peer.network.encoder
        missing = wrapper.vit.load_state_dict(weights, strict=False)
        assert not missing.missing_keys
        assert not missing.unexpected_keys
    else:
        state = carried(peer.network, tmp_path / "theirs").state
        run.task.model.load_state_dict(state)
    ours, theirs, judge = OurSide(run), PeerSide(run, name, peer), Judge(run)
    for actual, expected in zip(judge.features(theirs), judge.features(ours), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert judge.accuracies(theirs)[0] == judge.accuracies(ours)[0]
    for _ in range(3):
        first, second = ours.prefetcher.next(), theirs.prefetcher.next()
        assert first.indices == second.indices
        assert torch.equal(first.images_BCHW, second.images_BCHW)
    theirs.train(0.01)
    assert theirs.network.training
    assert not torch.allclose(judge.features(theirs)[0], judge.features(ours)[0], atol=1e-4)
