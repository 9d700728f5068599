"""Run folders that are damaged, unfinished or of another version are named and left out, and the rest is compared."""

import json
from pathlib import Path

import pytest
from run_folders import Real, read_json, real_runs, write_run

from mim.lab.comparison import compare
from mim.lab.comparison.runs.run import read_run


@pytest.fixture(scope="module")
def real() -> Real:
    return real_runs()


def cut(path: Path, letters: int) -> None:
    path.write_text(path.read_text()[:letters])


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


UNUSABLE = {
    "config is gone": (lambda run: (run / "config.yaml").unlink(), "no config.yaml"),
    "config is cut in a section": (lambda run: cut(run / "config.yaml", 400), "config.yaml is damaged"),
    "config is cut between sections": (lambda run: _cut_sections(run), "it lacks"),
    "config is no YAML": (lambda run: (run / "config.yaml").write_text("DATA: [}"), "config.yaml is damaged"),
    "config is no text": (lambda run: (run / "config.yaml").write_bytes(b"\xff\xfe\x00"), "config.yaml is damaged"),
    "config is empty": (lambda run: (run / "config.yaml").write_text(""), "config.yaml is damaged"),
    "config has an unknown key": (
        lambda run: edit(run / "config.yaml", " ratio:", " share:"),
        "unknown key MASKER.share",
    ),
    "config has an unknown section": (lambda run: _append(run / "config.yaml", "FUTURE: {a: 1}"), "FUTURE"),
    "config has a part that is not here": (
        lambda run: edit(run / "config.yaml", "name: vit", "name: x9"),
        "'x9' is unknown",
    ),
    "plugin is not here": (lambda run: edit(run / "config.yaml", "PLUGINS: []", "PLUGINS: [no_such_9]"), "'no_such_9'"),
    "plugin is broken": (lambda run: edit(run / "config.yaml", "PLUGINS: []", "PLUGINS: [broken_9]"), "name 'nothing'"),
    "unfinished": (lambda run: (run / "summary.json").unlink(), "unfinished: epoch 1 of 1"),
    "summary is cut": (lambda run: cut(run / "summary.json", 100), "summary.json is damaged"),
    "summary is empty": (lambda run: cut(run / "summary.json", 0), "summary.json is damaged"),
    "summary is a list": (lambda run: (run / "summary.json").write_text("[1]"), "summary.json is damaged"),
    "summary is of another run": (lambda run: edit(run / "summary.json", '"epochs": 1', '"epochs": 7'), "of 7 epochs"),
}
PARTLY = {
    "metric is not finite": (lambda run: _set(run, "val/loss", float("nan")), "val/loss is nan"),
    "metric is infinite": (lambda run: _set(run, "val/loss", float("inf")), "val/loss is inf"),
    "metric is null": (lambda run: _set(run, "val/loss", None), "val/loss is None"),
    "metric is text": (lambda run: _set(run, "seconds", "long"), "seconds is 'long'"),
    "metric is missing": (lambda run: _set(run, "parameters", None, drop=True), "lacks parameters"),
    "metrics are gone": (lambda run: (run / "metrics.jsonl").unlink(), "metrics.jsonl is missing"),
    "metrics are cut": (lambda run: cut(run / "metrics.jsonl", -20), "metrics.jsonl: line"),
    "metrics have a line of rubbish": (lambda run: _append(run / "metrics.jsonl", "\x00\x00"), "metrics.jsonl: line"),
    "metrics have numbers that are not finite": (
        lambda run: _append(run / "metrics.jsonl", '{"images_seen": 9, "val/loss": NaN, "train/loss": 1}'),
        "val/loss is no finite number in 1 line: compared without",
    ),
    "environment is cut": (lambda run: cut(run / "environment.json", 30), "environment.json"),
    "environment is gone": (lambda run: (run / "environment.json").unlink(), "environment.json"),
}


def _cut_sections(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    cut(run / "config.yaml", text.index("\nTRAIN:") + 1)


def _append(path: Path, line: str) -> None:
    path.write_text(path.read_text() + line + "\n")


def _set(run: Path, name: str, value: object, drop: bool = False) -> None:
    metrics = read_json(run / "summary.json")
    metrics[name] = value
    if drop:
        del metrics[name]
    (run / "summary.json").write_text(json.dumps(metrics))


@pytest.fixture
def broken_plugin(tmp_path, monkeypatch):
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "broken_9.py").write_text("nothing")
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


def test_run_of_before_a_section_there_was_is_compared_by_its_defaults(real, tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"a-seed{seed}", real.pretraining, {"SEED": seed})
    edit(tmp_path / "a-seed0" / "config.yaml", "AUGMENTATION: {name: none}\n", "")
    result = compare([tmp_path], reconstructions=False)
    assert [entry.seeds for entry in result.entries] == [(0, 1)]
    assert not result.left_out


