"""What a run folder says of its run: state, progress and time left, from real runs and from files cut short."""

import json
import os
import shutil
import time

import pytest
from processes import TINY, call, rows
from run_folders import real_runs

from mim.engine.run_folder import RunFolder
from mim.lab.watch.charts import charts_of
from mim.lab.watch.folders import RunFolders
from mim.lab.watch.status import QUIET_S, last_write, read_status


@pytest.fixture
def run(tmp_path):
    """A copy of a real finished pretraining run."""
    shutil.copytree(real_runs().pretraining, tmp_path / "runs" / "mae")
    return tmp_path / "runs" / "mae"


def unfinished(run):
    """The same folder as it was after two thirds of its rows, and those rows."""
    (run / "summary.json").unlink()
    entries = [row for row in rows(run) if row["step"] <= 10]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in entries))
    log = [line for line in (run / "log.txt").read_text().splitlines() if "finished" not in line]
    (run / "log.txt").write_text("\n".join(log) + "\n")
    return entries


def status(run, after_s=0.0):
    return read_status(run, rows(run), last_write(RunFolder(run)) + after_s)


def overview(run):
    (only,) = RunFolders([run.parent]).overview()["runs"]
    return only


def test_finished_run_is_finished_and_stays_it(run):
    answer = status(run, 1e6)
    summary = json.loads((run / "summary.json").read_text())
    assert (answer.state, answer.note, answer.eta_s) == ("finished", "", None)
    assert (answer.epoch, answer.epochs) == (1.0, 1)
    assert answer.images_seen == summary["images_seen"]
    assert answer.quiet_s == pytest.approx(1e6)


def test_run_without_a_summary_runs_until_it_is_quiet(run):
    unfinished(run)
    assert status(run, QUIET_S - 1).state == "running"
    answer = status(run, QUIET_S + 1)
    assert (answer.state, answer.eta_s) == ("interrupted", None)
    assert "nothing was written" in answer.note


def test_run_of_slow_rows_may_be_quiet_for_longer(run):
    entries = unfinished(run)
    slow = [{**row, "seconds": 300.0 * index} for index, row in enumerate(entries)]
    now = last_write(RunFolder(run))
    assert read_status(run, slow, now + 2990).state == "running"
    assert read_status(run, slow, now + 3010).state == "interrupted"


def test_time_left_follows_the_pace_of_the_later_half(run):
    unfinished(run)
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("epochs: 1\n", "epochs: 10\n", 1))
    fake = [{"epoch": 0.5 * n, "seconds": 10.0 * n if n < 6 else 50.0 + 40.0 * (n - 5), "step": n} for n in range(11)]
    now = last_write(RunFolder(run))
    answer = read_status(run, fake, now)
    assert (answer.epoch, answer.epochs) == (5.0, 10)
    assert answer.eta_s == pytest.approx(5 * 80)  # half an epoch takes 40 s now
    assert read_status(run, fake, now + 30).eta_s == pytest.approx(5 * 80 - 30)
    assert read_status(run, fake[:1], now).eta_s is None
    assert read_status(run, [], now).eta_s is None


def test_speed_and_loader_share_are_those_of_the_newest_row(run):
    newest = [row for row in rows(run) if "time/data_share" in row][-1]
    answer = status(run)
    assert (answer.images_per_s, answer.data_share) == (newest["time/images_per_s"], newest["time/data_share"])


@pytest.mark.slow
def test_interrupted_run_says_why_and_runs_again_once_it_is_resumed(run, monkeypatch):
    """An error in the midst of a real run, and the same command again."""
    from mim.engine.trainer import Trainer

    folder = run.parent / "failing"
    keys = {**TINY, "TRAIN.epochs": 2, "EVALUATE.knn": 0}
    step = Trainer._train_step

    def fail(self):
        if self.step == 20:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(Trainer, "_train_step", fail)
    assert call(folder, keys)[0] == 130
    answer = status(folder)
    assert (answer.state, answer.note) == ("interrupted", "ended by Ctrl-C")
    assert answer.epoch == pytest.approx(20 / 14, abs=1e-3)
    with (folder / "log.txt").open("a") as log:
        log.write("2026-03-02 14:05:31  stopped: RunStopped: the loss is not finite\nsecond line\n")
    assert status(folder).note == "RunStopped: the loss is not finite"
    with (folder / "log.txt").open("a") as log:
        log.write("2026-03-02 14:06:31  resumed from step 14\n")
    assert status(folder).state == "running"
    monkeypatch.undo()
    assert call(folder, keys)[0] == 0
    assert status(folder).state == "finished"


