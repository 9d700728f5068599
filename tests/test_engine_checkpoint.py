"""Checkpoints: whole or not there, the last few kept, plain values, and strict about what they are loaded into."""

import argparse
from pathlib import Path

import pytest
import torch
from torch import nn

from mim.engine import checkpoint
from mim.engine.checkpoint import CheckpointSettings
from mim.ops.weights import OWN

CONTENT = {
    "step": 7,
    "seconds": 1.5,
    "model": {"weight": torch.arange(6.0).reshape(2, 3), "half": torch.ones(2, dtype=torch.bfloat16)},
    "results": {"val/loss": 0.25},
    "config": "TASK: pretrain\n",
    "list": [1, 2.5, "three", None, True],
}


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -------------------------------------------------------------------- writing


def test_checkpoint_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 7, CONTENT, keep=2)
    assert path == tmp_path / "step-7.pt"
    assert checkpoint.last(tmp_path) == path
    content = checkpoint.load(path)
    assert set(content) == {"format", *CONTENT}
    for name, weight in CONTENT["model"].items():
        assert content["model"][name].dtype == weight.dtype
        assert torch.equal(content["model"][name], weight)
    assert {key: value for key, value in content.items() if key in CONTENT and key != "model"} == {
        key: value for key, value in CONTENT.items() if key != "model"
    }


def test_checkpoint_loads_under_weights_only(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 7, CONTENT, keep=1)
    assert torch.load(path, weights_only=True)["format"] == OWN


def test_checkpoint_keep_removes_the_oldest_by_number(tmp_path: Path) -> None:
    for step in (8, 9, 10, 100):
        checkpoint.save(tmp_path, step, {"step": step}, keep=2)
    assert steps(tmp_path) == ["last", "step-10.pt", "step-100.pt"]
    assert checkpoint.load(checkpoint.last(tmp_path))["step"] == 100


def test_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    for seconds in (1, 2):
        checkpoint.save(tmp_path, 5, {"seconds": seconds}, keep=2)
    assert steps(tmp_path) == ["last", "step-5.pt"]
    assert checkpoint.load(checkpoint.last(tmp_path))["seconds"] == 2


@pytest.mark.parametrize("keep", [1, 2])
def test_checkpoint_just_written_is_kept_beside_those_of_later_steps(tmp_path: Path, keep: int) -> None:
    """A run that is taken up again from an early checkpoint finds later ones in its folder."""
    for step in (20, 30):
        checkpoint.save(tmp_path, step, {"step": step}, keep=2)
    for step in (11, 12, 13):
        path = checkpoint.save(tmp_path, step, {"step": step}, keep=keep)
        assert path.exists()
        assert checkpoint.load(checkpoint.last(tmp_path))["step"] == step


def test_checkpoint_last_is_none_where_there_is_none(tmp_path: Path) -> None:
    assert checkpoint.last(tmp_path) is None
    assert checkpoint.last(tmp_path / "nowhere") is None


def test_checkpoint_leftover_of_a_crash_is_ignored(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, {"step": 1}, keep=2)
    (tmp_path / "step-2.pt.partial").write_bytes(b"half of a che")
    (tmp_path / "last.partial").write_text("step-9")
    assert checkpoint.load(checkpoint.last(tmp_path))["step"] == 1
    checkpoint.save(tmp_path, 2, {"step": 2}, keep=1)
    checkpoint.save(tmp_path, 3, {"step": 3}, keep=1)
    assert steps(tmp_path) == ["last", "step-3.pt"]
    assert checkpoint.load(checkpoint.last(tmp_path))["step"] == 3


def test_checkpoint_survives_a_write_that_fails(tmp_path: Path) -> None:
    before = checkpoint.save(tmp_path, 1, {"step": 1}, keep=1)
    with pytest.raises(Exception, match="pickle"):
        checkpoint.save(tmp_path, 2, {"step": 2, "bad": lambda: None}, keep=1)
    assert checkpoint.last(tmp_path) == before
    assert checkpoint.load(before)["step"] == 1
    assert not (tmp_path / "step-2.pt").exists()


def test_checkpoint_survives_a_write_that_fails_over_the_same_step(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, {"seconds": 1}, keep=1)
    content = path.read_bytes()
    with pytest.raises(Exception, match="pickle"):
        checkpoint.save(tmp_path, 1, {"seconds": 2, "bad": lambda: None}, keep=1)
    assert path.read_bytes() == content
    assert checkpoint.load(checkpoint.last(tmp_path))["seconds"] == 1


def test_checkpoint_settings_out_of_range_are_refused() -> None:
    for key, value in (("keep", 0), ("every_epochs", -1), ("every_minutes", -0.5)):
        with pytest.raises(ValueError, match=rf"CHECKPOINT\.{key} is {value}"):
            CheckpointSettings(**{key: value})


