"""Trackers in real runs: what each holds afterwards, a resumed run, and one that fails."""

import csv
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
from processes import ROOT, TINY, call, last_checkpoint, rows

SMALL = {key: value for key, value in TINY.items() if key != "LOG.tensorboard"} | {"DATA.workers": 0}
BROKEN = """
from mim.engine.trackers.base import Tracker


class Broken(Tracker, name="broken_at_the_third_call"):
    calls = 0

    def start(self, run):
        return "id"

    def metrics(self, metrics, progress):
        self.calls += 1
        if self.calls == 3:
            raise SystemExit("the server is gone")

    def close(self, completed):
        raise OSError("nothing to close")
"""


def trained(output, keys) -> str:
    code, text = call(output, SMALL | {"LOG.tensorboard": False} | keys)
    assert code == 0, text
    return text


def cut_last_epoch(output) -> None:
    """As if the run had been killed before its last checkpoint."""
    last = last_checkpoint(output)
    earlier = sorted(last.parent.glob("step-*.pt"), key=lambda path: int(path.stem[5:]))[-2]
    (last.parent / "last").write_text(earlier.name)
    last.unlink()
    (output / "summary.json").unlink()


@pytest.mark.slow
def test_csv_has_the_rows_of_metrics_jsonl_also_of_a_resumed_run(tmp_path):
    keys = {"LOG.trackers": "[csv]", "TRAIN.epochs": 2, "CHECKPOINT.keep": 9}
    trained(tmp_path / "run", keys)
    cut_last_epoch(tmp_path / "run")
    assert "resumed from" in trained(tmp_path / "run", keys)
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    expected = [{key: value for key, value in row.items() if value is not None} for row in rows(tmp_path / "run")]
    assert [{key: float(text) for key, text in row.items() if text} for row in table] == [
        {key: pytest.approx(value) for key, value in row.items()} for row in expected
    ]
    assert [int(row["step"]) for row in table] == sorted(int(row["step"]) for row in table)


