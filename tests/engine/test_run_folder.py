"""Run folders: which run they are of, what it came from, how long it took, and what it set out to do."""

import json
import re
import shutil

import pytest
from processes import PROBE, TINY, TINY_CLASSIFIER, call, last_checkpoint, last_state, rows

from mim.engine import checkpoint
from mim.engine.run_folder import RunFolder


def recorded(output) -> dict:
    return json.loads((output / "environment.json").read_text())


@pytest.mark.slow
def test_run_keeps_its_id_when_it_is_resumed_and_another_has_another(tmp_path):
    for name in ("one", "other"):
        assert call(tmp_path / name, TINY)[0] == 0
    one, other = recorded(tmp_path / "one"), recorded(tmp_path / "other")
    assert re.fullmatch(r"[0-9a-f]{32}", one["run"])
    assert one["run"] != other["run"]
    assert one["from"] is None
    (tmp_path / "one" / "summary.json").unlink()
    assert call(tmp_path / "one", TINY)[0] == 0
    assert recorded(tmp_path / "one") == {**one, "command": recorded(tmp_path / "one")["command"]}
    shutil.rmtree(tmp_path / "one" / "checkpoints")  # nothing to resume: a new run in an old folder
    assert call(tmp_path / "one", TINY)[0] == 0
    assert recorded(tmp_path / "one")["run"] not in (one["run"], other["run"])


@pytest.mark.slow
def test_checkpoint_tells_its_run_also_where_it_was_moved(tmp_path):
    assert call(tmp_path / "run", TINY)[0] == 0
    identity = RunFolder(tmp_path / "run").read_environment()["run"]
    assert last_state(tmp_path / "run")["run"] == identity
    moved = tmp_path / "elsewhere.pt"
    shutil.copy(last_checkpoint(tmp_path / "run"), moved)
    assert checkpoint.origin_of(moved) == {"run": identity, "step": 14}
    probe = tmp_path / "probe"
    assert call(probe, TINY_CLASSIFIER | {"INIT.checkpoint": moved}, PROBE)[0] == 0
    assert recorded(probe)["from"] == {"checkpoint": str(moved), "run": identity, "step": 14}
    (probe / "summary.json").unlink()
    moved.unlink()  # what the run came from is known when it is resumed without the file
    assert call(probe, TINY_CLASSIFIER | {"INIT.checkpoint": moved}, PROBE)[0] == 0
    assert recorded(probe)["from"] == {"checkpoint": str(moved), "run": identity, "step": 14}


def test_file_of_others_tells_no_run(tmp_path):
    (tmp_path / "model.pth").write_bytes(b"no checkpoint")
    for path in (tmp_path / "model.pth", tmp_path):
        assert checkpoint.origin_of(path) == {"run": None, "step": None}
    assert RunFolder(tmp_path).read_environment() == {}
    (tmp_path / "environment.json").write_text('{"run": ')  # cut short
    assert RunFolder(tmp_path).read_environment() == {}


def test_seconds_of_rows_grow_up_to_those_of_the_checkpoint(tmp_path):
    assert call(tmp_path, TINY)[0] == 0
    seconds = [row["seconds"] for row in rows(tmp_path)]
    assert len(seconds) > 10
    assert seconds == sorted(seconds)
    assert 0 < seconds[0] < seconds[-1] <= last_state(tmp_path)["seconds"] + 0.001


def test_tensorboard_has_what_the_log_says_at_the_start(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    code, text = call(tmp_path, TINY | {"LOG.tensorboard": True})
    assert code == 0
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    plan = events.Tensors("plan/text_summary")[0].tensor_proto.string_val[0].decode()
    for name in ("masker", "encoder", "batch", "learning rate"):
        line = next(line for line in text.splitlines() if line.strip().startswith(f"{name} "))
        assert f"| {name} | {line.strip().removeprefix(name).strip()} |" in plan