def test_extended_run_is_not_finished(run):
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("epochs: 1\n", "epochs: 3\n", 1))
    answer = status(run)
    assert (answer.state, answer.epochs) == ("running", 3)


def test_line_that_is_being_written_is_left_out_until_it_is_whole(run):
    entries = unfinished(run)
    path = run / "metrics.jsonl"
    whole = path.read_bytes()
    line = json.dumps({**entries[-1], "step": 11, "images_seen": 99_999, "val/loss": 0.5}).encode() + b"\n"
    for length in range(0, len(line), 7):
        path.write_bytes(whole + line[:length])
        assert overview(run)["images_seen"] == entries[-1]["images_seen"]
    path.write_bytes(whole + line)
    assert overview(run)["images_seen"] == 99_999


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"TASK: [", b"TASK: pretrain\n", b"TASK: x\nTRAIN: {epochs: many}\n"]
)
def test_config_that_cannot_be_read_is_named_and_hides_no_other_run(run, content):
    shutil.copytree(run, run.parent / "broken")
    (run.parent / "broken" / "config.yaml").write_bytes(content)
    runs = RunFolders([run.parent]).overview()["runs"]
    assert [(each["name"].rpartition("/")[2], each["state"]) for each in runs] == [
        ("broken", "unreadable"),
        ("mae", "finished"),
    ]
    assert "config.yaml" in runs[0]["note"]


@pytest.mark.parametrize("name", ["summary.json", "log.txt", "metrics.jsonl", "environment.json"])
def test_damaged_and_missing_files_end_nothing(run, name):
    for content in (b"\xff{[", None):
        (run / name).unlink() if content is None else (run / name).write_bytes(content)
        assert overview(run)["state"] in ("running", "finished")


def test_overview_reads_rows_again_only_where_they_changed(run, monkeypatch):
    reads = []
    from mim.lab.watch import folders

    monkeypatch.setattr(folders, "read_rows", lambda path, remarks: reads.append(path) or ())
    watched = RunFolders([run.parent])
    before = watched.overview()["runs"][0]["version"]
    watched.overview()
    assert len(reads) == 1
    with (run / "metrics.jsonl").open("a") as file:
        file.write("{}\n")
    assert watched.overview()["runs"][0]["version"] != before
    assert len(reads) == 2


def test_new_runs_are_found_and_those_that_run_come_first(run):
    watched = RunFolders([run.parent, run])
    for name in ("seed10", "seed2"):
        shutil.copytree(run, run.parent / name)
        unfinished(run.parent / name)
    names = [each["name"].rpartition("/")[2] for each in watched.overview()["runs"]]
    assert names == ["seed2", "seed10", "mae"]


def test_charts_have_the_values_of_the_rows(run):
    charts = {chart.title: chart.lines for chart in charts_of(rows(run))}
    losses = {line.name: line for line in charts["Loss"]}
    expected = [(row["images_seen"], row["train/loss"]) for row in rows(run) if "train/loss" in row]
    assert list(zip(losses["training"].images, losses["training"].values, strict=True)) == expected
    (knn,) = charts["Scores, %"]
    assert knn.values == tuple(100 * row["knn/top1"] for row in rows(run) if "knn/top1" in row)
    names = [line.name for line in {c.title: c.lines for c in charts_of(rows(real_runs().probe))}["Scores, %"]]
    assert names[0] == "top-1"
    assert len(set(names)) == len(names) > 2


def test_charts_of_numbers_part_coefficients_from_errors():
    made = [{"images_seen": 1.0, "val/r2": 0.5, "val/mae": 3.0}, {"images_seen": 2.0, "val/r2": 0.6, "val/mae": 2.0}]
    charts = {chart.title: [(line.name, line.values) for line in chart.lines] for chart in charts_of(made)}
    assert charts == {"Scores": [("R²", (0.5, 0.6))], "Errors": [("MAE", (3.0, 2.0))]}


def test_path_that_is_no_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="missing does not exist"):
        RunFolders([tmp_path / "missing"])
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is a file"):
        RunFolders([tmp_path / "file"])
    assert RunFolders([tmp_path]).overview()["runs"] == []


def test_last_write_is_the_newest_of_the_files(run):
    for age, name in ((500, "log.txt"), (100, "metrics.jsonl"), (300, "config.yaml"), (400, "summary.json")):
        os.utime(run / name, (time.time() - age,) * 2)
    os.utime(run / "checkpoints", (time.time() - 200,) * 2)
    assert time.time() - last_write(RunFolder(run)) == pytest.approx(100, abs=5)