def test_tracker_that_fails_is_off_with_one_warning_and_the_run_ends_well(tmp_path, monkeypatch):
    (tmp_path / "broken_tracker.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    keys = {"PLUGINS": "[broken_tracker]", "LOG.trackers": "[broken_at_the_third_call, csv]"}
    text = trained(tmp_path / "run", keys)
    assert (
        text.count("broken_at_the_third_call failed and is off; the run goes on (SystemExit: the server is gone)") == 1
    )
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 1 + len(rows(tmp_path / "run"))


def test_package_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("mim.engine.trackers.base.find_spec", lambda name: None)
    code, text = call(tmp_path / "run", SMALL | {"LOG.trackers": "[wandb]"})
    assert code == 2
    assert "LOG.trackers wandb needs the package wandb: pip install 'mim-toolkit[wandb]'" in text


@pytest.fixture
def mlflow_server(tmp_path):
    """The address of a real server in a process of its own, with a database and a folder for artifacts."""
    pytest.importorskip("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    stores = ["--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db", "--artifacts-destination", f"{tmp_path}/files"]
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words, *stores], stdout=log, stderr=log, start_new_session=True
        )
    uri = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1200):
            assert server.poll() is None, (tmp_path / "server.log").read_text()
            with suppress(OSError), urllib.request.urlopen(f"{uri}/health", timeout=5):
                break
            time.sleep(0.1)
        yield uri
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.slow
def test_mlflow_server_has_config_metrics_pictures_and_artifacts_and_goes_on_with_a_resumed_run(
    tmp_path, mlflow_server
):
    import mlflow

    artifacts = "artifacts: [config, checkpoint]"
    trackers = f"[{{name: mlflow, uri: '{mlflow_server}', experiment: digits, {artifacts}}}]"
    keys = {"LOG.trackers": trackers, "TRAIN.epochs": 2, "CHECKPOINT.keep": 9, "EVALUATE.reconstructions": 2}
    trained(tmp_path / "run", keys)
    cut_last_epoch(tmp_path / "run")
    trained(tmp_path / "run", keys)
    client = mlflow.MlflowClient(mlflow_server)
    (run,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    tracked = run.info.run_id
    assert tracked == json.loads((tmp_path / "run" / "trackers.json").read_text())["tracked"]["mlflow"]
    assert (run.info.status, run.data.params["ENCODER.width"]) == ("FINISHED", "16")
    last = {metric.step: metric.value for metric in client.get_metric_history(tracked, "train/loss")}
    expected = {row["images_seen"]: row["train/loss"] for row in rows(tmp_path / "run") if "train/loss" in row}
    assert last == {step: pytest.approx(value) for step, value in expected.items()}
    assert list(client.list_artifacts(tracked, "images"))
    folder = Path(client.download_artifacts(tracked, "checkpoint", str(tmp_path)))
    newest = last_checkpoint(tmp_path / "run")
    assert (folder / newest.name).read_bytes() == newest.read_bytes()
    assert [file.path for file in client.list_artifacts(tracked, "config")] == ["config/config.yaml"]
    assert not client.list_artifacts(tracked, "metrics")  # was not chosen


@pytest.mark.slow
def test_wandb_offline_writes_a_run_and_goes_on_with_it(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "artifacts"))
    keys = {
        "LOG.trackers": "[{name: wandb, mode: offline, artifacts: [checkpoint, metrics]}]",
        "TRAIN.epochs": 2,
        "CHECKPOINT.keep": 9,
    }
    trained(tmp_path / "run", keys)
    first = json.loads((tmp_path / "run" / "trackers.json").read_text())["tracked"]["wandb"]
    cut_last_epoch(tmp_path / "run")
    text = trained(tmp_path / "run", keys)
    assert "failed and is off" not in text
    assert json.loads((tmp_path / "run" / "trackers.json").read_text())["tracked"]["wandb"] == first
    files = sorted((tmp_path / "run" / "wandb").rglob(f"*{first}.wandb"))
    assert len(files) == 2
    for _ in range(300):  # another process of the package writes them
        if written := all(b"train/loss" in file.read_bytes() for file in files):
            break
        time.sleep(0.1)
    assert written
    stored = [file.read_bytes() for file in (tmp_path / "artifacts").rglob("*") if file.is_file()]
    for file in (last_checkpoint(tmp_path / "run"), tmp_path / "run" / "metrics.jsonl"):
        assert file.read_bytes() in stored


@pytest.mark.slow
def test_trackio_has_the_metrics_in_its_local_database(tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    words = f"""
import os, sys
os.environ["TRACKIO_DIR"] = {str(tmp_path / "trackio")!r}
sys.path[:0] = {json.dumps([str(path) for path in _support()])}
from test_trackers import trained
from pathlib import Path
trackers = "[{{name: trackio, project: digits, artifacts: [config]}}]"
trained(Path({str(tmp_path / "run")!r}), {{"LOG.trackers": trackers}})
"""
    _in_another_process(words)
    name = json.loads((tmp_path / "run" / "trackers.json").read_text())["tracked"]["trackio"]
    printed = _in_another_process(
        f"""
import json, os
os.environ["TRACKIO_DIR"] = {str(tmp_path / "trackio")!r}
from trackio.sqlite_storage import SQLiteStorage
print(json.dumps([row.get("train/loss") for row in SQLiteStorage.get_logs("digits", {name!r})]))
"""
    )
    config = (tmp_path / "run" / "config.yaml").read_bytes()
    assert any(file.read_bytes() == config for file in (tmp_path / "trackio").rglob("*") if file.is_file())
    values = [value for value in json.loads(printed.splitlines()[-1]) if value is not None and math.isfinite(value)]
    expected = [row["train/loss"] for row in rows(tmp_path / "run") if "train/loss" in row]
    assert sorted(values) == [pytest.approx(value) for value in sorted(expected)]


def _support():
    return ROOT, ROOT / "tools", ROOT / "tests" / "support", ROOT / "tests" / "engine"


def _in_another_process(source: str) -> str:
    """The output of Python: the package reads its folder when it is imported."""
    process = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False, timeout=120)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout
