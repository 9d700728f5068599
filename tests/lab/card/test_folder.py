"""Folders for a hub: they load with equal features, and their card says what the run folder says."""

import json
import re
import runpy
import shutil
from pathlib import Path

import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard
from processes import tool
from run_folders import real_runs, write_run

from mim import load_encoder
from mim.lab.card import Request, write_folder
from mim.lab.card.facts import as_text
from mim.lab.card.page import table_text


@pytest.fixture(scope="module")
def seeds(tmp_path_factory) -> Path:
    """A run with its checkpoints, and one of another seed and kNN accuracy beside it."""
    folder = tmp_path_factory.mktemp("seeds")
    run = shutil.copytree(real_runs().pretraining, folder / "mae-seed0")
    write_run(folder / "mae-seed1", run, {"SEED": 1}, {"knn/top1": 0.9})
    write_run(folder / "other-seed0", run, {"MASKER.ratio": 0.5})
    return run


def front(folder: Path):
    return ModelCard.load(folder / "README.md").data


@pytest.mark.slow
def test_folder_has_equal_features_in_timm_and_here_and_its_blocks_run(seeds: Path, tmp_path, monkeypatch, capsys):
    lines = write_folder(seeds, tmp_path / "plates", Request("apache-2.0"))
    assert lines[1] == "  as load_encoder reads it: features equal to the bit"
    img_BCHW = torch.randn(2, 1, 32, 32)
    ours = load_encoder(seeds)(img_BCHW).tokens_BND
    assert torch.equal(load_encoder(tmp_path / "plates")(img_BCHW).tokens_BND, ours)
    model = timm.create_model(f"local-dir:{tmp_path / 'plates'}", pretrained=True).eval()
    torch.testing.assert_close(model.forward_features(img_BCHW)[:, 1:], ours)

    card = (tmp_path / "plates" / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 2
    (tmp_path / "block.py").write_text("\n".join(blocks))
    runpy.run_path("block.py")
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "torch.Size([2, 64, 16])",
        "torch.Size([2, 16])",
        "torch.Size([2, 65, 16])",
    ]
    for name in re.findall(r"!\[.*?\]\((.*?)\)", card):
        assert (tmp_path / "plates" / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_card_says_what_the_run_folder_says_with_intervals_over_seeds(seeds: Path, tmp_path: Path) -> None:
    write_folder(seeds, tmp_path / "plates", Request("apache-2.0"))
    card, data = (tmp_path / "plates" / "README.md").read_text(), front(tmp_path / "plates")
    summary = json.loads((seeds / "summary.json").read_text())
    assert "on 1,437 images of `digits`" in card
    assert f"{summary['images_seen']:,} images seen" in card
    assert "Over 2 seeds of this recipe" in card
    assert "Mean, with its 95% interval over 2 seeds" in card
    assert (data.library_name, data.license, data.pipeline_tag) == ("timm", "apache-2.0", "image-feature-extraction")
    (knn,) = [result for result in data.eval_results if result.metric_type == "knn"]
    assert knn.metric_value == pytest.approx(50 * (summary["knn/top1"] + 0.9), abs=1e-3)
    assert "2 seeds" in knn.metric_name
    assert data.model_name == "plates"
    assert "licence that you assume" not in card


@pytest.mark.slow
def test_card_of_one_seed_without_a_licence_says_so_and_names_no_folder_of_the_machine(seeds: Path, tmp_path) -> None:
    run = shutil.copytree(seeds, tmp_path / "alone")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["DATA"]["path"] = "/home/someone/plates"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "log.txt").unlink()
    write_folder(run, tmp_path / "plates", Request())
    texts = [path.read_text() for path in (tmp_path / "plates").iterdir() if path.suffix in (".md", ".yaml", ".json")]
    assert not [text for text in texts if "/home" in text or str(tmp_path) in text]
    card = (tmp_path / "plates" / "README.md").read_text()
    assert "on an unknown number of images of `digits: plates`" in card
    assert "there is one seed, so its figures have no interval over seeds" in card
    assert "none was named for these weights" in card
    assert front(tmp_path / "plates").license is None


@pytest.mark.slow
def test_card_of_a_probe_has_its_scores_with_intervals(tmp_path: Path) -> None:
    write_folder(real_runs().probe, tmp_path / "probe", Request())
    card = (tmp_path / "probe" / "README.md").read_text()
    assert "of a probe on `digits`, without its readout" in card
    summary = json.loads((real_runs().probe / "summary.json").read_text())
    low, high = (100 * end for end in summary["val/top1_interval"])
    assert f"| top-1, % | {100 * summary['val/top1']:.4g} [{low:.4g}, {high:.4g}] |" in card


@pytest.mark.slow
def test_folder_refuses_and_leaves_all_as_it_was(seeds: Path, tmp_path: Path, capsys) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.tex").write_text("mine")
    run = [str(seeds), "--format", "huggingface", "--output"]
    for words, reason in (
        ([*run, str(full)], "holds other files (thesis.tex): name a new folder"),
        ([*run, str(full / "thesis.tex")], "is a file: --format huggingface writes a folder"),
        ([*run, str(tmp_path / "a"), "--private"], "--private and --revision are of --push OWNER/NAME"),
        ([*run, str(tmp_path / "a"), "--features", "pooled"], "--features is of --format program"),
        ([*run, str(tmp_path / "a"), "--push", "plates"], "--push is plates: it has no owner. Write owner/name"),
        ([*run, str(tmp_path / "a"), "--push", "a b/c"], "--push is a b/c: Repo id must use alphanumeric"),
        ([str(seeds), "--output", "a.pt2", "--license", "mit"], "--license is of --format huggingface"),
        ([str(seeds / "checkpoints"), *run[1:], str(tmp_path / "a")], "config.yaml is missing"),
    ):
        assert tool("export").main(words) == 2
        assert reason in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]
    assert (full / "thesis.tex").read_text() == "mine"


def test_card_text_is_escaped_in_tables() -> None:
    assert table_text([("data set", "a|b<c>")]).splitlines()[2] == r"| data set | a\|b&lt;c> |"
    assert as_text({"name": "list", "path": "/home/someone/set", "rates": [1, 0.25]}) == (
        "list (path set, rates [1, 0.25])"
    )