@pytest.mark.parametrize(("damage", "reason"), UNUSABLE.values(), ids=UNUSABLE)
def test_damaged_run_is_named_with_the_reason_and_the_rest_is_compared(
    real, tmp_path, monkeypatch, broken_plugin, damage, reason
):
    good, bad = (
        write_run(tmp_path / "good", real.pretraining),
        write_run(tmp_path / "bad", real.pretraining, {"SEED": 1}),
    )
    damage(bad)
    monkeypatch.chdir(tmp_path)
    result = compare([good, Path("bad")], reconstructions=False)
    assert [entry.name for entry in result.entries] == ["good"]
    assert [folder for folder, _ in result.left_out] == ["bad"]
    assert reason in result.left_out[0][1]
    assert "\n" not in result.left_out[0][1]


@pytest.mark.parametrize(("damage", "remark"), PARTLY.values(), ids=PARTLY)
def test_partly_damaged_run_is_compared_without_what_is_damaged_which_is_named(
    real, tmp_path, monkeypatch, damage, remark
):
    good, bad = (
        write_run(tmp_path / "good", real.pretraining),
        write_run(tmp_path / "bad", real.pretraining, {"HEAD.depth": 2}),
    )
    damage(bad)
    monkeypatch.chdir(tmp_path)
    result = compare([good, bad], reconstructions=False)
    assert [entry.name for entry in result.entries] == ["good", "bad"]
    assert [folder for folder, _ in result.left_out] == ["bad"]
    assert remark in result.left_out[0][1]
    assert "knn/top1" in result.entries[1].metrics


def test_metric_that_is_not_finite_is_in_no_mean(real, tmp_path):
    for seed, value in ((0, 0.4), (1, float("nan")), (2, 0.6)):
        write_run(tmp_path / f"a-seed{seed}", real.pretraining, {"SEED": seed}, {"knn/top1": value})
    metric = compare([tmp_path], reconstructions=False).entries[0].metrics["knn/top1"]
    assert (metric.mean, metric.runs) == (50, 2)


def test_metrics_keep_the_lines_before_and_after_a_damaged_one(real, tmp_path):
    run = write_run(tmp_path / "run", real.pretraining)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([lines[0], lines[1][:9], *lines[2:]]))
    rows = read_run(run)[0].rows
    assert [row["step"] for row in rows] == [json.loads(line)["step"] for line in [lines[0], *lines[2:]]]


def test_unfinished_probe_of_a_compared_run_is_named(real, tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", real.pretraining)
    probe = write_run(tmp_path / "probe", real.probe, start=run)
    other = write_run(tmp_path / "other", real.probe)
    for folder in (probe, other):
        (folder / "summary.json").unlink()
    monkeypatch.chdir(tmp_path)
    result = compare([run], reconstructions=False)
    assert [(folder, "unfinished" in reason) for folder, reason in result.left_out] == [("probe", True)]


def test_what_came_from_a_run_that_is_left_out_is_left_out_by_name(real, tmp_path, monkeypatch):
    good = write_run(tmp_path / "good", real.pretraining)
    bad = write_run(tmp_path / "bad", real.pretraining, {"SEED": 1})
    probe = write_run(tmp_path / "probe", real.probe, start=bad)
    (bad / "summary.json").unlink()
    monkeypatch.chdir(tmp_path)
    for folders in ([good, bad, probe], [good, bad]):
        result = compare(folders, reconstructions=False)
        assert [entry.name for entry in result.entries] == ["good"]
        assert result.left_out[1:] == (("probe", "came from bad, which is left out"),)


def test_probe_without_accuracy_is_named(real, tmp_path):
    run = write_run(tmp_path / "run", real.pretraining)
    _set(write_run(tmp_path / "probe", real.probe, start=run), "val/top1", None, drop=True)
    result = compare([run], reconstructions=False)
    assert "lacks val/top1" in result.left_out[0][1]
    assert {column.title for column in result.columns if column.section == "accuracy"} == {"kNN", "kNN, random weights"}


def test_nothing_left_is_an_error_with_every_reason(real, tmp_path):
    bad = write_run(tmp_path / "bad", real.pretraining)
    (bad / "summary.json").unlink()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no run that can be compared") as error:
        compare([bad, tmp_path / "empty"])
    assert "unfinished" in str(error.value)
    assert "no config.yaml" in str(error.value)
    with pytest.raises(ValueError, match="no run is named"):
        compare([])


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_path_that_is_no_folder_is_an_error(real, tmp_path, kind):
    path = tmp_path / "x"
    if kind == "file":
        path.write_text("")
    with pytest.raises(ValueError, match="name a run folder"):
        compare([write_run(tmp_path / "good", real.pretraining), path])


def test_run_of_before_ids_origins_and_seconds_is_compared(real, tmp_path):
    old = write_run(tmp_path / "old", real.pretraining)
    environment = read_json(old / "environment.json")
    (old / "environment.json").write_text(
        json.dumps({k: v for k, v in environment.items() if k not in ("run", "from")})
    )
    rows = [json.loads(line) for line in (old / "metrics.jsonl").read_text().splitlines()]
    text = "".join(json.dumps({k: v for k, v in row.items() if k != "seconds"}) + "\n" for row in rows)
    (old / "metrics.jsonl").write_text(text)
    result = compare([old], reconstructions=False)
    assert result.left_out == ()
    assert all(set(curve.at) == {"images_seen", "flops"} for curve in result.curves)