# -------------------------------------------------------------------- reading what is not one


def refused(path: Path) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is what the tests look at
        checkpoint.load(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_checkpoint_missing_file_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "step-1.pt")
    assert "does not exist" in refused(tmp_path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello world, this is no checkpoint\n",
        b"(this would be a mark to a pickle\n",
        b"Gee, and this a float\n",
        b"U\xff\xff and this a text\n",
        b"<html><body>404 Not Found</body></html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        b"PK\x03\x04 not really an archive",
        bytes(range(256)) * 4,
        b"\x00" * 1000,
        b"\xff\xd8\xff\xe0\x00\x10JFIF",
        b"\x80\x04K\x05.",
    ],
)
def test_checkpoint_garbage_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "garbage.pt"
    path.write_bytes(content)
    refused(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_checkpoint_cut_short_is_refused(tmp_path: Path, share: float) -> None:
    path = checkpoint.save(tmp_path, 1, {"model": {"weight": torch.randn(50, 50)}}, keep=1)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert "cannot be read" in refused(path)


@pytest.mark.parametrize(
    "content", [{"model": {"weight": torch.zeros(2)}}, torch.zeros(3), [1, 2], {"format": "another 1"}, {}]
)
def test_checkpoint_of_another_program_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "foreign.pt"
    torch.save(content, path)
    assert "is not a checkpoint of this toolkit" in refused(path)


def test_checkpoint_beside_a_pickled_namespace_is_read_and_that_of_another_script_still_refused(tmp_path: Path) -> None:
    path = tmp_path / "mae.pth"
    arguments = argparse.Namespace(lr=1)
    torch.save({"format": OWN, "args": arguments}, path)
    assert checkpoint.load(path)["args"] == arguments
    torch.save({"model": {}, "args": arguments}, path)
    assert "is not a checkpoint of this toolkit" in refused(path)


class Odd:
    """A value that is not plain."""


def test_checkpoint_that_holds_more_than_plain_values_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "odd.pt"
    torch.save({"format": OWN, "odd": Odd()}, path)
    assert f"it holds {Odd.__module__}.Odd" in refused(path)


# -------------------------------------------------------------------- into a model


class Model(nn.Module):
    def __init__(self, width: int = 4, second: str = "second"):
        super().__init__()
        self.first = nn.Linear(3, width)
        self.add_module(second, nn.BatchNorm1d(width))


def test_load_strict_loads_every_weight(tmp_path: Path) -> None:
    source, model = Model(), Model()
    checkpoint.load_strict(model, source.state_dict(), tmp_path)
    for name, weight in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight)


def test_load_strict_takes_no_notice_of_what_a_model_derives_anew(tmp_path: Path) -> None:
    """Whether such a buffer stands in a file depends on the release of timm that wrote it."""
    with_index, without = Model(), Model()
    with_index.register_buffer("relative_position_index", torch.arange(3))
    checkpoint.load_strict(without, with_index.state_dict(), tmp_path)
    assert torch.equal(without.first.weight, with_index.first.weight)
    changed = {**Model().state_dict()}
    checkpoint.load_strict(with_index, changed, tmp_path)
    assert torch.equal(with_index.first.weight, changed["first.weight"])
    assert torch.equal(with_index.relative_position_index, torch.arange(3))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (Model(second="other"), ["missing: second.weight", "unexpected: other.weight"]),
        (Model(width=5), ["first.weight: (5, 3) in the file, (4, 3) in the model"]),
        (nn.Linear(3, 4), ["missing: first.weight", "unexpected: weight"]),
    ],
)
def test_load_strict_names_what_differs_and_changes_nothing(source: nn.Module, expected: list[str]) -> None:
    model = Model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    found = checkpoint.differences(model, source.state_dict())
    for line in expected:
        assert line in found
    with pytest.raises(ValueError, match=r"a/step-3\.pt holds another model") as caught:
        checkpoint.load_strict(model, source.state_dict(), Path("a/step-3.pt"))
    assert f"({len(found)} differences)" in str(caught.value)
    assert expected[0] in str(caught.value)
    assert "INIT.checkpoint" in str(caught.value)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name])


def test_load_strict_counts_what_it_does_not_list() -> None:
    with pytest.raises(ValueError, match="and 2 more"):
        checkpoint.load_strict(Model(), {f"other-{number}": torch.zeros(1) for number in range(3)}, Path("x.pt"))


def test_differences_of_a_models_own_state_are_none() -> None:
    assert checkpoint.differences(Model(), Model().state_dict()) == []
