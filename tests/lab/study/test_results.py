"""Results of a study with labels of any kind: its columns, its texts, its files, and its scales in pictures."""

import json

import pytest
from processes import ROOT

from mim.config import load_config
from mim.lab.comparison.runs.studies import Studies
from mim.lab.study import Results, read_study
from mim.lab.study.pictures import Scale

STUDY = f"""\
STARTS:
  a: {{}}
  b: {{then: {{OPTIMIZER.layer_decay: 0.9}}}}
PROTOCOLS:
  probe: {{config: {ROOT}/configs/probe/digits.yaml}}
SEEDS: [0, 1]
"""


def results(tmp_path, metrics: dict[str, list[dict[str, float]]]) -> Results:
    """metrics: of the summaries of each start, by seed."""
    (tmp_path / "study.yaml").write_text(STUDY)
    study, cfg = read_study(tmp_path / "study.yaml"), load_config("probe/digits")
    summaries = {(name, "probe", seed): each[seed] for name, each in metrics.items() for seed in (0, 1)}
    return Results(study, dict.fromkeys(metrics, cfg), summaries)


def of(key: str, **values: tuple[float, float]) -> dict[str, list[dict[str, float]]]:
    return {name: [{key: value} for value in each] for name, each in values.items()}


@pytest.mark.parametrize(
    ("key", "title", "texts"),
    [
        ("val/top1", "probe, %", ("50.0 ± 12.7", "20.0 [0.0, 100.0]")),
        ("val/mean_ap", "probe, mAP, %", ("50.0 ± 12.7", "20.0 [0.0, 100.0]")),
        ("val/miou", "probe, mIoU, %", ("50.0 ± 12.7", "20.0 [0.0, 100.0]")),
        ("val/r2", "probe, R²", ("0.500 ± 0.127", "0.200 [0.000, 1.000]")),
    ],
)
def test_main_metric_has_its_name_unit_and_bounds(tmp_path, key, title, texts):
    table = results(tmp_path, of(key, a=(0.49, 0.51), b=(0.1, 0.3))).table()
    assert table == [["", title], ["a", texts[0]], ["b", texts[1]]]


def test_r2_below_0_keeps_its_interval(tmp_path):
    (metric,) = results(tmp_path, of("val/r2", a=(-0.2, -0.4), b=(0.1, 0.1))).metrics()
    assert metric.scale == Scale(float("-inf"), 1.0, digits=3)
    assert metric.text("a") == "-0.300 ± 1.271"


def test_files_have_the_metric_and_names_for_the_comparison(tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    results(tmp_path, of("val/r2", a=(0.5, 0.7), b=(0.1, 0.1))).write(output)
    content = json.loads((output / "results.json").read_text())
    assert content["trials"]["a"]["val/r2"] == {"probe": {"0": 0.5, "1": 0.7}}
    assert content["means"] == {"probe, R²": {"a": pytest.approx(0.6), "b": pytest.approx(0.1)}}
    assert Studies().position(output / "probe" / "a-seed0").protocol_name == "probe"


def test_pictures_draw_r2_on_its_own_scale(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    bars = []
    monkeypatch.setattr(Axes, "errorbar", lambda self, x, y, xerr=None, **style: bars.append((x, xerr)))
    results(tmp_path, of("val/r2", a=(0.99, 0.7), b=(0.5, 0.5))).pictures()
    (x, ([down], [up])), _ = bars
    assert (x - down, x + up) == pytest.approx((0.0, 1.0))  # in percent it would be cut at 100
