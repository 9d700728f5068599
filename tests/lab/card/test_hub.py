"""A folder that is pushed to a hub loads from there: by the real huggingface_hub, from a server in another process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import hub_server
from processes import ROOT
from run_folders import real_runs

LOAD = """
import sys, torch, mim
encoder = mim.load_encoder(sys.argv[1])
image = encoder.image
img_BCHW = torch.linspace(-1, 1, 2 * image.channels * image.height * image.width)
img_BCHW = img_BCHW.reshape(2, image.channels, image.height, image.width)
with torch.no_grad():
    torch.save(encoder(img_BCHW).tokens_BND, sys.argv[2])
"""


def process(words: list[object], home: Path, server: str = "", token: str = "") -> subprocess.CompletedProcess:
    """A fresh process with an empty HF_HOME, or one that it filled; without xet, which the server lacks."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment = {
        **kept,
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tools"))),
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(home),
        "HF_ENDPOINT": server or "http://127.0.0.1:9",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **({"HF_TOKEN": token} if token else {}),
    }
    return subprocess.run(
        [sys.executable, *map(str, words)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def export(run: Path, folder: Path, home: Path, server: str, token: str, *words: str) -> subprocess.CompletedProcess:
    tool = ROOT / "tools" / "export.py"
    return process(
        [tool, run, "--format", "huggingface", "--output", folder, "--push", "me/plates", *words], home, server, token
    )


def load(path: str, tmp_path: Path, home: Path, server: str = "") -> torch.Tensor:
    done = process(["-c", LOAD, path, tmp_path / "tokens.pt"], home, server)
    assert done.returncode == 0, done.stderr
    return torch.load(tmp_path / "tokens.pt")


@pytest.mark.slow
def test_hub_push_and_load_through_a_server(tmp_path: Path) -> None:
    run = real_runs().pretraining
    with hub_server(tmp_path / "hub") as server:
        done = export(run, tmp_path / "plates", tmp_path / "writer", server, "hf_writer", "--private")
        assert done.returncode == 0, done.stderr
        assert "hf_writer" not in done.stdout + done.stderr
        assert f"pushed: {server}/me/plates/commit/" in done.stdout
        repository = tmp_path / "hub" / "repositories" / "me" / "plates"
        local = {path.name: path.read_bytes() for path in (tmp_path / "plates").iterdir()}
        assert {path.name: path.read_bytes() for path in repository.iterdir() if path.name != ".private"} == local
        assert json.loads((repository / ".private").read_text()) is True
        asked = (tmp_path / "hub" / "requests.txt").read_text()
        assert "POST /me/plates.git/info/lfs/objects/batch" in asked
        assert "PUT /lfs/" in asked

        ours = load(str(run), tmp_path, tmp_path / "none")
        there = load("hf://me/plates", tmp_path, tmp_path / "reader", server)
        assert torch.equal(there, ours)
        assert torch.equal(load("hf://me/plates@draft/model.safetensors", tmp_path, tmp_path / "reader", server), ours)
        script = f"""import sys, timm, torch
model = timm.create_model("hf-hub:me/plates", pretrained=True).eval()
side = torch.linspace(-1, 1, 2 * 32 * 32).reshape(2, 1, 32, 32)
torch.save(model.forward_features(side)[:, 1:].detach(), "{tmp_path / "timm.pt"}")"""
        done = process(["-c", script], tmp_path / "timm", server)
        assert done.returncode == 0, done.stderr
        torch.testing.assert_close(torch.load(tmp_path / "timm.pt"), ours)

        for path, reason in (
            ("hf://me/absent", "the hub has no such repository, or it is private"),
            ("hf://me/plates@v9", "me/plates has no revision v9"),
            ("hf://me/plates/model.bin", "me/plates has no file model.bin"),
        ):
            done = process(["-c", LOAD, path, tmp_path / "x.pt"], tmp_path / "reader", server)
            assert f"ValueError: {path}: {reason}" in done.stderr

    assert torch.equal(load("hf://me/plates", tmp_path, tmp_path / "reader"), ours)  # the server is off: from the cache
    done = process(["-c", LOAD, "hf://me/plates", tmp_path / "x.pt"], tmp_path / "empty")
    assert "ValueError: hf://me/plates: the hub cannot be reached, and it is not in the cache" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("token", "reason"),
    [
        ("hf_stranger", r"--push me/plates: the hub does not know the token (401): log in by `hf auth login`"),
        ("hf_reader", r"--push me/plates: the token may not write there (403)"),
        ("", "--push needs a token that may write, and there is none"),
        ("hf_writer", "--push me/plates: the hub cannot be reached"),
    ],
)
def test_hub_refusals_say_what_to_do_and_leave_the_folder(tmp_path: Path, token: str, reason: str) -> None:
    run = real_runs().pretraining
    with hub_server(tmp_path / "hub") as server:
        reachable = "" if token == "hf_writer" else server
        done = export(run, tmp_path / "plates", tmp_path / "home", reachable, token)
    assert done.returncode == 2, done.stderr
    assert f"error: {reason}" in done.stderr
    assert not token or token not in done.stdout + done.stderr
    assert (tmp_path / "plates" / "model.safetensors").exists() == bool(token)
