"""A folder that is pushed to a hub loads from there: by the real huggingface_hub, from a server in another process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hub_server import hub_server
from processes import ROOT
from run_folders import real_runs

from mim import load_encoder
from mim.interop import hub

OFF = "http://127.0.0.1:9"  # nothing answers there
READ = """
import sys, timm, torch, mim

def features(path):
    try:
        return mim.load_encoder(path)(torch.load(sys.argv[1])).tokens_BND.detach()
    except ValueError as error:
        return str(error)

answers = {path: features(path) for path in sys.argv[3:] if path.startswith("hf://")}
for name in sys.argv[3:]:
    if name.startswith("hf-hub:"):
        model = timm.create_model(name, pretrained=True).eval()
        answers[name] = model.forward_features(torch.load(sys.argv[1]))[:, 1:].detach()
torch.save(answers, sys.argv[2])
"""


def process(words: list[object], home: Path, server: str, token: str = "") -> subprocess.CompletedProcess:
    """A fresh process with an empty HF_HOME, or one that it filled; without xet, which the server lacks."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment = {
        **kept,
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tools"))),
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(home),
        "HF_ENDPOINT": server,
        "HF_HUB_OFFLINE": "0",  # else TRANSFORMERS_OFFLINE decides
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **({"HF_TOKEN": token} if token else {}),
    }
    done = subprocess.run(
        [sys.executable, *map(str, words)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def read(tmp_path: Path, home: Path, server: str, *paths: str) -> dict[str, torch.Tensor | str]:
    """What a fresh process gets from each path: features, or an error."""
    process(["-c", READ, tmp_path / "images.pt", tmp_path / "answers.pt", *paths], home, server)
    return torch.load(tmp_path / "answers.pt")


@pytest.mark.slow
def test_hub_push_and_load_through_a_server_and_from_the_cache(tmp_path: Path) -> None:
    run, img_BCHW = real_runs().pretraining, torch.randn(2, 1, 32, 32)
    torch.save(img_BCHW, tmp_path / "images.pt")
    ours = load_encoder(run)(img_BCHW).tokens_BND
    words = [run, "--format", "huggingface", "--output", tmp_path / "plates", "--push", "me/plates", "--private"]
    with hub_server(tmp_path / "hub") as server:
        done = process([ROOT / "tools" / "export.py", *words], tmp_path / "writer", server, "hf_writer")
        assert f"pushed: {server}/me/plates/commit/" in done.stdout
        assert "hf_writer" not in done.stdout + done.stderr
        repository = tmp_path / "hub" / "repositories" / "me" / "plates"
        local = {path.name: path.read_bytes() for path in (tmp_path / "plates").iterdir()}
        assert {path.name: path.read_bytes() for path in repository.iterdir() if path.name != ".private"} == local
        assert json.loads((repository / ".private").read_text()) is True
        asked = (tmp_path / "hub" / "requests.txt").read_text()
        assert "POST /me/plates.git/info/lfs/objects/batch" in asked
        assert "PUT /lfs/" in asked
        assert 'mim.load_encoder("hf://me/plates")' in (repository / "README.md").read_text()

        reasons = {
            "hf://me/absent": "the hub has no such repository, or it is private",
            "hf://me/plates@v9": "me/plates has no revision v9",
            "hf://me/plates/model.bin": "me/plates has no file model.bin",
        }
        paths = ("hf://me/plates", "hf://me/plates@draft/model.safetensors", "hf-hub:me/plates")
        answers = read(tmp_path, tmp_path / "reader", server, *paths, *reasons)
    for path, reason in reasons.items():
        assert answers[path].startswith(f"{path}: {reason}")
    assert torch.equal(answers[paths[0]], ours)
    assert torch.equal(answers[paths[1]], ours)
    torch.testing.assert_close(answers[paths[2]], ours)

    answers = read(tmp_path, tmp_path / "reader", OFF, "hf://me/plates", "hf://me/other")
    assert torch.equal(answers["hf://me/plates"], ours)
    assert answers["hf://me/other"].startswith("hf://me/other: the hub cannot be reached, and it is not in the cache")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """A folder to push; huggingface_hub has no token."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # other tests are offline
    (tmp_path / "plates").mkdir()
    (tmp_path / "plates" / "README.md").write_text("plates")
    return tmp_path / "plates"


def test_hub_refusals_say_what_to_do_and_leave_the_folder(folder: Path, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(ValueError, match="--push needs a token that may write, and there is none: log in by"):
        hub.push(folder, "me/plates")
    with hub_server(tmp_path / "hub") as server:
        for token, endpoint, reason in (
            ("hf_stranger", server, r"the hub does not know the token \(401\): log in by `hf auth login`, or set"),
            ("hf_reader", server, r"the token may not write there \(403\): it must have the right to write"),
            ("hf_writer", OFF, r"the hub cannot be reached .*: connect, and look at HF_ENDPOINT"),
        ):
            monkeypatch.setenv("HF_TOKEN", token)
            monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
            with pytest.raises(ValueError, match=f"^--push me/plates: {reason}") as error:
                hub.push(folder, "me/plates")
            assert f"Nothing of {folder} is lost" in str(error.value)
            assert token not in str(error.value)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server)
        hub.push(folder, "me/plates", revision="draft")
        with pytest.raises(ValueError, match="it is public: make it private at the hub first, or leave --private out"):
            hub.push(folder, "me/plates", private=True)
    assert (folder / "README.md").read_text() == "plates"
    assert (tmp_path / "hub" / "repositories" / "me" / "plates" / "README.md").read_text() == "plates"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("hf://me/plates", hub.HubPath("me/plates")),
        (Path("hf://me/plates"), hub.HubPath("me/plates")),
        ("hf://me/plates@v1/a/b.pth", hub.HubPath("me/plates", "v1", "a/b.pth")),
        ("hf://me/plates@refs%2Fpr%2F1", hub.HubPath("me/plates", "refs/pr/1")),
    ],
)
def test_hub_paths_are_read(text: str | Path, place: hub.HubPath) -> None:
    assert hub.is_hub_path(text)
    assert hub.HubPath.parse(text) == place


@pytest.mark.parametrize("text", ["hf://plates", "hf://me/", "hf://me/plates@", "hf://me/plates/../other"])
def test_hub_paths_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no place of weights at a hub: write hf://owner/name"):
        hub.HubPath.parse(text)
